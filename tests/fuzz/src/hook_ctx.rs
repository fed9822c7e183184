//! The hook at which a frame is, and the frame's metadata.

use portmap_common::{
    hook_point::HookPoint,
    marks::{DRY_RUN_MARK, HANDLED_MARK},
    slot::{VETH_IFINDEX_BASE, veth_ifindex},
    tables::Mac,
};
use portmap_ebpf::{PacketBuf, Verdict, hooks, testing};

use crate::{
    values::{A, C, GONE, MAC, OTHER_UPLINK, UPLINK, one_of},
    world::World,
};

/// Bytes of an input that select a context.
pub const HOOK_CTX_BYTES: usize = 3;

/// Interfaces through which a frame entered the stack: mostly none, then host veths, then others, also next to
/// the indices of host veths.
const INGRESS: [u32; 16] = [
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    veth_ifindex(A),
    veth_ifindex(GONE),
    veth_ifindex(C),
    VETH_IFINDEX_BASE,
    VETH_IFINDEX_BASE + 4096,
    OTHER_UPLINK,
    UPLINK,
];

/// A hook, and the metadata of the frame there.
#[derive(Clone, Copy, Debug)]
pub struct HookCtx {
    /// The hook.
    pub hook: HookPoint,
    /// Whether an egress hook is at another interface than the uplink.
    pub is_elsewhere: bool,
    /// VLAN tag that the kernel has removed.
    pub vlan_tag: Option<u16>,
    /// `skb->mark`.
    pub mark: u32,
    /// Index of the interface through which the frame entered the stack.
    pub ingress_ifindex: u32,
    /// `skb->priority`.
    pub priority: u32,
}

impl HookCtx {
    /// Returns the context that these bytes select.
    pub fn new(choices: [u8; HOOK_CTX_BYTES]) -> Self {
        let [hook, tag, rest] = choices;
        let slot = one_of(&World::slots(), hook >> 4);
        let is_elsewhere = hook >= 0xd0;
        let hook = match hook & 0x0f {
            0..=3 => HookPoint::UplinkIngress,
            4..=8 => HookPoint::VethIngress(slot),
            9 | 10 => HookPoint::HostLoIngress,
            11 | 12 => HookPoint::ContainerLoEgress,
            13 => HookPoint::ContainerEth0Ingress,
            _ => HookPoint::UplinkEgress,
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
        Self { hook, is_elsewhere, vlan_tag, mark, ingress_ifindex: one_of(&INGRESS, rest >> 4), priority }
    }

    /// Returns the index of the interface at which the hook is.
    pub fn ifindex(&self) -> u32 {
        match self.hook {
            HookPoint::UplinkEgress if self.is_elsewhere => OTHER_UPLINK,
            HookPoint::UplinkIngress | HookPoint::UplinkEgress => UPLINK,
            HookPoint::VethIngress(slot) => veth_ifindex(slot),
            HookPoint::HostLoIngress | HookPoint::ContainerLoEgress => 1,
            HookPoint::ContainerEth0Ingress => 2,
        }
    }

    /// Returns the frame with its metadata.
    pub fn view<'a>(&self, bytes: &'a [u8]) -> PacketBuf<'a> {
        let Self { vlan_tag, mark, ingress_ifindex, priority, .. } = *self;
        PacketBuf {
            bytes,
            ifindex: self.ifindex(),
            ingress_ifindex,
            mac: Mac::new(MAC),
            vlan_tag,
            mark,
            priority,
            ..PacketBuf::default()
        }
    }

    /// Returns the verdict of the decision code.
    pub fn decide(&self, bytes: &[u8], world: &World) -> Verdict {
        hooks::decide(self.hook, &self.view(bytes), world)
    }

    /// Returns the verdict of the fast path, or `None` if the packet does not take it.
    pub fn decide_fast_path(&self, bytes: &[u8], world: &World) -> Option<Verdict> {
        testing::decide_fast_path(self.hook, &self.view(bytes), world)
    }
}
