//! Packet loss while a limit changes.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use portmap_tests::sandbox::{HOST, Netns, OUTSIDE, Sandbox};
use serde::{Deserialize, Serialize};

use super::Plan;

/// The changes, and the arguments of `portmap update`. All limits are far above the rate of the sender.
const CHANGES: [(&str, [&str; 2]); 6] = [
    ("first limit on what it sends", ["--egress-rate", "500mbit"]),
    ("another limit on what it sends", ["--egress-rate", "300mbit"]),
    ("no limit on what it sends any more", ["--egress-rate", "0"]),
    ("first limit on what it receives", ["--ingress-rate", "500mbit"]),
    ("another limit on what it receives", ["--ingress-rate", "300mbit"]),
    ("no limit on what it receives any more", ["--ingress-rate", "0"]),
];
/// Least time between two datagrams.
const PAUSE: Duration = Duration::from_micros(200);
/// Duration of sending before and after a change.
const AROUND: Duration = Duration::from_millis(200);
const PORT: u16 = 31_000;

/// The losses of a change in all its repetitions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) change: String,
    /// How often it was made.
    pub(crate) times: usize,
    /// Datagrams that were sent each time, about.
    pub(crate) sent: u64,
    /// The most that were lost at once.
    pub(crate) lost: u64,
    /// Milliseconds in which so many are sent.
    pub(crate) gap: f64,
}

/// Makes every change under traffic, several times.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Finding>> {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let times = if plan.is_quick { 3 } else { 20 };
    let none =
        |(change, _): (&str, _)| Finding { change: change.to_owned(), times, sent: 0, lost: 0, gap: 0.0 };
    let mut findings = CHANGES.map(none);
    for _ in 0..times {
        // A new container, which has never had a limit.
        sandbox.ok(&["add", "a", "--ports", "31000"]);
        for ((_, update), finding) in CHANGES.into_iter().zip(&mut findings) {
            let is_egress = update[0].starts_with("--egress");
            let change = || drop(sandbox.ok(&[&["update", "a"][..], &update].concat()));
            let (sent, lost, took) = sent_and_lost(&sandbox, is_egress, change)?;
            finding.sent = sent;
            if lost > finding.lost {
                finding.lost = lost;
                #[expect(clippy::cast_precision_loss, reason = "it is a few thousand")]
                let share = lost as f64 / sent as f64;
                finding.gap = took.as_secs_f64() * 1000.0 * share;
            }
        }
        sandbox.ok(&["del", "a"]);
    }
    Ok(findings.into())
}

/// Sends datagrams during a change. Returns how many were sent, how many were lost, and the duration.
fn sent_and_lost(
    sandbox: &Sandbox,
    from_container: bool,
    change: impl FnOnce(),
) -> Result<(u64, u64, Duration)> {
    let container = (Netns::Container("a"), IpAddr::V4(HOST));
    let outside = (Netns::Outside, IpAddr::V4(OUTSIDE));
    let (from, to) = if from_container { (container, outside) } else { (outside, container) };
    let open = |place, address: IpAddr, port| sandbox.inside(place, move || UdpSocket::bind((address, port)));
    let receiver = open(to.0, to.1, PORT).context("the receiver's port is taken")?;
    // After this time without a datagram, all have arrived.
    receiver.set_read_timeout(Some(AROUND * 2))?;
    let sender = open(from.0, Ipv4Addr::UNSPECIFIED.into(), 0)?;
    sender.connect((to.1, PORT))?;
    let stop = AtomicBool::new(false);
    let ended = |_panic| anyhow!("a thread panicked");
    thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut arrived = 0;
            while receiver.recv(&mut [0; 64]).is_ok() {
                arrived += 1;
            }
            arrived
        });
        let start = Instant::now();
        let sending = scope.spawn(|| {
            let mut sent: u64 = 0;
            while !stop.load(Ordering::Relaxed) {
                sent += u64::from(sender.send(&[0x5a; 64]).is_ok());
                thread::sleep(PAUSE);
            }
            sent
        });
        thread::sleep(AROUND);
        change();
        thread::sleep(AROUND);
        stop.store(true, Ordering::Relaxed);
        let sent = sending.join().map_err(ended)?;
        let took = start.elapsed();
        let arrived: u64 = receiving.join().map_err(ended)?;
        Ok((sent, sent - arrived, took))
    })
}
