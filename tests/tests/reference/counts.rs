//! Frames that are delivered: what the programs count is what the model says.

use std::collections::BTreeMap;

use portmap_common::{
    reason::{HostHook, Reason},
    slot::HOST_SLOT,
};
use portmap_ebpf::{Verdict, verdict::Origin};

use crate::{
    judge::Judge,
    kernel::{Kernel, SLOTS},
    packets::Form,
    random::{self, Random},
    world::{Case, Hook},
};

/// Packets of one world.
const PACKETS: usize = 1000;

/// Packets by where they are counted: map or hook, slot, name of the path or reason.
type Counts = BTreeMap<(&'static str, u16, &'static str), u64>;

/// Has the programs of the kernel deliver random packets, and compares the sums of what they count.
pub(crate) fn check(kernel: &mut Kernel, random: &mut Random, forms: &[Form]) {
    let world = random::world(random);
    let before = {
        kernel.set_world(&world);
        read(kernel)
    };
    let mut expected = Counts::new();
    let mut frames = Vec::new();
    // The kernel remembers for itself what passes it, so it is not asked here.
    let mut judge = Judge::new(&world, None);
    for _ in 0..PACKETS {
        let form = random.pick(forms);
        let (frame, hook) = random::frame(random, &form);
        let case = Case::new(hook, &frame);
        if kernel.deliver(&case).is_some() {
            let verdict = judge.ask(&form.name, &case);
            count(hook, verdict, &mut expected);
            frames.push((hook, frame));
        }
    }
    judge.tally.expect_agreement();
    let mut counted = read(kernel);
    for (place, packets) in before {
        *counted.get_mut(&place).expect("the same places") -= packets;
    }
    counted.retain(|_, packets| *packets != 0);
    assert_eq!(counted, expected);
    judge.forget_in(kernel);
}

fn count(hook: Hook, verdict: Verdict, counts: &mut Counts) {
    let mut add = |place| *counts.entry(place).or_default() += 1;
    match verdict {
        Verdict::Continue(reason) => {
            let hook = if hook == Hook::Uplink { HostHook::Uplink } else { HostHook::Loopback };
            add((hook.name(), HOST_SLOT, reason.name()));
        }
        Verdict::Own(slot) => add(("path", slot, "own")),
        Verdict::Drop { slot, reason } => {
            add((if slot == HOST_SLOT { "rx" } else { "tx" }, slot, reason.name()));
        }
        Verdict::ToContainer { origin, owner, .. } => match origin {
            Origin::Outside => add(("path", owner.slot, "rx_outside")),
            Origin::Host => add(("path", owner.slot, "rx_host")),
            Origin::Container(sender) => {
                add(("path", sender, "tx_container"));
                add(("path", owner.slot, "rx_container"));
            }
        },
        Verdict::ToOutside { slot, .. } => add(("path", slot, "tx_outside")),
        Verdict::ToHost(slot) => add(("path", slot, "tx_host")),
        Verdict::Decided | Verdict::InFlow(_) | Verdict::ToEth0(_) | Verdict::ToLoopback => {}
    }
}

fn read(kernel: &Kernel) -> Counts {
    let maps = &kernel.maps;
    let mut counts = Counts::new();
    for slot in SLOTS {
        for (path, tally) in maps.counters(slot).expect("a map").by_path() {
            counts.insert(("path", slot, path), tally.packets);
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
