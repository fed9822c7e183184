//! Taking over the containers of an earlier daemon.
//!
//! They are in service all the time: the port map and the programs do not need a daemon. So a daemon is ready as soon as the
//! host's own side is, and checks the containers one by one behind that, several at a time. A command about a container that
//! has not been checked yet has it checked first.

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

use super::{
    Daemon, Entry,
    container::{open_same, veth},
    end::End,
    repair::Found,
};
use crate::{
    api::{Finding, Health},
    error::{Kind, Result},
    kernel::netlink::Netlink,
    model::{ContainerRecord, Phase},
};

/// Of so many containers that were not as they should be the log has a line each; of what comes then, a number.
const TOLD: usize = 10;
/// Containers between two lines about the progress.
const STRIDE: usize = 250;
/// Threads for each CPU: checking is mostly waiting for the kernel's lock of all interfaces.
const THREADS_PER_CPU: usize = 2;

/// How far a daemon has come with the containers that it found.
#[derive(Debug, Default)]
pub(super) struct Progress {
    found: AtomicUsize,
    checked: AtomicUsize,
    /// Of those, how many were not as they should be.
    changed: AtomicUsize,
}

impl Progress {
    pub(super) fn new(found: usize) -> Self {
        Self { found: found.into(), ..Self::default() }
    }

    /// Numbers of containers: checked, and found.
    fn get(&self) -> (usize, usize) {
        (self.checked.load(Ordering::Relaxed), self.found.load(Ordering::Relaxed))
    }

    /// What `doctor` says of it, as long as it goes on.
    pub(super) fn finding(&self) -> Option<Finding> {
        let (checked, found) = self.get();
        let text = || {
            format!(
                "{checked} of {found} containers of the earlier daemon are checked; the others are in service as they were"
            )
        };
        (checked < found).then(|| Finding::new("takeover", Health::Notice, text()))
    }
}

