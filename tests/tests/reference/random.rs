//! Random worlds, and nearly valid random packets in them.

use std::net::IpAddr;

use portmap_common::{
    flow_state::{
        ECHO_LIFETIME, FRAGMENT_LIFETIME, HOST_CONNECTION_LIFETIME, HOST_FLOW_LIFETIME, HOST_TCP_LIFETIME,
        HostConnection, HostConnectionKey, HostFlowKey, NEIGHBOUR_CHECK_INTERVAL, NEIGHBOUR_LIFETIME,
    },
    hook_point::HookPoint,
    marks::HANDLED_MARK,
    queue::UPLINK_FLOWS,
    slot::{HOST_SLOT, loopback_mac, veth_ifindex},
    tables::{Address4, Address6},
};
use portmap_tests::random::Random;

use crate::{
    differential::{Differential, NOW},
    packet_shapes,
    packets::{Ends, Shape, Template, WITH_PORTS},
    spec_state::{IdOwner, StateChange, in_map},
    world::{
        A, B, C, Case, GATEWAY6, HOST6, MAC, NO_CONTAINER, OTHER_MAC, SECOND, SECOND6, UPLINK, World, limit,
        mask4, mask6,
    },
};

/// Returns a world with random owners, containers and networks.
pub(crate) fn world(random: &mut Random) -> World {
    let mut world = World::new();
    let owners: [u16; 8] = std::array::from_fn(|_| random.pick(&[HOST_SLOT, A, A, B, C]));
    let shift = random.below(13);
    for (port, owner) in world.owners.iter_mut().enumerate() {
        *owner = owners[(port >> shift) % owners.len()];
    }
    for slot in [A, B, C] {
        world.containers.insert(slot, u32::from(random.port()) + 1);
    }
    if random.once_in(4) {
        world.containers.remove(&C);
        world.owners.iter_mut().filter(|owner| **owner == C).for_each(|owner| *owner = HOST_SLOT);
    }
    let config = &mut world.config;
    config.netmask = Address4::new(mask4(random.pick(&[24, 24, 0, 1, 8, 23, 25, 30, 31, 32])));
    config.netmask6 = Address6::new(mask6(random.pick(&[64, 64, 0, 1, 10, 63, 65, 127, 128])));
    if random.once_in(4) {
        config.gateway = Address4::default();
    }
    config.gateway6 =
        Address6::new(random.pick(&[GATEWAY6, HOST6, std::net::Ipv6Addr::UNSPECIFIED]).octets());
    if random.once_in(5) {
        config.host_ip6 = Address6::default();
    }
    if random.once_in(2) {
        config.uplink_flows = UPLINK_FLOWS;
    }
    if random.once_in(2) {
        let open: Vec<u16> = NUMBERS.into_iter().filter(|_| random.once_in(2)).collect();
        world.open_only(open);
    }
    if random.once_in(2) {
        let [.., near, far] = packet_shapes::four(false);
        let others = [near, far, IpAddr::from([10, 0, 0, 77]), IpAddr::from([127, 0, 0, 1])];
        let addresses = others.into_iter().filter_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        let addresses: Vec<_> = addresses.filter(|_| random.once_in(3)).collect();
        world.broadcast(addresses);
    }
    if random.once_in(2) {
        world.listen(random.pick(&NUMBERS));
    }
    for slot in [A, B, C] {
        if random.once_in(3) {
            world.private.insert(slot);
        }
    }
    world.config.direct4 = u32::from(random.once_in(2));
    world.config.direct6 = u32::from(random.once_in(2));
    let second = [SECOND.into(), SECOND6.into()].into_iter().filter(|_| random.once_in(2));
    let second: Vec<IpAddr> = second.collect();
    world.share(second);
    world
}

/// Adds random limits on sent and received packets to a world.
pub(crate) fn limited_world(random: &mut Random) -> World {
    let mut world = world(random);
    for slot in [A, B, C] {
        if random.once_in(2) {
            world.limits.insert(slot, limit(random.once_in(3), random.once_in(2)));
        }
        if random.once_in(3) {
            world.neighbour_limited.insert(slot);
        }
        world.queues.insert(slot, random.pick(&[0, 1, 2, 3]));
    }
    world
}

/// Returns a priority: none, a flow's, or a similar one.
pub(crate) fn priority(random: &mut Random) -> u32 {
    random.pick(&[0, 0, 6, 0x1_0001, 0x1_0002, 0x504d_0000, 0x504d_0001, 0x504d_1001, 0x504c_0001, 0x504d])
}

