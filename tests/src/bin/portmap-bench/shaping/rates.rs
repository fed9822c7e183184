//! Accuracy of rate limits.

use std::{thread, time::Duration};

use anyhow::Result;
use portmap_tests::sandbox::{Netns, Sandbox};
use serde::{Deserialize, Serialize};

use super::{
    Plan,
    traffic::{Bulk, Transport, rate_outside},
};

/// Limits in bits per second.
const LIMITS: [u64; 7] =
    [1_000_000, 10_000_000, 100_000_000, 500_000_000, 1_000_000_000, 2_500_000_000, 5_000_000_000];
const FLOWS: [u16; 2] = [1, 16];

/// A limit and the measured throughput.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) transport: Transport,
    pub(crate) flows: u16,
    /// Bits per second; none if there was no limit.
    pub(crate) limit: Option<u64>,
    /// Bits per second, headers included.
    pub(crate) measured: f64,
}

impl Finding {
    /// The deviation of the throughput from the limit, in per cent.
    pub(crate) fn error(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "limits are round numbers")]
        self.limit.map(|limit| (self.measured / limit as f64 - 1.0) * 100.0)
    }
}

/// Measures the throughput of a container under every limit that this machine can reach.
pub(crate) fn measure(plan: Plan, missing: &mut Vec<String>) -> Result<Vec<Finding>> {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "bulk"]);
    let mut findings = Vec::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        for flows in FLOWS {
            sandbox.ok(&["update", "bulk", "--egress-rate", "0"]);
            let window = Duration::from_secs(if plan.is_quick { 1 } else { 3 });
            let most = one(&sandbox, transport, flows, None, window)?;
            findings.push(Finding { transport, flows, limit: None, measured: most });
            for limit in LIMITS {
                // Near the machine's maximum, the limit is not the bottleneck.
                #[expect(clippy::cast_precision_loss, reason = "limits are round numbers")]
                if limit as f64 > most * 0.6 {
                    missing.push(format!(
                        "{} Mbit/s and more, {flows} flows of {}: without a limit {:.0} Mbit/s are reached",
                        limit / 1_000_000,
                        transport.name(),
                        most / 1e6
                    ));
                    break;
                }
                sandbox.ok(&["update", "bulk", "--egress-rate", &format!("{limit}bit")]);
                // Low rates take longer: the sender adapts to a queue of a second, and more packets must be
                // counted.
                let slow = if limit < 10_000_000 { 3 } else { 1 };
                let measured = one(&sandbox, transport, flows, Some(limit), window * slow)?;
                findings.push(Finding { transport, flows, limit: Some(limit), measured });
            }
        }
    }
    Ok(findings)
}

fn one(
    sandbox: &Sandbox,
    transport: Transport,
    flows: u16,
    limit: Option<u64>,
    window: Duration,
) -> Result<f64> {
    // A queue shorter than the socket's buffer drops excess packets; a longer one blocks the sender.
    let at_most = limit.filter(|limit| *limit < 50_000_000).map(|limit| limit + limit / 3);
    let _bulk = Bulk::start((sandbox, Netns::Container("bulk")), transport, flows, 9000, at_most)?;
    thread::sleep(window.max(Duration::from_secs(2)));
    Ok(rate_outside(sandbox, transport, window)? * 8.0)
}
