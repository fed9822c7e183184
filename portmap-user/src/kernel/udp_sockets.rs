//! UDP sockets of the calling thread's network namespace, and their peers.

use std::{io::ErrorKind, net::SocketAddr, time::Instant};

use nix::libc::{AF_INET, AF_INET6, IPPROTO_UDP};

use super::sock_diag::{Ended, Response, SOCK_DIAG_BY_FAMILY, SockDiag};
use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
};

/// A UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpSocket {
    /// Its own address and port.
    pub local: SocketAddr,
    /// The peer to which it is connected, if it is.
    pub remote: Option<SocketAddr>,
}

/// Visits all UDP sockets, IPv4 and IPv6, until the deadline passes.
///
/// # Errors
///
/// If the kernel refuses the list. A kernel without `sock_diag` for UDP has none.
pub fn visit(deadline: Instant, mut visitor: impl FnMut(UdpSocket)) -> Result<Ended> {
    let doing = || "cannot list UDP sockets";
    failpoint::hit("list UDP sockets").context(doing)?;
    let mut netlink = SockDiag::open().context(doing)?;
    for family in [AF_INET, AF_INET6] {
        // A `struct inet_diag_req_v2` for sockets in any state.
        let mut body: Vec<u8> =
            [family, IPPROTO_UDP].iter().filter_map(|&word| u8::try_from(word).ok()).collect();
        body.extend([0; 2]);
        body.extend(u32::MAX.to_ne_bytes());
        body.extend([0; 48]);
        let ended = netlink.dump(SOCK_DIAG_BY_FAMILY, &body, Some(deadline), |body| {
            if let Some(response) = Response::new(body) {
                let remote = Some(response.remote()).filter(|remote| remote.port() != 0);
                visitor(UdpSocket { local: response.local(), remote });
            }
            std::ops::ControlFlow::Continue(())
        });
        match ended {
            Ok(Ended::Complete) => {}
            // The kernel's module for UDP is not there and cannot be loaded.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => return other.context(doing),
        }
    }
    Ok(Ended::Complete)
}

#[cfg(test)]
mod tests {
    use std::{net, time::Duration};

    use super::*;

    #[test]
    fn udp_sockets_have_the_peers_to_which_they_are_connected() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = net::UdpSocket::bind(address).expect("a port");
            let client = net::UdpSocket::bind(address).expect("a port");
            let local = |socket: &net::UdpSocket| socket.local_addr().expect("an address");
            client.connect(local(&server)).expect("connected");
            let mut found = Vec::new();
            let deadline = Instant::now() + Duration::from_mins(1);
            assert_eq!(visit(deadline, |socket| found.push(socket)).expect("an answer"), Ended::Complete);
            let of = |socket| found.iter().find(|found| found.local == local(socket)).expect("it is listed");
            assert_eq!(of(&client).remote, Some(local(&server)));
            assert_eq!(of(&server).remote, None);
        }
    }
}
