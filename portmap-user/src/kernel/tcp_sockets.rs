//! TCP sockets of the calling thread's network namespace with their measurements.

use std::{io, ops::ControlFlow, time::Instant};

pub use super::sock_diag::Ended;
use super::sock_diag::{BOUND_INACTIVE, Response, SockDiag, array, port_filter};
use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
    model::{PortRange, TcpInfo, TcpSocket, TcpState},
};

/// `TCPDIAG_GETSOCK` (`linux/inet_diag.h`), the type of requests for TCP sockets of all address families,
/// which is one walk through the kernel's tables instead of two.
const TCPDIAG_GETSOCK: u16 = 18;
/// `INET_DIAG_INFO`, the attribute with a `struct tcp_info`.
const INFO: u16 = 2;

/// Which TCP sockets to visit.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Their states.
    pub states: &'a [TcpState],
    /// Only those with a local port in this range.
    pub ports: Option<PortRange>,
    /// Whether to read their measurements, too.
    pub info: bool,
}

impl Query<'_> {
    /// All sockets with their measurements.
    pub const ALL: Self = Self { states: &TcpState::ALL, ports: None, info: true };

    /// The body of the request: a `struct inet_diag_req` and the filter.
    fn body(self) -> Vec<u8> {
        let extensions = if self.info { 1 << (INFO - 1) } else { 0 };
        // The family and lengths of prefixes, which the kernel ignores.
        let mut body = vec![0, 0, 0, extensions];
        // `struct inet_diag_sockid`, unused in a dump.
        body.extend([0; 48]);
        body.extend(states(self.states).to_ne_bytes());
        // `idiag_dbs`, which the kernel ignores.
        body.extend([0; 4]);
        if let Some(range) = self.ports {
            body.extend(port_filter(range));
        }
        body
    }
}

/// Visits TCP sockets, IPv4 and IPv6, until the visitor breaks off or the deadline passes.
///
/// A socket is handed over as soon as the kernel reports it, so the number of sockets is unbounded. Sockets that
/// open or close meanwhile may be missing.
///
/// # Errors
///
/// If the kernel has no `sock_diag` for TCP.
pub fn visit(
    query: Query<'_>,
    deadline: Instant,
    mut visitor: impl FnMut(&TcpSocket) -> ControlFlow<()>,
) -> Result<Ended> {
    let doing = || "cannot list TCP sockets";
    failpoint::hit("list TCP sockets").context(doing)?;
    each_tcp(query, deadline, |response| {
        tcp_socket(&response).map_or(ControlFlow::Continue(()), |s| visitor(&s))
    })
    .context(doing)
}

