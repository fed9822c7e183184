//! Everything finite: shapes, addresses, ports, lengths.

use std::net::IpAddr;

use portmap_common::{
    flow_state::{CONFLICT_WINDOW, FRAGMENT_LIFETIME, NEIGHBOUR_LIFETIME},
    hook_point::HookPoint,
    marks::HANDLED_MARK,
    slot::{HOST_SLOT, loopback_mac, veth_ifindex},
};

use crate::{
    differential::{Differential, NOW},
    packet_shapes,
    packets::{Ends, Shape, Template},
    spec_state::{Carried, Note},
    world::{A, ALL_HOOKS, B, Case, DECIDING_HOOKS, LONGEST, MAC, NOBODY, OTHER_MAC, UPLINK, World},
};

/// The first ports of A, B and the host.
fn ports(world: &World) -> [u16; 3] {
    [A, B, HOST_SLOT].map(|slot| (1..=u16::MAX).find(|port| world.owner(*port) == slot).expect("one"))
}

fn ask(judge: &mut Differential<'_>, hook: HookPoint, shape: &Shape, template: &Template) {
    if let Some((datagram, carried)) = template.later {
        judge.remember(Note::Fragment(datagram, NOW, carried));
    }
    judge.ask_once(&shape.name, &Case::new(hook, &template.bytes));
}

/// A shape at hooks between addresses of every kind, with ports of every kind.
pub(crate) fn addresses(judge: &mut Differential<'_>, shape: &Shape, hooks: &[HookPoint]) {
    let ports = ports(judge.world);
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
                    ask(judge, hook, shape, &template);
                }
                judge.forget();
            }
        }
    }
}

/// A shape at a host veth, whole and in segments, with contents of several lengths.
pub(crate) fn segments(judge: &mut Differential<'_>, shape: &Shape) {
    let [own, others, host] = ports(judge.world);
    let [shared, _, near, _] = packet_shapes::four(shape.is_ipv6);
    for (destination, port) in [(shared, others), (shared, host), (near, others)] {
        let mut template = shape.frame(HookPoint::VethIngress(A), A, &Ends::new(shared, destination));
        template.set(own, port);
        for more in [0, 1, 100, 1400] {
            let mut bytes = template.bytes.clone();
            bytes.resize(bytes.len() + more, 0xa5);
            // The place where a TCP header has its length, if nothing else is there.
            let at = if shape.is_ipv6 { 66 } else { 46 };
            for words in if shape.has_numbers() && at < bytes.len() { &[5, 8, 15][..] } else { &[0] } {
                if *words != 0 {
                    bytes[at] = words << 4;
                }
                for segment in [0, 1, 99, 536, 1400, 65_535] {
                    let case = Case { segment, ..Case::new(HookPoint::VethIngress(A), &bytes) };
                    judge.ask_once(&shape.name, &case);
                }
            }
        }
    }
    judge.forget();
}

/// All pairs of ports, or one if they make no difference.
fn pairs(ports: [u16; 3], matters: bool) -> impl Iterator<Item = (u16, u16)> {
    let pairs = ports.into_iter().flat_map(move |from| ports.map(|to| (from, to)));
    pairs.take(if matters { 9 } else { 1 })
}

/// An ICMP error at every hook between addresses that matter, quoting a packet between such addresses.
pub(crate) fn quoted_addresses(judge: &mut Differential<'_>, shape: &Shape) {
    let ports = ports(judge.world);
    let addresses = packet_shapes::four(shape.is_ipv6);
    for hook in DECIDING_HOOKS {
        for (source, destination) in square(addresses) {
            for (quoted_source, quoted_destination) in square(addresses) {
                let ends = Ends { source, destination, quoted_source, quoted_destination };
                let mut template = shape.frame(hook, A, &ends);
                for (from, to) in pairs(ports, shape.has_numbers()) {
                    template.set(from, to);
                    ask(judge, hook, shape, &template);
                }
            }
        }
    }
}

fn square(addresses: [IpAddr; 4]) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    addresses.into_iter().flat_map(move |first| addresses.map(|second| (first, second)))
}

