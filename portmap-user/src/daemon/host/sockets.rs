//! Sockets of the host's own processes on managed ports. A listener keeps its port, unless the operator takes
//! it (`--take`). A connection keeps its whole block of ephemeral ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use portmap_common::{
    flow_state::{HOST_CONNECTION_LIFETIME, HOST_TCP_LIFETIME, HostConnectionKey},
    tables::Address6,
};

use super::HostState;
use crate::{
    api::{Finding, Health},
    error::{Error, Result},
    kernel::sockets::{self, Socket},
    model::{PortRange, PortSet},
};

/// Most programs that a list names.
const MOST_PROGRAMS: usize = 16;
/// Most ports between two ranges whose sockets are read together.
const LARGEST_GAP: u16 = 4096;
/// Most port ranges and pids that a list names for one program.
const MOST_NAMED: usize = 12;

/// The host's sockets on the ports of a command, read at its start.
pub(in crate::daemon) struct HostSockets {
    sockets: Vec<Socket>,
    /// The error, if the kernel's sockets could not be read.
    unknown: Option<Error>,
}

/// Reports the host's programs that use managed ports, with one finding each.
pub(in crate::daemon) fn findings(state: &HostState, managed: &PortSet, owned: &PortSet) -> Vec<Finding> {
    const SUBJECT: &str = "host listeners";
    let sockets = HostSockets::read(state, managed);
    if let Some(error) = &sockets.unknown {
        return vec![Finding::new(SUBJECT, Health::Notice, error.message.clone())];
    }
    let uses = sockets.by_program();
    if uses.is_empty() {
        return vec![Finding::new(SUBJECT, Health::Ok, "no process of the host uses a managed port")];
    }
    let mut findings: Vec<Finding> = uses
        .iter()
        .take(MOST_PROGRAMS)
        .map(|(name, usage)| {
            let text = format!("{} {}", usage.who(name), usage.in_view_of(owned));
            Finding::new(SUBJECT, Health::Notice, text)
        })
        .collect();
    if uses.len() > MOST_PROGRAMS {
        let more = uses.len() - MOST_PROGRAMS;
        findings.push(Finding::new(
            SUBJECT,
            Health::Notice,
            format!("{more} more programs use managed ports"),
        ));
    }
    findings
}

impl HostSockets {
    pub(in crate::daemon) fn read(state: &HostState, ports: &PortSet) -> Self {
        let mut found = Vec::new();
        for span in spans(ports) {
            match sockets::in_range(span) {
                Ok(sockets) => found.extend(sockets),
                Err(error) => return Self { sockets: Vec::new(), unknown: Some(error.into()) },
            }
        }
        found.retain(|socket| is_shared(state, socket.address) && ports.contains(socket.port));
        Self { sockets: found, unknown: None }
    }

    /// All ports on which the host has a socket.
    pub(in crate::daemon) fn ports(&self) -> PortSet {
        ports_of(self.sockets.iter())
    }

    /// Returns the warnings for a container with these ports.
    ///
    /// # Errors
    ///
    /// A conflict if a process of the host listens on one of them, unless `take` is set.
    pub(in crate::daemon) fn check(&self, ports: &PortSet, take: bool) -> Result<Vec<String>> {
        if let Some(error) = &self.unknown {
            return Ok(vec![format!("{error}: processes of the host may use ports of the container")]);
        }
        let on_these: Vec<Socket> =
            self.sockets.iter().filter(|socket| ports.contains(socket.port)).cloned().collect();
        let uses = by_program(&on_these);
        let listening: Vec<String> = uses
            .iter()
            .filter(|(_, usage)| !usage.listening.is_empty())
            .map(|(name, usage)| format!("{} by {}", named(&usage.listening), usage.who(name)))
            .collect();
        if !listening.is_empty() && !take {
            return Err(Error::conflict(format!(
                "the host uses {}: stop these programs, choose other ports, or take the ports with --take",
                at_most(&listening, "; ", "programs")
            )));
        }
        let taken = listening
            .iter()
            .map(|use_of| format!("taken from the host: {use_of}, which no longer receives packets there"));
        Ok(taken.take(MOST_PROGRAMS).collect())
    }

