//! Shutdown: a signal requests it, the daemon waits for operations in flight, and a deadline ends a daemon
//! that hangs.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{SigSet, Signal};
use tokio::sync::watch;
use tracing::{error, info};

use crate::error::{Context as _, Result};

/// Time that operations have after the request. The next start completes or rolls back those that are cut
/// off.
const DEADLINE: Duration = Duration::from_secs(10);
/// Time for the last line of the log, because its reader may hang, too.
const LAST_LINE_DEADLINE: Duration = Duration::from_secs(1);

/// A handle to the daemon's shutdown, which all parts share.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ending: watch::Sender<bool>,
    operations: Mutex<Operations>,
    /// Number of operations in flight.
    running: watch::Sender<usize>,
    /// Starts the deadline.
    alarm: mpsc::Sender<()>,
}

/// The operations in flight.
#[derive(Debug, Default)]
struct Operations {
    next: u64,
    running: BTreeMap<u64, (String, Instant)>,
}

/// An operation, in flight as long as this value lives.
#[derive(Debug)]
pub struct Running {
    shutdown: Shutdown,
    number: u64,
}

impl Shutdown {
    /// Handles the signals that would otherwise end this process. Must be called before any other thread is
    /// started.
    ///
    /// SIGTERM, SIGINT and SIGQUIT request a shutdown; SIGHUP, SIGUSR1 and SIGUSR2 are ignored.
    pub fn on_signals() -> Result<Self> {
        let starting = || "cannot wait for signals".to_owned();
        let signals: SigSet = [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGHUP,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
        ]
        .into_iter()
        .collect();
        // All later threads inherit the mask, so these signals interrupt or kill none of them.
        signals.thread_block().context(starting)?;
        let (alarm, rings) = mpsc::channel();
        let shutdown = Self::new(alarm);
        let (on_signals, at_deadline) = (shutdown.clone(), shutdown.clone());
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || on_signals.handle(&signals))
            .context(starting)?;
        // The thread starts now, because a later attempt could fail for lack of resources.
        thread::Builder::new()
            .name("limit".to_owned())
            .spawn(move || {
                if rings.recv().is_ok() {
                    thread::sleep(DEADLINE);
                    at_deadline.cut_off();
                }
            })
            .context(starting)?;
        Ok(shutdown)
    }

    fn new(alarm: mpsc::Sender<()>) -> Self {
        Self(Arc::new(Shared {
            ending: watch::Sender::new(false),
            operations: Mutex::default(),
            running: watch::Sender::new(0),
            alarm,
        }))
    }

    fn handle(&self, signals: &SigSet) {
        while let Ok(signal) = signals.wait() {
            match signal {
                Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT => {
                    info!("shutdown requested by {signal}");
                    self.begin();
                }
                _ => info!("{signal} is ignored: the daemon reads its settings only at start"),
            }
        }
    }

    /// Requests the shutdown. Idempotent.
    pub fn begin(&self) {
        if !self.0.ending.send_replace(true) {
            // In tests there may be no receiver.
            let _ = self.0.alarm.send(());
        }
    }

    /// Whether a shutdown has been requested.
    pub fn has_begun(&self) -> bool {
        *self.0.ending.borrow()
    }

    /// A receiver that changes to true when a shutdown is requested.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.0.ending.subscribe()
    }

    /// Waits until a shutdown is requested.
    pub async fn begun(&self) {
        // This cannot fail, because `self` contains the sender.
        let _ = self.subscribe().wait_for(|ending| *ending).await;
    }

    /// Registers an operation, which the shutdown waits for.
    pub fn operation(&self, what: impl Into<String>) -> Running {
        let number = {
            let mut operations = self.operations();
            operations.next += 1;
            let number = operations.next;
            operations.running.insert(number, (what.into(), Instant::now()));
            number
        };
        self.0.running.send_modify(|running| *running += 1);
        Running { shutdown: self.clone(), number }
    }

    /// Waits until no operation runs.
    pub async fn idle(&self) {
        let _ = self.0.running.subscribe().wait_for(|running| *running == 0).await;
    }

    /// Ends the process although operations are in flight.
    fn cut_off(&self) -> ! {
        let what = self.what_runs();
        let (logged, has_logged) = mpsc::channel();
        // Another thread may hold the log's lock while it waits for the log's reader.
        let _ = thread::Builder::new().spawn(move || {
            error!(
                "exiting {DEADLINE:?} after the shutdown request with unfinished operations: {what}; the \
                 next start completes them or rolls them back"
            );
            let _ = logged.send(());
        });
        let _ = has_logged.recv_timeout(LAST_LINE_DEADLINE);
        process::exit(1);
    }

    /// Describes the operations in flight.
    fn what_runs(&self) -> String {
        let operations = self.operations();
        let mut text = String::new();
        for (what, since) in operations.running.values() {
            let gap = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{gap}{what} (for {} s)", since.elapsed().as_secs());
        }
        if text.is_empty() { "no operation; the daemon itself hangs".to_owned() } else { text }
    }

    // A poisoned lock is taken, because every change is a single step.
    fn operations(&self) -> MutexGuard<'_, Operations> {
        self.0.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.operations().running.remove(&self.number);
        self.shutdown.0.running.send_modify(|running| *running -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_waits_for_operations_and_names_them() {
        let (alarm, rings) = mpsc::channel();
        let end = Shutdown::new(alarm);
        end.idle().await;
        let (add, doctor) = (end.operation("add \"web\""), end.operation("doctor"));
        assert_eq!(end.what_runs(), "add \"web\" (for 0 s), doctor (for 0 s)");
        drop(add);
        assert_eq!(end.what_runs(), "doctor (for 0 s)");
        let waits = tokio::spawn({
            let end = end.clone();
            async move { end.idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(doctor);
        waits.await.expect("no panic");
        assert!(!end.has_begun() && rings.try_recv().is_err());
        end.begin();
        end.begin();
        end.begun().await;
        assert!(rings.try_recv().is_ok() && rings.try_recv().is_err(), "the deadline starts once");
    }
}
