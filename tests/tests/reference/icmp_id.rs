//! Echo requests, replies and errors, with every identifier.

use std::{collections::BTreeSet, net::IpAddr};

use portmap_common::{flow_state::ECHO_LIFETIME, hook_point::HookPoint, reason::Reason, slot::HOST_SLOT};
use portmap_ebpf::{Verdict, verdict::IcmpIdRewrite};

use crate::{
    differential::{Differential, NOW},
    packet_shapes,
    packets::{Content, Ends, Shape, Template},
    spec_state::{IdOwner, StateChange},
    world::{A, B, Case, NO_CONTAINER},
};

const VETH: HookPoint = HookPoint::VethIngress(A);

/// Returns all kinds of owners that an identifier can have: the host, a container, a deleted one, and the
/// next one in its slot.
fn owners(differential: &Differential<'_>, id: u16) -> [(u64, IdOwner); 11] {
    let generation = |slot: u16| differential.world.containers.get(&slot).copied().unwrap_or_default();
    let owner = |slot, id| IdOwner { slot, generation: generation(slot), id };
    let host = IdOwner { slot: HOST_SLOT, generation: 0, id };
    let old = NOW - ECHO_LIFETIME - 1;
    [
        (NOW, host),
        (old, host),
        (NOW, owner(A, id)),
        (old, owner(A, id)),
        (NOW - ECHO_LIFETIME / 2, owner(A, !id)),
        (NOW, owner(B, id)),
        (NOW - ECHO_LIFETIME / 2, owner(B, id.swap_bytes())),
        (old, owner(B, id)),
        (NOW, IdOwner { generation: generation(A) - 1, ..owner(A, id) }),
        (NOW, IdOwner { generation: generation(B) + 1, ..owner(B, !id) }),
        (NOW, IdOwner { generation: 1, ..owner(NO_CONTAINER, id) }),
    ]
}

/// Tests requests, replies and errors with every identifier and every kind of owner; every `step`th per
/// owner.
pub(crate) fn every_id(differential: &mut Differential<'_>, is_ipv6: bool, step: usize) {
    let [shared, _, near, far] = packet_shapes::four(is_ipv6);
    let request = Shape::new("echo request", is_ipv6, Content::EchoRequest);
    let reply = Shape::new("echo reply", is_ipv6, Content::EchoReply);
    let error = Content::Error(if is_ipv6 { 1 } else { 3 }, 1, Box::new(request.clone()));
    let error = Shape::new("error about an echo request", is_ipv6, error);
    for peer in [near, far] {
        let outwards = Ends::new(shared, peer);
        let mut frames = [
            (VETH, request.frame(VETH, A, &outwards)),
            (HookPoint::UplinkEgress, request.frame(HookPoint::UplinkEgress, A, &outwards)),
            (HookPoint::UplinkIngress, request.frame(HookPoint::UplinkIngress, A, &Ends::new(peer, shared))),
            (HookPoint::UplinkIngress, reply.frame(HookPoint::UplinkIngress, A, &Ends::new(peer, shared))),
            (
                HookPoint::UplinkIngress,
                error.frame(HookPoint::UplinkIngress, A, &Ends::new(far, shared).with_inner(shared, peer)),
            ),
            (VETH, error.frame(VETH, A, &Ends::new(shared, far).with_inner(shared, peer))),
        ];
        for id in (0..=u16::MAX).step_by(step) {
            let owners = owners(differential, id);
            for owner in [None].into_iter().chain(owners.map(Some)) {
                if let Some((seen, owner)) = owner {
                    differential.apply(StateChange::Echo(peer, id, seen, owner));
                }
                for (hook, template) in &mut frames {
                    template.set(id, 0);
                    differential.check_once("echo", &Case::new(*hook, &template.bytes));
                }
            }
            differential.clear();
        }
    }
}

/// Tests a container's request while more and more candidate identifiers are taken.
pub(crate) fn busy(differential: &mut Differential<'_>, is_ipv6: bool, id: u16) {
    let [shared, _, peer, _] = packet_shapes::four(is_ipv6);
    let shape = Shape::new("echo request", is_ipv6, Content::EchoRequest);
    let mut template: Template = shape.frame(VETH, A, &Ends::new(shared, peer));
    template.set(id, 0);
    let case = Case::new(VETH, &template.bytes);
    let others = IdOwner { slot: B, generation: differential.world.containers[&B], id: !id };
    let mut taken = BTreeSet::new();
    let mut next = id;
    loop {
        assert!(taken.insert(next), "{next} is tried twice");
        differential.apply(StateChange::Echo(peer, next, NOW, others));
        match differential.check_once("more and more are taken", &case) {
            Verdict::ToOutside { rewrite: IcmpIdRewrite { from, to, .. }, .. } => {
                assert_eq!(from, id);
                next = to;
            }
            Verdict::Drop { slot: A, reason: Reason::EchoBusy } => break,
            verdict => panic!("{verdict:?}"),
        }
    }
    assert_eq!(taken.len(), TRIES, "candidate identifiers: {taken:?}");
    // A candidate whose owner is deleted or idle is used.
    for free in taken {
        free_one(differential, &case, peer, free, others);
    }
    differential.clear();
}

/// Number of candidate identifiers, including the container's own.
const TRIES: usize = 8;

fn free_one(differential: &mut Differential<'_>, case: &Case<'_>, peer: IpAddr, id: u16, others: IdOwner) {
    let gone = IdOwner { generation: others.generation + 1, ..others };
    for (seen, owner) in [(NOW, gone), (NOW - ECHO_LIFETIME - 1, others)] {
        differential.apply(StateChange::Echo(peer, id, seen, owner));
        let verdict = differential.check_once("one is free again", case);
        assert!(matches!(verdict, Verdict::ToOutside { .. }), "{id}: {verdict:?}");
    }
    differential.apply(StateChange::Echo(peer, id, NOW, others));
}