/// A shape at every hook with all ports, once as the source's and once as the destination's. The other port
/// and the addresses change from one to the next.
pub(crate) fn every_port(judge: &mut Differential<'_>, shape: &Shape, step: usize) {
    let others = ports(judge.world);
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
            // Ports that one shape leaves out are another one's.
            judge.asks_kernel = step > 1 || (round + shape.name.len()).is_multiple_of(7);
            for (source, destination) in [(port, other), (other, port)] {
                template.set(source, destination);
                ask(judge, hook, shape, template);
            }
        }
        judge.forget();
    }
}

/// A shape as it is delivered at a hook, where it has been seen already.
fn in_order(judge: &mut Differential<'_>, hook: HookPoint, shape: &Shape) -> Template {
    let [own, others, _] = ports(judge.world);
    let [shared, _, near, _] = packet_shapes::four(shape.is_ipv6);
    let (source, destination) = match hook {
        HookPoint::UplinkIngress => (near, shared),
        HookPoint::VethIngress(_) => (shared, near),
        _ => (shared, shared),
    };
    let mut template = shape.frame(hook, A, &Ends::new(source, destination));
    // The packet that an error at a veth quotes went to the sender's own port.
    template.set(own, if shape.is_error() { own } else { others });
    ask(judge, hook, shape, &template);
    template
}

/// A shape at every hook, cut off after every number of bytes, and claiming every length that it could have.
pub(crate) fn every_length(judge: &mut Differential<'_>, shape: &Shape) {
    const LENGTH4: usize = 14 + 2;
    const LENGTH6: usize = 14 + 4;
    for hook in ALL_HOOKS {
        let template = in_order(judge, hook, shape);
        for length in 0..template.bytes.len() {
            judge.ask_once(&shape.name, &Case::new(hook, &template.bytes[..length]));
        }
        let mut bytes = template.bytes.clone();
        let at = if shape.is_ipv6 { LENGTH6 } else { LENGTH4 };
        for padding in [0, 5] {
            bytes.extend(vec![0; padding]);
            for claimed in 0..=bytes.len() + 1 {
                bytes[at..at + 2].copy_from_slice(&u16::try_from(claimed).expect("short").to_be_bytes());
                judge.ask_once(&shape.name, &Case::new(hook, &bytes));
            }
        }
        judge.forget();
    }
}

/// A shape at every hook with every value of one byte at a time.
pub(crate) fn every_byte(judge: &mut Differential<'_>, shape: &Shape) {
    for hook in ALL_HOOKS {
        let mut template = in_order(judge, hook, shape);
        for place in 0..template.bytes.len() {
            let before = template.bytes[place];
            for value in 0..=u8::MAX {
                template.bytes[place] = value;
                judge.ask_once(&shape.name, &Case::new(hook, &template.bytes));
            }
            template.bytes[place] = before;
        }
        judge.forget();
    }
}

