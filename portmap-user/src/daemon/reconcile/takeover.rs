//! Takeover of the containers of an earlier daemon.
//!
//! They are in service all the time, because the port map and the programs need no daemon. Therefore the
//! daemon is ready as soon as the host side is, and checks the containers in the background, several at a
//! time. A command on an unchecked container checks it first.

use std::{
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use tokio::task;
use tracing::{debug, info, warn};

use super::{container::ContainerStatus, reconciler::Reconciler};
use crate::{
    daemon::{
        container::{limits, lookup},
        registry::{Entry, Refusal},
        shutdown::Shutdown,
    },
    error::Result,
    kernel::netlink::Netlink,
    model::{ContainerRecord, Phase},
};

/// Most drifted containers that the log names. The others are only counted.
const MOST_NAMED: usize = 10;
/// Number of containers between two reports of the progress.
const STRIDE: usize = 250;
/// Threads per CPU. More than one, because a check mostly waits for the kernel's RTNL lock.
const THREADS_PER_CPU: usize = 2;

impl Reconciler {
    /// Takes over the container `name` unless that has been done. The caller must hold the container's lock.
    /// The container may not exist afterwards.
    ///
    /// # Errors
    ///
    /// If it can be neither taken over nor removed.
    pub(in crate::daemon) fn take_over_first(&self, name: &str) -> Result<()> {
        let unchecked = self.registry.snapshot().get(name).filter(|entry| entry.is_unchecked).cloned();
        let Some(unchecked) = unchecked else { return Ok(()) };
        let result = self.take_over(&unchecked.record);
        // A removal that failed is retried when a command needs it, and at every resync.
        let is_retried = result.is_err()
            && self.registry.snapshot().get(name).is_some_and(|entry| entry.record.phase != Phase::Ready);
        if is_retried {
            return result;
        }
        self.registry.set_unchecked(name, false);
        self.progress.note_checked();
        result
    }

    /// Like [`Self::take_over_first`], for a caller that does not hold the container's lock.
    ///
    /// # Errors
    ///
    /// If it can be neither taken over nor removed.
    pub(in crate::daemon) fn take_over_if_unchecked(&self, name: &str) -> Result<()> {
        let is_unchecked = self.registry.snapshot().get(name).is_some_and(|entry| entry.is_unchecked);
        if is_unchecked { self.operations.on(name, || self.take_over_first(name)) } else { Ok(()) }
    }

    /// Runs `work`. If it needs a resource that other containers own, takes over all unchecked containers,
    /// because some may have ended before this daemon started, and runs it again.
    ///
    /// # Errors
    ///
    /// Those of `work`.
    pub(in crate::daemon) fn after_takeover<T>(&self, work: impl Fn() -> Result<T, Refusal>) -> Result<T> {
        let refusal = match work() {
            Ok(done) => return Ok(done),
            Err(refusal) => refusal,
        };
        let unchecked = self.unchecked();
        if matches!(refusal, Refusal::Failed(_)) || unchecked.is_empty() {
            return Err(refusal.into());
        }
        for name in unchecked {
            self.note_takeover(&name, self.take_over_if_unchecked(&name));
        }
        Ok(work()?)
    }

    /// Names of the containers that have not been checked yet.
    pub(super) fn unchecked(&self) -> Vec<String> {
        let containers = self.registry.snapshot();
        containers
            .entries()
            .filter(|entry| entry.is_unchecked)
            .map(|entry| entry.record.name.clone())
            .collect()
    }

    /// Takes over a container. Removes it if it is incomplete, or if its namespace no longer exists.
    fn take_over(&self, before: &ContainerRecord) -> Result<()> {
        let (env, netlink) = (&self.env, Netlink::open()?);
        if before.phase != Phase::Ready {
            let phase = before.phase.name();
            self.log_drift(&before.name, &format!("removed: a previous daemon left it in state {phase}"));
            return self.containers.remove(&netlink, before);
        }
        let mut record = before.clone();
        let (egress, ingress) = limits::for_traffic(env, &self.host.state(), &record.traffic);
        record.egress = egress;
        if record.ingress.is_some() || env.settings.shaping.ingress_for_existing {
            record.ingress = ingress;
        }
        if record.namespace.is_some_and(|recorded| recorded.cookie.is_none()) {
            // An earlier version wrote the record without a cookie. The reconciliation below reports a
            // failure of this lookup.
            let same = lookup::open_netns(&record).ok().flatten();
            record.namespace = same.and_then(|same| same.id().ok()).or(record.namespace);
        }
        let is_broken = match self.reconcile_container(&netlink, &record) {
            Ok(ContainerStatus::NetnsGone) => {
                self.log_drift(&record.name, "ended with its network namespace");
                return self.containers.remove(&netlink, &record);
            }
            Ok(ContainerStatus::Detached) => {
                self.log_drift(&record.name, "recreated its missing veth pair");
                false
            }
            Ok(ContainerStatus::Present(repaired)) => {
                // This is no drift, because every start replaces the programs.
                debug!("container {:?}: repaired {}", record.name, repaired.join(", "));
                false
            }
            Err(error) => {
                self.log_drift(&record.name, &format!("cannot be repaired: {error}"));
                // A container that still has its interface stays in service.
                lookup::veth(&netlink, &record)?.is_none()
            }
        };
        if !is_broken {
            self.containers.apply_limits_or_police(&netlink, &record)?;
        }
        if record != *before {
            env.store.set_container(&record)?;
        }
        self.registry.replace(Entry::new(record, is_broken));
        if is_broken {
            self.registry.publish_all();
        }
        Ok(())
    }

    /// Logs the drift of a container, as a warning for the first few.
    fn log_drift(&self, name: &str, what: &str) {
        if self.progress.note_drifted() < MOST_NAMED {
            warn!("container {name:?}: {what}");
        } else {
            debug!("container {name:?}: {what}");
        }
    }

    /// Logs a failed takeover.
    pub(super) fn note_takeover(&self, name: &str, checked: Result<()>) {
        if let Err(error) = checked {
            self.log_drift(name, &format!("takeover failed: {error}"));
        }
    }

    /// Takes over all unchecked containers, several at a time, until `is_ending` returns true.
    pub(super) fn take_over_all(&self, is_ending: impl Fn() -> bool + Sync) {
        let (names, next, start) = (self.unchecked(), AtomicUsize::new(0), Instant::now());
        if self.progress.get().1 == 0 {
            return;
        }
        let threads = thread::available_parallelism().map_or(1, NonZero::get) * THREADS_PER_CPU;
        let check = || {
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                // After a teardown there is nothing to check.
                let Ok(_operation) = self.operations.begin() else { return };
                if is_ending() {
                    return;
                }
                self.note_takeover(name, self.take_over_if_unchecked(name));
                let (checked, found) = self.progress.get();
                if checked % STRIDE == 0 && checked < found {
                    info!("{checked} of {found} containers are checked");
                    notify_supervisor(&format!("{checked} of {found} containers are checked"));
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..threads.min(names.len()) {
                scope.spawn(check);
            }
        });
        let (checked, found) = self.progress.get();
        let drifted = self.progress.drifted();
        let seconds = start.elapsed().as_secs_f64();
        info!("checked {checked} of {found} containers in {seconds:.1} s, {drifted} had drifted");
        notify_supervisor(&format!("{found} containers were taken over"));
    }
}

/// Reports the status to the service manager, if there is one.
fn notify_supervisor(status: &str) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(status)]);
}

/// Takes over all containers of the earlier daemon in the background.
pub(in crate::daemon) async fn take_over_all(reconciler: Arc<Reconciler>, shutdown: Shutdown) {
    let running = shutdown.operation("checking the containers of the earlier daemon");
    let checked = task::spawn_blocking(move || {
        let _until_done = running;
        reconciler.take_over_all(|| shutdown.has_begun());
    });
    if let Err(panic) = checked.await {
        warn!("the takeover of the earlier daemon's containers failed: {panic}");
    }
}
