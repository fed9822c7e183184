//! Services that reply with their name and the client's address, and clients for them.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    sandbox::{Netns, Sandbox},
    wait,
};

/// Time after which a client considers a packet lost. Nothing in a sandbox is slower.
const LOSS_TIMEOUT: Duration = Duration::from_millis(1500);
/// Timeout for a reply that must arrive, even on a busy emulated machine.
const REPLY_TIMEOUT: Duration = wait::LIMIT;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A reply as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Name of the service.
    pub from: String,
    /// Client address as the service saw it, with IPv4-mapped addresses converted to IPv4.
    pub client: SocketAddr,
    /// Client address as the client's own socket reports it.
    pub own: SocketAddr,
}

/// A service on one port; it stops on drop.
#[derive(Debug)]
pub struct Service {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts a service called `name` on all addresses of a namespace. Like most servers it has one IPv6
    /// socket, where IPv4 clients appear with IPv4-mapped addresses.
    pub fn start(sandbox: &Sandbox, netns: Netns<'_>, transport: Transport, port: u16, name: &str) -> Self {
        Self::start_on(sandbox, netns, transport, (Ipv6Addr::UNSPECIFIED, port), name)
    }

    /// Starts a service called `name` on one address of a namespace.
    pub fn start_on(
        sandbox: &Sandbox,
        netns: Netns<'_>,
        transport: Transport,
        address: impl Into<SocketAddr>,
        name: &str,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name, address) = (stop.clone(), name.to_owned(), address.into());
        let thread = match transport {
            Transport::Tcp => {
                let listener =
                    sandbox.inside(netns, || bound(|| TcpListener::bind(address))).expect("the port is free");
                listener.set_nonblocking(true).expect("a socket");
                thread::spawn(move || serve_tcp(&listener, &name, &stopped))
            }
            Transport::Udp => {
                let socket =
                    sandbox.inside(netns, || bound(|| UdpSocket::bind(address))).expect("the port is free");
                socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
                thread::spawn(move || serve_udp(&socket, &name, &stopped))
            }
        };
        Self { stop, thread: Some(thread) }
    }

    /// Starts a TCP and a UDP service.
    pub fn both(sandbox: &Sandbox, netns: Netns<'_>, port: u16, name: &str) -> [Self; 2] {
        [Transport::Tcp, Transport::Udp].map(|transport| Self::start(sandbox, netns, transport, port, name))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, client)) => {
                let _ = write!(stream, "{name} {client}");
            }
            Err(_no_client) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {client}").as_bytes(), client);
        }
    }
}

/// Sends a request to `to` from an ephemeral port of the namespace, and returns the reply.
pub fn ask(
    sandbox: &Sandbox,
    netns: Netns<'_>,
    transport: Transport,
    to: impl Into<SocketAddr>,
) -> io::Result<Answer> {
    let to = to.into();
    sandbox.inside(netns, || match transport {
        Transport::Tcp => ask_tcp(to, REPLY_TIMEOUT),
        Transport::Udp => ask_udp(0, to, REPLY_TIMEOUT),
    })
}

/// Sends a request like [`ask`], and returns the error that it must end with. Waits a shorter time.
pub fn expect_no_reply(
    sandbox: &Sandbox,
    netns: Netns<'_>,
    transport: Transport,
    to: impl Into<SocketAddr>,
) -> io::Error {
    let to = to.into();
    let answer = sandbox.inside(netns, || match transport {
        Transport::Tcp => ask_tcp(to, LOSS_TIMEOUT),
        Transport::Udp => ask_udp(0, to, LOSS_TIMEOUT),
    });
    answer.expect_err("no service must answer")
}

/// Sends a UDP request from the port `from`.
pub fn ask_from(
    sandbox: &Sandbox,
    netns: Netns<'_>,
    from: u16,
    to: impl Into<SocketAddr>,
) -> io::Result<Answer> {
    let to = to.into();
    sandbox.inside(netns, || ask_udp(from, to, REPLY_TIMEOUT))
}

/// Sends one UDP packet from the port `from`, without waiting for a reply.
pub fn send_from(sandbox: &Sandbox, netns: Netns<'_>, from: u16, to: impl Into<SocketAddr>) {
    let to = to.into();
    sandbox.inside(netns, || {
        let socket = bound(|| UdpSocket::bind(any(to, from))).expect("the port is free");
        socket.send_to(b"?", to).expect("sent")
    });
}

/// Returns the wildcard address of the family of `to`, with a port.
pub fn any(to: SocketAddr, port: u16) -> SocketAddr {
    if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, port).into() } else { (Ipv6Addr::UNSPECIFIED, port).into() }
}

/// Binds a socket, retrying while the port is in use. The port of a socket that was just closed can still
/// be taken, because a child process that another thread has forked holds a copy of every descriptor until
/// it calls `exec`.
fn bound<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    wait::for_value("the port to be free", || {
        let socket = bind();
        let is_in_use = socket.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
        (!is_in_use).then_some(socket)
    })
}

fn ask_tcp(to: SocketAddr, patience: Duration) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    answer(&text, stream.local_addr()?)
}

fn ask_udp(from: u16, to: SocketAddr, patience: Duration) -> io::Result<Answer> {
    let socket = bound(|| UdpSocket::bind(any(to, from)))?;
    socket.set_read_timeout(Some(patience))?;
    socket.send_to(b"?", to)?;
    // Not connected, because a service on all addresses replies from the address that its routes prefer.
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer)?;
    // The source address that this stack selects for the destination.
    let probe = UdpSocket::bind(any(to, 0))?;
    probe.connect(to)?;
    let own = SocketAddr::new(probe.local_addr()?.ip(), socket.local_addr()?.port());
    answer(&String::from_utf8_lossy(&buffer[..length]), own)
}

fn answer(text: &str, own: SocketAddr) -> io::Result<Answer> {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (from, client) = text
        .rsplit_once(' ')
        .and_then(|(from, client)| Some((from.to_owned(), client.parse().ok()?)))
        .ok_or_else(|| io::Error::other(format!("cannot parse the answer {text:?}")))?;
    Ok(Answer { from, client: plain(client), own: plain(own) })
}
