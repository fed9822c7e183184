//! Shutting down: signals request it, the daemon waits for operations in flight, and a deadline ends it whatever hangs.

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

/// How long operations may take after a shutdown was requested. The next start completes or rolls back what is cut off.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the last line of the log may take, because its reader may hang, too.
const LAST_LINE_DEADLINE: Duration = Duration::from_secs(1);

/// The daemon's shutdown; a handle, of which every part has one.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ending: watch::Sender<bool>,
    operations: Mutex<Operations>,
    /// Number of operations that run.
    running: watch::Sender<usize>,
    /// Starts the time that is left.
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
    /// Takes all signals over that would end this process, from now on. To be called before any other thread is started.
    ///
    /// SIGTERM, SIGINT and SIGQUIT ask the daemon to end; SIGHUP, SIGUSR1 and SIGUSR2 have no meaning, and do nothing.
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
        // Threads inherit it; no other thread may be interrupted, or killed, by them.
        signals.thread_block().context(starting)?;
        let (alarm, rings) = mpsc::channel();
        let shutdown = Self::new(alarm);
        let (on_signals, at_deadline) = (shutdown.clone(), shutdown.clone());
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || on_signals.handle(&signals))
            .context(starting)?;
        // It starts now, because at the deadline the kernel may have no thread to give.
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
                    info!("asked to end by {signal}");
                    self.begin();
                }
                _ => info!("{signal} changes nothing: settings are read at a start only"),
            }
        }
    }

    /// Begins the end, unless it has begun.
    pub fn begin(&self) {
        if !self.0.ending.send_replace(true) {
            // It fails in tests, which have nobody who waits for it.
            let _ = self.0.alarm.send(());
        }
    }

    /// Whether the end has begun.
    pub fn has_begun(&self) -> bool {
        *self.0.ending.borrow()
    }

    /// The same, to be waited for.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.0.ending.subscribe()
    }

    /// Waits until the end has begun.
    pub async fn begun(&self) {
        // It cannot fail as long as this value has the other end.
        let _ = self.subscribe().wait_for(|ending| *ending).await;
    }

    /// Notes that an operation runs, which is waited for.
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

    /// Ends the process although something still runs.
    fn cut_off(&self) -> ! {
        let what = self.what_runs();
        let (said, has_said) = mpsc::channel();
        // The log's lock may be held by a thread that waits for its reader.
        let _ = thread::Builder::new().spawn(move || {
            error!(
                "ending although not all is done {DEADLINE:?} after the daemon was asked to end: {what}; the next start \
                 completes or undoes it"
            );
            let _ = said.send(());
        });
        let _ = has_said.recv_timeout(LAST_LINE_DEADLINE);
        process::exit(1);
    }

    /// What runs, in words.
    fn what_runs(&self) -> String {
        let operations = self.operations();
        let mut text = String::new();
        for (what, since) in operations.running.values() {
            let gap = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{gap}{what} (for {} s)", since.elapsed().as_secs());
        }
        if text.is_empty() { "no operation, but the daemon itself does not go on".to_owned() } else { text }
    }

    // A panic while it is held leaves no half-done change.
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
    async fn operations_are_named_and_waited_for() {
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
        waits.await.expect("it comes to its end");
        assert!(!end.has_begun() && rings.try_recv().is_err());
        end.begin();
        end.begin();
        end.begun().await;
        assert!(rings.try_recv().is_ok() && rings.try_recv().is_err(), "the time that is left starts once");
    }
}