fn each_tcp(
    query: Query<'_>,
    deadline: Instant,
    mut visit: impl FnMut(Response<'_>) -> ControlFlow<()>,
) -> io::Result<Ended> {
    SockDiag::open()?.dump(TCPDIAG_GETSOCK, &query.body(), Some(deadline), |body| {
        Response::new(body).map_or(ControlFlow::Continue(()), &mut visit)
    })
}

/// A set of states in the kernel's form.
fn states(states: &[TcpState]) -> u32 {
    let number =
        |state| (1_u32..).zip(TcpState::ALL).find(|(_, known)| *known == state).map_or(0, |(n, _)| n);
    states.iter().fold(0, |set, state| {
        let in_requests = match *state {
            // Connection requests that the kernel answers without a full socket have a state of their own in a
            // request, and that of `SYN_RECV` in the response.
            TcpState::SynReceived => 1 << 12,
            TcpState::Close => BOUND_INACTIVE,
            _ => 0,
        };
        set | in_requests | 1 << number(*state)
    })
}

fn tcp_socket(response: &Response<'_>) -> Option<TcpSocket> {
    let state = *TcpState::ALL.get(usize::from(response.state()).checked_sub(1)?)?;
    Some(TcpSocket {
        local: response.local(),
        remote: response.remote(),
        state,
        uid: response.uid(),
        inode: response.inode(),
        receive_queue: response.receive_queue(),
        send_queue: response.send_queue(),
        info: response.attribute(INFO).map(tcp_info),
    })
}

/// Parses a `struct tcp_info` (`linux/tcp.h`), which ends earlier on older kernels.
fn tcp_info(value: &[u8]) -> TcpInfo {
    let word = |at| u32::from_ne_bytes(array(value, at));
    let double = |at| u64::from_ne_bytes(array(value, at));
    TcpInfo {
        lost: word(32),
        rtt: word(68),
        rtt_variance: word(72),
        congestion_window: word(80),
        retransmits: word(100),
        bytes_acknowledged: double(120),
        bytes_received: double(128),
        segments_sent: word(136),
        segments_received: word(140),
        min_rtt: word(148),
        delivery_rate: double(160),
        bytes_sent: double(200),
        bytes_retransmitted: double(208),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd as _,
        time::Duration,
    };

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    fn one(port: u16) -> PortRange {
        PortRange::new(port, port).expect("a range")
    }

    /// The sockets of a port.
    fn sockets(query: Query<'_>) -> Vec<TcpSocket> {
        let mut found = Vec::new();
        let ended = visit(query, soon(), |socket| {
            found.push(socket.clone());
            ControlFlow::Continue(())
        });
        assert_eq!(ended.expect("an answer"), Ended::Complete);
        found
    }

    #[test]
    fn tcp_sockets_have_addresses_states_and_measurements() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("a port");
            let server = listener.local_addr().expect("an address");
            let mut client = TcpStream::connect(server).expect("a connection");
            let (mut accepted, _) = listener.accept().expect("a connection");
            client.write_all(&[0; 3000]).expect("sent");
            accepted.read_exact(&mut [0; 2000]).expect("received");
            let local = client.local_addr().expect("an address");
            let all = Query { ports: Some(one(server.port())), ..Query::ALL };
            let found = sockets(all);
            assert_eq!(found.len(), 2, "{found:?}");
            let of = |state| found.iter().find(|socket| socket.state == state).expect("a socket");
            let (listening, connected) = (of(TcpState::Listen), of(TcpState::Established));
            assert_eq!((listening.local, listening.remote.port()), (server, 0));
            assert_eq!((connected.local, connected.remote), (server, local));
            assert_eq!(connected.receive_queue, 1000);
            assert_ne!((connected.inode, listening.inode), (0, 0));
            assert_eq!(connected.uid, nix::unistd::getuid().as_raw());
            let info = connected.info.expect("measurements");
            assert_eq!((info.bytes_received, info.bytes_sent, info.retransmits), (3000, 0, 0));
            let sender = sockets(Query { ports: Some(one(local.port())), ..Query::ALL });
            let info = sender[0].info.expect("measurements");
            assert_eq!((info.bytes_sent, info.bytes_acknowledged >= 3000), (3000, true));
            assert!(info.rtt > 0 && info.congestion_window > 0 && info.segments_sent >= 2, "{info:?}");
            let listeners = Query { states: &[TcpState::Listen], info: false, ..all };
            let found = sockets(listeners);
            assert_eq!((found.len(), found[0].info), (1, None));
        }
    }

    #[test]
    fn tcp_sockets_visit_stops_on_request_and_at_the_deadline() {
        let _listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let mut seen = 0;
        let ended = visit(Query::ALL, soon(), |_| {
            seen += 1;
            ControlFlow::Break(())
        });
        assert_eq!((ended.expect("an answer"), seen), (Ended::Stopped, 1));
        let ended = visit(Query::ALL, Instant::now(), |_| panic!("the deadline has passed"));
        assert_eq!(ended.expect("an answer"), Ended::TimedOut);
    }

    #[test]
    fn tcp_sockets_that_are_only_bound_have_a_port() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
        let bound = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).expect("a socket");
        bind(bound.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a port");
        let port = getsockname::<SockaddrIn>(bound.as_raw_fd()).expect("an address").port();
        let found = sockets(Query { ports: Some(one(port)), ..Query::ALL });
        let states: Vec<TcpState> = found.iter().map(|socket| socket.state).collect();
        let is_listed = crate::kernel::sockets::is_any_in(one(port)).expect("an answer");
        // Kernels before 6.8 do not list them.
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
        let mut version = release.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
        let expected = (version.next(), version.next()) >= (Some(6), Some(8));
        assert_eq!((states, is_listed), (vec![TcpState::Close; usize::from(expected)], expected));
    }

    #[test]
    fn tcp_sockets_in_time_wait_keep_their_port() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        let port = client.local_addr().expect("an address").port();
        // The side that closes first keeps the port.
        drop(client);
        drop(listener.accept().expect("a connection"));
        let query = Query { ports: Some(one(port)), ..Query::ALL };
        let left = || sockets(query).iter().map(|socket| (socket.state, socket.inode)).collect::<Vec<_>>();
        while left() != [(TcpState::TimeWait, 0)] {
            std::thread::yield_now();
        }
    }
}
