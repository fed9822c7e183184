//! `/healthz`: one probe at a time, shared by all clients, and a response within a time limit even if a part
//! of the daemon hangs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task,
    time::{self, Instant},
};

use crate::{
    daemon::Daemon,
    error::{Error, Kind, Result},
};

/// Time limit of a probe. A part of the daemon that takes longer counts as hanging.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The result of a probe; `None` while it runs.
type Outcome = Option<Result<()>>;

/// The last probe.
#[derive(Default)]
pub(super) struct Health {
    last: Mutex<Option<Probe>>,
}

/// A probe of the daemon's parts.
#[derive(Clone)]
struct Probe {
    started: Instant,
    /// The part that it waits for.
    step: Arc<Mutex<&'static str>>,
    outcome: watch::Receiver<Outcome>,
}

impl Health {
    /// Checks that every part of the daemon that commands depend on responds.
    ///
    /// # Errors
    ///
    /// Names the part that fails, or that does not respond in time.
    pub(super) async fn check(&self, daemon: &Arc<Daemon>) -> Result<()> {
        let daemon = daemon.clone();
        self.check_within(TIMEOUT, move |step| daemon.probe(step)).await
    }

    async fn check_within(
        &self,
        timeout: Duration,
        probe: impl FnOnce(&dyn Fn(&'static str)) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let mut running = self.join(probe);
        // The time limit counts from the start of the probe, so a request that joins a hanging probe does not
        // wait.
        let outcome =
            time::timeout_at(running.started + timeout, running.outcome.wait_for(Option::is_some)).await;
        match outcome {
            Ok(Ok(outcome)) => outcome
                .clone()
                .unwrap_or(Ok(()))
                .map_err(|error| Error::new(Kind::Unhealthy, format!("unhealthy: {}", error.message))),
            Ok(Err(_gone)) => Err(Error::new(Kind::Unhealthy, "the health probe failed unexpectedly")),
            Err(_elapsed) => {
                let step = *running.step.lock().unwrap_or_else(PoisonError::into_inner);
                let seconds = running.started.elapsed().as_secs();
                Err(Error::new(Kind::Unhealthy, format!("no response from {step} for {seconds} s")))
            }
        }
    }

    /// Returns the running probe, or starts one.
    fn join(&self, probe: impl FnOnce(&dyn Fn(&'static str)) -> Result<()> + Send + 'static) -> Probe {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = last.as_ref().filter(|probe| probe.outcome.borrow().is_none()) {
            // A thread that panics drops the sender without an outcome.
            if running.outcome.has_changed().is_ok() {
                return running.clone();
            }
        }
        let (sender, outcome) = watch::channel(None);
        let step = Arc::new(Mutex::new("the thread pool"));
        let started = Probe { started: Instant::now(), step: step.clone(), outcome };
        *last = Some(started.clone());
        task::spawn_blocking(move || {
            let set_step = |name| *step.lock().unwrap_or_else(PoisonError::into_inner) = name;
            sender.send_replace(Some(probe(&set_step)));
        });
        started
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn health_names_the_hanging_part_and_blocks_one_thread() {
        let health = Health::default();
        let (go_on, waits) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel::<()>();
        let first = health.check_within(Duration::from_millis(50), move |step| {
            step("the registry");
            begun.send(()).expect("the test waits");
            let _ = waits.recv();
            Ok(())
        });
        let error = first.await.expect_err("the probe hangs");
        has_begun.recv().expect("the probe starts");
        assert!(error.kind == Kind::Unhealthy, "{error}");
        let again = health.check_within(TIMEOUT, |_| panic!("a probe runs already"));
        let waiting = async {
            let running = health.last.lock().expect("no panic").clone().expect("a probe");
            assert_eq!(*running.step.lock().expect("no panic"), "the registry");
            go_on.send(()).expect("the probe waits");
        };
        let (again, ()) = tokio::join!(again, waiting);
        assert_eq!(again, Ok(()), "the second request gets the first probe's result");
        let failed = health.check_within(TIMEOUT, |_| Err(Error::failure("no netlink"))).await;
        let failed = failed.expect_err("the probe fails");
        assert!(failed.kind == Kind::Unhealthy && failed.message.contains("no netlink"), "{failed}");
        assert_eq!(health.check_within(TIMEOUT, |_| Ok(())).await, Ok(()));
    }
}
