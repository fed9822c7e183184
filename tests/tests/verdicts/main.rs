//! One table of frames, decided twice: by the decision code on this machine, and by the loaded programs in
//! the kernel. Both must say what the table says.

mod instructions;
mod kernel;
mod table;
mod world;

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
};

use etherparse::PacketBuilder;
use portmap::{kernel::programs, paths::Pins};
use portmap_common::{
    flow_state::NEIGHBOUR_LIFETIME,
    names,
    reason::Reason,
    tables::{Address4, Address6, Config},
};
use portmap_ebpf::{
    PacketBuf, Verdict,
    hooks::{Hook as _, Veth},
    verdict::{IcmpIdRewrite, NextHop},
};
use portmap_tests::{frames::Frame, private::in_namespaces};

use crate::{
    kernel::{Counts, build_world, effects_of, run},
    table::{Fixture, fixtures, from_a},
    world::{
        A, A_PORT, CONFIG, FREE, HOOKS, HOST, MAC, PEER, UPLINK, VETH_OF_A, decide, frame, tables,
        tables_with,
    },
};

#[test]
fn verdict_decision_code_matches_the_table() {
    let tables = tables();
    for Fixture { name, hook, frame, verdict } in fixtures() {
        // So late that every neighbour is asked for again.
        tables.now.update(|now| now + NEIGHBOUR_LIFETIME);
        assert_eq!(decide(hook, &frame, &tables), verdict, "{hook:?}: {name}");
    }
}

/// Includes frames that a test run refuses.
#[test]
fn length_truncated_frames_never_leave() {
    for hook in HOOKS {
        let whole = Frame { options: vec![1; 40], ..from_a((HOST, A_PORT), (HOST, A_PORT)) }.bytes();
        for length in 0..whole.len() {
            match decide(hook, &whole[..length], &tables()) {
                Verdict::ToOutside { .. } | Verdict::ToHost(_) | Verdict::ToEth0(_) | Verdict::ToLoopback => {
                    panic!("{hook:?} at {length}")
                }
                Verdict::ToContainer { .. } => assert!(length >= 14 + 60 + 4, "{hook:?} at {length}"),
                Verdict::Continue(_)
                | Verdict::AlreadyHandled
                | Verdict::AssignFlow(_)
                | Verdict::DeliverLocal(_)
                | Verdict::Drop { .. } => {}
            }
        }
    }
}

/// A frame whose bytes its sender can still change must not be parsed.
#[test]
fn linearize_failure_drops_the_frame() {
    let options = Frame { options: vec![1; 4], ..from_a((HOST, A_PORT), (PEER, FREE)) }.bytes();
    let frame = PacketBuf { linearize_fails: true, ..frame(VETH_OF_A, &options) };
    let dropped = Verdict::Drop { slot: A, reason: Reason::Malformed };
    assert_eq!(Veth::decide(&frame, &tables()), dropped);
    assert_ne!(decide(VETH_OF_A, &options, &tables()), dropped);
}

/// An offload must not change the bytes that the verdict depends on.
#[test]
fn offload_invalid_requests_are_dropped() {
    let bytes = from_a((HOST, A_PORT), (PEER, FREE)).bytes();
    let frame = PacketBuf { has_invalid_offloads: true, ..frame(VETH_OF_A, &bytes) };
    let dropped = Verdict::Drop { slot: A, reason: Reason::Malformed };
    assert_eq!(Veth::decide(&frame, &tables()), dropped);
    assert_ne!(decide(VETH_OF_A, &bytes, &tables()), dropped);
}

#[test]
fn next_hop_follows_the_ipv4_network() {
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
    const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    let near = Ipv4Addr::new(10, 0, 0, 0);
    let far = Ipv4Addr::new(192, 0, 2, 7);
    let by =
        |next_hop| Verdict::ToOutside { slot: A, ifindex: UPLINK, next_hop, rewrite: IcmpIdRewrite::NONE };
    let to = |gateway: Ipv4Addr| by(NextHop::v4(gateway.octets()));
    // The kernel is asked whether the neighbour is resolved.
    let on_link = by(NextHop::KERNEL);
    let dropped = |reason| Verdict::Drop { slot: A, reason };
    for (netmask, gateway, destination, expected) in [
        // A /32 network, as in many clouds: all destinations are beyond the gateway.
        ([255; 4], GATEWAY, near, to(GATEWAY)),
        ([255; 4], GATEWAY, far, to(GATEWAY)),
        ([255; 4], NONE, near, dropped(Reason::NoRoute)),
        // A /31 network has no broadcast address.
        ([255, 255, 255, 254], GATEWAY, near, on_link),
        ([255, 255, 255, 254], NONE, far, dropped(Reason::NoRoute)),
        ([255, 255, 255, 252], GATEWAY, near, dropped(Reason::Destination)),
        ([255, 255, 255, 252], GATEWAY, Ipv4Addr::new(10, 0, 0, 3), dropped(Reason::Destination)),
        ([255, 255, 255, 252], GATEWAY, Ipv4Addr::new(10, 0, 0, 2), on_link),
        ([255, 0, 0, 0], NONE, Ipv4Addr::new(10, 9, 9, 9), on_link),
        ([255, 0, 0, 0], NONE, far, dropped(Reason::NoRoute)),
    ] {
        let config =
            Config { netmask: Address4::new(netmask), gateway: Address4::new(gateway.octets()), ..CONFIG };
        let bytes = from_a((HOST, A_PORT), (destination, 53)).bytes();
        let verdict = Veth::decide(&frame(VETH_OF_A, &bytes), &tables_with(config));
        assert_eq!(verdict, expected, "{destination} with {netmask:?} and {gateway}");
    }
}

