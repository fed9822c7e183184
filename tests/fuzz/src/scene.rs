//! At which hook a frame is seen, and what the kernel knows about it.

use portmap_common::{slot::veth_ifindex, tables::Mac};
use portmap_ebpf::{
    PacketBuf, Verdict,
    hooks::{self, HANDLED_MARK, Hook as _, VerdictSink},
    packet::{FastPath, V4, V6, Version as _, ethernet::Kind},
    verdict_codec::DRY_RUN_MARK,
};

use crate::{
    pools::{MAC, one_of},
    world::World,
};

/// Bytes of an input that choose a scene.
pub const SCENE_BYTES: usize = 3;

/// A hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Ingress of the uplink.
    Uplink,
    /// Ingress of the host veth of this slot.
    Veth(u16),
    /// Ingress of the host's loopback device.
    HostLo,
    /// Egress of a container's loopback device.
    ContainerLo,
    /// Ingress of a container's `eth0`.
    ContainerEth0,
    /// Egress of the uplink.
    UplinkEgress,
}

/// A hook, and what the kernel says of the frame there.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// The hook.
    pub hook: Hook,
    /// The tag that the kernel has taken off.
    pub vlan_tag: Option<u16>,
    /// The mark.
    pub mark: u32,
    /// Index of the interface by which the frame came to the stack.
    pub ingress_ifindex: u32,
    /// The priority.
    pub priority: u32,
}

impl Scene {
    /// The scene that these bytes choose.
    pub fn new(choices: [u8; SCENE_BYTES]) -> Self {
        let [hook, tag, rest] = choices;
        let slot = one_of(&World::slots(), hook >> 4);
        let hook = match hook & 0x0f {
            0..=3 => Hook::Uplink,
            4..=8 => Hook::Veth(slot),
            9 | 10 => Hook::HostLo,
            11 | 12 => Hook::ContainerLo,
            13 => Hook::ContainerEth0,
            _ => Hook::UplinkEgress,
        };
        let vlan_tag = match tag {
            0xf0..=0xf5 => Some(u16::from(tag & 7) << 13),
            0xf6..=0xfb => Some(u16::from(tag)),
            0xfc..=0xff => Some(0x0fff),
            _ => None,
        };
        let mark = match rest & 0x0f {
            13 => 1,
            14 => DRY_RUN_MARK,
            15 => HANDLED_MARK,
            _ => 0,
        };
        let priority = match rest & 0x0f {
            9 => 0x504c_0001,
            10 => 6,
            11 => 0x504d_0003,
            12 => 0x504d_0000,
            _ => 0,
        };
        Self { hook, vlan_tag, mark, ingress_ifindex: if rest >> 4 == 15 { 77 } else { 0 }, priority }
    }

    /// The frame as the hook sees it.
    pub fn view<'a>(&self, bytes: &'a [u8]) -> PacketBuf<'a> {
        let ifindex = match self.hook {
            Hook::Uplink | Hook::UplinkEgress => 77,
            Hook::Veth(slot) => veth_ifindex(slot),
            Hook::HostLo | Hook::ContainerLo => 1,
            Hook::ContainerEth0 => 2,
        };
        let Self { vlan_tag, mark, ingress_ifindex, priority, .. } = *self;
        PacketBuf {
            bytes,
            ifindex,
            ingress_ifindex,
            station: Mac::new(MAC),
            vlan_tag,
            mark,
            priority,
            ..PacketBuf::default()
        }
    }

    /// What the code decides.
    pub fn decide(&self, bytes: &[u8], world: &World) -> Verdict {
        let frame = self.view(bytes);
        match self.hook {
            Hook::Uplink => hooks::Uplink::decide(&frame, world),
            Hook::Veth(_) => hooks::Veth::decide(&frame, world),
            Hook::HostLo => hooks::HostLo::decide(&frame, world),
            Hook::ContainerLo => hooks::ContainerLo::decide(&frame, world),
            Hook::ContainerEth0 => hooks::ContainerEth0::decide(&frame, world),
            Hook::UplinkEgress => hooks::UplinkEgress::decide(&frame, world),
        }
    }

    /// What the part of the code decides that plain packets meet; none if the packet is not plain.
    pub fn decide_plain(&self, bytes: &[u8], world: &World) -> Option<Verdict> {
        let frame = self.view(bytes);
        match self.hook {
            Hook::Uplink => plain::<hooks::Uplink>(&frame, world),
            Hook::Veth(_) => plain::<hooks::Veth>(&frame, world),
            Hook::HostLo => plain::<hooks::HostLo>(&frame, world),
            Hook::ContainerLo => plain::<hooks::ContainerLo>(&frame, world),
            Hook::ContainerEth0 => plain::<hooks::ContainerEth0>(&frame, world),
            Hook::UplinkEgress => plain::<hooks::UplinkEgress>(&frame, world),
        }
    }
}

/// Nothing becomes of a verdict.
struct Tell;

impl VerdictSink for Tell {
    type Output = Verdict;

    fn apply(&self, verdict: Verdict) -> Verdict {
        verdict
    }
}

fn plain<H: hooks::Hook>(frame: &PacketBuf<'_>, world: &World) -> Option<Verdict> {
    let finished = match H::open(frame, world) {
        Ok(Kind::V4) if V4::is_fast_path(frame) => H::decide_ip::<V4, FastPath, _>(frame, world, &Tell),
        Ok(Kind::V6) if V6::is_fast_path(frame) => H::decide_ip::<V6, FastPath, _>(frame, world, &Tell),
        _ => return None,
    };
    match finished {
        Ok(verdict) | Err(verdict) => Some(verdict),
    }
}
