//! One table of frames, decided twice: by the decision code on this machine, and by the loaded programs in the
//! kernel. Both must say what the table says.

use std::{fs, net::Ipv4Addr, path::Path, thread};

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use portmap::{
    kernel::{
        link::{self, VethPair},
        maps::Maps,
        namespace::Namespace,
        netlink::Netlink,
        programs,
    },
    paths::Pins,
};
use portmap_common::{
    counters::Counters,
    names,
    reason::{Drops, HostHook, Reason, ReasonCounts},
    slot::{HOST_SLOT, loopback_mac, veth_ifindex},
    tables::{Config, Endpoint, PortEntry},
};
use portmap_ebpf::{
    Verdict,
    frame::{Frame as FrameView, HEAD},
    hooks::{container_lo, host_lo, uplink, veth},
    tables::Tables,
    verdict::Origin,
};
use portmap_tests::frames::{Frame, ICMP, TCP, UDP};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const LOCAL: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const ALSO_LOCAL: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);
const MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];
const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 9];

/// The slots of two containers, and a port of each. The second one's are the first and the last there are.
const A: u16 = 1;
const B: u16 = 7;
const A_PORT: u16 = 31000;
const B_PORT: u16 = 65535;
const B_LOW_PORT: u16 = 1;
const FREE: u16 = 80;
const UPLINK: u32 = 77;
const ETH0: u32 = 2;

const fn entry(slot: u16) -> PortEntry {
    PortEntry { ifindex: veth_ifindex(slot), slot, flags: 0 }
}

const CONFIG: Config = Config {
    host_ip: HOST.octets(),
    netmask: [255, 255, 255, 0],
    gateway: GATEWAY.octets(),
    uplink_ifindex: UPLINK,
    lo_mac: [0; 6],
    reserved: [0; 2],
};

/// What the maps hold.
struct World;

impl Tables for World {
    fn port(&self, port: u16) -> PortEntry {
        match port {
            A_PORT => entry(A),
            B_PORT | B_LOW_PORT => entry(B),
            _ => PortEntry::default(),
        }
    }

    fn endpoint(&self, slot: u16) -> Endpoint {
        if slot == A {
            Endpoint { host_ifindex: veth_ifindex(A), eth0_ifindex: ETH0, ..Endpoint::default() }
        } else {
            Endpoint::default()
        }
    }

    fn config(&self) -> Config {
        CONFIG
    }
}

/// A frame in memory.
struct Bytes<'a> {
    bytes: &'a [u8],
    ifindex: u32,
}

impl FrameView for Bytes<'_> {
    fn head(&self) -> Option<&[u8; HEAD]> {
        self.bytes.first_chunk()
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..)?.first_chunk().copied()
    }

    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("a short frame")
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn is_for_this_station(&self) -> bool {
        self.bytes.starts_with(&MAC)
    }

    fn has_vlan_tag(&self) -> bool {
        false
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Uplink,
    HostLo,
    VethOfA,
    LoOfA,
}

impl Hook {
    const ALL: [Self; 4] = [Self::Uplink, Self::HostLo, Self::VethOfA, Self::LoOfA];

    const fn ifindex(self) -> u32 {
        match self {
            Self::Uplink => UPLINK,
            Self::HostLo | Self::LoOfA => 1,
            Self::VethOfA => veth_ifindex(A),
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Uplink => names::PROG_UPLINK_INGRESS,
            Self::HostLo => names::PROG_LO_INGRESS,
            Self::VethOfA => names::PROG_VETH_INGRESS,
            Self::LoOfA => names::PROG_CONTAINER_LO,
        }
    }

    fn decide(self, bytes: &[u8]) -> Verdict {
        let frame = Bytes { bytes, ifindex: self.ifindex() };
        match self {
            Self::Uplink => uplink::decide(&frame, &World),
            Self::HostLo => host_lo::decide(&frame, &World),
            Self::VethOfA => veth::decide(&frame, &World),
            Self::LoOfA => container_lo::decide(&frame, &World),
        }
    }
}

