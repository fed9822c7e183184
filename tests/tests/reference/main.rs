//! The specification of the packet verdicts, as an independent model, against the decision code and the
//! kernel.
//!
//! Each case is put to the model, which is written from `docs/datapath.md` alone, to the decision code on
//! this machine, and to the loaded programs. All must give the same verdict, complete with who gets the
//! packet and what changes in it, and the first two must remember the same.

mod counts;
mod differential;
mod every_port;
mod icmp_id;
mod kernel;
mod packet_shapes;
mod packets;
mod random;
mod recording_tables;
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

/// Does both halves of a work, each on a thread with namespaces and programs of its own.
fn in_two(work: impl Fn(usize, &mut Kernel) -> Tally + Sync) -> Tally {
    let half = |half| private::in_namespaces(|directory| work(half, &mut Kernel::load(directory)));
    let tally = thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        let one = half(0);
        one.plus(other.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    });
    println!("{} verdicts of the decision code, {} of the kernel", tally.decided, tally.asked);
    tally.expect_agreement();
    tally
}

/// Does the same with each of the shapes.
fn with_forms(shapes: &[Shape], work: impl Fn(&mut Differential<'_>, &Shape) + Sync) -> Tally {
    in_two(|half, kernel| {
        let world = World::new();
        let mut judge = Differential::new(&world, Some(kernel));
        for shape in shapes.iter().skip(half).step_by(2 * sample()) {
            work(&mut judge, shape);
        }
        judge.tally
    })
}

fn forms_with_numbers() -> Vec<Shape> {
    packet_shapes::all().into_iter().filter(Shape::has_numbers).collect()
}

#[test]
fn every_form_between_addresses_of_every_kind() {
    let tally = with_forms(&packet_shapes::all(), |judge, shape| {
        every_port::addresses(judge, shape, &ALL_HOOKS);
        if shape.is_error() {
            every_port::quoted_addresses(judge, shape);
        }
        if shape.has_numbers() {
            every_port::ages(judge, shape);
            every_port::frames(judge, shape);
        }
    });
    let all_hooks = if sample() == 1 { &ALL_HOOKS[..] } else { &[] };
    for hook in all_hooks.iter().copied() {
        for (number, row) in spec_model::rows(hook).iter().enumerate() {
            // These depend on the host's network, on what is remembered, on limits, on segments, and on
            // headers that are wrong.
            let elsewhere = [
                "no gateway",
                "identifiers",
                "new neighbour",
                "limit",
                "to be cut",
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
fn every_form_of_a_container_with_a_limit() {
    let mut tally = Tally::default();
    for (is_used_up, counts_local) in [(false, false), (false, true), (true, false), (true, true)] {
        let limits = BTreeMap::from([(A, world::limit(is_used_up, counts_local))]);
        let world = World { limits, ..World::new() };
        let mut judge = Differential::new(&world, None);
        for shape in packet_shapes::all().iter().step_by(sample()) {
            every_port::addresses(&mut judge, shape, &[HookPoint::VethIngress(A), HookPoint::VethIngress(B)]);
            every_port::segments(&mut judge, shape);
        }
        tally = tally.plus(judge.tally);
    }
    tally.expect_agreement();
    for (number, row) in spec_model::rows(HookPoint::VethIngress(A)).iter().enumerate() {
        let times =
            tally.rows.get(&(HookPoint::VethIngress(A).program(), number)).copied().unwrap_or_default();
        let is_from_here = ["limit", "to be cut"].iter().any(|word| row.packet.contains(word));
        assert!(!is_from_here || times > 0, "no packet is {:?}", row.packet);
    }
}

#[test]
fn every_form_of_a_container_that_has_asked_for_enough_neighbours() {
    let mut tally = Tally::default();
    let mut world = World { asked_enough: [A].into(), ..World::new() };
    for gateway in [world::GATEWAY, std::net::Ipv4Addr::new(10, 0, 0, 9)] {
        world.config.gateway.bytes = gateway.octets();
        let mut judge = Differential::new(&world, None);
        for shape in forms_with_numbers().iter().step_by(sample()) {
            every_port::addresses(&mut judge, shape, &[HookPoint::VethIngress(A), HookPoint::VethIngress(B)]);
            every_port::neighbours(&mut judge, shape);
        }
        tally = tally.plus(judge.tally);
    }
    tally.expect_agreement();
    let rows = spec_model::rows(HookPoint::VethIngress(A)).iter();
    let number = rows.take_while(|row| !row.packet.contains("new neighbour")).count();
    let times = tally.rows.get(&(HookPoint::VethIngress(A).program(), number)).copied().unwrap_or_default();
    assert!(times > 0, "nothing is for a neighbour too many");
}

#[test]
fn every_form_where_not_everything_may_be_reached() {
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
        let mut judge = Differential::new(&world, None);
        for shape in forms_with_numbers().iter().step_by(sample()) {
            every_port::addresses(&mut judge, shape, &hooks);
        }
        tally = tally.plus(judge.tally);
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
fn every_port_of_every_protocol() {
    with_forms(&forms_with_numbers(), |judge, shape| {
        every_port::every_port(judge, shape, if shape.is_among_the_first() { 1 } else { 61 });
    });
}

#[test]
fn every_length() {
    with_forms(&packet_shapes::all(), every_port::every_length);
}

#[test]
fn every_value_of_every_byte() {
    let shapes: Vec<Shape> = forms_with_numbers().into_iter().step_by(7).collect();
    with_forms(&shapes, every_port::every_byte);
}

#[test]
fn every_identifier() {
    in_two(|half, kernel| {
        let world = World::new();
        let mut judge = Differential::new(&world, Some(kernel));
        let is_ipv6 = half == 1;
        icmp_id::every_id(&mut judge, is_ipv6, 13 * sample());
        for id in [0, 1, 77, 0x8000, u16::MAX] {
            icmp_id::busy(&mut judge, is_ipv6, id);
        }
        judge.tally
    });
}

/// The seed of the random packets: always the same, unless it is given.
fn seed() -> u64 {
    let seed = env::var("PORTMAP_REFERENCE_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("PORTMAP_REFERENCE_SEED={seed}");
    seed
}

#[test]
fn random_packets_in_random_worlds() {
    const WORLDS: usize = 100;
    const PACKETS: usize = 5000;
    let shapes = forms_with_numbers();
    let seed = seed();
    in_two(|half, kernel| {
        let mut random = Random::new(seed.wrapping_mul(2).wrapping_add(half as u64));
        let mut tally = Tally::default();
        for _ in 0..WORLDS.div_ceil(sample()) {
            let world = random::world(&mut random);
            let mut judge = Differential::new(&world, Some(kernel));
            random::packets(&mut judge, &mut random, &shapes, PACKETS);
            judge.forget();
            tally = tally.plus(judge.tally);
        }
        tally
    });
}

#[test]
fn what_is_counted_is_what_was_decided() {
    let seed = seed();
    private::in_namespaces(|directory| {
        let mut kernel = Kernel::load(directory);
        let mut random = Random::new(seed);
        for _ in 0..20_usize.div_ceil(sample()) {
            counts::check(&mut kernel, &mut random, &forms_with_numbers());
        }
    });
}
