//! Builds frames from choices. A choice of zero is the common case, so a few bytes make a packet that is
//! delivered, and each further byte makes it less common.

use arbitrary::Unstructured;
use portmap_common::{hook_point::HookPoint, slot::loopback_mac};

use crate::{
    hook_ctx::HookCtx,
    values::{
        A, ADDRESSES4, ADDRESSES6, B, C, HOST, HOST6, IDS, MAC, PEER, PEER_MAC, PEER6, PORTS, byte, number,
        one_of, short, usually,
    },
};

/// Protocols of both IP versions, then others.
const PROTOCOLS: [u8; 12] = [17, 6, ICMP, ICMP, ICMP, 132, 33, 136, 50, 59, 47, 0];
/// Placeholder for the ICMP of the packet's IP version.
const ICMP: u8 = 0xff;
/// ICMP types: echo, errors, then others.
const TYPES4: [u8; 10] = [8, 0, 3, 3, 11, 12, 5, 13, 4, 17];
const TYPES6: [u8; 10] = [128, 129, 1, 3, 2, 4, 135, 133, 137, 130];
const EXTENSIONS: [u8; 5] = [0, 43, 60, 51, 44];
/// Flags of TCP segments: SYN, SYN and ACK, ACK, none, FIN and ACK, RST, RST and ACK, SYN and FIN.
const FLAGS: [u8; 8] = [0x02, 0x12, 0x10, 0, 0x11, 0x04, 0x14, 0x03];
/// Longer than the maximum of any length field.
const GIANT: usize = 65_600;

/// Sender and receiver of a packet, which determine the common case.
#[derive(Clone, Copy)]
struct Usual {
    is_v6: bool,
    source: [u8; 16],
    destination: [u8; 16],
    slot: u16,
}

/// Builds a frame. `first` is the first choice.
pub fn frame(choices: &mut Unstructured<'_>, first: u8, ctx: &HookCtx) -> Vec<u8> {
    let is_v6 = first & 1 != 0;
    let (host, peer) = if is_v6 { (HOST6, PEER6) } else { (wide(HOST), wide(PEER)) };
    let slot = if let HookPoint::VethIngress(slot) = ctx.hook { slot } else { A };
    let (source, destination, from_mac, to_mac) = match ctx.hook {
        HookPoint::UplinkIngress => (peer, host, PEER_MAC, MAC),
        HookPoint::VethIngress(_) => (host, peer, MAC, MAC),
        HookPoint::HostLoIngress => (host, host, [0; 6], [0; 6]),
        HookPoint::ContainerLoEgress => (host, host, loopback_mac(slot), loopback_mac(slot)),
        HookPoint::ContainerEth0Ingress => (host, host, MAC, MAC),
        HookPoint::UplinkEgress => (host, peer, MAC, PEER_MAC),
    };
    let usual = Usual { is_v6, source, destination, slot };
    let macs =
        [MAC, PEER_MAC, loopback_mac(A), loopback_mac(B), loopback_mac(slot), [0xff; 6], [1; 6], [0; 6]];
    let mut bytes = Vec::with_capacity(128);
    bytes.extend(if first & 2 == 0 { to_mac } else { usually(choices, to_mac, &macs) });
    bytes.extend(if first & 4 == 0 { from_mac } else { usually(choices, from_mac, &macs) });
    let ether_type: u16 = if is_v6 { 0x86dd } else { 0x0800 };
    let others = [0x0806, 0x8100, 0x88a8, 0x9100, 0x0800, 0x86dd, 60];
    let ether_type = if first & 8 == 0 { ether_type } else { usually(choices, ether_type, &others) };
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend(packet(choices, usual, true));
    bytes.extend(vec![0xa5; usize::from(if first & 16 == 0 { 0 } else { byte(choices) })]);
    if first & 32 != 0 {
        damage(choices, &mut bytes);
    }
    bytes
}

