//! The kernel's routing tables.

use portmap_ebpf::{
    fib::{FibAnswer, FibQuestion},
    verdict::NextHop,
};

use crate::{
    expected::Question,
    values::{GATEWAY, GATEWAY6, OTHER_UPLINK, UPLINK},
};

/// Kinds of answers: whether the neighbour is resolved, and which one it is.
const KINDS: [Option<(u32, Neighbour)>; 7] = [
    Some((FibAnswer::RESOLVED, Neighbour::Destination)),
    Some((FibAnswer::UNRESOLVED, Neighbour::Destination)),
    Some((FibAnswer::RESOLVED, Neighbour::Gateway)),
    Some((FibAnswer::UNRESOLVED, Neighbour::Gateway)),
    None,
    Some((FibAnswer::RESOLVED, Neighbour::GatewayOfIpv6)),
    Some((FibAnswer::UNRESOLVED, Neighbour::GatewayOfIpv6)),
];

/// A neighbour.
#[derive(Clone, Copy)]
enum Neighbour {
    /// The destination itself.
    Destination,
    /// A gateway of the packet's IP version.
    Gateway,
    /// A gateway with an IPv6 address, also for IPv4 packets.
    GatewayOfIpv6,
}

/// Returns the answer for a destination. `routes` selects the routing tables; with 0 every destination is a
/// resolved neighbour at the uplink.
pub fn answer(routes: u8, is_v6: bool, destination: [u8; 16]) -> FibAnswer {
    // Either one kind for all destinations, or one that depends on the destination.
    let differs = routes >> 3 & 1 != 0;
    let kind = usize::from(routes & 7) + if differs { usize::from(destination[15]) } else { 0 };
    let Some((outcome, neighbour)) = KINDS[kind % KINDS.len()] else { return FibAnswer::NONE };
    let [.., a, b, c, d] = destination;
    let next_hop = match neighbour {
        Neighbour::Destination if is_v6 => NextHop::v6(destination),
        Neighbour::Destination => NextHop::v4([a, b, c, d]),
        Neighbour::Gateway if !is_v6 => NextHop::v4(GATEWAY),
        Neighbour::Gateway | Neighbour::GatewayOfIpv6 => NextHop::v6(GATEWAY6),
    };
    FibAnswer { outcome, ifindex: if routes & 16 == 0 { UPLINK } else { OTHER_UPLINK }, next_hop }
}

/// Returns a question in the form of the specification's model.
pub fn question(question: &FibQuestion) -> Question {
    let FibQuestion { source, destination, version, protocol, source_port, destination_port } = *question;
    assert!(matches!(version, 4 | 6), "there are two versions of IP");
    Question {
        is_v6: version == 6,
        source: source.bytes,
        destination: destination.bytes,
        protocol: u8::try_from(protocol).expect("a protocol has eight bits"),
        ports: (source_port, destination_port),
    }
}
