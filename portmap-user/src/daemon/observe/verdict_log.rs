//! `--datapath-log`: the verdicts that the programs log, as lines of the daemon's log.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use aya::Ebpf;
use portmap_common::{
    event::DropEvent,
    hook_point::HookPoint,
    names::PROGRAMS,
    slot::HOST_SLOT,
    verdict_log::{LogFilter, MAX_RECORDS_PER_WINDOW, VerdictRecord},
};
use portmap_ebpf::{Verdict, verdict::Origin, verdict_codec};
use tracing::{info, warn};

use super::{
    drop_stream::Names,
    drops,
    explain::render::{self, UNKNOWN},
};
use crate::{
    api::{DropSample, HOST, OUTSIDE, Outcome},
    error::{Context as _, Result},
    kernel::verdict_log::VerdictLog,
    model::LogTarget,
};

/// The interval at which a container's name is looked up, because it can be added and removed at any time.
const LOOKUP: Duration = Duration::from_millis(100);
/// The shortest time between two reports of lost records.
const REPORT: Duration = Duration::from_secs(1);

/// Logs the verdicts of a container or port until the process ends.
///
/// # Errors
///
/// If the maps cannot be used, or no thread can be started.
pub(in crate::daemon) fn start(object: &mut Ebpf, target: LogTarget, names: Names) -> Result<()> {
    let slots = names.clone();
    let log = VerdictLog::start(object, move |record| write(record, &slots()))?;
    let thread = thread::Builder::new().name("verdict log".to_owned());
    let thread = thread.spawn(move || {
        if let Err(error) = follow(log, &target, &names) {
            warn!("--datapath-log {target}: {error}; no more verdicts are logged");
        }
    });
    thread.map(drop).context(|| "cannot start the thread of the verdict log".to_owned())
}

/// Keeps the filter up to date, and reports lost records.
fn follow(mut log: VerdictLog, target: &LogTarget, names: &Names) -> Result<()> {
    let mut present = None;
    let mut reported = (Instant::now(), 0);
    loop {
        let filter = filter(target, &names());
        if present != Some(filter) {
            log.set_filter(filter)?;
            if filter.is_off() {
                info!("--datapath-log {target}: there is no such container now");
            } else {
                info!("--datapath-log {target}: logging verdicts");
            }
            present = Some(filter);
        }
        let lost = log.wait(LOOKUP)?;
        let (time, before) = reported;
        if lost > before && time.elapsed() >= REPORT {
            warn!(
                "--datapath-log {target}: {} verdicts were not logged, because the limit is \
                 {MAX_RECORDS_PER_WINDOW} a second",
                lost - before
            );
            reported = (Instant::now(), lost);
        }
    }
}

fn filter(target: &LogTarget, names: &BTreeMap<u16, String>) -> LogFilter {
    match target {
        LogTarget::Port(port) => LogFilter { slot: 0, port: (*port).into() },
        LogTarget::Container(name) => {
            let slot = names.iter().find_map(|(slot, other)| (other == name).then_some(*slot));
            LogFilter { slot: slot.unwrap_or(HOST_SLOT).into(), port: 0 }
        }
    }
}

/// Writes a record to the daemon's log, in the words of `portmap drops --follow` and `portmap explain`.
fn write(record: &VerdictRecord, slots: &BTreeMap<u16, String>) {
    match describe(record, slots) {
        Ok((hook, outcome, packet)) => {
            let Outcome { verdict, reason, text, .. } = outcome;
            info!(
                name = %packet.name,
                hook = %hook,
                verdict = %verdict,
                reason = reason.map(tracing::field::display),
                protocol = %packet.protocol,
                length = packet.length,
                packet = %packet.packet(),
                "{text}"
            );
        }
        Err(error) => warn!("cannot log a verdict: {error}"),
    }
}

