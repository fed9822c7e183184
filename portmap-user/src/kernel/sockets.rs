//! Sockets of the calling thread's network namespace, and the processes that hold them.
//!
//! `sock_diag` filters sockets by a port range in the kernel. Where the kernel lacks it, the lists in
//! `/proc/net` are read completely.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
};

use nix::libc::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE};

use super::sock_diag::{
    BOUND_INACTIVE, Ended, Response, SOCK_DIAG_BY_FAMILY, SockDiag, port_filter, request_v2,
};
use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
    model::PortRange,
};

/// A socket bound to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Name of its protocol.
    pub protocol: &'static str,
    /// Its address; unspecified if it is bound to all.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its inode number, which identifies it; 0 if no process holds it any more.
    pub inode: u64,
    /// Whether it is listening, or a datagram socket without a peer.
    pub listens: bool,
    /// Its peer, if it is connected and the kernel reports the peer.
    pub peer: Option<SocketAddr>,
}

impl Socket {
    /// Whether it is a TCP socket.
    pub fn is_tcp(&self) -> bool {
        self.protocol == TCP
    }
}

/// Name of a protocol.
const TCP: &str = "TCP";
/// States of TCP sockets in use (`net/tcp_states.h`): all but `TIME_WAIT` and `CLOSE`.
const TCP_STATES: u32 =
    1 << ESTABLISHED | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << LISTEN | 1 << 11;
/// States of datagram sockets: connected and unconnected.
const DATAGRAM_STATES: u32 = 1 << ESTABLISHED | 1 << CLOSE;
const TIME_WAIT: u8 = 6;
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// A protocol whose sockets are listed.
#[derive(Clone, Copy)]
struct Protocol {
    name: &'static str,
    number: i32,
    states: u32,
    /// State of sockets that are listening, or have no peer.
    listening: u8,
    /// Files in `/proc/net`, for IPv4 and IPv6.
    files: [&'static str; 2],
}

const PROTOCOLS: [Protocol; 3] = [
    Protocol {
        name: TCP,
        number: IPPROTO_TCP,
        states: TCP_STATES,
        listening: LISTEN,
        files: ["tcp", "tcp6"],
    },
    Protocol {
        name: "UDP",
        number: IPPROTO_UDP,
        states: DATAGRAM_STATES,
        listening: CLOSE,
        files: ["udp", "udp6"],
    },
    Protocol {
        name: "UDP-Lite",
        number: IPPROTO_UDPLITE,
        states: DATAGRAM_STATES,
        listening: CLOSE,
        files: ["udplite", "udplite6"],
    },
];

/// Lists the sockets whose local port is in `range`.
pub fn in_range(range: PortRange) -> Result<Vec<Socket>> {
    let doing = || "cannot list the host's sockets";
    failpoint::hit("look at sockets").context(doing)?;
    let mut found = Vec::new();
    for protocol in &PROTOCOLS {
        let asked = ask(protocol, range, |socket| {
            found.push(socket);
            ControlFlow::Continue(())
        });
        match asked {
            // The kernel lacks the protocol, or its `sock_diag` module cannot be loaded.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                read_lists(protocol, range, &mut found).context(doing)?;
            }
            other => other.context(doing)?,
        }
    }
    read_endpoints(range, &mut found).context(doing)?;
    Ok(found)
}

/// Whether a socket has its local port in `range`, or had it and waits in `TIME_WAIT`.
pub fn is_any_in(range: PortRange) -> Result<bool> {
    let doing = || "cannot list sockets";
    failpoint::hit("look for sockets").context(doing)?;
    let mut found = Vec::new();
    for protocol in &PROTOCOLS {
        // Datagram sockets have no such states.
        let more = if protocol.number == IPPROTO_TCP { 1 << TIME_WAIT | BOUND_INACTIVE } else { 0 };
        let protocol = Protocol { states: protocol.states | more, ..*protocol };
        let mut is_used = false;
        let asked = ask(&protocol, range, |_socket| {
            is_used = true;
            ControlFlow::Break(())
        });
        match asked {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                read_lists(&protocol, range, &mut found).context(doing)?;
            }
            other => other.context(doing)?,
        }
        if is_used || !found.is_empty() {
            return Ok(true);
        }
    }
    read_endpoints(range, &mut found).context(doing)?;
    Ok(!found.is_empty() || has_association(range).context(doing)?)
}

/// Whether an SCTP association has its local port in `range`. One that was begun from here has no endpoint in
/// the list of those that listen.
fn has_association(range: PortRange) -> io::Result<bool> {
    /// `LPORT` in a line of `sctp_assocs_seq_show`.
    const LOCAL_PORT: usize = 11;
    let text = lines_of("sctp/assocs")?;
    let mut ports =
        text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(LOCAL_PORT)?.parse().ok());
    Ok(ports.any(|port| range.contains(port)))
}

/// Passes a protocol's sockets to `visit` until that breaks off, by `sock_diag`.
fn ask(
    protocol: &Protocol,
    range: PortRange,
    mut visit: impl FnMut(Socket) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut netlink = SockDiag::open()?;
    for family in [AF_INET, AF_INET6] {
        let mut question = request_v2(family, protocol.number, protocol.states);
        question.extend(port_filter(range));
        let ended = netlink.dump(SOCK_DIAG_BY_FAMILY, &question, None, |body| {
            if let Some(answer) = Response::new(body) {
                let local = answer.local();
                // A kernel that ignores the filter returns others, too.
                if range.contains(local.port()) {
                    return visit(Socket {
                        protocol: protocol.name,
                        address: local.ip(),
                        port: local.port(),
                        inode: answer.inode().into(),
                        listens: answer.state() == protocol.listening,
                        peer: (answer.state() != protocol.listening).then(|| answer.remote()),
                    });
                }
            }
            ControlFlow::Continue(())
        })?;
        if matches!(ended, Ended::Stopped) {
            break;
        }
    }
    Ok(())
}

