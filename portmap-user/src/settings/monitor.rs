//! Which statistics `/monitor/statistics` has besides the counters, as in Mesos.

use std::time::Duration;

use crate::{
    durations::HumanDuration,
    error::{Error, Result},
};

/// Shortest interval of the samples of rates.
const MIN_INTERVAL: Duration = Duration::from_millis(20);
/// Most samples of a container's rates in memory, of 80 bytes each.
const MAX_SAMPLES: u128 = 3600;

/// The statistics to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Monitor {
    /// Counts of TCP sockets.
    pub socket_summary: bool,
    /// Round-trip times of TCP connections.
    pub socket_details: bool,
    /// Protocol counters.
    pub snmp: bool,
    /// Percentiles of rates; `None`: no samples are taken.
    pub rates: Option<RateWindow>,
}

/// The samples of rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateWindow {
    /// How long samples count.
    pub window: Duration,
    /// The time between two samples.
    pub interval: Duration,
}

impl RateWindow {
    /// Number of samples of a full window, at least 3.
    pub fn capacity(self) -> usize {
        let samples = self.window.as_nanos() / self.interval.as_nanos().max(1);
        usize::try_from(samples).unwrap_or(usize::MAX).max(3)
    }
}

/// Checks the flags of the percentiles of rates.
pub(super) fn rates(
    enabled: bool,
    window: Option<HumanDuration>,
    interval: Option<HumanDuration>,
) -> Result<Option<RateWindow>> {
    if !enabled {
        return Ok(None);
    }
    let missing = |flag: &str| {
        Error::usage(format!(
            "--network-enable-rate-statistics needs {flag}: expected a duration such as 60secs for the window, and \
             1secs for the interval"
        ))
    };
    let window = window.ok_or_else(|| missing("--network-rate-statistics-window"))?.0;
    let interval = interval.ok_or_else(|| missing("--network-rate-statistics-interval"))?.0;
    if interval < MIN_INTERVAL {
        return Err(Error::usage(format!(
            "--network-rate-statistics-interval {interval:?}: expected at least {MIN_INTERVAL:?}"
        )));
    }
    if window <= interval {
        return Err(Error::usage(format!(
            "--network-rate-statistics-window {window:?}: expected more than the interval, {interval:?}"
        )));
    }
    let samples = window.as_nanos() / interval.as_nanos();
    if samples > MAX_SAMPLES {
        return Err(Error::usage(format!(
            "--network-rate-statistics-window {window:?} has {samples} samples at an interval of {interval:?}: \
             expected at most {MAX_SAMPLES}, which are kept in memory for each container"
        )));
    }
    Ok(Some(RateWindow { window, interval }))
}
