//! Egress of a container's loopback device: packets to ports of others leave by `eth0`, unless that is by a
//! loopback address which either of them keeps to itself; the rest stays inside.
//!
//! The container's own stack believes that it has the host's addresses to itself, so what it sends to those or to
//! loopback addresses ends up on its loopback device, whoever owns the port. Nothing here is a defence: the hook
//! at the host veth checks what leaves.

use portmap_common::{memory::SCOPE_LOOPBACK, slot::slot_of_loopback, tables::LOOPBACK_PRIVATE};

use super::{Applied, Hook, VerdictSink};
use crate::{
    frame::Frame,
    packet::{ParsePath, Version, content::Kind, ethernet},
    reach,
    tables::Tables,
    verdict::Verdict,
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct ContainerLo;

impl Hook for ContainerLo {
    #[inline(always)]
    fn open(frame: &impl Frame, _tables: &impl Tables) -> Result<ethernet::Kind, Verdict> {
        ethernet::kind(frame).map_err(|_other| Verdict::Own(slot_of(frame)))
    }

    #[inline(always)]
    fn decide_ip<V: Version, D: ParsePath, F: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &F,
    ) -> Applied<F> {
        let slot = slot_of(frame);
        if is_for_another::<V, D>(frame, tables, slot) != Some(true) {
            return Err(sink.apply(Verdict::Own(slot)));
        }
        let eth0 = tables.endpoint(slot).eth0_ifindex;
        Ok(if eth0 == 0 { sink.apply(Verdict::Own(slot)) } else { sink.apply(Verdict::ToEth0(eth0)) })
    }
}

/// The container's slot. Without one (the container has changed its loopback device's address) nothing can leave.
#[inline(always)]
fn slot_of(frame: &impl Frame) -> u16 {
    ethernet::source(frame).and_then(|mac| slot_of_loopback(mac.octets())).unwrap_or_default()
}

/// Whether somebody else than the container in `slot` owns the port that the packet is for; none if it is for no
/// port.
#[inline(always)]
fn is_for_another<V: Version, D: ParsePath>(
    frame: &impl Frame,
    tables: &impl Tables,
    slot: u16,
) -> Option<bool> {
    let shared = V::shared(tables.config())?;
    let ip = V::parse(frame).ok()?;
    let is_local = |address| address == shared || V::is_loopback(address);
    if !is_local(ip.destination) {
        return None;
    }
    let reading = D::read(frame, tables, &ip, slot | SCOPE_LOOPBACK).ok()?;
    reading.remember(tables, &ip, slot | SCOPE_LOOPBACK);
    let content = &reading.content;
    let target = match content.kind {
        Kind::Ports => content.ports.destination,
        Kind::IcmpErrorPorts if is_local(content.inner_source) => content.ports.source,
        _ => return None,
    };
    let owner = tables.port(target);
    // A loopback address that either keeps to itself means this namespace's own.
    let is_private = || reach::is_private(owner) || tables.endpoint(slot).flags & LOOPBACK_PRIVATE != 0;
    Some(owner.slot != slot && !(reach::is_by_loopback(&ip) && is_private()))
}