/// Returns the hook's program, the verdict, and the packet with the name of its sender.
fn describe(
    record: &VerdictRecord,
    slots: &BTreeMap<u16, String>,
) -> Result<(&'static str, Outcome, DropSample)> {
    let verdict = verdict_codec::decode(record.verdict);
    let hook = PROGRAMS.get(record.program as usize).copied().unwrap_or("unknown");
    let (slot, others) = match verdict {
        Some(
            Verdict::Drop { slot, .. }
            | Verdict::DeliverLocal(slot)
            | Verdict::ToOutside { slot, .. }
            | Verdict::ToHost(slot)
            | Verdict::ToContainer { origin: Origin::Container(slot), .. },
        ) => (slot, OUTSIDE),
        Some(Verdict::ToContainer { origin: Origin::Outside, .. }) => (HOST_SLOT, OUTSIDE),
        Some(Verdict::Continue(_)) if hook == HookPoint::UplinkIngress.program() => (HOST_SLOT, OUTSIDE),
        _ => (HOST_SLOT, HOST),
    };
    let mut packet = drops::describe(&DropEvent { slot, ..record.packet }, slots)?;
    if slot == HOST_SLOT {
        others.clone_into(&mut packet.name);
    }
    let outcome = match verdict {
        // The hook matters only for verdicts that are not logged.
        Some(verdict) => render::Names(slots.clone()).outcome(HookPoint::UplinkIngress, verdict),
        None => UNKNOWN.to_outcome(),
    };
    Ok((hook, outcome, packet))
}

#[cfg(test)]
mod tests {
    use portmap_common::{reason::Reason, tables::PortEntry};
    use portmap_ebpf::verdict::IcmpIdRewrite;

    use super::*;

    #[test]
    fn verdict_log_names_sender_and_verdict() {
        let slots = BTreeMap::from([(3, "web".to_owned())]);
        let seen = |point: HookPoint, verdict: Verdict| {
            let verdict = verdict_codec::encode(&verdict);
            let record = VerdictRecord { verdict, program: point.number(), ..VerdictRecord::default() };
            let (hook, outcome, packet) = describe(&record, &slots).expect("described");
            (hook, packet.name, outcome.verdict, outcome.reason)
        };
        let expected = |hook, name: &str, verdict: &str, reason: Option<&str>| {
            (hook, name.to_owned(), verdict.to_owned(), reason.map(str::to_owned))
        };
        let to = |origin| Verdict::ToContainer {
            origin,
            owner: PortEntry { ifindex: 1_000_003, slot: 3, flags: 0 },
            by_loopback: false,
            rewrite: IcmpIdRewrite::NONE,
        };
        let (uplink, veth, lo) =
            (HookPoint::UplinkIngress, HookPoint::VethIngress(3), HookPoint::HostLoIngress);
        let dropped = |slot| Verdict::Drop { slot, reason: Reason::SourcePort };
        let left = Verdict::Continue(Reason::HostPort);
        for (found, wanted) in [
            (seen(veth, dropped(3)), expected("pm_veth_in", "web", "drop", Some("source_port"))),
            (seen(veth, dropped(4)), expected("pm_veth_in", "slot 4", "drop", Some("source_port"))),
            (seen(uplink, dropped(0)), expected("pm_uplink_in", "outside", "drop", Some("source_port"))),
            (seen(uplink, left), expected("pm_uplink_in", "outside", "continue", Some("host_port"))),
            (seen(lo, left), expected("pm_lo_in", "host", "continue", Some("host_port"))),
            (seen(uplink, to(Origin::Outside)), expected("pm_uplink_in", "outside", "to_container", None)),
            (seen(lo, to(Origin::Host)), expected("pm_lo_in", "host", "to_container", None)),
            (seen(veth, to(Origin::Container(3))), expected("pm_veth_in", "web", "to_container", None)),
            (seen(veth, Verdict::ToHost(3)), expected("pm_veth_in", "web", "to_host", None)),
        ] {
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn verdict_log_filter_follows_the_container() {
        let names = BTreeMap::from([(3, "web".to_owned())]);
        let web = LogTarget::Container("web".to_owned());
        assert_eq!(filter(&web, &names), LogFilter { slot: 3, port: 0 });
        assert!(filter(&web, &BTreeMap::new()).is_off());
        assert_eq!(filter(&LogTarget::Port(80), &names), LogFilter { slot: 0, port: 80 });
    }
}
