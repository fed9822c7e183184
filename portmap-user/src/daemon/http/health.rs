//! `/healthz`: one probe at a time, shared by all clients, and an answer within a limit whatever hangs.

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

/// How long a look may take before something counts as hanging.
const LIMIT: Duration = Duration::from_secs(2);

/// How a look has ended; none as long as it goes on.
type Outcome = Option<Result<()>>;

/// The look that goes on, if one does.
#[derive(Default)]
pub(super) struct Health {
    current: Mutex<Option<Look>>,
}

#[derive(Clone)]
struct Look {
    since: Instant,
    /// What it waits for.
    step: Arc<Mutex<&'static str>>,
    outcome: watch::Receiver<Outcome>,
}

impl Health {
    /// Whether all that commands wait for answers.
    pub(super) async fn ask(&self, daemon: &Arc<Daemon>) -> Result<()> {
        let daemon = daemon.clone();
        self.look(LIMIT, move |step| daemon.probe(step)).await
    }

    async fn look(
        &self,
        limit: Duration,
        probe: impl FnOnce(&dyn Fn(&'static str)) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let mut look = self.join(probe);
        // One that has hung for long is not waited for again.
        let outcome = time::timeout_at(look.since + limit, look.outcome.wait_for(Option::is_some)).await;
        match outcome {
            Ok(Ok(outcome)) => outcome
                .clone()
                .unwrap_or(Ok(()))
                .map_err(|error| Error::new(Kind::Unhealthy, format!("not all is well: {}", error.message))),
            Ok(Err(_gone)) => Err(Error::new(Kind::Unhealthy, "looking at the daemon's parts has failed")),
            Err(_elapsed) => {
                let step = *look.step.lock().unwrap_or_else(PoisonError::into_inner);
                let seconds = look.since.elapsed().as_secs();
                Err(Error::new(Kind::Unhealthy, format!("for {seconds} s there is no answer from {step}")))
            }
        }
    }

    /// The look that goes on, or a new one.
    fn join(&self, probe: impl FnOnce(&dyn Fn(&'static str)) -> Result<()> + Send + 'static) -> Look {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = current.as_ref().filter(|look| look.outcome.borrow().is_none()) {
            // If the sender has gone without an outcome, the thread has panicked.
            if look.outcome.has_changed().is_ok() {
                return look.clone();
            }
        }
        let (sender, outcome) = watch::channel(None);
        let step = Arc::new(Mutex::new("a thread to look with"));
        let look = Look { since: Instant::now(), step: step.clone(), outcome };
        *current = Some(look.clone());
        task::spawn_blocking(move || {
            let say = |name| *step.lock().unwrap_or_else(PoisonError::into_inner) = name;
            sender.send_replace(Some(probe(&say)));
        });
        look
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_hangs_is_named_and_holds_one_thread_only() {
        let health = Health::default();
        let (go_on, waits) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel::<()>();
        let first = health.look(Duration::from_millis(50), move |step| {
            step("the registry");
            begun.send(()).expect("somebody waits");
            let _ = waits.recv();
            Ok(())
        });
        let error = first.await.expect_err("it hangs");
        has_begun.recv().expect("it begins");
        assert!(error.kind == Kind::Unhealthy, "{error}");
        let again = health.look(LIMIT, |_| panic!("no second look as long as one goes on"));
        let waiting = async {
            let look = health.current.lock().expect("nobody panics").clone().expect("a look");
            assert_eq!(*look.step.lock().expect("nobody panics"), "the registry");
            go_on.send(()).expect("it waits");
        };
        let (again, ()) = tokio::join!(again, waiting);
        assert_eq!(again, Ok(()), "it has seen the end of the first one");
        let failed = health.look(LIMIT, |_| Err(Error::failure("no netlink"))).await.expect_err("it fails");
        assert!(failed.kind == Kind::Unhealthy && failed.message.contains("no netlink"), "{failed}");
        assert_eq!(health.look(LIMIT, |_| Ok(())).await, Ok(()));
    }
}
