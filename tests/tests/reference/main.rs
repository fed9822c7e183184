//! Differential test of the verdicts: an independent model of the specification against the decision code and
//! the loaded programs.
//!
//! The model is written from `docs/datapath.md` only. For each packet all three must have the same verdict,
//! including the receiver and the rewrite, and model and decision code must have the same state changes.

mod counts;
mod differential;
mod every_port;
mod icmp_id;
mod kernel;
mod packet_shapes;
mod packets;
mod random;
mod recording_tables;
mod situation;
mod spec_model;
mod spec_parser;
mod spec_state;
mod test_run;
mod world;

use std::{collections::BTreeMap, env, panic, thread};

use portmap_common::{hook_point::HookPoint, slot::HOST_SLOT};
use portmap_tests::{faults::sample, private, random::Random};

use crate::{
    differential::{Differential, Tally},
    kernel::Kernel,
    packets::Shape,
    world::{A, ALL_HOOKS, B, World},
};

/// Runs both halves of a test, each on a thread with its own namespaces and programs.
fn in_two_halves(work: impl Fn(usize, &mut Kernel) -> Tally + Sync) -> Tally {
    let half = |half| private::in_namespaces(|directory| work(half, &mut Kernel::load(directory)));
    let tally = thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        let one = half(0);
        one.plus(other.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    });
    println!("{} verdicts of the decision code, {} of the kernel", tally.decided, tally.decided_by_kernel);
    tally.expect_agreement();
    tally
}

