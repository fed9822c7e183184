//! Exhaustive tests: all shapes, addresses, ports and lengths.

use std::net::IpAddr;

use portmap_common::{
    flow_state::{CONFLICT_WINDOW, FRAGMENT_LIFETIME, NEIGHBOUR_CHECK_INTERVAL, NEIGHBOUR_LIFETIME},
    hook_point::HookPoint,
    marks::HANDLED_MARK,
    slot::{HOST_SLOT, loopback_mac, veth_ifindex},
};

use crate::{
    differential::{Differential, NOW},
    packet_shapes,
    packets::{Ends, Shape, Template},
    spec_state::{CachedContent, StateChange},
    world::{A, ALL_HOOKS, B, Case, DECIDING_HOOKS, LONGEST, MAC, NO_CONTAINER, OTHER_MAC, UPLINK, World},
};

/// Returns the lowest ports of A, B and the host.
fn ports(world: &World) -> [u16; 3] {
    [A, B, HOST_SLOT].map(|slot| (1..=u16::MAX).find(|port| world.owner(*port) == slot).expect("one"))
}

fn check(differential: &mut Differential<'_>, hook: HookPoint, shape: &Shape, template: &Template) {
    if let Some((datagram, content)) = template.subsequent {
        differential.apply(StateChange::Fragment(datagram, NOW, content));
    }
    differential.check_once(&shape.name, &Case::new(hook, &template.bytes));
}

/// Tests a shape between addresses of all kinds, with ports of all kinds.
pub(crate) fn addresses(differential: &mut Differential<'_>, shape: &Shape, hooks: &[HookPoint]) {
    let ports = ports(differential.world);
    let addresses = if shape.has_numbers() {
        packet_shapes::addresses(shape.is_ipv6)
    } else {
        packet_shapes::four(shape.is_ipv6).into()
    };
    for hook in hooks.iter().copied() {
        for source in &addresses {
            for destination in &addresses {
                let mut template = shape.frame(hook, A, &Ends::new(*source, *destination));
                for (from, to) in pairs(ports, shape.has_numbers()) {
                    template.set(from, to);
                    check(differential, hook, shape, &template);
                }
                differential.clear();
            }
        }
    }
}

/// Tests a shape at a host veth with and without GSO, with contents of several lengths.
pub(crate) fn segments(differential: &mut Differential<'_>, shape: &Shape) {
    let [own, others, host] = ports(differential.world);
    let [shared, _, near, _] = packet_shapes::four(shape.is_ipv6);
    for (destination, port) in [(shared, others), (shared, host), (near, others)] {
        let mut template = shape.frame(HookPoint::VethIngress(A), A, &Ends::new(shared, destination));
        template.set(own, port);
        for more in [0, 1, 100, 1400] {
            let mut bytes = template.bytes.clone();
            bytes.resize(bytes.len() + more, 0xa5);
            // The offset of a TCP header's length, unless the content has another field there.
            let at = if shape.is_ipv6 { 66 } else { 46 };
            for words in if shape.has_numbers() && at < bytes.len() { &[5, 8, 15][..] } else { &[0] } {
                if *words != 0 {
                    bytes[at] = words << 4;
                }
                for segment in [0, 1, 99, 536, 1400, 65_535] {
                    let case = Case { segment, ..Case::new(HookPoint::VethIngress(A), &bytes) };
                    differential.check_once(&shape.name, &case);
                }
            }
        }
    }
    differential.clear();
}

/// Returns all pairs of ports, or one if the shape has none.
fn pairs(ports: [u16; 3], matters: bool) -> impl Iterator<Item = (u16, u16)> {
    let pairs = ports.into_iter().flat_map(move |from| ports.map(|to| (from, to)));
    pairs.take(if matters { 9 } else { 1 })
}

/// Tests an ICMP error at every hook between relevant addresses, with an inner packet between such addresses.
pub(crate) fn inner_addresses(differential: &mut Differential<'_>, shape: &Shape) {
    let ports = ports(differential.world);
    let addresses = packet_shapes::four(shape.is_ipv6);
    for hook in DECIDING_HOOKS {
        for (source, destination) in square(addresses) {
            for (inner_source, inner_destination) in square(addresses) {
                let ends = Ends { source, destination, inner_source, inner_destination };
                let mut template = shape.frame(hook, A, &ends);
                for (from, to) in pairs(ports, shape.has_numbers()) {
                    template.set(from, to);
                    check(differential, hook, shape, &template);
                }
            }
        }
    }
}

fn square(addresses: [IpAddr; 4]) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    addresses.into_iter().flat_map(move |first| addresses.map(|second| (first, second)))
}