/// What the kernel knows about a frame, and its Ethernet header.
pub(crate) fn frames(judge: &mut Differential<'_>, shape: &Shape) {
    const VLAN_TYPES: [[u8; 2]; 3] = [[0x81, 0], [0x88, 0xa8], [0x91, 0]];
    let [own, others, _] = ports(judge.world);
    let [shared, loopback, near, _] = packet_shapes::four(shape.is_ipv6);
    let macs = [MAC, OTHER_MAC, [0; 6], [0xff; 6], loopback_mac(A), loopback_mac(B), loopback_mac(NOBODY)]
        .into_iter()
        .chain([[0x33, 0x33, 0, 0, 0, 1], loopback_mac(u16::MAX), loopback_mac(HOST_SLOT)]);
    let macs: Vec<[u8; 6]> = macs.collect();
    for hook in ALL_HOOKS {
        for (source, destination) in [(near, shared), (shared, near), (shared, shared), (shared, loopback)] {
            let mut template = shape.frame(hook, A, &Ends::new(source, destination));
            template.set(own, others);
            for tag in [0, 1, 5, 0xfff, 0x1000, 0x2000, 0xe000, 0xf000, 0xf001] {
                judge.ask_once(&shape.name, &Case { tag: Some(tag), ..Case::new(hook, &template.bytes) });
                for cut in [0, 12, 13, 14] {
                    judge.ask_once(
                        &shape.name,
                        &Case { tag: Some(tag), ..Case::new(hook, &template.bytes[..cut]) },
                    );
                }
            }
            for mark in [HANDLED_MARK, 1, u32::MAX] {
                judge.ask_once(&shape.name, &Case { mark, ..Case::new(hook, &template.bytes) });
                judge.ask_once(&shape.name, &Case { mark, ..Case::new(hook, &template.bytes[..7]) });
            }
            for priority in [6, 0x1_0001, 0x504d_0001, 0x504d_1001, 0x504c_0001] {
                judge.ask_once(&shape.name, &Case { priority, ..Case::new(hook, &template.bytes) });
            }
            for ingress in [UPLINK, veth_ifindex(A)] {
                judge.ask_once(&shape.name, &Case { ingress, ..Case::new(hook, &template.bytes) });
            }
            for (to, from) in macs.iter().flat_map(|to| macs.iter().map(move |from| (to, from))) {
                let mut bytes = template.bytes.clone();
                bytes[..6].copy_from_slice(to);
                bytes[6..12].copy_from_slice(from);
                judge.ask_once(&shape.name, &Case::new(hook, &bytes));
            }
            // What the packet does not need is padding, and has to be carried all the same.
            for length in [LONGEST - 1, LONGEST, LONGEST + 1, 2000] {
                let mut bytes = template.bytes.clone();
                bytes.resize(length as usize, 0);
                judge.ask_once(&shape.name, &Case::new(hook, &bytes));
            }
            for outer in VLAN_TYPES {
                for tag in [[0, 0], [0, 5], [0xe0, 0]] {
                    let mut bytes = template.bytes.clone();
                    bytes.splice(12..12, [outer, tag].concat());
                    for taken_off in [None, Some(0), Some(7)] {
                        judge.ask_once(&shape.name, &Case { tag: taken_off, ..Case::new(hook, &bytes) });
                    }
                }
            }
        }
    }
}

/// A shape to a neighbour, for which the sender, or somebody else, has asked so long ago.
pub(crate) fn neighbours(judge: &mut Differential<'_>, shape: &Shape) {
    let [own, others, _] = ports(judge.world);
    let [shared, _, near, _] = packet_shapes::four(shape.is_ipv6);
    let mut template = shape.frame(HookPoint::VethIngress(A), A, &Ends::new(shared, near));
    template.set(own, others);
    for (slot, age) in [(A, 0), (A, NEIGHBOUR_LIFETIME), (A, NEIGHBOUR_LIFETIME + 1), (B, 0)] {
        judge.remember(Note::Neighbour(slot, near, NOW - age));
        ask(judge, HookPoint::VethIngress(A), shape, &template);
        judge.forget();
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

/// Fragments at every hook, of whose datagram a first one has passed so long ago, which said the same or
/// something else.
pub(crate) fn ages(judge: &mut Differential<'_>, shape: &Shape) {
    let [own, others, _] = ports(judge.world);
    let [shared, _, near, _] = packet_shapes::four(shape.is_ipv6);
    for hook in DECIDING_HOOKS {
        for (source, destination) in [(near, shared), (shared, near), (shared, shared)] {
            let mut template = shape.frame(hook, A, &Ends::new(source, destination));
            template.set(own, others);
            let Some((datagram, carried)) = template.first.or(template.later) else { return };
            let others = [Carried::Ports { source: others, destination: own }, Carried::EchoReply(own)];
            for age in AGES {
                for carried in [carried, Carried::Contradicted].into_iter().chain(others) {
                    judge.remember(Note::Fragment(datagram, NOW - age, carried));
                    judge.ask_once(&shape.name, &Case::new(hook, &template.bytes));
                }
            }
            judge.forget();
        }
    }
}