    /// The connections of the host from some ports, which go on when a container owns the port, with their lifetimes:
    /// those after which the programs forget an idle one, too. Nothing tells them that a datagram socket is closed.
    pub(in crate::daemon) fn connections(&self, ports: &PortSet) -> Vec<(HostConnectionKey, Duration)> {
        let on_these = self.sockets.iter().filter(|socket| ports.contains(socket.port));
        let local = |socket: &Socket| SocketAddr::new(socket.address, socket.port);
        let lifetime = |socket: &Socket| {
            Duration::from_nanos(if socket.is_tcp() { HOST_TCP_LIFETIME } else { HOST_CONNECTION_LIFETIME })
        };
        on_these.filter_map(|socket| Some((key(local(socket), socket.peer?), lifetime(socket)))).collect()
    }

    fn by_program(&self) -> BTreeMap<String, Use> {
        by_program(&self.sockets)
    }
}

/// The key of a connection in the map of the programs.
pub(super) fn key(local: SocketAddr, peer: SocketAddr) -> HostConnectionKey {
    let mapped = |address: IpAddr| match address {
        IpAddr::V4(v4) => Address6::new(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => Address6::new(v6.octets()),
    };
    HostConnectionKey {
        peer: mapped(peer.ip()),
        local: mapped(local.ip()),
        peer_port: peer.port(),
        local_port: local.port(),
        version: if peer.is_ipv4() { 4 } else { 6 },
    }
}

/// Whether a socket with this address competes with a container's: the shared address, a wildcard or a
/// loopback address.
fn is_shared(state: &HostState, address: IpAddr) -> bool {
    address.is_unspecified() || address.is_loopback() || state.shares(address)
}

/// Few spans that include all ports. Each is one request to the kernel, so small gaps are included; large ones are
/// not, because the host may have its own ephemeral ports there, with many sockets.
fn spans(ports: &PortSet) -> Vec<PortRange> {
    let mut spans: Vec<PortRange> = Vec::new();
    for range in ports.ranges() {
        match spans.last_mut() {
            Some(span) if range.first() - span.last() <= LARGEST_GAP => {
                *span = PortRange::new(span.first(), range.last()).unwrap_or(*span);
            }
            _ => spans.push(*range),
        }
    }
    spans
}

/// The ports of one program's processes.
#[derive(Default)]
struct Use {
    pids: BTreeSet<u32>,
    /// Ports of listeners, by protocol.
    listening: BTreeMap<&'static str, PortSet>,
    /// Local ports of connections, by protocol.
    connected: BTreeMap<&'static str, PortSet>,
}

impl Use {
    /// Describes the program and its processes.
    fn who(&self, name: &str) -> String {
        let pids: Vec<String> = self.pids.iter().map(u32::to_string).collect();
        match pids.as_slice() {
            [] => name.to_owned(),
            [one] => format!("{name} (pid {one})"),
            many => format!("{name} (pids {})", at_most(many, ", ", "processes")),
        }
    }

    fn ports(&self) -> PortSet {
        let all = self.listening.values().chain(self.connected.values());
        all.fold(PortSet::default(), |all, ports| all.union(ports))
    }

    /// Describes these ports, and the consequence if containers own `owned`.
    fn in_view_of(&self, owned: &PortSet) -> String {
        let mut text = String::new();
        if !self.listening.is_empty() {
            let _ = write!(text, "uses {}", named(&self.listening));
        }
        if !self.connected.is_empty() {
            let and = if text.is_empty() { "" } else { " and " };
            let _ = write!(text, "{and}is connected from {}", named(&self.connected));
        }
        let taken = self.ports().intersection(owned);
        if taken.is_empty() {
            text.push_str(": `add` skips or refuses these ports");
        } else {
            let _ = write!(text, ": new connections to {} go to containers", ranges(&taken));
        }
        text
    }
}

/// Sockets by state (listening or not) and protocol.
type Kinds<'a> = BTreeMap<(bool, &'static str), Vec<&'a Socket>>;

/// Groups sockets by program.
fn by_program(sockets: &[Socket]) -> BTreeMap<String, Use> {
    if sockets.is_empty() {
        return BTreeMap::new();
    }
    let inodes: BTreeSet<u64> =
        sockets.iter().map(|socket| socket.inode).filter(|inode| *inode != 0).collect();
    let owners = sockets::owners(inodes);
    // Each port set is built once from all its ports, because adding ports one by one takes quadratic time.
    let mut all: BTreeMap<String, (BTreeSet<u32>, Kinds<'_>)> = BTreeMap::new();
    for socket in sockets {
        let owner = owners.get(&socket.inode);
        let name = owner.map_or_else(|| "an unknown process".to_owned(), |owner| owner.name.clone());
        let (pids, used) = all.entry(name).or_default();
        pids.extend(owner.map(|owner| owner.pid));
        used.entry((socket.listens, socket.protocol)).or_default().push(socket);
    }
    all.into_iter()
        .map(|(name, (pids, used))| {
            let mut usage = Use { pids, ..Use::default() };
            for ((listens, protocol), sockets) in used {
                let kind = if listens { &mut usage.listening } else { &mut usage.connected };
                kind.insert(protocol, ports_of(sockets.into_iter()));
            }
            (name, usage)
        })
        .collect()
}

fn ports_of<'a>(sockets: impl Iterator<Item = &'a Socket>) -> PortSet {
    let ranges = sockets.filter_map(|socket| PortRange::new(socket.port, socket.port));
    ranges.collect::<Vec<_>>().into()
}