/// Tests a shape at every hook with all ports, as source and as destination port. The other port and the
/// addresses alternate.
pub(crate) fn every_port(differential: &mut Differential<'_>, shape: &Shape, step: usize) {
    let others = ports(differential.world);
    let [shared, loopback, near, far] = packet_shapes::four(shape.is_ipv6);
    for hook in DECIDING_HOOKS {
        let ends: &[(IpAddr, IpAddr)] = match hook {
            HookPoint::UplinkIngress => &[(near, shared), (far, shared)],
            HookPoint::VethIngress(_) => {
                &[(shared, near), (shared, far), (shared, shared), (shared, loopback), (loopback, loopback)]
            }
            _ => &[(shared, shared), (loopback, loopback), (shared, loopback), (near, shared)],
        };
        let ends = ends.iter().map(|(source, destination)| Ends::new(*source, *destination));
        let mut templates: Vec<Template> = ends.map(|ends| shape.frame(hook, A, &ends)).collect();
        let count = templates.len();
        for (round, port) in (0..=u16::MAX).step_by(step).enumerate() {
            let other = others[(round / count) % others.len()];
            let template = &mut templates[round % count];
            // Each shape tests another part of the ports.
            differential.with_kernel = step > 1 || (round + shape.name.len()).is_multiple_of(7);
            for (source, destination) in [(port, other), (other, port)] {
                template.set(source, destination);
                check(differential, hook, shape, template);
            }
        }
        differential.clear();
    }
}

/// Returns a shape as a valid frame at a hook, and prepares the state so that it is delivered.
fn in_order(differential: &mut Differential<'_>, hook: HookPoint, shape: &Shape) -> Template {
    let [own, others, _] = ports(differential.world);
    let [shared, _, near, _] = packet_shapes::four(shape.is_ipv6);
    let (source, destination) = match hook {
        HookPoint::UplinkIngress => (near, shared),
        HookPoint::VethIngress(_) => (shared, near),
        _ => (shared, shared),
    };
    let mut template = shape.frame(hook, A, &Ends::new(source, destination));
    // The inner packet of an error at a veth was to the sender's own port.
    template.set(own, if shape.is_error() { own } else { others });
    check(differential, hook, shape, &template);
    template
}

/// Tests a shape at every hook, truncated to every length, and with every value of the length field.
pub(crate) fn every_length(differential: &mut Differential<'_>, shape: &Shape) {
    const LENGTH4: usize = 14 + 2;
    const LENGTH6: usize = 14 + 4;
    for hook in ALL_HOOKS {
        let template = in_order(differential, hook, shape);
        for length in 0..template.bytes.len() {
            differential.check_once(&shape.name, &Case::new(hook, &template.bytes[..length]));
        }
        let mut bytes = template.bytes.clone();
        let at = if shape.is_ipv6 { LENGTH6 } else { LENGTH4 };
        for padding in [0, 5] {
            bytes.extend(vec![0; padding]);
            for claimed in 0..=bytes.len() + 1 {
                bytes[at..at + 2].copy_from_slice(&u16::try_from(claimed).expect("short").to_be_bytes());
                differential.check_once(&shape.name, &Case::new(hook, &bytes));
            }
        }
        differential.clear();
    }
}

/// Tests a shape at every hook with every value of each byte.
pub(crate) fn every_byte(differential: &mut Differential<'_>, shape: &Shape) {
    for hook in ALL_HOOKS {
        let mut template = in_order(differential, hook, shape);
        for at in 0..template.bytes.len() {
            let before = template.bytes[at];
            for value in 0..=u8::MAX {
                template.bytes[at] = value;
                differential.check_once(&shape.name, &Case::new(hook, &template.bytes));
            }
            template.bytes[at] = before;
        }
        differential.clear();
    }
}

