//! Counters: the programs' counters match the verdicts of the model.

use std::collections::BTreeMap;

use portmap_common::{
    hook_point::HookPoint,
    marks::HANDLED_MARK,
    reason::{HostHook, Reason},
    slot::HOST_SLOT,
};
use portmap_ebpf::{Verdict, verdict::Origin};
use portmap_tests::random::Random;

use crate::{
    differential::Differential,
    kernel::{Kernel, SLOTS},
    packets::Shape,
    random,
    world::{Case, World},
};

/// Packets per world.
const PACKETS: usize = 1000;

/// Packets or bytes by counter: map or hook or unit, slot, name of the path or reason.
type Counts = BTreeMap<(&'static str, u16, &'static str), u64>;

/// Runs the programs on random packets without dry run, and compares the sums of their counters with the
/// model.
pub(crate) fn check(kernel: &mut Kernel, random: &mut Random, shapes: &[Shape]) {
    let world = random::limited_world(random);
    let before = {
        kernel.set_world(&world);
        read(kernel)
    };
    let mut expected = Counts::new();
    let mut frames = Vec::new();
    // The kernel keeps its own state of these packets, so there are no dry runs here.
    let mut differential = Differential::new(&world, None);
    for _ in 0..PACKETS {
        let shape = random.pick(shapes);
        let (frame, hook) = random::frame(random, &shape);
        let mut case = Case::new(hook, &frame);
        case.priority = random::priority(random);
        // A container's GSO frame must have a valid `gso_type`, which a test run cannot set.
        if !matches!(hook, HookPoint::VethIngress(_)) && random.once_in(2) {
            case.segment = random.pick(&[1, 7, 536, 1448]);
        }
        if matches!(hook, HookPoint::VethIngress(_)) {
            case.mark = random.pick(&[0, 7]);
        }
        if let Some((priority, mark)) = kernel.deliver(&case) {
            let verdict = differential.check(&shape.name, &case);
            let left = priority_after(&world, &case, verdict);
            assert_eq!(priority, left, "priority of {}\n{case:?}\n{verdict:?}", shape.name);
            if let Some(left) = mark_after(verdict) {
                assert_eq!(mark, left, "mark of {}\n{case:?}\n{verdict:?}", shape.name);
            }
            count(hook, verdict, differential.on_wire, &mut expected);
            frames.push((hook, frame));
        }
    }
    differential.tally.expect_agreement();
    for slot in SLOTS {
        let expected = differential.tally.spent.get(&slot).copied().unwrap_or_default();
        assert_eq!(kernel.spent(&world, slot), expected, "charged to the limit of slot {slot}");
    }
    let mut counted = read(kernel);
    for (index, earlier) in before {
        *counted.get_mut(&index).expect("the same counters") -= earlier;
    }
    counted.retain(|_, count| *count != 0);
    assert_eq!(counted, expected);
    differential.clear_in(kernel);
}

/// Returns the mark of a packet behind the program; `None` if it is not specified.
const fn mark_after(verdict: Verdict) -> Option<u32> {
    match verdict {
        Verdict::ToOutside { .. } | Verdict::ToContainer { origin: Origin::Container(_), .. } => Some(0),
        Verdict::ToHost(_) => Some(HANDLED_MARK),
        _ => None,
    }
}

/// Returns the priority of a packet behind the program.
fn priority_after(world: &World, case: &Case<'_>, verdict: Verdict) -> u32 {
    const OF_UPLINK: u32 = 0x504d_0000;
    match verdict {
        Verdict::AssignFlow(flow) => OF_UPLINK + u32::from(flow),
        // One flow per container, behind the host's two.
        Verdict::ToOutside { slot, .. } if world.config.uplink_flows != 0 => OF_UPLINK + 2 + u32::from(slot),
        Verdict::ToContainer { origin, owner, .. } => {
            let flag = if origin == Origin::Outside { 1 } else { 2 };
            if owner.flags & flag != 0 { 0x1_0001 } else { 0 }
        }
        Verdict::ToOutside { .. } | Verdict::ToHost(_) => 0,
        Verdict::ToEth0(_) => 0x1_0002,
        _ => case.priority,
    }
}

fn count(hook: HookPoint, verdict: Verdict, on_wire: (u64, u64), counts: &mut Counts) {
    let mut add = |index| *counts.entry(index).or_default() += 1;
    match verdict {
        Verdict::Continue(reason) => {
            let hook = hook.host_hook().expect("the other hooks leave no packet to the host");
            add((hook.name(), HOST_SLOT, reason.name()));
        }
        Verdict::Drop { slot, reason } => {
            add((if slot == HOST_SLOT { "rx" } else { "tx" }, slot, reason.name()));
        }
        _ => {}
    }
    let mut add = |slot, path| {
        *counts.entry(("packets", slot, path)).or_default() += on_wire.0;
        *counts.entry(("bytes", slot, path)).or_default() += on_wire.1;
    };
    match verdict {
        Verdict::DeliverLocal(slot) => add(slot, "own"),
        Verdict::ToContainer { origin, owner, .. } => match origin {
            Origin::Outside => add(owner.slot, "rx_outside"),
            Origin::Host => add(owner.slot, "rx_host"),
            Origin::Container(sender) => {
                add(sender, "tx_container");
                add(owner.slot, "rx_container");
            }
        },
        Verdict::ToOutside { slot, .. } => add(slot, "tx_outside"),
        Verdict::ToHost(slot) => add(slot, "tx_host"),
        Verdict::Continue(_)
        | Verdict::Drop { .. }
        | Verdict::AlreadyHandled
        | Verdict::AssignFlow(_)
        | Verdict::ToEth0(_)
        | Verdict::ToLoopback => {}
    }
}

fn read(kernel: &Kernel) -> Counts {
    let maps = &kernel.maps;
    let mut counts = Counts::new();
    for slot in SLOTS {
        for (path, tally) in maps.counters(slot).expect("a map").by_path() {
            counts.insert(("packets", slot, path), tally.packets);
            counts.insert(("bytes", slot, path), tally.bytes);
        }
        let drops = maps.drops(slot).expect("a map");
        for reason in Reason::ALL {
            counts.insert(("rx", slot, reason.name()), drops.rx.get(*reason));
            counts.insert(("tx", slot, reason.name()), drops.tx.get(*reason));
        }
    }
    for hook in HostHook::ALL {
        let host = maps.host(hook).expect("a map");
        for reason in Reason::ALL {
            counts.insert((hook.name(), HOST_SLOT, reason.name()), host.get(*reason));
        }
    }
    counts
}