/// Few identifiers and ports, so that they collide.
const NUMBERS: [u16; 6] = [0, 1, 0x0800, 31_000, 31_001, u16::MAX];

/// Length of the packet sequence in one world.
pub(crate) fn packets(
    differential: &mut Differential<'_>,
    random: &mut Random,
    shapes: &[Shape],
    count: usize,
) {
    for round in 0..count {
        if round % 16 == 0 {
            apply_random_change(differential, random);
        }
        let shape = random.pick(shapes);
        let (hook, template) = template(random, &shape);
        if let Some((datagram, content)) = template.subsequent
            && random.once_in(2)
        {
            let age = random.pick(&[0, FRAGMENT_LIFETIME / 3, FRAGMENT_LIFETIME + 1, FRAGMENT_LIFETIME * 9]);
            differential.apply(StateChange::Fragment(datagram, NOW - age, content));
        }
        let mut case = Case::new(hook, &template.bytes);
        if random.once_in(20) {
            let any = random.port();
            case.tag = Some(random.pick(&[0, 0x2000, 1, any]));
        }
        if hook == HookPoint::HostLoIngress && random.once_in(20) {
            case.mark = HANDLED_MARK;
        }
        if random.once_in(2) {
            case.ingress = random.pick(&[0, UPLINK, veth_ifindex(A)]);
        }
        case.priority = priority(random);
        differential.check(&shape.name, &case);
    }
}

fn apply_random_change(differential: &mut Differential<'_>, random: &mut Random) {
    let is_ipv6 = random.once_in(2);
    let peer = random.pick(&packet_shapes::four(is_ipv6));
    let slot = random.pick(&[HOST_SLOT, A, B, C, NO_CONTAINER]);
    let mut generation = differential.world.containers.get(&slot).copied().unwrap_or_default();
    if slot != HOST_SLOT && (slot == NO_CONTAINER || random.once_in(3)) {
        generation += 1;
    }
    let owner = IdOwner { slot, generation, id: random.pick(&NUMBERS) };
    let age = random.pick(&[0, ECHO_LIFETIME / 2, ECHO_LIFETIME + 1]);
    differential.apply(StateChange::Echo(peer, random.pick(&NUMBERS), NOW - age, owner));
    let age = random.pick(&[0, HOST_FLOW_LIFETIME / 2, HOST_FLOW_LIFETIME + 1]);
    let key = HostFlowKey {
        slot: random.pick(&[A, B, C]),
        container_port: random.pick(&NUMBERS),
        host_port: random.pick(&NUMBERS),
        protocol: u16::from(random.pick(&WITH_PORTS)),
        version: if is_ipv6 { 6 } else { 4 },
    };
    differential.apply(StateChange::HostFlow(key, NOW - age));
    let [shared, _, near, far] = packet_shapes::four(is_ipv6);
    let ((peer, version), (local, _)) = (in_map(random.pick(&[near, far])), in_map(shared));
    let (peer_port, local_port) = (random.pick(&NUMBERS), random.pick(&NUMBERS));
    let key = HostConnectionKey { peer, local, peer_port, local_port, version };
    let until = random.pick(&[
        NOW - 1,
        NOW + HOST_CONNECTION_LIFETIME / 2,
        NOW + HOST_TCP_LIFETIME / 2,
        NOW + HOST_TCP_LIFETIME,
    ]);
    let closing = u32::from(random.once_in(2));
    differential.apply(StateChange::HostConnection(key, HostConnection { until, closing, reserved: 0 }));
    let seen = random.pick(&[0, NOW - NEIGHBOUR_LIFETIME / 2, NOW - NEIGHBOUR_LIFETIME * 2]);
    // In the kernel a check ages while the packets are compared, so it is an old one.
    let checked = NOW - NEIGHBOUR_CHECK_INTERVAL * 2;
    differential.apply(StateChange::Neighbour(random.pick(&[A, B]), near, seen, checked));
}

/// Returns a valid frame with random damage.
pub(crate) fn frame(random: &mut Random, shape: &Shape) -> (Vec<u8>, HookPoint) {
    let (hook, template) = template(random, shape);
    (template.bytes, hook)
}