struct Fixture {
    name: String,
    hook: Hook,
    frame: Vec<u8>,
    verdict: Verdict,
}

fn from_outside(to: u16) -> Frame {
    Frame { to_mac: MAC, ..Frame::udp((PEER, 5555), (HOST, to)) }
}

fn on_host_lo(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Frame {
    Frame { from_mac: [0; 6], ..Frame::udp(from, to) }
}

fn from_a(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Frame {
    Frame { from_mac: MAC, to_mac: MAC, ..Frame::udp(from, to) }
}

fn on_lo_of_a(to: (Ipv4Addr, u16)) -> Frame {
    Frame { from_mac: loopback_mac(A), to_mac: loopback_mac(A), ..Frame::udp((HOST, A_PORT), to) }
}

/// What is neither IPv4 TCP nor IPv4 UDP, made of a packet that would be delivered, with the reason.
fn unfit(good: &Frame) -> Vec<(String, Vec<u8>, Reason)> {
    let other = |name: &str, frame: Frame, reason| (name.to_owned(), frame.bytes(), reason);
    let mut forms = vec![
        other("802.1Q", Frame { vlan: Some(5), ..good.clone() }, Reason::Vlan),
        other("802.1ad", Frame { ether_type: 0x88a8, ..good.clone() }, Reason::Vlan),
        other("a stacked tag of old", Frame { ether_type: 0x9100, ..good.clone() }, Reason::Vlan),
        other("ARP", Frame { ether_type: 0x0806, ..good.clone() }, Reason::Arp),
        other("an unknown type", Frame { ether_type: 0x88b5, ..good.clone() }, Reason::EtherType),
        other("a length in place of a type", Frame { ether_type: 60, ..good.clone() }, Reason::EtherType),
        other("ICMP", good.clone().protocol(ICMP), Reason::Icmp),
        other("GRE", good.clone().protocol(47), Reason::Protocol),
        other("protocol 0", good.clone().protocol(0), Reason::Protocol),
        other("protocol 255", good.clone().protocol(255), Reason::Protocol),
        other("a first fragment", Frame { fragment: 0x2000, ..good.clone() }, Reason::Fragment),
        other("a later fragment", Frame { fragment: 0x2001, ..good.clone() }, Reason::Fragment),
        other("a last fragment", Frame { fragment: 0x1fff, ..good.clone() }, Reason::Fragment),
        other("version 6 in IPv4", Frame { version: 6, ..good.clone() }, Reason::Malformed),
        other("version 0 in IPv4", Frame { version: 0, ..good.clone() }, Reason::Malformed),
        other("ports in the padding", Frame { total_length: Some(27), ..good.clone() }, Reason::Malformed),
        other("a packet of 20 bytes", Frame { total_length: Some(20), ..good.clone() }, Reason::Malformed),
        other("a packet of 1 byte", Frame { total_length: Some(1), ..good.clone() }, Reason::Malformed),
    ];
    let mut short_header = good.bytes();
    short_header[14] = 0x44;
    forms.push(("a header of 16 bytes".to_owned(), short_header, Reason::Malformed));
    // The kernel takes no IPv4 frame without a whole IPv4 header for a test run.
    for length in 34..HEAD {
        forms.push((
            format!("cut off after {length} bytes"),
            good.bytes()[..length].to_vec(),
            Reason::Malformed,
        ));
    }
    let options = Frame { options: vec![1; 40], total_length: Some(68), ..good.clone() };
    for length in [42, 60, 77] {
        let bytes = options.bytes()[..length].to_vec();
        forms.push((format!("options, cut off after {length} bytes"), bytes, Reason::Malformed));
    }
    forms
}

fn fixtures() -> Vec<Fixture> {
    let mut fixtures = Vec::new();
    let mut add = |name: &str, hook: Hook, frame: &Frame, verdict: Verdict| {
        fixtures.push(Fixture { name: name.to_owned(), hook, frame: frame.bytes(), verdict });
    };
    let drop_a = |reason| Verdict::Drop { slot: A, reason };
    let to = |origin, slot| Verdict::ToContainer { origin, owner: entry(slot) };

    // From outside.
    let hook = Hook::Uplink;
    for (protocol, name) in [(UDP, "UDP"), (TCP, "TCP")] {
        let packet = |port| from_outside(port).protocol(protocol);
        add(&format!("{name} for a"), hook, &packet(A_PORT), to(Origin::Outside, A));
        add(&format!("{name} for b"), hook, &packet(B_PORT), to(Origin::Outside, B));
        add(&format!("{name} for port 1 of b"), hook, &packet(B_LOW_PORT), to(Origin::Outside, B));
        add(&format!("{name} for a free port"), hook, &packet(FREE), Verdict::Continue(Reason::HostPort));
        add(&format!("{name} for port 0"), hook, &packet(0), Verdict::Continue(Reason::HostPort));
    }
    for options in [4, 20, 40] {
        let frame = Frame { options: vec![1; options], ..from_outside(A_PORT) };
        add(&format!("{options} bytes of options"), hook, &frame, to(Origin::Outside, A));
    }
    // The "don't fragment" bit and the reserved one are no fragment.
    for flags in [0x4000, 0x8000, 0xc000] {
        add("flags", hook, &Frame { fragment: flags, ..from_outside(A_PORT) }, to(Origin::Outside, A));
    }
    add(
        "the sender's port is a's",
        hook,
        &Frame { from_port: A_PORT, ..from_outside(FREE) },
        Verdict::Continue(Reason::HostPort),
    );
    add(
        "length 0 of a super-packet",
        hook,
        &Frame { total_length: Some(0), ..from_outside(A_PORT) },
        to(Origin::Outside, A),
    );
    add(
        "another address",
        hook,
        &Frame { to: PEER, ..from_outside(A_PORT) },
        Verdict::Continue(Reason::OtherAddress),
    );
    add(
        "127.0.0.1 from outside",
        hook,
        &Frame { to: LOCAL, ..from_outside(A_PORT) },
        Verdict::Continue(Reason::OtherAddress),
    );
    add(
        "multicast",
        hook,
        &Frame { to: Ipv4Addr::new(224, 0, 0, 1), ..from_outside(A_PORT) },
        Verdict::Continue(Reason::OtherAddress),
    );
    add(
        "another station",
        hook,
        &Frame { to_mac: OTHER_MAC, ..from_outside(A_PORT) },
        Verdict::Continue(Reason::OtherStation),
    );
    add(
        "a broadcast frame",
        hook,
        &Frame { to_mac: [0xff; 6], ..from_outside(A_PORT) },
        Verdict::Continue(Reason::OtherStation),
    );
    for source in [HOST, LOCAL, ALSO_LOCAL] {
        for port in [A_PORT, FREE] {
            let frame = Frame { from: source, ..from_outside(port) };
            add(
                &format!("from {source} to {port}"),
                hook,
                &frame,
                Verdict::Drop { slot: HOST_SLOT, reason: Reason::SourceAddress },
            );
        }
    }

    // On the host's loopback device.
    let hook = Hook::HostLo;
    for address in [HOST, LOCAL, ALSO_LOCAL] {
        for source in [HOST, LOCAL] {
            let frame = |from, to| on_host_lo((source, from), (address, to));
            add(&format!("{address} for a"), hook, &frame(50000, A_PORT), to(Origin::Host, A));
            add(
                &format!("{address} for a by TCP"),
                hook,
                &frame(50000, A_PORT).protocol(TCP),
                to(Origin::Host, A),
            );
            add(&format!("{address} for b"), hook, &frame(50000, B_PORT), to(Origin::Host, B));
            add(
                &format!("{address} for the host"),
                hook,
                &frame(50000, FREE),
                Verdict::Continue(Reason::HostPort),
            );
            add(&format!("{address} from a for the host"), hook, &frame(A_PORT, FREE), Verdict::Decided);
        }
    }
    add(
        "another address of the host",
        hook,
        &on_host_lo((HOST, 50000), (PEER, A_PORT)),
        Verdict::Continue(Reason::OtherAddress),
    );

    // From container a.
    let hook = Hook::VethOfA;
    for (protocol, name) in [(UDP, "UDP"), (TCP, "TCP")] {
        let packet = |from, to| from_a(from, to).protocol(protocol);
        let own = (HOST, A_PORT);
        add(
            &format!("{name} on the link"),
            hook,
            &packet(own, (PEER, FREE)),
            Verdict::ToOutside { slot: A, next_hop: PEER.octets() },
        );
        add(
            &format!("{name} beyond"),
            hook,
            &packet(own, (FAR, FREE)),
            Verdict::ToOutside { slot: A, next_hop: GATEWAY.octets() },
        );
        // A port outside has nothing to do with the same port here.
        add(
            &format!("{name} to b's port beyond"),
            hook,
            &packet(own, (FAR, B_PORT)),
            Verdict::ToOutside { slot: A, next_hop: GATEWAY.octets() },
        );
        for address in [HOST, LOCAL, ALSO_LOCAL] {
            add(
                &format!("{name} to the host by {address}"),
                hook,
                &packet(own, (address, FREE)),
                Verdict::ToHost(A),
            );
            add(
                &format!("{name} to b by {address}"),
                hook,
                &packet(own, (address, B_PORT)),
                to(Origin::Container(A), B),
            );
            add(
                &format!("{name} to itself by {address}"),
                hook,
                &packet(own, (address, A_PORT)),
                to(Origin::Container(A), A),
            );
            let from_local = packet((LOCAL, A_PORT), (address, FREE));
            add(&format!("{name} from 127.0.0.1 to {address}"), hook, &from_local, Verdict::ToHost(A));
        }
        for port in [B_PORT, B_LOW_PORT, FREE, 0, A_PORT + 1] {
            for target in [(PEER, FREE), (FAR, FREE), (HOST, FREE), (HOST, B_PORT), (LOCAL, B_PORT)] {
                let frame = packet((HOST, port), target);
                add(
                    &format!("{name} from port {port} to {target:?}"),
                    hook,
                    &frame,
                    drop_a(Reason::SourcePort),
                );
            }
        }
        for source in [PEER, FAR, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST] {
            for target in [(PEER, FREE), (FAR, FREE), (HOST, FREE), (LOCAL, B_PORT)] {
                let frame = packet((source, A_PORT), target);
                add(
                    &format!("{name} from {source} to {target:?}"),
                    hook,
                    &frame,
                    drop_a(Reason::SourceAddress),
                );
            }
        }
        add(
            &format!("{name} from 127.0.0.1 to the outside"),
            hook,
            &packet((LOCAL, A_PORT), (PEER, FREE)),
            drop_a(Reason::SourceAddress),
        );
    }
    for target in [
        Ipv4Addr::new(0, 0, 0, 0),
        Ipv4Addr::new(0, 1, 2, 3),
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::new(239, 255, 255, 250),
        Ipv4Addr::new(240, 0, 0, 1),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(10, 0, 0, 0),
        Ipv4Addr::new(10, 0, 0, 255),
    ] {
        add(
            &format!("to {target}"),
            hook,
            &from_a((HOST, A_PORT), (target, FREE)),
            drop_a(Reason::Destination),
        );
    }
    let forged = Frame { from_mac: OTHER_MAC, to_mac: [0xff; 6], ..from_a((HOST, A_PORT), (PEER, FREE)) };
    // The frame gets a new Ethernet header, so what the old one claims is without effect.
    add("a forged Ethernet header", hook, &forged, Verdict::ToOutside { slot: A, next_hop: PEER.octets() });
    let optional = Frame { options: vec![1; 40], ..from_a((HOST, B_PORT), (PEER, FREE)) };
    add("options before a foreign port", hook, &optional, drop_a(Reason::SourcePort));

    // On container a's loopback device.
    let hook = Hook::LoOfA;
    for address in [HOST, LOCAL, ALSO_LOCAL] {
        add(&format!("own port by {address}"), hook, &on_lo_of_a((address, A_PORT)), Verdict::Own(A));
        add(&format!("b's port by {address}"), hook, &on_lo_of_a((address, B_PORT)), Verdict::ToEth0(ETH0));
        add(
            &format!("the host's port by {address}"),
            hook,
            &on_lo_of_a((address, FREE)),
            Verdict::ToEth0(ETH0),
        );
    }
    add("an address of its own", hook, &on_lo_of_a((PEER, FREE)), Verdict::Own(A));
    let nameless = Frame { from_mac: [0; 6], ..on_lo_of_a((HOST, B_PORT)) };
    add("a loopback device without a slot", hook, &nameless, Verdict::Own(HOST_SLOT));
    let unknown = Frame { from_mac: loopback_mac(B), ..on_lo_of_a((HOST, FREE)) };
    add("the slot of a container without eth0", hook, &unknown, Verdict::Own(B));

    // What no hook carries.
    for hook in Hook::ALL {
        let (good, verdict): (Frame, fn(Reason) -> Verdict) = match hook {
            Hook::Uplink => (from_outside(A_PORT), Verdict::Continue),
            Hook::HostLo => (on_host_lo((HOST, 50000), (HOST, A_PORT)), Verdict::Continue),
            Hook::VethOfA => {
                (from_a((HOST, A_PORT), (PEER, FREE)), |reason| Verdict::Drop { slot: A, reason })
            }
            Hook::LoOfA => (on_lo_of_a((HOST, B_PORT)), |_| Verdict::Own(A)),
        };
        fixtures.extend(unfit(&good).into_iter().map(|(name, frame, reason)| Fixture {
            name,
            hook,
            frame,
            verdict: verdict(reason),
        }));
        // Long enough for an IPv6 header, without which the kernel takes no such frame for a test run.
        let ipv6 = Frame { ether_type: 0x86dd, payload: vec![0; 40], ..good }.bytes();
        fixtures.push(Fixture { name: "IPv6".to_owned(), hook, frame: ipv6, verdict: verdict(Reason::Ipv6) });
    }
    fixtures
}

#[test]
fn the_decision_code_agrees_with_the_table() {
    for Fixture { name, hook, frame, verdict } in fixtures() {
        assert_eq!(hook.decide(&frame), verdict, "{hook:?}: {name}");
    }
}

/// The decision code sees frames that the kernel refuses to run a test with, and ones that no wire carries.
#[test]
fn frames_of_every_length_are_decided() {
    for hook in Hook::ALL {
        let whole = Frame { options: vec![1; 40], ..from_a((HOST, A_PORT), (HOST, A_PORT)) }.bytes();
        for length in 0..whole.len() {
            match hook.decide(&whole[..length]) {
                Verdict::ToOutside { .. } | Verdict::ToHost(_) | Verdict::ToEth0(_) => {
                    panic!("{hook:?} at {length}")
                }
                Verdict::ToContainer { .. } => assert!(length >= 14 + 60 + 4, "{hook:?} at {length}"),
                Verdict::Continue(_) | Verdict::Decided | Verdict::Own(_) | Verdict::Drop { .. } => {}
            }
        }
    }
}

/// What a verdict does that can be seen from outside: the code for the kernel and the counts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Effects {
    code: i32,
    /// Slot and path of each count of a packet.
    delivered: Vec<(u16, &'static str)>,
    dropped: Vec<(u16, &'static str, &'static str)>,
    left_to_host: Vec<(&'static str, &'static str)>,
}

const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

fn effects_of(hook: Hook, verdict: Verdict) -> Effects {
    let none = Effects::default();
    match verdict {
        Verdict::Continue(reason) => {
            let hook = if hook == Hook::Uplink { HostHook::Uplink } else { HostHook::Loopback };
            Effects { code: NEXT, left_to_host: vec![(hook.name(), reason.name())], ..none }
        }
        Verdict::Decided => Effects { code: NEXT, ..none },
        Verdict::Own(slot) => Effects { code: NEXT, delivered: vec![(slot, "own")], ..none },
        Verdict::Drop { slot, reason } => {
            let direction = if slot == HOST_SLOT { "rx" } else { "tx" };
            Effects { code: SHOT, dropped: vec![(slot, direction, reason.name())], ..none }
        }
        Verdict::ToContainer { origin, owner } => {
            let delivered = match origin {
                Origin::Outside => vec![(owner.slot, "rx_outside")],
                Origin::Host => vec![(owner.slot, "rx_host")],
                Origin::Container(sender) => vec![(owner.slot, "rx_container"), (sender, "tx_container")],
            };
            Effects { code: REDIRECT, delivered, ..none }
        }
        Verdict::ToOutside { slot, .. } => {
            Effects { code: REDIRECT, delivered: vec![(slot, "tx_outside")], ..none }
        }
        Verdict::ToHost(slot) => Effects { code: REDIRECT, delivered: vec![(slot, "tx_host")], ..none },
        Verdict::ToEth0(_) => Effects { code: REDIRECT, ..none },
    }
}

const SLOTS: [u16; 3] = [HOST_SLOT, A, B];

/// All counters that a fixture can change.
struct Counts {
    counters: [Counters; 3],
    drops: [Drops; 3],
    host: [ReasonCounts; 2],
}

impl Counts {
    fn read(maps: &Maps) -> Self {
        Self {
            counters: SLOTS.map(|slot| maps.counters(slot).expect("a map")),
            drops: SLOTS.map(|slot| maps.drops(slot).expect("a map")),
            host: HostHook::ALL.map(|hook| maps.host(hook).expect("a map")),
        }
    }

    /// Everything that has been counted since, one element for each packet.
    fn since(&self, before: &Self, code: i32, bytes: u64) -> Effects {
        let mut effects = Effects { code, ..Effects::default() };
        for (place, slot) in SLOTS.into_iter().enumerate() {
            let paths = self.counters[place].by_path().into_iter().zip(before.counters[place].by_path());
            for ((path, now), (_, then)) in paths {
                let packets = now.packets - then.packets;
                assert_eq!(now.bytes - then.bytes, packets * bytes, "bytes of {path}");
                effects.delivered.extend((0..packets).map(|_| (slot, path)));
            }
            for reason in Reason::ALL {
                let (now, then) = (&self.drops[place], &before.drops[place]);
                let directions = [("rx", now.rx, then.rx), ("tx", now.tx, then.tx)];
                for (direction, now, then) in directions {
                    let packets = now.get(*reason) - then.get(*reason);
                    effects.dropped.extend((0..packets).map(|_| (slot, direction, reason.name())));
                }
            }
        }
        for (place, hook) in HostHook::ALL.into_iter().enumerate() {
            for reason in Reason::ALL {
                let packets = self.host[place].get(*reason) - before.host[place].get(*reason);
                effects.left_to_host.extend((0..packets).map(|_| (hook.name(), reason.name())));
            }
        }
        effects.delivered.sort_unstable();
        effects
    }
}

/// Runs `work` where it can pin and make interfaces without a trace: on a thread with namespaces of its own.
fn in_private_namespaces(work: impl FnOnce(&Pins) + Send) {
    let directory = tempfile::tempdir().expect("a directory");
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("root may");
            let (none, path) = (None::<&str>, directory.path());
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("a private mount");
            mount(none, path, Some("bpf"), MsFlags::empty(), none).expect("a bpffs");
            work(&Pins::new(path));
            umount2(path, MntFlags::MNT_DETACH).expect("unmounted");
        });
        if let Err(panic) = worker.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Makes the interfaces that the fixtures name, and fills the maps with what [`World`] says.
fn build_world(pins: &Pins) -> Maps {
    let netlink = Netlink::open().expect("netlink");
    let here = Namespace::current().expect("a namespace");
    for (name, index) in [("uplink", UPLINK), ("a", veth_ifindex(A)), ("b", veth_ifindex(B))] {
        let peer = format!("{name}-peer");
        link::create_veth(
            &netlink,
            &VethPair {
                host_name: name,
                host_index: index,
                alias: "",
                container_name: &peer,
                container_index: index + 1000,
                container: &here,
                mac: MAC,
                mtu: 1500,
            },
        )
        .expect("a veth pair");
        link::set_up(&netlink, index, name).expect("up");
    }
    link::set_up(&netlink, link::LOOPBACK, "lo").expect("up");
    programs::load(pins).expect("the kernel takes the programs");
    let mut maps = Maps::open(pins).expect("the maps");
    maps.set_config(&CONFIG).expect("written");
    for slot in SLOTS {
        maps.set_endpoint(slot, &World.endpoint(slot)).expect("written");
    }
    for port in 0..=u16::MAX {
        maps.ports.set(port, World.port(port));
    }
    maps
}

/// `__sk_buff` as far as a test run reads it (`linux/bpf.h`): all but `ifindex` stay zero.
fn context(ifindex: u32) -> [u8; 192] {
    const OFFSET_OF_IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[OFFSET_OF_IFINDEX..OFFSET_OF_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

fn run(pins: &Pins, hook: Hook, frame: &[u8]) -> Result<i32, ProgramError> {
    let program = SchedClassifier::from_pin(pins.program(hook.program())).expect("pinned");
    let context = context(hook.ifindex());
    let mut output = vec![0; frame.len() + 256];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut output),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    };
    Ok(program.test_run(options)?.return_value.cast_signed())
}

#[test]
fn the_loaded_programs_agree_with_the_table() {
    in_private_namespaces(|pins| {
        let maps = build_world(pins);
        for Fixture { name, hook, frame, verdict } in fixtures() {
            let before = Counts::read(&maps);
            let code = run(pins, hook, &frame).unwrap_or_else(|error| panic!("{hook:?}: {name}: {error}"));
            let length = u64::try_from(frame.len()).expect("a short frame");
            let seen = Counts::read(&maps).since(&before, code, length);
            let mut expected = effects_of(hook, verdict);
            expected.delivered.sort_unstable();
            assert_eq!(seen, expected, "{hook:?}: {name}");
        }
    });
}

#[test]
fn pinned_maps_of_another_shape_are_refused() {
    in_private_namespaces(|pins| {
        programs::load(pins).expect("the kernel takes the programs");
        programs::load(pins).expect("and takes them again, with the same maps");
        // Two maps that have nothing in common change places.
        let (ports, config) = (pins.map(names::MAP_PORTS), pins.map(names::MAP_CONFIG));
        let aside = Path::new(&pins.root()).join("aside");
        fs::rename(&ports, &aside).expect("renamed");
        fs::rename(&config, &ports).expect("renamed");
        fs::rename(&aside, &config).expect("renamed");
        let error = programs::load(pins).expect_err("the maps are wrong");
        assert_eq!(error.kind, portmap::error::Kind::Conflict);
        assert!(error.message.contains("expected") && error.message.contains("pm_"), "{error}");
    });
}
