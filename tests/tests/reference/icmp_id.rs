//! Echo requests and their answers, with every identifier.

use std::{collections::BTreeSet, net::IpAddr};

use portmap_common::{flow_state::ECHO_LIFETIME, hook_point::HookPoint, reason::Reason, slot::HOST_SLOT};
use portmap_ebpf::{Verdict, verdict::IcmpIdRewrite};

use crate::{
    differential::{Differential, NOW},
    packet_shapes,
    packets::{Content, Ends, Shape, Template},
    spec_state::{Asker, Note},
    world::{A, B, Case, NOBODY},
};

const VETH: HookPoint = HookPoint::VethIngress(A);

/// Everybody who may have an identifier already: the host, a container, one that is gone, and the next one in
/// its slot.
fn holders(judge: &Differential<'_>, id: u16) -> [(u64, Asker); 11] {
    let generation = |slot: u16| judge.world.containers.get(&slot).copied().unwrap_or_default();
    let asker = |slot, id| Asker { slot, generation: generation(slot), id };
    let host = Asker { slot: HOST_SLOT, generation: 0, id };
    let old = NOW - ECHO_LIFETIME - 1;
    [
        (NOW, host),
        (old, host),
        (NOW, asker(A, id)),
        (old, asker(A, id)),
        (NOW - ECHO_LIFETIME / 2, asker(A, !id)),
        (NOW, asker(B, id)),
        (NOW - ECHO_LIFETIME / 2, asker(B, id.swap_bytes())),
        (old, asker(B, id)),
        (NOW, Asker { generation: generation(A) - 1, ..asker(A, id) }),
        (NOW, Asker { generation: generation(B) + 1, ..asker(B, !id) }),
        (NOW, Asker { generation: 1, ..asker(NOBODY, id) }),
    ]
}

/// Requests, replies and errors about requests with every identifier, whoever has it; every `step`th for each
/// holder.
pub(crate) fn every_id(judge: &mut Differential<'_>, is_ipv6: bool, step: usize) {
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
                error.frame(HookPoint::UplinkIngress, A, &Ends::new(far, shared).quoting(shared, peer)),
            ),
            (VETH, error.frame(VETH, A, &Ends::new(shared, far).quoting(shared, peer))),
        ];
        for id in (0..=u16::MAX).step_by(step) {
            let holders = holders(judge, id);
            for holder in [None].into_iter().chain(holders.map(Some)) {
                if let Some((seen, holder)) = holder {
                    judge.remember(Note::Echo(peer, id, seen, holder));
                }
                for (hook, template) in &mut frames {
                    template.set(id, 0);
                    judge.ask_once("echo", &Case::new(*hook, &template.bytes));
                }
            }
            judge.forget();
        }
    }
}

/// What becomes of a container's request when more and more identifiers are taken.
pub(crate) fn busy(judge: &mut Differential<'_>, is_ipv6: bool, id: u16) {
    let [shared, _, peer, _] = packet_shapes::four(is_ipv6);
    let shape = Shape::new("echo request", is_ipv6, Content::EchoRequest);
    let mut template: Template = shape.frame(VETH, A, &Ends::new(shared, peer));
    template.set(id, 0);
    let case = Case::new(VETH, &template.bytes);
    let others = Asker { slot: B, generation: judge.world.containers[&B], id: !id };
    let mut taken = BTreeSet::new();
    let mut next = id;
    loop {
        assert!(taken.insert(next), "{next} is tried twice");
        judge.remember(Note::Echo(peer, next, NOW, others));
        match judge.ask_once("more and more are taken", &case) {
            Verdict::ToOutside { rewrite: IcmpIdRewrite { from, to, .. }, .. } => {
                assert_eq!(from, id);
                next = to;
            }
            Verdict::Drop { slot: A, reason: Reason::EchoBusy } => break,
            verdict => panic!("{verdict:?}"),
        }
    }
    assert_eq!(taken.len(), TRIES, "identifiers that are tried: {taken:?}");
    // Each of them that is that of somebody who is gone, or asks no more, is used.
    for free in taken {
        free_one(judge, &case, peer, free, others);
    }
    judge.forget();
}

/// Identifiers that can be used, its own included.
const TRIES: usize = 8;

fn free_one(judge: &mut Differential<'_>, case: &Case<'_>, peer: IpAddr, id: u16, others: Asker) {
    let gone = Asker { generation: others.generation + 1, ..others };
    for (seen, holder) in [(NOW, gone), (NOW - ECHO_LIFETIME - 1, others)] {
        judge.remember(Note::Echo(peer, id, seen, holder));
        let verdict = judge.ask_once("one is free again", case);
        assert!(matches!(verdict, Verdict::ToOutside { .. }), "{id}: {verdict:?}");
    }
    judge.remember(Note::Echo(peer, id, NOW, others));
}
