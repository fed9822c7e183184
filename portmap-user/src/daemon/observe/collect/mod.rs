//! The collector: what statistics need beside the programs' counters, read on threads of its own.
//!
//! It visits each namespace for a moment, with a socket that it closes again. An open socket would keep the
//! namespace alive after its last process has ended, and so the container.

mod links;
mod ports;
mod read;
mod rounds;
mod rtt;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use tracing::warn;

pub(super) use self::read::{ContainerReading, Inside, Key};
use self::{
    links::link_sources,
    read::{Reader, Reading, Source},
    rounds::{Dated, Rounds},
};
use crate::{
    daemon::{
        env::Env,
        registry::{Entry, Registry, Snapshot},
    },
    error::Result,
    failpoint,
    kernel::visitor::Visitor,
    model::{LinkErrors, PortUse},
};

/// Requests use a younger reading instead of causing another one.
const FLOOR: Duration = Duration::from_millis(50);
/// How long a request waits for readings of this moment before it uses older ones.
const PATIENCE: Duration = Duration::from_millis(50);
/// The same on a host with few containers, where only a slow one can make a request wait.
const PATIENCE_OF_FEW: Duration = Duration::from_millis(250);
/// Most containers that are few.
const FEW: usize = 64;
/// The same if nothing has been read yet.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// Interval of rounds without requests, which notice ports that are in use.
const INTERVAL: Duration = Duration::from_secs(10);
/// The interval is at least this many times the duration of a round.
const INTERVAL_FACTOR: u32 = 20;
/// An older reading is left out of answers.
const MAX_AGE: Duration = Duration::from_mins(1);

/// Reads the containers' namespaces and the host's interfaces.
pub(in crate::daemon) struct Collector {
    registry: Arc<Registry>,
    rounds: Rounds<Source>,
    has_read: OnceLock<()>,
}

/// The newest readings.
pub(in crate::daemon) struct Readings {
    all: BTreeMap<Key, Arc<Dated<Reading>>>,
    /// Rounds of all containers since the daemon started.
    pub(in crate::daemon) rounds: u64,
    /// Readings that were given up because they hang in the kernel, since the daemon started.
    pub(in crate::daemon) overdue: u64,
    now: Instant,
    /// Age beyond which a reading is not used.
    max_age: Duration,
}

impl Collector {
    /// A collector for the containers of this registry.
    ///
    /// # Errors
    ///
    /// If the calling thread's network namespace cannot be opened.
    pub(in crate::daemon) fn new(env: Arc<Env>, registry: Arc<Registry>) -> Result<Self> {
        let reader = Reader { env, visitor: Visitor::new()? };
        // Readings happen at any time, so failpoints must not count them.
        let rounds = Rounds::new(FLOOR, move |source: &Source, before: Option<&Reading>| {
            failpoint::suppressed(|| reader.read(source, before))
        });
        Ok(Self { registry, rounds, has_read: OnceLock::new() })
    }

    /// Starts the rounds without requests.
    pub(in crate::daemon) fn watch(self: &Arc<Self>) {
        let collector = Arc::downgrade(self);
        let watching = thread::Builder::new().name("portmap-collect".to_owned()).spawn(move || {
            while let Some(collector) = collector.upgrade() {
                let _ = collector.newest(&collector.registry.snapshot());
                let interval =
                    INTERVAL.max(collector.rounds.last_duration() * INTERVAL_FACTOR).min(MAX_AGE / 2);
                drop(collector);
                thread::sleep(interval);
            }
        });
        if let Err(error) = watching {
            warn!("the use of ephemeral ports is not watched: cannot start a thread: {error}");
        }
    }

    /// The newest readings of these containers. Waits briefly for readings of this moment.
    pub(in crate::daemon) fn newest(&self, containers: &Snapshot) -> Readings {
        let ready = containers.ready_entries().map(|entry| Source::Container(entry.clone()));
        let host = Source::Host(link_sources(containers));
        let sources: Vec<_> = std::iter::once(host).chain(ready).collect();
        let patience = match self.has_read.get() {
            None => FIRST_PATIENCE,
            Some(()) if containers.len() <= FEW => PATIENCE_OF_FEW,
            Some(()) => PATIENCE,
        };
        let all = self.rounds.newest(&sources, patience);
        let _ = self.has_read.set(());
        // On a host on which a round takes long, readings are as old as rounds are apart.
        let max_age = MAX_AGE.max(self.rounds.last_duration() * (rounds::REST + 4));
        let (rounds, overdue) = (self.rounds.rounds(), self.rounds.overdue());
        Readings { all, rounds, overdue, now: Instant::now(), max_age }
    }
}

impl Readings {
    fn dated(&self, key: &Key) -> Option<&Dated<Reading>> {
        let dated = self.all.get(key)?;
        (self.now.duration_since(dated.began) <= self.max_age).then_some(&**dated)
    }

    fn get(&self, key: &Key) -> Option<&Reading> {
        self.dated(key).map(|dated| &dated.value)
    }

    /// Time since the newest reading of a container began, if it is not too old.
    pub(in crate::daemon) fn age(&self, entry: &Entry) -> Option<Duration> {
        Some(self.dated(&Key::of(entry))?.began.elapsed())
    }

    /// The newest reading of a container, if it is not too old.
    pub(in crate::daemon) fn container(&self, entry: &Entry) -> Option<&ContainerReading> {
        match self.get(&Key::of(entry))? {
            Reading::Container(reading) => Some(reading),
            Reading::Host(_) => None,
        }
    }

    /// The reading of a container's inside.
    pub(in crate::daemon) fn inside(&self, entry: &Entry) -> Option<&Inside> {
        self.container(entry)?.inside.as_ref().ok()
    }

    /// The use of a container's ephemeral ports.
    pub(in crate::daemon) fn ports(&self, entry: &Entry) -> Option<PortUse> {
        self.inside(entry)?.ports
    }

    /// Errors and drops of a container's host veth; `None` before its first reading. They do not decrease, so
    /// they are used at any age.
    pub(in crate::daemon) fn link(&self, entry: &Entry) -> Option<LinkErrors> {
        match &self.all.get(&Key::HOST)?.value {
            Reading::Host(host) => host.link(entry.life),
            Reading::Container(_) => None,
        }
    }

    /// Whether everything of a container could be read: its namespace, and the qdiscs of its limits.
    pub(in crate::daemon) fn is_complete(&self, entry: &Entry) -> bool {
        let Some(reading) = self.container(entry) else { return false };
        reading.inside.as_ref().is_ok_and(|inside| !inside.is_incomplete) && reading.queues.were_read()
    }
}
