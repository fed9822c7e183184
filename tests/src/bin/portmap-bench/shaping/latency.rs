//! Latency of a victim while a container sends at full speed.

use std::{thread, time::Duration};

use anyhow::Result;
use portmap_tests::{
    daemon::Daemon,
    sandbox::{Netns, Sandbox},
};
use serde::{Deserialize, Serialize};

use super::{
    LinkQueue, Plan, UNIQUE_FLOWS, cni, daemon_with, limit_link,
    traffic::{Bulk, Transport, rate_outside, round_trips},
};

/// The limit on the sending container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scenario {
    /// No container sends.
    Idle,
    /// No limit.
    NoLimit,
    /// HTB with one queue (bfifo).
    Htb,
    /// HTB with one queue, and GSO packets of at most 16 KiB instead of 64.
    HtbSmallGso,
    /// HTB and `fq_codel`.
    HtbFqCodel,
    /// No limit, but each container has a flow of the uplink.
    UniqueFlows,
    /// The CNI plugin `bandwidth`: TBF.
    Cni,
}

impl Scenario {
    pub(crate) const ALL: [Self; 7] = [
        Self::Idle,
        Self::NoLimit,
        Self::Htb,
        Self::HtbSmallGso,
        Self::HtbFqCodel,
        Self::UniqueFlows,
        Self::Cni,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle link",
            Self::NoLimit => "no limit",
            Self::Htb => "HTB, one queue",
            Self::HtbSmallGso => "HTB, one queue, GSO ≤ 16 KiB",
            Self::HtbFqCodel => "HTB with fq_codel",
            Self::UniqueFlows => "no limit, unique flows",
            Self::Cni => "CNI bandwidth plugin",
        }
    }

    const fn needs_fq_codel(self) -> bool {
        matches!(self, Self::HtbFqCodel | Self::UniqueFlows)
    }
}

/// Round-trip times in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) scenario: Scenario,
    /// Whether the victim is in the sending container instead of another one.
    pub(crate) is_same: bool,
    pub(crate) round_trips: usize,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    /// Throughput of the sending container in bits per second.
    pub(crate) sent: f64,
}

/// Measures every scenario that this kernel supports.
pub(crate) fn measure(plan: Plan, leaf: &str, missing: &mut Vec<String>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for scenario in Scenario::ALL {
        if scenario.needs_fq_codel() && leaf != "fq_codel" {
            missing.push(format!("{}: the kernel has no fq_codel", scenario.name()));
            continue;
        }
        if scenario == Scenario::Cni
            && let Some(reason) = cni::why_not()
        {
            missing.push(format!("{}: {reason}", scenario.name()));
            continue;
        }
        let sandbox = Sandbox::new();
        let _daemon = play(plan, scenario, &sandbox, leaf)?;
        for is_same in [false, true] {
            findings.push(one(plan, &sandbox, scenario, is_same)?);
        }
    }
    Ok(findings)
}

/// Makes the containers `bulk` and `victim`, and puts the limit in place.
fn play(plan: Plan, scenario: Scenario, sandbox: &Sandbox, leaf: &str) -> Result<Option<Daemon>> {
    // Where there is a limit, it is half of what the link carries.
    let limit = plan.link / 2;
    let has_flows = scenario == Scenario::UniqueFlows;
    limit_link(sandbox, plan.link, if has_flows { LinkQueue::Containers } else { LinkQueue::Fifo });
    if scenario == Scenario::Cni {
        cni::add(sandbox, "bulk", Some(limit))?;
        cni::add(sandbox, "victim", None)?;
        return Ok(None);
    }
    let daemon = daemon_with(sandbox, if has_flows { &UNIQUE_FLOWS } else { &[] });
    sandbox.ok(&["add", "victim"]);
    sandbox.ok(&["add", "bulk"]);
    if matches!(scenario, Scenario::Htb | Scenario::HtbSmallGso | Scenario::HtbFqCodel) {
        sandbox.ok(&["update", "bulk", "--egress-rate", &format!("{limit}bit")]);
    }
    if scenario == Scenario::HtbSmallGso {
        sandbox.sh(Netns::Container("bulk"), "ip link set eth0 gso_max_size 16384");
    }
    if matches!(scenario, Scenario::Htb | Scenario::HtbSmallGso) && leaf == "fq_codel" {
        // What portmap has where there is no fq_codel.
        let queue = format!("bfifo limit {}", limit / 8 / 10);
        sandbox.sh(
            Netns::Container("bulk"),
            &format!("tc qdisc del dev eth0 parent 1:1; tc qdisc add dev eth0 parent 1:1 handle 2: {queue}"),
        );
    }
    Ok(Some(daemon))
}

fn one(plan: Plan, sandbox: &Sandbox, scenario: Scenario, is_same: bool) -> Result<Finding> {
    let (warm_up, during) = if plan.is_quick { (1, 2) } else { (3, 8) };
    let (warm_up, during) = (Duration::from_secs(warm_up), Duration::from_secs(during));
    let bulk = (scenario != Scenario::Idle)
        .then(|| Bulk::start((sandbox, Netns::Container("bulk")), Transport::Tcp, 4, 9000, None))
        .transpose()?;
    thread::sleep(warm_up);
    let sent = match &bulk {
        Some(_) => rate_outside(sandbox, Transport::Tcp, Duration::from_secs(1))? * 8.0,
        None => 0.0,
    };
    // The sender sends until the victim has done.
    let victim = Netns::Container(if is_same { "bulk" } else { "victim" });
    let mut times: Vec<f64> = round_trips(sandbox, victim, 9100, during)?
        .into_iter()
        .map(|time| time.as_secs_f64() * 1e6)
        .collect();
    times.sort_by(f64::total_cmp);
    drop(bulk);
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    Ok(Finding { scenario, is_same, round_trips: times.len(), median: at(50), p99: at(99), sent })
}