fn template(random: &mut Random, shape: &Shape) -> (HookPoint, Template) {
    let hook = random.pick(&[
        HookPoint::UplinkIngress,
        HookPoint::UplinkIngress,
        HookPoint::VethIngress(A),
        HookPoint::VethIngress(A),
        HookPoint::VethIngress(B),
        HookPoint::HostLoIngress,
        HookPoint::ContainerLoEgress,
        HookPoint::UplinkEgress,
        HookPoint::ContainerEth0Ingress,
    ]);
    let sender = random.pick(&[A, A, B, C, NO_CONTAINER]);
    let ends = ends(random, shape.is_ipv6, hook);
    let mut template = shape.frame(hook, sender, &ends);
    let number = |random: &mut Random| if random.once_in(2) { random.pick(&NUMBERS) } else { random.port() };
    let (source, destination) = (number(random), number(random));
    template.set(source, destination);
    if random.once_in(4) {
        for _ in 0..=random.below(3) {
            mutate(random, &mut template.bytes, shape.is_ipv6);
        }
    }
    (hook, template)
}

/// Returns addresses that mostly pass the address checks of a hook.
fn ends(random: &mut Random, is_ipv6: bool, hook: HookPoint) -> Ends {
    let four = packet_shapes::four(is_ipv6);
    let [shared, loopback, near, far] = four;
    let all = packet_shapes::addresses(is_ipv6);
    let (source, destination): (&[IpAddr], &[IpAddr]) = match hook {
        HookPoint::UplinkIngress => (&[near, far], &[shared]),
        HookPoint::VethIngress(_) | HookPoint::UplinkEgress => (&[shared, shared, loopback], &four),
        HookPoint::HostLoIngress | HookPoint::ContainerLoEgress | HookPoint::ContainerEth0Ingress => {
            (&four, &[shared, loopback])
        }
    };
    let address = |random: &mut Random, of: &[IpAddr]| {
        let of = if random.once_in(6) { &all } else { of };
        random.pick(of)
    };
    let ends = Ends::new(address(random, source), address(random, destination));
    if random.once_in(3) { ends.with_inner(address(random, &four), address(random, &four)) } else { ends }
}

/// Damages a frame.
fn mutate(random: &mut Random, frame: &mut Vec<u8>, is_ipv6: bool) {
    if frame.len() < 40 {
        return;
    }
    let at = 14 + random.below(frame.len() - 14);
    match random.below(11) {
        0 => frame[at] = random.byte(),
        1 => frame[at] ^= 1 << random.below(8),
        2 => frame.truncate(at),
        3 => frame.extend(vec![random.byte(); random.below(64)]),
        4 => {
            // A wrong length, mostly close to the right one.
            let at = if is_ipv6 { 18 } else { 16 };
            let length = u16::from_be_bytes([frame[at], frame[at + 1]]);
            let lie = match random.below(4) {
                0 => 0,
                1 => random.port(),
                _ => length.wrapping_add(u16::from(random.byte() % 24)).wrapping_sub(12),
            };
            frame[at..at + 2].copy_from_slice(&lie.to_be_bytes());
        }
        5 => {
            // Version and header length, fragment fields, protocol.
            let at = random.pick(if is_ipv6 { &[14, 20, 54] } else { &[14, 20, 21, 23] });
            if let Some(byte) = frame.get_mut(at) {
                *byte = random.pick(&[
                    0x45, 0x46, 0x4f, 0x44, 0x60, 0x65, 0x20, 0x00, 0x01, 6, 17, 43, 44, 51, 58, 59, 60,
                ]);
            }
        }
        6 => {
            // A duplicated or moved piece: nested headers, overlapping fragments.
            let length = random.below(frame.len() - at).min(48);
            let piece = frame[at..at + length].to_vec();
            let at = 14 + random.below(frame.len() - 14);
            frame.splice(at..at, piece);
        }
        7 => {
            let length = random.below(frame.len() - at).min(24);
            frame.drain(at..at + length);
        }
        8 => {
            let mac = random.pick(&[MAC, OTHER_MAC, [0; 6], [0xff; 6], loopback_mac(A), loopback_mac(B)]);
            let at = random.pick(&[0, 6]);
            frame[at..at + 6].copy_from_slice(&mac);
        }
        9 => {
            let kind = random.pick(&[0x0800_u16, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x9100, 0x0000, 0x05ff]);
            frame[12..14].copy_from_slice(&kind.to_be_bytes());
        }
        _ => {
            let four = packet_shapes::four(is_ipv6);
            let address = random.pick(&four);
            let at = 14 + if is_ipv6 { random.pick(&[8, 24]) } else { random.pick(&[12, 16]) };
            let bytes = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            if frame.len() >= at + bytes.len() {
                frame[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
    }
}