/// Renders the ports of several protocols.
fn named(ports: &BTreeMap<&'static str, PortSet>) -> String {
    let each = ports.iter().map(|(protocol, ports)| {
        let port = if ports.count() == 1 { "port" } else { "ports" };
        format!("{protocol} {port} {}", ranges(ports))
    });
    each.collect::<Vec<_>>().join(" and ")
}

/// Renders the first ranges of a set, and the number of the others.
fn ranges(ports: &PortSet) -> String {
    let all: Vec<String> = ports.ranges().iter().map(PortRange::to_string).collect();
    at_most(&all, ",", "ranges")
}

fn at_most(all: &[String], between: &str, what: &str) -> String {
    let some = &all[..all.len().min(MOST_NAMED)];
    let text = some.join(between);
    if some.len() == all.len() { text } else { format!("{text} and {} more {what}", all.len() - some.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(protocol: &'static str, port: u16, listens: bool) -> Socket {
        Socket { protocol, address: IpAddr::from([0, 0, 0, 0]), port, inode: 0, listens, peer: None }
    }

    #[test]
    fn host_sockets_listeners_are_conflicts_unless_taken() {
        let sockets =
            vec![socket("TCP", 31000, true), socket("UDP", 31001, true), socket("TCP", 31002, false)];
        let sockets = HostSockets { sockets, unknown: None };
        let ports = |text: &str| text.parse::<PortSet>().expect("ports");
        let error = sockets.check(&ports("31000-31009"), false).expect_err("a listener has one of the ports");
        assert_eq!(error.kind, crate::error::Kind::Conflict);
        assert!(error.message.contains("TCP port 31000 and UDP port 31001 by an unknown process"), "{error}");
        let warnings = sockets.check(&ports("31000-31009"), true).expect("they are taken");
        assert!(warnings[0].contains("31001") && warnings.len() == 1, "{warnings:?}");
        assert_eq!(sockets.check(&ports("31003"), false), Ok(Vec::new()));
        assert_eq!(sockets.check(&ports("31002"), false), Ok(Vec::new()), "no listener has the port");
        assert_eq!(sockets.ports(), ports("31000-31002"));
    }

    #[test]
    fn host_sockets_of_datagrams_are_forgotten_as_their_packets_are() {
        let connected = |protocol| {
            let peer = "192.0.2.1:53".parse().ok();
            Socket { peer, address: IpAddr::from([10, 0, 0, 1]), ..socket(protocol, 31000, false) }
        };
        let sockets = HostSockets { sockets: vec![connected("TCP"), connected("UDP")], unknown: None };
        let found = sockets.connections(&"31000".parse().expect("a port"));
        let lifetimes: Vec<u64> = found.iter().map(|(_, lifetime)| lifetime.as_secs()).collect();
        assert_eq!(lifetimes, [432_000, 180]);
    }

    #[test]
    fn host_sockets_are_read_in_few_spans() {
        for (ports, expected) in [
            ("", ""),
            ("80", "80"),
            ("80,443,31000-32000,33000,61440-65535", "80-443,31000-33000,61440-65535"),
            ("1,65535", "1,65535"),
        ] {
            let ports: PortSet = ports.parse().expect("ports");
            let spans: Vec<String> = spans(&ports).iter().map(ToString::to_string).collect();
            assert_eq!(spans.join(","), expected);
        }
    }

    #[test]
    fn host_sockets_of_thousands_of_ports_are_a_short_line() {
        let sockets: Vec<Socket> =
            (0..10_000).map(|number| socket("TCP", 20_000 + 2 * number, true)).collect();
        let uses = by_program(&sockets);
        assert_eq!(uses.len(), 1);
        let text = uses.values().next().expect("one").in_view_of(&PortSet::default());
        assert!(
            text.contains("20000,20002") && text.contains("9988 more ranges") && text.len() < 300,
            "{text}"
        );
    }
}