/// Tests a frame's metadata and its Ethernet header.
pub(crate) fn frames(differential: &mut Differential<'_>, shape: &Shape) {
    const VLAN_TYPES: [[u8; 2]; 3] = [[0x81, 0], [0x88, 0xa8], [0x91, 0]];
    let [own, others, _] = ports(differential.world);
    let [shared, loopback, near, _] = packet_shapes::four(shape.is_ipv6);
    let macs =
        [MAC, OTHER_MAC, [0; 6], [0xff; 6], loopback_mac(A), loopback_mac(B), loopback_mac(NO_CONTAINER)]
            .into_iter()
            .chain([[0x33, 0x33, 0, 0, 0, 1], loopback_mac(u16::MAX), loopback_mac(HOST_SLOT)]);
    let macs: Vec<[u8; 6]> = macs.collect();
    for hook in ALL_HOOKS {
        for (source, destination) in [(near, shared), (shared, near), (shared, shared), (shared, loopback)] {
            let mut template = shape.frame(hook, A, &Ends::new(source, destination));
            template.set(own, others);
            for tag in [0, 1, 5, 0xfff, 0x1000, 0x2000, 0xe000, 0xf000, 0xf001] {
                differential
                    .check_once(&shape.name, &Case { tag: Some(tag), ..Case::new(hook, &template.bytes) });
                for cut in [0, 12, 13, 14] {
                    differential.check_once(
                        &shape.name,
                        &Case { tag: Some(tag), ..Case::new(hook, &template.bytes[..cut]) },
                    );
                }
            }
            for mark in [HANDLED_MARK, 1, u32::MAX] {
                differential.check_once(&shape.name, &Case { mark, ..Case::new(hook, &template.bytes) });
                differential.check_once(&shape.name, &Case { mark, ..Case::new(hook, &template.bytes[..7]) });
            }
            for priority in [6, 0x1_0001, 0x504d_0001, 0x504d_1001, 0x504c_0001] {
                differential.check_once(&shape.name, &Case { priority, ..Case::new(hook, &template.bytes) });
            }
            for ingress in [UPLINK, veth_ifindex(A)] {
                differential.check_once(&shape.name, &Case { ingress, ..Case::new(hook, &template.bytes) });
            }
            for (to, from) in macs.iter().flat_map(|to| macs.iter().map(move |from| (to, from))) {
                let mut bytes = template.bytes.clone();
                bytes[..6].copy_from_slice(to);
                bytes[6..12].copy_from_slice(from);
                differential.check_once(&shape.name, &Case::new(hook, &bytes));
            }
            // Bytes behind the packet's end are padding; the packet is still valid.
            for length in [LONGEST - 1, LONGEST, LONGEST + 1, 2000] {
                let mut bytes = template.bytes.clone();
                bytes.resize(length as usize, 0);
                differential.check_once(&shape.name, &Case::new(hook, &bytes));
            }
            for outer in VLAN_TYPES {
                for tag in [[0, 0], [0, 5], [0xe0, 0]] {
                    let mut bytes = template.bytes.clone();
                    bytes.splice(12..12, [outer, tag].concat());
                    for taken_off in [None, Some(0), Some(7)] {
                        differential
                            .check_once(&shape.name, &Case { tag: taken_off, ..Case::new(hook, &bytes) });
                    }
                }
            }
        }
    }
}

/// Tests a shape to a neighbour that the sender or another container has used before, at several ages.
pub(crate) fn neighbours(differential: &mut Differential<'_>, shape: &Shape) {
    let [own, others, _] = ports(differential.world);
    let [shared, _, near, _] = packet_shapes::four(shape.is_ipv6);
    let mut template = shape.frame(HookPoint::VethIngress(A), A, &Ends::new(shared, near));
    template.set(own, others);
    for (slot, seen) in
        [(A, NOW), (A, NOW - NEIGHBOUR_LIFETIME), (A, NOW - NEIGHBOUR_LIFETIME - 1), (A, 0), (B, NOW)]
    {
        for age in [0, NEIGHBOUR_CHECK_INTERVAL, NEIGHBOUR_CHECK_INTERVAL + 1] {
            differential.apply(StateChange::Neighbour(slot, near, seen, NOW - age));
            check(differential, HookPoint::VethIngress(A), shape, &template);
            differential.clear();
        }
    }
}

const AGES: [u64; 6] = [
    0,
    CONFLICT_WINDOW,
    CONFLICT_WINDOW + 1,
    FRAGMENT_LIFETIME / 3,
    FRAGMENT_LIFETIME + 1,
    FRAGMENT_LIFETIME * 100,
];

/// Tests fragments at every hook with an equal or a different first fragment in the cache, at several ages.
pub(crate) fn ages(differential: &mut Differential<'_>, shape: &Shape) {
    let [own, others, _] = ports(differential.world);
    let [shared, _, near, _] = packet_shapes::four(shape.is_ipv6);
    for hook in DECIDING_HOOKS {
        for (source, destination) in [(near, shared), (shared, near), (shared, shared)] {
            let mut template = shape.frame(hook, A, &Ends::new(source, destination));
            template.set(own, others);
            let Some((datagram, content)) = template.first.or(template.subsequent) else { return };
            let others =
                [CachedContent::Ports { source: others, destination: own }, CachedContent::EchoReply(own)];
            for age in AGES {
                for content in [content, CachedContent::Conflict].into_iter().chain(others) {
                    differential.apply(StateChange::Fragment(datagram, NOW - age, content));
                    differential.check_once(&shape.name, &Case::new(hook, &template.bytes));
                }
            }
            differential.clear();
        }
    }
}
