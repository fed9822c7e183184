//! ICMP of both IP versions: echo messages, and errors with an inner packet.

use portmap_common::reason::Reason;

use super::{
    icmp_message::IcmpMessage,
    ip::{IpHeader, IpVersion, L4Location},
    l4::{L4Info, L4Kind, Ports, has_ports, high, ports_of},
};
use crate::frame::Frame;

/// Minimum length in bytes of an ICMP message.
const HEADER: usize = 8;

/// Parses the ICMP message of a packet.
#[inline(always)]
pub(super) fn parse<V: IpVersion>(
    frame: &impl Frame,
    ip: &IpHeader<V>,
    l4: &L4Location,
) -> Result<L4Info<V>, Reason> {
    if l4.offset + HEADER > ip.end {
        return Err(Reason::Malformed);
    }
    let [type_and_checksum, id_and_sequence] = frame.load_be32s(l4.offset).ok_or(Reason::Malformed)?;
    let id = high(id_and_sequence);
    match classify::<V>(type_and_checksum) {
        IcmpMessage::EchoRequest => Ok(L4Info { has_message: true, ..L4Info::of_echo(true, id, l4.offset) }),
        IcmpMessage::EchoReply => Ok(L4Info { has_message: true, ..L4Info::of_echo(false, id, l4.offset) }),
        // An error is smaller than any MTU, so only an attacker fragments it.
        IcmpMessage::Error { .. } if l4.is_first() => Err(Reason::Fragment),
        IcmpMessage::Error { by_router } => {
            let inner = parse_inner(frame, ip, l4.offset + HEADER).ok_or(Reason::Quoted)?;
            Ok(L4Info { by_router, ..inner })
        }
        IcmpMessage::Neighbour => Err(Reason::Neighbour),
        IcmpMessage::Other => Err(Reason::Icmp),
    }
}

/// Parses the inner packet of an error at `offset`.
#[inline(always)]
fn parse_inner<V: IpVersion>(frame: &impl Frame, ip: &IpHeader<V>, offset: usize) -> Option<L4Info<V>> {
    let inner = V::parse_inner(frame, offset, ip.end)?;
    let (kind, ports, id, message) = if has_ports(inner.protocol) {
        // Senders must include eight bytes of L4, but the verdict uses the ports only.
        if inner.offset + 4 > ip.end {
            return None;
        }
        (L4Kind::IcmpErrorPorts, ports_of(frame.load_be32s(inner.offset).map(|[word]| word)?), 0, 0)
    } else if inner.protocol == V::ICMP {
        if inner.offset + HEADER > ip.end {
            return None;
        }
        let [type_and_checksum, id_and_sequence] = frame.load_be32s(inner.offset)?;
        if classify::<V>(type_and_checksum) != IcmpMessage::EchoRequest {
            return None;
        }
        (L4Kind::IcmpErrorEcho, Ports::NONE, high(id_and_sequence), inner.offset)
    } else {
        return None;
    };
    let (inner_source, inner_destination) = (inner.source, inner.destination);
    let has_message = kind == L4Kind::IcmpErrorEcho;
    Some(L4Info { kind, ports, id, message, has_message, by_router: false, inner_source, inner_destination })
}

/// Classifies the ICMP message that starts with this word.
#[inline(always)]
fn classify<V: IpVersion>(word: u32) -> IcmpMessage {
    let [kind, code, ..] = word.to_be_bytes();
    V::classify_icmp(kind, code)
}
