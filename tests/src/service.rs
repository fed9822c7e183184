//! Services that say who they are and who they see, and clients that ask them.

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
    sandbox::{Place, Sandbox},
    wait,
};

/// How long a client waits before it takes a packet for lost. Nothing in a sandbox is slower than this.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long a client waits for an answer that must come, even on an emulated machine that is busy.
const LONG_PATIENCE: Duration = wait::LIMIT;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a client learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name of the service that answered.
    pub from: String,
    /// The client's address as the service saw it; an IPv4 address as such, whatever kind of socket saw it.
    pub client: SocketAddr,
    /// The client's address as it knows itself.
    pub own: SocketAddr,
}

/// A service on one port; it ends when this is dropped.
#[derive(Debug)]
pub struct Service {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts a service called `name` on all addresses of a place. Like most servers it has one IPv6 socket, to
    /// which IPv4 clients come with IPv4-mapped addresses.
    pub fn start(sandbox: &Sandbox, place: Place<'_>, transport: Transport, port: u16, name: &str) -> Self {
        Self::start_on(sandbox, place, transport, (Ipv6Addr::UNSPECIFIED, port), name)
    }

    /// Starts a service called `name` on one address of a place.
    pub fn start_on(
        sandbox: &Sandbox,
        place: Place<'_>,
        transport: Transport,
        address: impl Into<SocketAddr>,
        name: &str,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name, address) = (stop.clone(), name.to_owned(), address.into());
        let thread = match transport {
            Transport::Tcp => {
                let listener =
                    sandbox.inside(place, || bound(|| TcpListener::bind(address))).expect("the port is free");
                listener.set_nonblocking(true).expect("a socket");
                thread::spawn(move || serve_tcp(&listener, &name, &stopped))
            }
            Transport::Udp => {
                let socket =
                    sandbox.inside(place, || bound(|| UdpSocket::bind(address))).expect("the port is free");
                socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
                thread::spawn(move || serve_udp(&socket, &name, &stopped))
            }
        };
        Self { stop, thread: Some(thread) }
    }

    /// Starts a TCP and a UDP service.
    pub fn both(sandbox: &Sandbox, place: Place<'_>, port: u16, name: &str) -> [Self; 2] {
        [Transport::Tcp, Transport::Udp].map(|transport| Self::start(sandbox, place, transport, port, name))
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
            Err(_nobody) => thread::sleep(Duration::from_millis(2)),
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

/// Asks whoever answers at `to` from a port that the place's own stack chooses.
pub fn ask(
    sandbox: &Sandbox,
    place: Place<'_>,
    transport: Transport,
    to: impl Into<SocketAddr>,
) -> io::Result<Answer> {
    let to = to.into();
    sandbox.inside(place, || match transport {
        Transport::Tcp => ask_tcp(to, LONG_PATIENCE),
        Transport::Udp => ask_udp(0, to, LONG_PATIENCE),
    })
}

/// Asks like [`ask`], but expects no answer and does not wait as long for it.
pub fn ask_in_vain(
    sandbox: &Sandbox,
    place: Place<'_>,
    transport: Transport,
    to: impl Into<SocketAddr>,
) -> io::Error {
    let to = to.into();
    let answer = sandbox.inside(place, || match transport {
        Transport::Tcp => ask_tcp(to, PATIENCE),
        Transport::Udp => ask_udp(0, to, PATIENCE),
    });
    answer.expect_err("nobody was to answer")
}

/// Asks by UDP from the port `from`.
pub fn ask_from(
    sandbox: &Sandbox,
    place: Place<'_>,
    from: u16,
    to: impl Into<SocketAddr>,
) -> io::Result<Answer> {
    let to = to.into();
    sandbox.inside(place, || ask_udp(from, to, LONG_PATIENCE))
}

/// Sends one UDP packet from the port `from` and expects no answer.
pub fn send_from(sandbox: &Sandbox, place: Place<'_>, from: u16, to: impl Into<SocketAddr>) {
    let to = to.into();
    sandbox.inside(place, || {
        let socket = bound(|| UdpSocket::bind(any(to, from))).expect("the port is free");
        socket.send_to(b"?", to).expect("sent")
    });
}

/// The port on all addresses of the family of `to`.
pub fn any(to: SocketAddr, port: u16) -> SocketAddr {
    if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, port).into() } else { (Ipv6Addr::UNSPECIFIED, port).into() }
}

/// A socket that is bound as soon as its port is free: that of one that was closed just now need not be, because a program
/// that another thread starts has a copy of every socket of this process until it runs.
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
    // Not connected: a service on all addresses answers from the one that its routes prefer.
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer)?;
    // The address that this stack prefers for the destination.
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
        .ok_or_else(|| io::Error::other(format!("an answer that makes no sense: {text:?}")))?;
    Ok(Answer { from, client: plain(client), own: plain(own) })
}
