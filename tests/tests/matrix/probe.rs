//! One connection, or one datagram and its answer, and how that ends.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
            sockopt::{Ipv4RecvErr, Ipv6RecvErr, SendTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use portmap_tests::service::{Transport, any};

/// From here on an error counts as one that came after a wait: the kernel gives up a neighbour after three seconds,
/// and tries SYN again after one.
const LATE: Duration = Duration::from_secs(2);

/// What one client tries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// The protocol.
    pub(crate) transport: Transport,
    /// The source, unless the kernel chooses it.
    pub(crate) source: Option<IpAddr>,
    /// The destination.
    pub(crate) to: SocketAddr,
    /// Whether it is to an address of the host.
    pub(crate) is_inward: bool,
}

/// How it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A service answers.
    Answer {
        /// The name of the service.
        from: String,
        /// The client's address as the service saw it.
        seen: IpAddr,
        /// The address from which the answer came.
        answered_from: IpAddr,
        /// The MTU of the way there, as the client's socket reports it.
        mtu: i32,
    },
    /// The client gets an error.
    Error {
        /// Its number.
        error: Errno,
        /// Whether it came after a wait.
        is_late: bool,
    },
    /// Nothing happens.
    Silence,
}

impl Probe {
    /// Tries it in the calling thread's namespace.
    pub(crate) fn run(self, patience: Duration) -> Outcome {
        let start = Instant::now();
        let result = match self.transport {
            Transport::Tcp => self.tcp(patience),
            Transport::Udp => self.udp(patience),
        };
        result.unwrap_or_else(|error| {
            let number = Errno::from_raw(error.raw_os_error().unwrap_or_default());
            match number {
                Errno::EAGAIN | Errno::EINPROGRESS | Errno::ETIMEDOUT => Outcome::Silence,
                error => Outcome::Error { error, is_late: start.elapsed() >= LATE },
            }
        })
    }

    fn tcp(self, patience: Duration) -> io::Result<Outcome> {
        let family = if self.to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if let Some(source) = self.source {
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
        }
        let limit = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&socket, SendTimeout, &limit)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(self.to))?;
        let mtu = mtu(&socket, self.to)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(patience))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        answer(&text, self.to, mtu)
    }

    /// Sends a datagram. The services of the host and the container are on all addresses, and answer from the one
    /// that their routes prefer, which a connected socket would not accept. Clients of the machines outside are
    /// connected, because only connected sockets get errors of the network.
    fn udp(self, patience: Duration) -> io::Result<Outcome> {
        let own = self.source.map_or_else(|| any(self.to, 0), |source| SocketAddr::new(source, 0));
        let socket = UdpSocket::bind(own)?;
        socket.set_read_timeout(Some(patience))?;
        let probe = UdpSocket::bind(own)?;
        probe.connect(self.to)?;
        let mtu = mtu(&OwnedFd::from(probe), self.to)?;
        if self.is_inward {
            socket.send_to(b"?", self.to)?;
        } else {
            socket.connect(self.to)?;
            // Otherwise a datagram socket gets only some of the errors.
            if self.to.is_ipv4() {
                setsockopt(&socket, Ipv4RecvErr, &true)?;
            } else {
                setsockopt(&socket, Ipv6RecvErr, &true)?;
            }
            socket.send(b"?")?;
        }
        let mut buffer = [0; 128];
        let (length, from) = socket.recv_from(&mut buffer)?;
        answer(&String::from_utf8_lossy(&buffer[..length]), from, mtu)
    }
}

/// The MTU of a connected socket's route.
fn mtu(socket: &OwnedFd, to: SocketAddr) -> io::Result<i32> {
    let (level, option) =
        if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mut mtu = 0;
    let mut length: libc::socklen_t = 4;
    // SAFETY: the socket is open, and the pointers are to a number of the given length and to that length.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut length)
    };
    if result == 0 { Ok(mtu) } else { Err(io::Error::last_os_error()) }
}

fn answer(text: &str, from: SocketAddr, mtu: i32) -> io::Result<Outcome> {
    let parsed = text.rsplit_once(' ').and_then(|(name, client)| {
        let seen = client.parse::<SocketAddr>().ok()?.ip().to_canonical();
        Some(Outcome::Answer { from: name.to_owned(), seen, answered_from: from.ip(), mtu })
    });
    parsed.ok_or_else(|| io::Error::other(format!("cannot parse the answer {text:?}")))
}
