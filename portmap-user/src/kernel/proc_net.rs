//! Files in `/proc/net` with counters of the calling thread's network namespace.

use std::borrow::Cow;

use super::pseudo;
use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
    model::{Snmp, SocketSummary},
};

/// Longest file that is read, in bytes. `snmp` has about 2,000, and one line for each type of ICMP message.
const LONGEST: usize = 64 << 10;

/// The groups of `/proc/net/snmp` with their names in the model, and their counters; those that newer kernels
/// have added are left out.
const GROUPS: [(&str, &str, &[&str]); 4] = [
    (
        "Ip:",
        "ip_stats",
        &[
            "Forwarding",
            "DefaultTTL",
            "InReceives",
            "InHdrErrors",
            "InAddrErrors",
            "ForwDatagrams",
            "InUnknownProtos",
            "InDiscards",
            "InDelivers",
            "OutRequests",
            "OutDiscards",
            "OutNoRoutes",
            "ReasmTimeout",
            "ReasmReqds",
            "ReasmOKs",
            "ReasmFails",
            "FragOKs",
            "FragFails",
            "FragCreates",
        ],
    ),
    (
        "Icmp:",
        "icmp_stats",
        &[
            "InMsgs",
            "InErrors",
            "InCsumErrors",
            "InDestUnreachs",
            "InTimeExcds",
            "InParmProbs",
            "InSrcQuenchs",
            "InRedirects",
            "InEchos",
            "InEchoReps",
            "InTimestamps",
            "InTimestampReps",
            "InAddrMasks",
            "InAddrMaskReps",
            "OutMsgs",
            "OutErrors",
            "OutDestUnreachs",
            "OutTimeExcds",
            "OutParmProbs",
            "OutSrcQuenchs",
            "OutRedirects",
            "OutEchos",
            "OutEchoReps",
            "OutTimestamps",
            "OutTimestampReps",
            "OutAddrMasks",
            "OutAddrMaskReps",
        ],
    ),
    (
        "Tcp:",
        "tcp_stats",
        &[
            "RtoAlgorithm",
            "RtoMin",
            "RtoMax",
            "MaxConn",
            "ActiveOpens",
            "PassiveOpens",
            "AttemptFails",
            "EstabResets",
            "CurrEstab",
            "InSegs",
            "OutSegs",
            "RetransSegs",
            "InErrs",
            "OutRsts",
            "InCsumErrors",
        ],
    ),
    (
        "Udp:",
        "udp_stats",
        &[
            "InDatagrams",
            "NoPorts",
            "InErrors",
            "OutDatagrams",
            "RcvbufErrors",
            "SndbufErrors",
            "InCsumErrors",
            "IgnoredMulti",
        ],
    ),
];

/// Reads the protocol counters.
pub fn snmp() -> Result<Snmp> {
    Ok(parse_snmp(&file("snmp")?))
}

/// Counts the sockets.
pub fn socket_summary() -> Result<SocketSummary> {
    let (v4, v6) = (file("sockstat")?, file("sockstat6")?);
    Ok(SocketSummary {
        tcp: number(&v4, "TCP:", "inuse") + number(&v6, "TCP6:", "inuse"),
        // The kernel counts those of both address families here.
        time_wait: number(&v4, "TCP:", "tw"),
        udp: number(&v4, "UDP:", "inuse") + number(&v6, "UDP6:", "inuse"),
        all: number(&v4, "sockets:", "used"),
    })
}

fn file(name: &str) -> Result<String> {
    let path = format!("/proc/thread-self/net/{name}");
    let doing = || format!("cannot read {path}");
    failpoint::hit("read a file of /proc/net").context(doing)?;
    match pseudo::read(LONGEST, || std::fs::File::open(&path)) {
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.context(doing),
    }
}

/// The number after `key` in the line that begins with `head`; 0 if there is none.
fn number(text: &str, head: &str, key: &str) -> u64 {
    let mut words =
        text.lines().find_map(|line| line.strip_prefix(head)).unwrap_or_default().split_whitespace();
    words.find(|word| *word == key).and_then(|_| words.next()?.parse().ok()).unwrap_or_default()
}

/// Parses pairs of lines, one with names and one with values. A counter that this kernel lacks is left out.
fn parse_snmp(text: &str) -> Snmp {
    let mut found = Snmp::new();
    for (head, group, known) in GROUPS {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(head));
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else { continue };
        // The kernel's names are in the order of those that are known, with others in between; some may be missing.
        let mut remaining = known;
        let counters = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
        let counters = counters.filter_map(|(name, value)| {
            let place = remaining.iter().position(|known| *known == name)?;
            let known = remaining[place];
            remaining = &remaining[place + 1..];
            Some((Cow::Borrowed(known), value.parse().ok()?))
        });
        found.insert(Cow::Borrowed(group), counters.collect());
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn proc_net_snmp_is_parsed_without_counters_of_newer_kernels() {
        let text = "Ip: Forwarding DefaultTTL OutTransmits\nIp: 1 64 5\nIcmp: InMsgs\nIcmp: 3\n\
                    IcmpMsg: InType3\nIcmpMsg: 7\nTcp: MaxConn RetransSegs\nTcp: -1 18446744073709551615\n\
                    UdpLite: InDatagrams\nUdpLite: 9\n";
        let expected = Snmp::from([
            ("ip_stats".into(), BTreeMap::from([("Forwarding".into(), 1), ("DefaultTTL".into(), 64)])),
            ("icmp_stats".into(), BTreeMap::from([("InMsgs".into(), 3)])),
            ("tcp_stats".into(), BTreeMap::from([("MaxConn".into(), -1)])),
        ]);
        assert_eq!(parse_snmp(text), expected);
    }

    #[test]
    fn proc_net_snmp_of_this_kernel_is_complete() {
        let snmp = snmp().expect("a file");
        for (_, group, known) in GROUPS {
            assert_eq!(snmp[group].len(), known.len(), "{group}");
        }
    }

    #[test]
    fn proc_net_socket_counts_are_parsed() {
        let text =
            "sockets: used 204\nTCP: inuse 3 orphan 0 tw 12 alloc 9 mem 1\nTCP6: inuse 4\nUDP: inuse 1\n";
        assert_eq!((number(text, "TCP:", "inuse"), number(text, "TCP:", "tw")), (3, 12));
        assert_eq!((number(text, "TCP6:", "inuse"), number(text, "UDP:", "mem")), (4, 0));
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let _listener = std::net::TcpListener::bind(address).expect("a port");
            let _datagrams = std::net::UdpSocket::bind(address).expect("a port");
            let found = socket_summary().expect("files");
            assert!(found.tcp > 0 && found.udp > 0 && found.all >= 2, "{found:?}");
        }
    }
}