/// Lists a protocol's sockets from `/proc/net`.
fn read_lists(protocol: &Protocol, range: PortRange, found: &mut Vec<Socket>) -> io::Result<()> {
    for file in protocol.files {
        for line in lines_of(file)?.lines().skip(1) {
            let Some((socket, state)) = listed(protocol, line) else { continue };
            if range.contains(socket.port) && protocol.states & (1 << state) != 0 {
                found.push(socket);
            }
        }
    }
    Ok(())
}

/// Reads a file in `/proc/net`; empty if the kernel lacks the protocol.
fn lines_of(file: &str) -> io::Result<String> {
    match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

/// Parses a line of such a file (`tcp4_seq_show`) into a socket and its state.
fn listed(protocol: &Protocol, line: &str) -> Option<(Socket, u8)> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    // 32-bit words in native byte order.
    let mut bytes = Vec::new();
    for start in (0..address.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(address.get(start..start + 8)?, 16).ok()?.to_ne_bytes());
    }
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical(),
    };
    let listens = state == protocol.listening;
    Some((Socket { protocol: protocol.name, address, port, inode, listens, peer: None }, state))
}

/// Lists bound SCTP sockets from `/proc/net`, because `sock_diag` would make the kernel load a module.
fn read_endpoints(range: PortRange, found: &mut Vec<Socket>) -> io::Result<()> {
    for line in lines_of("sctp/eps")?.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, _, _, port, _, inode, addresses @ ..] = fields.as_slice() else { continue };
        let (Ok(port), Ok(inode)) = (port.parse(), inode.parse()) else { continue };
        if !range.contains(port) {
            continue;
        }
        for address in addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
            let address = address.to_canonical();
            found.push(Socket { protocol: "SCTP", address, port, inode, listens: true, peer: None });
        }
    }
    Ok(())
}

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Its command name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
}

/// Returns the process that holds each socket, by inode. Sockets without a visible process are omitted.
pub fn owners(mut wanted: BTreeSet<u64>) -> BTreeMap<u64, Owner> {
    let mut owners = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if wanted.is_empty() {
            break;
        }
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // The process may end meanwhile.
        let mut name = None;
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Some(inode) = fs::read_link(descriptor.path()).ok().and_then(|to| socket_of(to.to_str()?))
            else {
                continue;
            };
            if wanted.remove(&inode) {
                let name = name.get_or_insert_with(|| {
                    fs::read_to_string(process.path().join("comm"))
                        // Escaped, because a process may put terminal control sequences into its name.
                        .map_or_else(|_gone| "?".to_owned(), |name| name.trim().escape_debug().to_string())
                });
                owners.insert(inode, Owner { name: name.clone(), pid });
            }
        }
    }
    owners
}

/// The inode number in a descriptor's link to a socket.
fn socket_of(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

    use super::*;

    /// A listener, a connection and a datagram socket are found with their process, and nothing outside the
    /// range, by `sock_diag` and in `/proc/net`.
    #[test]
    fn sockets_are_found_by_port() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let client = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        let client_port = client.local_addr().expect("an address").port();
        let datagrams = UdpSocket::bind("[::1]:0").expect("a port");
        let datagram_port = datagrams.local_addr().expect("an address").port();
        let one = |port| PortRange::new(port, port).expect("a range");
        for (port, protocol, listens) in
            [(port, "TCP", true), (client_port, "TCP", false), (datagram_port, "UDP", true)]
        {
            let found = in_range(one(port)).expect("an answer");
            let socket = found.iter().find(|socket| socket.listens == listens && socket.protocol == protocol);
            let socket = socket.unwrap_or_else(|| panic!("{protocol} port {port} in {found:?}"));
            assert!(found.iter().all(|socket| socket.port == port), "{found:?}");
            assert!(socket.address.is_loopback(), "{found:?}");
            let owner = &owners(BTreeSet::from([socket.inode]))[&socket.inode];
            assert_eq!(owner.pid, std::process::id());
            let mut listed = Vec::new();
            for protocol in &PROTOCOLS {
                read_lists(protocol, one(port), &mut listed).expect("lists");
            }
            // The lists are parsed without peers.
            let without_peer = Socket { peer: None, ..socket.clone() };
            assert!(listed.contains(&without_peer), "{listed:?}");
        }
        drop((listener, client, datagrams));
    }

    #[test]
    fn sockets_proc_line_is_parsed() {
        let line = "   0: 0100007F:7918 00000000:0000 0A 00000000:00000000 00:00000000 00000000 \
                    0        0 12345 1 0";
        let (socket, state) = listed(&PROTOCOLS[0], line).expect("a socket");
        let expected = Socket {
            peer: None,
            protocol: "TCP",
            address: Ipv4Addr::LOCALHOST.into(),
            port: 31000,
            inode: 12345,
            listens: true,
        };
        assert_eq!((socket, state), (expected, LISTEN));
        assert_eq!(listed(&PROTOCOLS[0], "  sl  local_address"), None);
    }
}
