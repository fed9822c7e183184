//! Runs the loaded programs on frames and reads their effects.

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use portmap::{
    kernel::{
        link::{self, VethPair},
        maps::Maps,
        namespace::Namespace,
        netlink::Netlink,
        port_table::PortTable,
        programs,
    },
    model::Reach,
    paths::Pins,
};
use portmap_common::{
    counters::Counters,
    hook_point::HookPoint,
    reason::{Drops, HostHook, Reason, ReasonCounts},
    slot::{HOST_SLOT, veth_ifindex},
};
use portmap_ebpf::{Tables as _, Verdict, verdict::Origin};
use portmap_tests::private;

use crate::world::{A, B, CONFIG, FREE, LISTENER, MAC, MTU, OTHER_BROADCAST, P, UPLINK, ifindex, tables};

/// Observable effects of a verdict: return code and counters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    pub(crate) code: i32,
    /// Slot and path of each counted packet.
    pub(crate) delivered: Vec<(u16, &'static str)>,
    pub(crate) dropped: Vec<(u16, &'static str, &'static str)>,
    pub(crate) left_to_host: Vec<(&'static str, &'static str)>,
}

pub(crate) const NEXT: i32 = -1;
pub(crate) const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

pub(crate) fn effects_of(hook: HookPoint, verdict: Verdict) -> Effects {
    let none = Effects::default();
    match verdict {
        Verdict::Continue(reason) => {
            let hook = hook.host_hook().expect("the other hooks leave no packet to the host");
            Effects { code: NEXT, left_to_host: vec![(hook.name(), reason.name())], ..none }
        }
        Verdict::AlreadyHandled | Verdict::AssignFlow(_) => Effects { code: NEXT, ..none },
        Verdict::DeliverLocal(slot) => Effects { code: NEXT, delivered: vec![(slot, "own")], ..none },
        Verdict::Drop { slot, reason } => {
            let direction = if slot == HOST_SLOT { "rx" } else { "tx" };
            Effects { code: SHOT, dropped: vec![(slot, direction, reason.name())], ..none }
        }
        Verdict::ToContainer { origin, owner, .. } => {
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
        Verdict::ToEth0(_) | Verdict::ToLoopback => Effects { code: REDIRECT, ..none },
    }
}

pub(crate) const SLOTS: [u16; 4] = [HOST_SLOT, A, B, P];

/// All counters that a fixture can change.
pub(crate) struct Counts {
    counters: [Counters; 4],
    drops: [Drops; 4],
    host: [ReasonCounts; 2],
}

impl Counts {
    pub(crate) fn read(maps: &Maps) -> Self {
        Self {
            counters: SLOTS.map(|slot| maps.counters(slot).expect("a map")),
            drops: SLOTS.map(|slot| maps.drops(slot).expect("a map")),
            host: HostHook::ALL.map(|hook| maps.host(hook).expect("a map")),
        }
    }

    /// Returns the difference to earlier counters, with one element per packet.
    pub(crate) fn since(&self, before: &Self, code: i32, bytes: u64) -> Effects {
        let mut effects = Effects { code, ..Effects::default() };
        for (index, slot) in SLOTS.into_iter().enumerate() {
            let paths = self.counters[index].by_path().into_iter().zip(before.counters[index].by_path());
            for ((path, now), (_, then)) in paths {
                let packets = now.packets - then.packets;
                assert_eq!(now.bytes - then.bytes, packets * bytes, "bytes of {path}");
                effects.delivered.extend((0..packets).map(|_| (slot, path)));
            }
            for reason in Reason::ALL {
                let (now, then) = (&self.drops[index], &before.drops[index]);
                let directions = [("rx", now.rx, then.rx), ("tx", now.tx, then.tx)];
                for (direction, now, then) in directions {
                    let packets = now.get(*reason) - then.get(*reason);
                    effects.dropped.extend((0..packets).map(|_| (slot, direction, reason.name())));
                }
            }
        }
        for (index, hook) in HostHook::ALL.into_iter().enumerate() {
            for reason in Reason::ALL {
                let packets = self.host[index].get(*reason) - before.host[index].get(*reason);
                effects.left_to_host.extend((0..packets).map(|_| (hook.name(), reason.name())));
            }
        }
        effects.delivered.sort_unstable();
        effects
    }
}

/// Creates the interfaces of the fixtures, and fills the maps with the content of [`tables`].
pub(crate) fn build_world(pins: &Pins) -> Maps {
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
                mtu: MTU,
            },
        )
        .expect("a veth pair");
        link::set_up(&netlink, index, name).expect("up");
    }
    link::set_up(&netlink, link::LOOPBACK, "lo").expect("up");
    private::add_routes(&[("-4", "default dev uplink"), ("-6", "default dev uplink")]);
    programs::load(pins).expect("the kernel takes the programs");
    let (maps, ports) = (Maps::open(pins).expect("the maps"), PortTable::open(pins).expect("the port map"));
    let open = format!("{FREE},{LISTENER}");
    let reach = Reach { host: open.parse().expect("ports"), ..Reach::default() };
    maps.set_host_ports(&reach).expect("written");
    maps.set_broadcasts(&[OTHER_BROADCAST].into()).expect("written");
    maps.set_config(&CONFIG).expect("written");
    for slot in SLOTS {
        maps.set_endpoint(slot, tables().endpoint(slot)).expect("written");
    }
    let tables = tables();
    for port in 0..=u16::MAX {
        ports.set(port, tables.port(port));
    }
    maps
}

/// Returns the context of a test run, `__sk_buff` of `linux/bpf.h`, with all fields zero except `ifindex`.
pub(crate) fn context(ifindex: u32) -> [u8; 192] {
    const OFFSET_OF_IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[OFFSET_OF_IFINDEX..OFFSET_OF_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// Runs a hook's program on a frame, and returns its return code and the frame behind it.
pub(crate) fn run(pins: &Pins, hook: HookPoint, frame: &[u8]) -> Result<(i32, Vec<u8>), ProgramError> {
    let program = SchedClassifier::from_pin(pins.program(hook.program())).expect("pinned");
    let context = context(ifindex(hook));
    let mut output = vec![0; frame.len() + 256];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut output),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    };
    let ran = program.test_run(options)?;
    let length = usize::try_from(ran.data_size_out).expect("a short frame");
    output.truncate(length);
    Ok((ran.return_value.cast_signed(), output))
}
