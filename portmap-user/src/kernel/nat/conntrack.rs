//! The connections that the host's connection tracking knows, with the addresses that its NAT has given them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::nfnetlink::{dump, split};
use crate::kernel::dump::Attributes;

/// Message types (`linux/netfilter/nfnetlink.h`, `linux/netfilter/nfnetlink_conntrack.h`).
const NFNL_SUBSYS_CTNETLINK: u16 = 1 << 8;
const NEW: u16 = NFNL_SUBSYS_CTNETLINK;
const GET: u16 = NFNL_SUBSYS_CTNETLINK | 1;
/// Attributes of a connection, of a tuple, of its addresses and of its ports.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TIMEOUT: u16 = 7;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// The way of a connection's packets to the host, as they arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackedConnection {
    /// The destination: an address and a port of the host's, if the packets are for it.
    pub local: SocketAddr,
    /// The source.
    pub peer: SocketAddr,
    /// Time after which the kernel forgets the connection, unless it is used again.
    pub timeout: Duration,
}

/// Calls `visit` with both ways of every translated connection with ports, as packets arrive: those of its opener, and
/// the replies to it.
///
/// # Errors
///
/// If the kernel refuses the dump.
pub(super) fn for_each(mut visit: impl FnMut(TrackedConnection)) -> io::Result<()> {
    // Entries that come and go meanwhile make no dump inconsistent.
    dump(GET, NEW, |message| ways(message).into_iter().flatten().for_each(&mut visit))?;
    Ok(())
}

/// Parses a connection. Only one that NAT has translated is returned: the kernel also tracks what a client sends to a
/// port of the host that no process uses, and those packets are the next owner's.
fn ways(message: &[u8]) -> [Option<TrackedConnection>; 2] {
    let Some((_, attributes)) = split(message) else { return [None; 2] };
    let tuples = [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].map(|kind| tuple(&attributes.nested(kind)));
    let [Some(original), Some(reply)] = tuples else { return [None; 2] };
    if original == (reply.1, reply.0) {
        return [None; 2];
    }
    let timeout = Duration::from_secs(attributes.number(CTA_TIMEOUT).unwrap_or_default().into());
    [original, reply].map(|(peer, local)| Some(TrackedConnection { local, peer, timeout }))
}

/// Source and destination of a tuple with ports.
fn tuple(tuple: &Attributes<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let (addresses, ports) = (tuple.nested(CTA_TUPLE_IP), tuple.nested(CTA_TUPLE_PROTO));
    let v4 =
        |kind| addresses.bytes(kind).first_chunk().map(|bytes: &[u8; 4]| IpAddr::V4(Ipv4Addr::from(*bytes)));
    let v6 =
        |kind| addresses.bytes(kind).first_chunk().map(|bytes: &[u8; 16]| IpAddr::V6(Ipv6Addr::from(*bytes)));
    let port = |kind| ports.bytes(kind).first_chunk().map(|bytes: &[u8; 2]| u16::from_be_bytes(*bytes));
    let source = v4(CTA_IP_V4_SRC).or_else(|| v6(CTA_IP_V6_SRC))?;
    let destination = v4(CTA_IP_V4_DST).or_else(|| v6(CTA_IP_V6_DST))?;
    let ports = (port(CTA_PROTO_SRC_PORT)?, port(CTA_PROTO_DST_PORT)?);
    Some((SocketAddr::new(source, ports.0), SocketAddr::new(destination, ports.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("a short attribute");
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn nested(kind: u16, inner: &[Vec<u8>]) -> Vec<u8> {
        const NLA_F_NESTED: u16 = 1 << 15;
        attribute(kind | NLA_F_NESTED, &inner.concat())
    }

    /// A connection from 172.17.0.2:5000, with the source and the destination of its replies.
    fn message(original_destination: ([u8; 4], u16), reply: [([u8; 4], u16); 2]) -> Vec<u8> {
        let way = |kind, source: ([u8; 4], u16), destination: ([u8; 4], u16)| {
            let addresses = [attribute(CTA_IP_V4_SRC, &source.0), attribute(CTA_IP_V4_DST, &destination.0)];
            let protocol = [
                attribute(1, &[6]),
                attribute(CTA_PROTO_SRC_PORT, &source.1.to_be_bytes()),
                attribute(CTA_PROTO_DST_PORT, &destination.1.to_be_bytes()),
            ];
            nested(kind, &[nested(CTA_TUPLE_IP, &addresses), nested(CTA_TUPLE_PROTO, &protocol)])
        };
        [
            vec![2, 0, 0, 0],
            way(CTA_TUPLE_ORIG, ([172, 17, 0, 2], 5000), original_destination),
            way(CTA_TUPLE_REPLY, reply[0], reply[1]),
            attribute(CTA_TIMEOUT, &300_u32.to_be_bytes()),
        ]
        .concat()
    }

    /// A connection of a container of another tool that the host's NAT has given its address.
    fn translated() -> Vec<u8> {
        message(([192, 0, 2, 1], 443), [([192, 0, 2, 1], 443), ([10, 0, 0, 1], 31005)])
    }

    #[test]
    fn conntrack_replies_arrive_at_the_translated_port() {
        let [original, reply] = ways(&translated());
        let way = |peer: &str, local: &str| {
            let [peer, local] = [peer, local].map(|address| address.parse().expect("an address"));
            Some(TrackedConnection { local, peer, timeout: Duration::from_mins(5) })
        };
        assert_eq!(original, way("172.17.0.2:5000", "192.0.2.1:443"));
        assert_eq!(reply, way("192.0.2.1:443", "10.0.0.1:31005"));
    }

    #[test]
    fn conntrack_packets_to_an_unused_port_are_no_connection_of_the_hosts() {
        let (host, client) = (([10, 0, 0, 1], 31005), ([172, 17, 0, 2], 5000));
        assert_eq!(ways(&message(host, [host, client])), [None; 2]);
        // Translated to another address, as a port that Docker publishes.
        assert!(ways(&message(host, [([172, 17, 0, 3], 80), client])).iter().all(Option::is_some));
    }

    #[test]
    fn conntrack_messages_of_any_length_are_parsed() {
        let whole = translated();
        for end in 0..whole.len() {
            let _ = ways(&whole[..end]);
        }
        assert_eq!(ways(&[]), [None; 2]);
    }
}
