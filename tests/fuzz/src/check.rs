//! The assertions on one verdict.

use portmap_common::{
    event::DropEvent,
    flow_state::{ECHO_LIFETIME, Echo},
    hook_point::HookPoint,
    reason::Reason,
    slot::HOST_SLOT,
};
use portmap_ebpf::{
    Verdict, sample,
    verdict::{IcmpIdRewrite, NextHop},
    verdict_codec,
};

use crate::{
    expected::{Delivery, EchoRequest, Exit, Expected, Outcome},
    hook_ctx::HookCtx,
    reader::{self, Content, Packet, Part, has_ports, mapped},
    spec::{self, is_live},
    state::State,
    values::{HOST, HOST6},
    world::World,
};

/// Most candidate identifiers of an echo request.
const ATTEMPTS: usize = 8;

/// One frame with its context, which is printed if an assertion fails.
struct Case<'a> {
    ctx: &'a HookCtx,
    frame: &'a [u8],
    before: World,
    verdict: Verdict,
}

/// Decides on a frame, checks all assertions, and updates `model`, the specification's state.
pub fn step(ctx: &HookCtx, frame: &[u8], world: &World, model: &mut State) -> Verdict {
    let before = world.clone();
    world.asked.borrow_mut().clear();
    let verdict = ctx.decide(frame, world);
    let asked = world.asked.take();
    let case = Case { ctx, frame, before, verdict };
    let outcome = spec::of(ctx, frame, &case.before, model);
    case.assert(agrees(&verdict, &outcome.expected), || format!("specified: {:?}", outcome.expected));
    case.assert(asked.iter().eq(&outcome.question), || {
        format!("the FIB is asked {asked:?}, specified: {:?}", outcome.question)
    });
    case.never(world);
    case.remembered(&outcome, world, model);
    case.again(world, model);
    case.padding(world);
    case.plain(world);
    case.reports();
    verdict
}

/// Returns whether a verdict is the specified one. Identifiers of echo requests are checked with the state.
fn agrees(verdict: &Verdict, expected: &Expected) -> bool {
    match (*verdict, *expected) {
        (Verdict::Continue(_), Expected::Left)
        | (Verdict::AlreadyHandled, Expected::AlreadyHandled)
        | (Verdict::ToLoopback, Expected::Loopback) => true,
        (Verdict::DeliverLocal(slot), Expected::DeliverLocal(specified))
        | (Verdict::ToHost(slot), Expected::Host(specified)) => slot == specified,
        (Verdict::Drop { slot, reason }, Expected::Dropped(specified)) => {
            slot == specified && reason != Reason::EchoBusy
        }
        (Verdict::Drop { slot, reason }, Expected::Request(request)) => {
            slot == request.owner.slot && reason == Reason::EchoBusy
        }
        (Verdict::ToContainer { origin, owner, by_loopback, rewrite }, Expected::Container(specified)) => {
            Delivery { origin, owner, by_loopback, rewrite } == specified
        }
        (Verdict::ToOutside { slot, ifindex, next_hop, rewrite }, Expected::Outside(by, exit)) => {
            (slot, Exit { ifindex, next_hop }, rewrite) == (by, exit, IcmpIdRewrite::NONE)
        }
        (Verdict::ToOutside { slot, ifindex, next_hop, .. }, Expected::Request(request)) => {
            (slot, Exit { ifindex, next_hop }) == (request.owner.slot, request.exit)
        }
        (Verdict::ToEth0(ifindex), Expected::Eth0(specified)) => ifindex == specified,
        (Verdict::AssignFlow(flow), Expected::AssignFlow(specified)) => flow == specified,
        _ => false,
    }
}

/// Returns a verdict without the way out of the machine.
fn but_way(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::ToOutside { slot, rewrite, .. } => {
            Verdict::ToOutside { slot, ifindex: 0, next_hop: NextHop::KERNEL, rewrite }
        }
        other => other,
    }
}