impl Daemon {
    /// Checks the container called `name` if it is of an earlier daemon and nobody has; for whoever has its turn. Afterwards
    /// there may be no such container any more.
    pub(super) fn check_first(&self, name: &str) -> Result<()> {
        let record = self
            .registry()
            .containers
            .get(name)
            .filter(|entry| entry.unchecked)
            .map(|entry| entry.record.clone());
        let Some(record) = record else { return Ok(()) };
        let result = self.take_over(&record);
        let mut is_tried_again = false;
        if let Some(entry) = self.registry().containers.get_mut(name) {
            // What could not be removed is tried again by whoever needs it, and every time when everything is looked at.
            is_tried_again = result.is_err() && entry.record.phase != Phase::Ready;
            entry.unchecked = is_tried_again;
        }
        if !is_tried_again {
            self.progress.checked.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// The same for whoever only asks about a container.
    pub(super) fn checked(&self, name: &str) -> Result<()> {
        let is_unchecked = self.registry().containers.get(name).is_some_and(|entry| entry.unchecked);
        if is_unchecked { self.turns.take(name, || self.check_first(name)) } else { Ok(()) }
    }

    /// Does something that needs what a container may have whose namespace ended before this daemon was there: if it
    /// conflicts with anything, those that have not been checked are, and then it is done again.
    pub(super) fn after_checks<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        match work() {
            Err(error) if error.kind == Kind::Conflict => {
                let unchecked = self.unchecked();
                if unchecked.is_empty() {
                    return Err(error);
                }
                for name in unchecked {
                    self.note(&name, self.checked(&name));
                }
                work()
            }
            done => done,
        }
    }

    /// Names of the containers that nobody has checked yet.
    pub(super) fn unchecked(&self) -> Vec<String> {
        let registry = self.registry();
        registry
            .containers
            .iter()
            .filter(|(_, entry)| entry.unchecked)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Takes a container over, or removes what is left of one that was not complete, or has ended.
    fn take_over(&self, before: &ContainerRecord) -> Result<()> {
        if before.phase != Phase::Ready {
            self.tell(&before.name, &format!("was left half {}, and is removed", before.phase.name()));
            return self.remove(before);
        }
        let mut record = before.clone();
        let (egress, ingress) = self.limits(&record.traffic);
        record.egress = egress;
        if record.ingress.is_some() || self.settings.shaping.ingress_for_existing {
            record.ingress = ingress;
        }
        if record.namespace.is_some_and(|recorded| recorded.cookie.is_none()) {
            // An earlier version has written it down. What goes wrong here goes wrong again in what follows.
            let same = open_same(&record).ok().flatten();
            record.namespace = same.and_then(|same| same.id().ok()).or(record.namespace);
        }
        let broken = match self.bring_back(&record) {
            Ok(Found::Gone) => {
                self.tell(&record.name, "has ended with its network namespace");
                return self.remove(&record);
            }
            Ok(Found::Unconnected) => {
                self.tell(&record.name, "had lost its interface, and has another one");
                false
            }
            Ok(Found::There(mended)) => {
                // Programs are replaced at every start.
                debug!("container {:?}: put back {}", record.name, mended.join(", "));
                false
            }
            Err(error) => {
                self.tell(&record.name, &format!("is not as it should be: {error}"));
                // Where the interface is, packets go on as they did.
                veth(&Netlink::open()?, &record)?.is_none()
            }
        };
        if !broken {
            self.apply_at_least_outside(&record)?;
        }
        if record != *before {
            self.store.set_container(&record)?;
        }
        self.registry().containers.insert(record.name.clone(), Entry::new(record, broken));
        if broken {
            self.publish_ports();
        }
        Ok(())
    }

    /// Says what was wrong with a container, of the first few by a line each.
    fn tell(&self, name: &str, what: &str) {
        if self.progress.changed.fetch_add(1, Ordering::Relaxed) < TOLD {
            warn!("container {name:?} {what}");
        } else {
            debug!("container {name:?} {what}");
        }
    }

    /// The same of one that could not be taken over.
    pub(super) fn note(&self, name: &str, checked: Result<()>) {
        if let Err(error) = checked {
            self.tell(name, &format!("cannot be taken over: {error}"));
        }
    }

    /// Checks all that have not been, several at a time, until `is_ending`.
    pub(super) fn check_all(&self, is_ending: impl Fn() -> bool + Sync) {
        let (names, next, start) = (self.unchecked(), AtomicUsize::new(0), Instant::now());
        if self.progress.get().1 == 0 {
            return;
        }
        let threads = thread::available_parallelism().map_or(1, NonZero::get) * THREADS_PER_CPU;
        let check = || {
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                // After a teardown there is nothing to check.
                let Ok(_open) = self.open() else { return };
                if is_ending() {
                    return;
                }
                self.note(name, self.checked(name));
                let (checked, found) = self.progress.get();
                if checked % STRIDE == 0 && checked < found {
                    info!("{checked} of {found} containers are checked");
                    notify(&format!("{checked} of {found} containers are checked"));
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..threads.min(names.len()) {
                scope.spawn(check);
            }
        });
        let (checked, found) = self.progress.get();
        let changed = self.progress.changed.load(Ordering::Relaxed);
        let seconds = start.elapsed().as_secs_f64();
        info!(
            "checked {checked} of {found} containers in {seconds:.1} s, {changed} were not as they should be"
        );
        notify(&format!("{found} containers were taken over"));
    }
}

/// Tells whoever supervises the daemon.
fn notify(status: &str) {
    // Nobody may.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(status)]);
}

/// Checks all containers beside whatever else the daemon does.
pub(super) async fn check_all(daemon: Arc<Daemon>, end: End) {
    let running = end.operation("checking the containers of the earlier daemon");
    let checked = task::spawn_blocking(move || {
        let _until_done = running;
        daemon.check_all(|| end.has_begun());
    });
    if let Err(panic) = checked.await {
        warn!("containers of the earlier daemon are not checked: {panic}");
    }
}