/// The host's address differs from the network's in every part of the mask.
#[test]
fn next_hop_follows_the_ipv6_network() {
    const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const TWICE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 1, 0xfe80, 0, 0, 1);
    const NONE: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
    let address = |text: &str| text.parse::<Ipv6Addr>().expect("an address");
    for (host, prefix, gateway, destination, expected) in [
        ("2001:db8::a:b:c:d", 64, NONE, "2001:db8::1", Ok("2001:db8::1")),
        ("2001:db8::a:b:c:d", 64, GATEWAY, "2001:db8:0:1:a:b:c:d", Ok("fe80::1")),
        ("2001:db8::a:b:c:d", 63, GATEWAY, "2001:db8:0:1:a:b:c:d", Ok("2001:db8:0:1:a:b:c:d")),
        ("2001:db8::a:b:c:d", 96, NONE, "2001:db8::a:b:0:1", Ok("2001:db8::a:b:0:1")),
        ("2001:db8::a:b:c:d", 96, NONE, "2001:db8::a:f:c:d", Err(Reason::NoRoute)),
        ("2001:db8::a:b:c:d", 127, NONE, "2001:db8::a:b:c:c", Ok("2001:db8::a:b:c:c")),
        ("2001:db8::a:b:c:d", 127, GATEWAY, "2001:db8::a:b:c:e", Ok("fe80::1")),
        ("2001:db8::a:b:c:d", 128, GATEWAY, "2001:db8::a:b:c:c", Ok("fe80::1")),
        ("2001:db8::a:b:c:d", 128, NONE, "2001:db8::a:b:c:c", Err(Reason::NoRoute)),
        ("2001:db8::a:b:c:d", 0, NONE, "2002::1", Ok("2002::1")),
        // Addresses with equal halves.
        ("2001:db8::a:b:c:d", 64, TWICE, "2001:db8:0:1:a:b:c:d", Ok("fe80::1:fe80:0:0:1")),
        ("2001:db8::a:b:c:d", 64, GATEWAY, "2001:db8:0:1:2001:db8:0:1", Ok("fe80::1")),
    ] {
        let (host, destination) = (address(host), address(destination));
        let netmask6 = u128::MAX.checked_shl(128 - prefix).unwrap_or_default().to_be_bytes();
        let config = Config {
            host_ip6: Address6::new(host.octets()),
            netmask6: Address6::new(netmask6),
            gateway6: Address6::new(gateway.octets()),
            ..CONFIG
        };
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(MAC, MAC)
            .ipv6(host.octets(), destination.octets(), 64)
            .udp(A_PORT, 53)
            .write(&mut bytes, b"portmap")
            .expect("a packet");
        let verdict = Veth::decide(&frame(VETH_OF_A, &bytes), &tables_with(config));
        let expected = match expected {
            Ok(next_hop) => {
                let is_gateway = address(next_hop) == gateway;
                let to_gateway = NextHop::v6(gateway.octets());
                let next_hop = if is_gateway { to_gateway } else { NextHop::KERNEL };
                Verdict::ToOutside { slot: A, ifindex: UPLINK, next_hop, rewrite: IcmpIdRewrite::NONE }
            }
            Err(reason) => Verdict::Drop { slot: A, reason },
        };
        assert_eq!(verdict, expected, "{destination} from {host}/{prefix} by {gateway}");
    }
}

#[test]
fn verdict_loaded_programs_match_the_table() {
    in_namespaces(|directory| {
        let pins = &Pins::new(directory);
        let maps = build_world(pins);
        for Fixture { name, hook, frame, verdict } in fixtures() {
            let before = Counts::read(&maps);
            let (code, after) =
                run(pins, hook, &frame).unwrap_or_else(|error| panic!("{hook:?}: {name}: {error}"));
            let length = u64::try_from(frame.len()).expect("a short frame");
            let seen = Counts::read(&maps).since(&before, code, length);
            let mut expected = effects_of(hook, verdict);
            expected.delivered.sort_unstable();
            assert_eq!(seen, expected, "{hook:?}: {name}");
            // The programs write the destination MAC address of a loopback device.
            let for_loopback =
                matches!(verdict, Verdict::ToHost(_) | Verdict::ToContainer { by_loopback: true, .. });
            let from = if for_loopback { 6 } else { 0 };
            assert_eq!(after[from..], frame[from..], "{hook:?}: {name}");
        }
    });
}

#[test]
fn layout_mismatched_maps_are_refused() {
    in_namespaces(|directory| {
        let pins = &Pins::new(directory);
        programs::load(pins).expect("the kernel accepts the programs");
        programs::load(pins).expect("and accepts them again, with the same maps");
        // Swaps the pins of two different maps.
        let (ports, config) = (pins.map(names::MAP_PORTS), pins.map(names::MAP_CONFIG));
        let aside = pins.root().join("aside");
        fs::rename(&ports, &aside).expect("renamed");
        fs::rename(&config, &ports).expect("renamed");
        fs::rename(&aside, &config).expect("renamed");
        let error = programs::load(pins).expect_err("the maps are wrong");
        assert!(matches!(error, portmap::kernel::Error::MapMismatch { .. }), "{error}");
    });
}