/// Runs a test with each of the shapes.
fn with_shapes(shapes: &[Shape], work: impl Fn(&mut Differential<'_>, &Shape) + Sync) -> Tally {
    in_two_halves(|half, kernel| {
        let world = World::new();
        let mut differential = Differential::new(&world, Some(kernel));
        for shape in shapes.iter().skip(half).step_by(2 * sample()) {
            work(&mut differential, shape);
        }
        differential.tally
    })
}

fn shapes_with_numbers() -> Vec<Shape> {
    packet_shapes::all().into_iter().filter(Shape::has_numbers).collect()
}

#[test]
fn verdict_all_shapes_between_all_addresses() {
    let tally = with_shapes(&packet_shapes::all(), |differential, shape| {
        every_port::addresses(differential, shape, &ALL_HOOKS);
        if shape.is_error() {
            every_port::inner_addresses(differential, shape);
        }
        if shape.has_numbers() {
            every_port::ages(differential, shape);
            every_port::frames(differential, shape);
        }
    });
    let all_hooks = if sample() == 1 { &ALL_HOOKS[..] } else { &[] };
    for hook in all_hooks.iter().copied() {
        for (number, row) in spec_model::rows(hook).iter().enumerate() {
            // These rows depend on the host's network, on state, on limits, on GSO, and on invalid headers.
            let elsewhere = [
                "no route",
                "connection of the host's",
                "identifiers",
                "new neighbour",
                "limit",
                "GSO",
                "(3, 4)",
                "not portmap's",
                "private",
                "listener",
                "not open",
            ];
            let is_elsewhere = elsewhere.iter().any(|word| row.packet.contains(word));
            let times = tally.rows.get(&(hook.program(), number)).copied().unwrap_or_default();
            assert!(is_elsewhere || times > 0, "no packet at {hook:?} is {:?}", row.packet);
        }
    }
}

#[test]
fn limit_all_shapes_of_a_limited_container() {
    let mut tally = Tally::default();
    for (is_used_up, counts_local) in [(false, false), (false, true), (true, false), (true, true)] {
        let limits = BTreeMap::from([(A, world::limit(is_used_up, counts_local))]);
        let world = World { limits, ..World::new() };
        let mut differential = Differential::new(&world, None);
        for shape in packet_shapes::all().iter().step_by(sample()) {
            every_port::addresses(
                &mut differential,
                shape,
                &[HookPoint::VethIngress(A), HookPoint::VethIngress(B)],
            );
            every_port::segments(&mut differential, shape);
        }
        tally = tally.plus(differential.tally);
    }
    tally.expect_agreement();
    for (number, row) in spec_model::rows(HookPoint::VethIngress(A)).iter().enumerate() {
        let times =
            tally.rows.get(&(HookPoint::VethIngress(A).program(), number)).copied().unwrap_or_default();
        let is_from_here = ["limit", "GSO"].iter().any(|word| row.packet.contains(word));
        assert!(!is_from_here || times > 0, "no packet is {:?}", row.packet);
    }
}

#[test]
fn neighbour_all_shapes_of_a_limited_container() {
    let mut tally = Tally::default();
    let mut world = World { neighbour_limited: [A].into(), ..World::new() };
    for gateway in [world::GATEWAY, std::net::Ipv4Addr::new(10, 0, 0, 9)] {
        world.config.gateway.bytes = gateway.octets();
        let mut differential = Differential::new(&world, None);
        for shape in shapes_with_numbers().iter().step_by(sample()) {
            every_port::addresses(
                &mut differential,
                shape,
                &[HookPoint::VethIngress(A), HookPoint::VethIngress(B)],
            );
            every_port::neighbours(&mut differential, shape);
        }
        tally = tally.plus(differential.tally);
    }
    tally.expect_agreement();
    let rows = spec_model::rows(HookPoint::VethIngress(A)).iter();
    let number = rows.take_while(|row| !row.packet.contains("new neighbour")).count();
    let times = tally.rows.get(&(HookPoint::VethIngress(A).program(), number)).copied().unwrap_or_default();
    assert!(times > 0, "no packet exceeds the neighbour policer");
}

#[test]
fn host_access_all_shapes_with_limited_access() {
    let mut tally = Tally::default();
    let hooks = [
        HookPoint::VethIngress(A),
        HookPoint::VethIngress(B),
        HookPoint::HostLoIngress,
        HookPoint::ContainerLoEgress,
    ];
    for (private, opens, listens) in
        [(None, false, true), (Some(A), false, false), (Some(B), true, true), (None, true, false)]
    {
        let mut world = World::new();
        let hosts = (1..=u16::MAX).find(|port| world.owner(*port) == HOST_SLOT).expect("one");
        world.private.extend(private);
        world.open_only(opens.then_some(hosts));
        if listens {
            world.listen(hosts);
        }
        let mut differential = Differential::new(&world, None);
        for shape in shapes_with_numbers().iter().step_by(sample()) {
            every_port::addresses(&mut differential, shape, &hooks);
        }
        tally = tally.plus(differential.tally);
    }
    tally.expect_agreement();
    for hook in hooks {
        for (number, row) in spec_model::rows(hook).iter().enumerate() {
            let is_of_reach =
                ["private", "listener", "not open"].iter().any(|word| row.packet.contains(word));
            let times = tally.rows.get(&(hook.program(), number)).copied().unwrap_or_default();
            assert!(!is_of_reach || times > 0, "no packet at {hook:?} is {:?}", row.packet);
        }
    }
}

#[test]
fn port_all_values_of_all_protocols() {
    with_shapes(&shapes_with_numbers(), |differential, shape| {
        every_port::every_port(differential, shape, if shape.is_among_the_first() { 1 } else { 61 });
    });
}

#[test]
fn length_all_values() {
    with_shapes(&packet_shapes::all(), every_port::every_length);
}

#[test]
fn byte_all_values_of_all_bytes() {
    let shapes: Vec<Shape> = shapes_with_numbers().into_iter().step_by(7).collect();
    with_shapes(&shapes, every_port::every_byte);
}

#[test]
fn icmp_id_all_values() {
    in_two_halves(|half, kernel| {
        let world = World::new();
        let mut differential = Differential::new(&world, Some(kernel));
        let is_ipv6 = half == 1;
        icmp_id::every_id(&mut differential, is_ipv6, 13 * sample());
        for id in [0, 1, 77, 0x8000, u16::MAX] {
            icmp_id::busy(&mut differential, is_ipv6, id);
        }
        differential.tally
    });
}

/// Returns the seed of the random packets: 1, unless `PORTMAP_REFERENCE_SEED` is set.
fn seed() -> u64 {
    let seed = env::var("PORTMAP_REFERENCE_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("PORTMAP_REFERENCE_SEED={seed}");
    seed
}

#[test]
fn verdict_random_packets_in_random_worlds() {
    const WORLDS: usize = 100;
    const PACKETS: usize = 5000;
    let shapes = shapes_with_numbers();
    let seed = seed();
    in_two_halves(|half, kernel| {
        let mut random = Random::new(seed.wrapping_mul(2).wrapping_add(half as u64));
        let mut tally = Tally::default();
        for _ in 0..WORLDS.div_ceil(sample()) {
            let world = random::world(&mut random);
            let mut differential = Differential::new(&world, Some(kernel));
            random::packets(&mut differential, &mut random, &shapes, PACKETS);
            differential.clear();
            tally = tally.plus(differential.tally);
        }
        tally
    });
}

#[test]
fn counters_match_the_verdicts() {
    let seed = seed();
    private::in_namespaces(|directory| {
        let mut kernel = Kernel::load(directory);
        let mut random = Random::new(seed);
        for _ in 0..20_usize.div_ceil(sample()) {
            counts::check(&mut kernel, &mut random, &shapes_with_numbers());
        }
    });
}