impl Case<'_> {
    #[track_caller]
    fn assert(&self, holds: bool, why: impl FnOnce() -> String) {
        if !holds {
            let Self { ctx, frame, before, verdict } = self;
            panic!("{}\n{ctx:?}\nframe {frame:02x?}\nverdict {verdict:?}\nworld {before:?}", why());
        }
    }

    /// Asserts invariants that depend only on bytes at fixed offsets.
    fn never(&self, world: &World) {
        match self.verdict {
            Verdict::ToContainer { owner, rewrite, .. } => {
                self.assert(owner.ifindex != 0 && owner.slot != HOST_SLOT, || "to no container".to_owned());
                let memory = self.before.memory.borrow();
                let owns_identifier =
                    memory.echoes.values().chain(&memory.default_owner).any(|echo| echo.slot == owner.slot);
                self.assert(world.owns_any(owner.slot) || owns_identifier, || {
                    "to a container that is not concerned".to_owned()
                });
                self.message(rewrite);
            }
            Verdict::ToOutside { ifindex, next_hop, rewrite, .. } => {
                let is_set = next_hop.ip().is_none_or(|ip| !ip.is_unspecified() && !ip.is_loopback());
                self.assert(ifindex != 0 && is_set, || "to no neighbour".to_owned());
                self.message(rewrite);
            }
            Verdict::AssignFlow(flow) => {
                self.assert(matches!(flow, 1 | 2), || "a container's flow".to_owned());
            }
            Verdict::Drop { reason, .. } if self.ctx.hook == HookPoint::UplinkIngress => {
                let documented = matches!(reason, Reason::Destination | Reason::SourceAddress);
                self.assert(documented, || "drops a packet of the host's".to_owned());
            }
            _ => {}
        }
        if let HookPoint::VethIngress(slot) = self.ctx.hook
            && !matches!(self.verdict, Verdict::Drop { .. })
        {
            self.sender(slot, world);
        }
    }

    /// Asserts that a packet from a container has an allowed source address and, on the fast path, an own
    /// port.
    fn sender(&self, slot: u16, world: &World) {
        let frame = self.frame;
        let is_v6 = frame[12..14] == [0x86, 0xdd];
        let (source, protocol, start) = if is_v6 {
            (&frame[22..38], frame[20], 54)
        } else {
            (&frame[26..30], frame[23], 14 + usize::from(frame[14] & 15) * 4)
        };
        let allowed = match *source {
            [127, _, _, _] => true,
            [a, b, c, d] => source == HOST || world.is_second(false, mapped([a, b, c, d])),
            _ => {
                source == HOST6
                    || source.try_into().is_ok_and(|source| world.is_second(true, source))
                    || source.iter().rev().skip(1).all(|byte| *byte == 0)
            }
        };
        self.assert(allowed, || "leaves with a foreign address".to_owned());
        let is_later = !is_v6 && (frame[20] & 0x1f, frame[21]) != (0, 0);
        if has_ports(protocol) && !is_later {
            let port = u16::from_be_bytes([frame[start], frame[start + 1]]);
            self.assert(world.owner(port).slot == slot, || "leaves with a foreign port".to_owned());
        }
    }

    /// Asserts that a rewrite applies to an echo message in the frame with the stated identifier.
    fn message(&self, rewrite: IcmpIdRewrite) {
        let IcmpIdRewrite { message, from, to } = rewrite;
        if rewrite == IcmpIdRewrite::NONE {
            return;
        }
        let bytes = self.frame.get(message..).and_then(|rest| rest.first_chunk::<8>());
        let is_echo = bytes.is_some_and(|bytes| {
            matches!(bytes[0], 0 | 8 | 128 | 129) && bytes[4..6] == from.to_be_bytes() && from != to
        });
        self.assert(is_echo, || "rewrites bytes that are no such echo message".to_owned());
    }

    /// Asserts that the state afterwards is the specified one.
    fn remembered(&self, outcome: &Outcome, world: &World, model: &mut State) {
        let is_dropped = matches!(self.verdict, Verdict::Drop { .. });
        if let Some((datagram, fragment)) = outcome.first
            && !is_dropped
        {
            model.fragments.insert(datagram, fragment);
        }
        if let Some((peer, id)) = outcome.reserves {
            let owner = world.memory.borrow().echo(peer, id);
            let host = Echo { generation: 0, slot: HOST_SLOT, id, seen: self.before.now };
            self.assert(owner == Some(host), || {
                format!("the host's request with identifier {id} is not reserved")
            });
            if model.echo(peer, id) != owner {
                model.echoes.extend(owner.map(|echo| ((peer, id), echo)));
            }
        }
        if let Some(key) = outcome.host_flow {
            model.host_flows.insert(key, self.before.now);
        }
        model.neighbours.extend(outcome.neighbour);
        model.host_connections.extend(outcome.host_connection);
        model.flagged.extend(outcome.host_connection.map(|(key, _)| key.local_port));
        if let Expected::Request(request) = outcome.expected {
            self.check_identifiers(&request, world, model);
        }
        let memory = world.memory.borrow();
        self.assert(*memory == *model, || format!("state {memory:?},\nspecified {model:?}"));
    }

    /// Asserts that no current owner loses an identifier, and that identifiers are rewritten only if
    /// necessary.
    fn check_identifiers(&self, request: &EchoRequest, world: &World, model: &mut State) {
        let EchoRequest { owner, peer, message, .. } = *request;
        let is_taken = |echo: Echo| {
            let is_own = Echo { seen: owner.seen, ..echo } == owner;
            let is_over = self.before.now - echo.seen > ECHO_LIFETIME;
            !is_own && !is_over && (echo.slot == HOST_SLOT || is_live(world, echo))
        };
        let own_was_taken = model.echo(peer, owner.id).is_some_and(is_taken);
        let mut claimed = 0;
        let lost = usize::from(self.before.races.get() - world.races.get());
        let mut taken_by_others = 0;
        for (key, echo) in &world.memory.borrow().echoes {
            if model.echoes.get(key) == Some(echo) {
                continue;
            }
            let was_taken = model.echo(key.0, key.1).is_some_and(is_taken);
            self.assert(key.0 == peer && !was_taken, || format!("{key:?} is taken from its current owner"));
            if *echo == owner {
                claimed += 1;
            } else {
                taken_by_others += 1;
            }
            model.echoes.insert(*key, *echo);
        }
        self.assert(taken_by_others <= lost && claimed <= 1, || "claims more than one identifier".to_owned());
        let Verdict::ToOutside { rewrite, .. } = self.verdict else {
            let busy = model.echoes.iter().filter(|((to, _), echo)| *to == peer && is_taken(**echo)).count();
            let is_busy = busy >= ATTEMPTS || model.default_owner.is_some_and(is_taken);
            self.assert(claimed == 0 && is_busy, || "a candidate is free".to_owned());
            return;
        };
        let is_changed = rewrite != IcmpIdRewrite::NONE;
        let outside = if is_changed { rewrite.to } else { owner.id };
        let is_kept = model.echo(peer, outside) == Some(owner);
        self.assert(is_kept, || "the reply would be lost".to_owned());
        let is_right = !is_changed || (rewrite.message, rewrite.from) == (message, owner.id);
        self.assert(is_right, || format!("specified: {request:?}"));
        let must_change = own_was_taken || lost > 0;
        self.assert(is_changed == must_change, || "a needless rewrite, or none".to_owned());
    }

    /// Asserts that a second decision on the frame is the specified one, and that it changes no state. It
    /// differs only in the way out, because the FIB need not be asked again.
    fn again(&self, world: &World, model: &State) {
        let memory = world.memory.borrow().clone();
        let verdict = self.ctx.decide(self.frame, world);
        let outcome = spec::of(self.ctx, self.frame, world, model);
        let is_right = agrees(&verdict, &outcome.expected) && but_way(verdict) == but_way(self.verdict);
        self.assert(is_right, || format!("decided again: {verdict:?}, specified: {:?}", outcome.expected));
        self.assert(*world.memory.borrow() == memory, || "changes state when it decides again".to_owned());
    }

    /// Asserts that padding has no influence.
    fn padding(&self, world: &World) {
        let Some(packet) = reader::packet(self.frame) else { return };
        if !packet.ends_by_itself {
            return;
        }
        let bare = &self.frame[..Packet::START + packet.bytes.len()];
        for padding in [&[][..], &[0xff; 3], &[0; 46], &[0x7a; 9]] {
            let other = [bare, padding].concat();
            let elsewhere = self.before.clone();
            let verdict = self.ctx.decide(&other, &elsewhere);
            self.assert(verdict == self.verdict, || format!("with padding {padding:02x?}: {verdict:?}"));
            let same = *elsewhere.memory.borrow() == *world.memory.borrow();
            self.assert(same, || format!("another state with padding {padding:02x?}"));
        }
    }

    /// Asserts that the fast path and the slow path agree.
    fn plain(&self, world: &World) {
        let elsewhere = self.before.clone();
        let Some(verdict) = self.ctx.decide_fast_path(self.frame, &elsewhere) else { return };
        self.assert(verdict == self.verdict, || format!("on the fast path: {verdict:?}"));
        let same = *elsewhere.memory.borrow() == *world.memory.borrow();
        self.assert(same, || "another state on the fast path".to_owned());
    }

    /// Asserts that the verdict survives its encoding, and that a sample has the right fields.
    fn reports(&self) {
        let reported = verdict_codec::decode(verdict_codec::encode(&self.verdict));
        self.assert(reported == Some(self.verdict), || format!("reported as {reported:?}"));
        let mut event = DropEvent::default();
        sample::describe(&self.ctx.view(self.frame), &mut event);
        self.assert(usize::try_from(event.length) == Ok(self.frame.len()), || format!("{event:?}"));
        let Some(packet) = reader::packet(self.frame) else {
            self.assert(event.source.bytes == [0; 16] && event.source_port == 0, || format!("{event:?}"));
            return;
        };
        let is_right = (event.source.bytes, event.destination.bytes) == (packet.source, packet.destination);
        self.assert(is_right, || format!("{event:?}"));
        let at = if packet.is_v6 { 6 } else { 9 };
        self.assert(event.protocol == packet.bytes[at], || format!("{event:?}"));
        // A sample does not skip extension headers.
        let plain = packet
            .behind()
            .filter(|behind| !(matches!(behind.part, Part::Subsequent(_)) || packet.is_v6 && behind.at > 40));
        let ports = match plain.and_then(|behind| packet.content(behind)) {
            Some(Content::Ports(source, destination)) => (source, destination),
            _ => (0, 0),
        };
        let described = (event.source_port, event.destination_port);
        self.assert(described == ports, || format!("{event:?}, specified {ports:?}"));
    }
}