fn wide([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    crate::reader::mapped([a, b, c, d])
}

/// Changes some bytes, or truncates the frame.
fn damage(choices: &mut Unstructured<'_>, bytes: &mut Vec<u8>) {
    let kinds = byte(choices);
    for _ in 0..kinds & 3 {
        let at = usize::from(byte(choices));
        if let Some(byte_there) = bytes.get_mut(at) {
            *byte_there ^= byte(choices);
        }
    }
    if kinds & 4 != 0 {
        bytes.truncate(usize::from(byte(choices)));
    }
}

/// Builds an IP packet. For an inner packet `may_have_inner` is false, so that there is one level only.
fn packet(choices: &mut Unstructured<'_>, usual: Usual, may_have_inner: bool) -> Vec<u8> {
    let Usual { is_v6, .. } = usual;
    let shape = byte(choices);
    let (source, destination) = if shape & 1 == 0 {
        (usual.source, usual.destination)
    } else {
        (address(choices, usual.source, is_v6), address(choices, usual.destination, is_v6))
    };
    let protocol = one_of(&PROTOCOLS, shape >> 1);
    let protocol = if protocol == ICMP { if is_v6 { 58 } else { 1 } } else { protocol };
    let unusual = if shape >= 0xc0 { byte(choices) } else { 0 };
    // IPv4 options, or extension headers.
    let (mut next, mut between) = (protocol, Vec::new());
    let mut fragment: u16 = 0;
    let mut id: u16 = 0;
    if unusual & 1 != 0 {
        fragment = one_of(&[0x2000, 1, 0x2000, 0x2001, 185, 0x1fff, 0x4000, 0x8000], byte(choices));
        id = number(choices, &IDS);
        if is_v6 {
            let position = (fragment << 3) | (fragment >> 13 & 1);
            let [high, low] = position.to_be_bytes();
            let [i0, i1] = id.to_be_bytes();
            between = vec![next, 0, high, low, 0, 0, i0, i1];
            next = 44;
        }
    }
    if unusual & 2 != 0 {
        options(choices, is_v6, &mut next, &mut between);
    }
    let mut rest = between;
    let at = fragment & 0x1fff;
    if at == 0 || unusual & 4 != 0 {
        rest.extend(transport(choices, usual, protocol, (source, destination), may_have_inner));
    } else {
        rest.extend(vec![0x5a; usize::from(byte(choices))]);
    }
    if unusual & 8 != 0 {
        match byte(choices) {
            0xff => rest.resize(GIANT, 0x5a),
            length => rest.truncate(usize::from(length)),
        }
    }
    let mut bytes = header(is_v6, next, (source, destination), &rest, (fragment, id));
    if unusual & 16 != 0 {
        let length = one_of(&[0, 20, 28, 48, 0xffff, 19, short(choices)], byte(choices)).to_be_bytes();
        let at = if is_v6 { 4 } else { 2 };
        bytes[at..at + 2].copy_from_slice(&length);
    }
    bytes.extend(rest);
    bytes
}

fn address(choices: &mut Unstructured<'_>, usual: [u8; 16], is_v6: bool) -> [u8; 16] {
    let choice = byte(choices);
    match choice {
        0..0x20 => usual,
        0x20..0xf8 if is_v6 => one_of(&ADDRESSES6, choice),
        0x20..0xf8 => wide(one_of(&ADDRESSES4, choice)),
        _ if is_v6 => std::array::from_fn(|_| byte(choices)),
        _ => wide(std::array::from_fn(|_| byte(choices))),
    }
}

/// Builds IPv4 options, or prepends IPv6 extension headers.
fn options(choices: &mut Unstructured<'_>, is_v6: bool, next: &mut u8, between: &mut Vec<u8>) {
    let number = byte(choices) & 7;
    if !is_v6 {
        between.splice(0..0, vec![1; usize::from(number) * 4]);
        return;
    }
    for _ in 0..number {
        let kind = byte(choices);
        let protocol = one_of(&EXTENSIONS, kind);
        // Commonly of the length in its length field: one unit, which is four bytes for authentication.
        let units = if kind >= 0xc0 { byte(choices) } else { 0 };
        let mut header = vec![*next, units, 0, 0, 0, 0, 0, 0];
        let length = match protocol {
            44 => 8,
            51 => (usize::from(units) + 2) * 4,
            _ => (usize::from(units) + 1) * 8,
        };
        header.resize(length, 0);
        between.splice(0..0, header);
        *next = protocol;
    }
}

fn header(
    is_v6: bool,
    protocol: u8,
    (source, destination): ([u8; 16], [u8; 16]),
    rest: &[u8],
    (fragment, id): (u16, u16),
) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(0).to_be_bytes();
    let mut bytes = Vec::with_capacity(128);
    if is_v6 {
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(length(rest.len()));
        bytes.extend([protocol, 64]);
        bytes.extend(source);
        bytes.extend(destination);
    } else {
        // Options are the leading bytes of all ones, with which no transport starts.
        let options = rest.chunks_exact(4).take_while(|word| *word == [1; 4]).count().min(10);
        bytes.push(0x45 + u8::try_from(options).unwrap_or(0));
        bytes.push(0);
        bytes.extend(length(20 + rest.len()));
        bytes.extend(id.to_be_bytes());
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, protocol, 0, 0]);
        bytes.extend(&source[12..]);
        bytes.extend(&destination[12..]);
    }
    bytes
}

fn transport(
    choices: &mut Unstructured<'_>,
    usual: Usual,
    protocol: u8,
    (source, destination): ([u8; 16], [u8; 16]),
    may_have_inner: bool,
) -> Vec<u8> {
    if protocol != if usual.is_v6 { 58 } else { 1 } {
        let own = if usual.slot == B {
            65_535
        } else if usual.slot == C {
            40_000
        } else {
            31_000
        };
        let choice = byte(choices);
        let from = if choice < 0x60 { own } else { number(choices, &PORTS) };
        let to = number(choices, &PORTS);
        let mut bytes = from.to_be_bytes().to_vec();
        bytes.extend(to.to_be_bytes());
        bytes.extend([0, 8, 0, 0]);
        if protocol == 6 {
            // Sequence numbers, length and flags.
            bytes.extend([0, 0, 0, 0, 0x50, one_of(&FLAGS, choice), 0xff, 0xff, 0, 0, 0, 0]);
        }
        return bytes;
    }
    let kind = byte(choices);
    let types = if usual.is_v6 { &TYPES6 } else { &TYPES4 };
    let code = one_of(&[3, 1, 0, 4], kind >> 6);
    let mut bytes = vec![one_of(types, kind & 0x3f), code, 0, 0];
    bytes.extend(number(choices, &IDS).to_be_bytes());
    bytes.extend([0, 1]);
    if may_have_inner && (kind & 0x3f) % 10 >= 2 {
        // Commonly the receiver of the error has sent the inner packet.
        bytes.extend(packet(choices, Usual { source: destination, destination: source, ..usual }, false));
    }
    bytes
}
