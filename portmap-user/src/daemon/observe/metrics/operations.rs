//! The daemon's operations: how long they take, how they fail, and those in flight.

use std::{
    sync::atomic::AtomicU64,
    time::{Instant, SystemTime},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::error::{Error, Kind};

/// The operations. Requests that are none of them count as [`OTHER`], so no client can add label values.
const OPERATIONS: [&str; 15] = [
    "add", "capacity", "del", "doctor", "drops", "explain", "flows", "list", "metrics", "monitor", RECONCILE,
    "show", "stats", "teardown", "update",
];
/// A reconciliation of the host, which the daemon begins by itself.
const RECONCILE: &str = "reconcile";
/// All other operations.
const OTHER: &str = "other";
/// All categories of errors.
const KINDS: [Kind; 7] = [
    Kind::Failure,
    Kind::Usage,
    Kind::NotFound,
    Kind::Conflict,
    Kind::Unreachable,
    Kind::NotPermitted,
    Kind::Unhealthy,
];
/// Upper bounds of the histogram, in seconds: from a query of the daemon's memory to an operation that hangs.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    operation: &'static str,
    kind: &'static str,
}

/// Measures the operations since the start of the daemon.
pub(in crate::daemon) struct Meter {
    durations: Family<Operation, Histogram, fn() -> Histogram>,
    errors: Family<Failed, Counter>,
    in_flight: Family<Operation, Gauge>,
    /// When the last reconciliation succeeded, in seconds since the epoch.
    reconciled: Gauge<f64, AtomicU64>,
}

impl Default for Meter {
    fn default() -> Self {
        let meter = Self {
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            errors: Family::default(),
            in_flight: Family::default(),
            reconciled: Gauge::default(),
        };
        // A rate needs the value before the first event.
        for operation in OPERATIONS.into_iter().chain([OTHER]) {
            drop(meter.durations.get_or_create(&Operation { operation }));
            drop(meter.in_flight.get_or_create(&Operation { operation }));
            for kind in KINDS.map(name) {
                drop(meter.errors.get_or_create(&Failed { operation, kind }));
            }
        }
        meter.note_reconciled();
        meter
    }
}

impl Meter {
    /// Begins the measurement of an operation, whose description starts with its name.
    pub(in crate::daemon) fn begin(&self, what: &str) -> Measurement {
        let word = what.split(' ').next().unwrap_or_default();
        let operation = OPERATIONS.into_iter().find(|operation| *operation == word).unwrap_or(OTHER);
        let in_flight = self.in_flight.get_or_create_owned(&Operation { operation });
        in_flight.inc();
        Measurement {
            operation,
            begun: Instant::now(),
            duration: self.durations.get_or_create_owned(&Operation { operation }),
            errors: self.errors.clone(),
            in_flight,
            // Unless the operation returns a result, it has panicked.
            error: Some(Kind::Failure),
        }
    }

    /// Measures a reconciliation.
    pub(in crate::daemon) fn reconciliation<T>(
        &self,
        reconcile: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let measurement = self.begin(RECONCILE);
        let reconciled = reconcile();
        if reconciled.is_ok() {
            self.note_reconciled();
        }
        measurement.end(reconciled)
    }

    fn note_reconciled(&self) {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.reconciled.set(since_epoch.as_secs_f64());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "operation_duration",
            "Duration of operations",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register(
            "operation_errors",
            "Operations that failed, by category of the error",
            self.errors.clone(),
        );
        registry.register("operations_in_flight", "Operations that run", self.in_flight.clone());
        registry.register_with_unit(
            "last_reconciliation_timestamp",
            "When the last reconciliation succeeded, since the epoch",
            Unit::Seconds,
            self.reconciled.clone(),
        );
    }
}

/// An operation that is being measured, until this value is dropped.
pub(in crate::daemon) struct Measurement {
    operation: &'static str,
    begun: Instant,
    duration: Histogram,
    errors: Family<Failed, Counter>,
    in_flight: Gauge,
    error: Option<Kind>,
}

impl Measurement {
    /// Ends the measurement with the operation's result, and returns that.
    pub(in crate::daemon) fn end<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.error = result.as_ref().err().map(|error| error.kind);
        result
    }
}

impl Drop for Measurement {
    fn drop(&mut self) {
        self.duration.observe(self.begun.elapsed().as_secs_f64());
        self.in_flight.dec();
        if let Some(kind) = self.error {
            self.errors.get_or_create(&Failed { operation: self.operation, kind: name(kind) }).inc();
        }
    }
}

/// The name of a category, as in JSON.
const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Failure => "failure",
        Kind::Usage => "usage",
        Kind::NotFound => "not_found",
        Kind::Conflict => "conflict",
        Kind::Unreachable => "unreachable",
        Kind::NotPermitted => "not_permitted",
        Kind::Unhealthy => "unhealthy",
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    fn encoded(meter: &Meter) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        meter.register(&mut registry);
        text::encode(&mut text, &registry).expect("text");
        text
    }

    #[test]
    fn meter_counts_operations_in_flight_and_errors() {
        let meter = Meter::default();
        let has = |line: &str| assert!(encoded(&meter).lines().any(|own| own == line), "{}", encoded(&meter));
        has("operations_in_flight{operation=\"add\"} 0");
        has("operation_errors_total{operation=\"add\",kind=\"conflict\"} 0");
        let add = meter.begin("add \"web\"");
        has("operations_in_flight{operation=\"add\"} 1");
        has("operation_duration_seconds_count{operation=\"add\"} 0");
        let _ = add.end(Err::<(), _>(Error::conflict("taken")));
        has("operations_in_flight{operation=\"add\"} 0");
        has("operation_errors_total{operation=\"add\",kind=\"conflict\"} 1");
        has("operation_duration_seconds_count{operation=\"add\"} 1");
        meter.begin("add \"web\"").end(Ok(())).expect("the result");
        has("operation_duration_seconds_count{operation=\"add\"} 2");
        has("operation_errors_total{operation=\"add\",kind=\"failure\"} 0");
        // A panic drops the measurement.
        drop(meter.begin("add \"web\""));
        has("operation_errors_total{operation=\"add\",kind=\"failure\"} 1");
        drop(meter.begin("unknown operation"));
        has("operation_duration_seconds_count{operation=\"other\"} 1");
    }

    #[test]
    fn meter_notes_successful_reconciliations_only() {
        let meter = Meter::default();
        meter.reconciled.set(1.0);
        let _ = meter.reconciliation(|| Err::<(), _>(Error::failure("no netlink")));
        assert!(encoded(&meter).contains("last_reconciliation_timestamp_seconds 1.0\n"));
        meter.reconciliation(|| Ok(())).expect("the result");
        assert!(meter.reconciled.get() > 1e9);
    }
}
