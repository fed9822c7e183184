//! UDP sockets of the calling thread's network namespace, and their peers.

use std::{io::ErrorKind, net::SocketAddr, ops::ControlFlow, time::Instant};

use nix::libc::{AF_INET, AF_INET6, IPPROTO_UDP};

use super::sock_diag::{Ended, Response, SOCK_DIAG_BY_FAMILY, SockDiag, port_filter, request_v2};
use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
    model::PortRange,
};

/// A UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpSocket {
    /// Its own address and port.
    pub local: SocketAddr,
    /// The peer to which it is connected, if it is.
    pub remote: Option<SocketAddr>,
}

/// Visits UDP sockets, IPv4 and IPv6, until the deadline passes: all, or those with a local port in a range.
///
/// # Errors
///
/// If the kernel refuses the list. A kernel without `sock_diag` for UDP has none.
pub fn visit(
    ports: Option<PortRange>,
    deadline: Instant,
    mut visitor: impl FnMut(UdpSocket),
) -> Result<Ended> {
    let doing = || "cannot list UDP sockets";
    failpoint::hit("list UDP sockets").context(doing)?;
    let mut netlink = SockDiag::open().context(doing)?;
    for family in [AF_INET, AF_INET6] {
        // In any state.
        let mut body = request_v2(family, IPPROTO_UDP, u32::MAX);
        body.extend(ports.map(port_filter).unwrap_or_default());
        let ended = netlink.dump(SOCK_DIAG_BY_FAMILY, &body, Some(deadline), |body| {
            if let Some(response) = Response::new(body)
                // A kernel that ignores the filter returns others, too.
                && ports.is_none_or(|ports| ports.contains(response.local_port()))
            {
                let remote = Some(response.remote()).filter(|remote| remote.port() != 0);
                visitor(UdpSocket { local: response.local(), remote });
            }
            ControlFlow::Continue(())
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

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    #[test]
    fn udp_sockets_have_the_peers_to_which_they_are_connected() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = net::UdpSocket::bind(address).expect("a port");
            let client = net::UdpSocket::bind(address).expect("a port");
            let local = |socket: &net::UdpSocket| socket.local_addr().expect("an address");
            client.connect(local(&server)).expect("connected");
            let mut found = Vec::new();
            let ended = visit(None, soon(), |socket| found.push(socket));
            assert_eq!(ended.expect("an answer"), Ended::Complete);
            let of = |socket| found.iter().find(|found| found.local == local(socket)).expect("it is listed");
            assert_eq!(of(&client).remote, Some(local(&server)));
            assert_eq!(of(&server).remote, None);
        }
    }

    #[test]
    fn udp_sockets_are_found_by_port() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = net::UdpSocket::bind(address).expect("a port");
            let port = socket.local_addr().expect("an address").port();
            let uses = || {
                let mut seen = Vec::new();
                let range = PortRange::new(port, port);
                let ended = visit(range, soon(), |socket| seen.push(socket.local.port()));
                assert_eq!(ended.expect("an answer"), Ended::Complete);
                seen
            };
            assert_eq!(uses(), [port]);
            drop(socket);
            assert_eq!(uses(), [0; 0]);
        }
    }
}
