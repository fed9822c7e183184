//! Reading many subjects in rounds, on a few threads of their own, such that one that hangs delays no other.
//!
//! A request waits for a round, but never longer than its patience; it then gets the newest readings. Requests
//! at the same time share a round (single flight). A reading that takes too long is written off: it occupies
//! its thread until it ends, and another thread takes that one's place.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::warn;

/// Threads that read at a time.
const READERS: usize = 2;
/// Most threads, those that hang included. Beyond that nothing is read, and the readings grow old.
const MAX_READERS: usize = 8;
/// A reading that takes longer is written off. Its own deadline is earlier, so this concerns only readings
/// that hang in a system call.
const LATE: Duration = Duration::from_millis(500);
/// A round that takes less is repeated for every request.
const CHEAP: Duration = Duration::from_millis(250);
/// A round that takes longer is used again for this many times its duration, so that requests cause at most a
/// constant load.
pub(super) const REST: u32 = 4;

/// Something that can be read.
pub(super) trait Subject: Clone + Send + 'static {
    /// Its identity: a reading of another identity is never taken for one of this.
    type Key: Clone + Ord + Send + Sync + 'static;

    fn key(&self) -> Self::Key;
}

/// A reading and the time at which it began.
#[derive(Clone, Debug)]
pub(in crate::daemon) struct Dated<R> {
    pub(in crate::daemon) began: Instant,
    pub(in crate::daemon) value: R,
}

/// The newest reading of each subject.
pub(super) type Readings<K, R> = BTreeMap<K, Arc<Dated<R>>>;

type Read<S, R> = dyn Fn(&S, Option<&R>) -> R + Send + Sync;

/// Reads subjects in rounds.
pub(super) struct Rounds<S: Subject, R> {
    shared: Arc<Shared<S, R>>,
}

struct Shared<S: Subject, R> {
    /// Reads one subject, given its reading before this.
    read: Box<Read<S, R>>,
    state: Mutex<State<S, R>>,
    /// A reading has been finished, or there are subjects to read.
    changed: Condvar,
}

struct State<S: Subject, R> {
    readings: Readings<S::Key, R>,
    pending: VecDeque<S>,
    /// Readings in progress, by thread.
    running: BTreeMap<u64, Running<S::Key>>,
    /// Start of the round in progress, and whether it reads all subjects.
    round: Option<(Instant, bool)>,
    /// End and duration of the last complete round.
    last: Option<(Instant, Duration)>,
    readers: usize,
    next_reader: u64,
    overdue: u64,
}

struct Running<K> {
    key: K,
    began: Instant,
    is_late: bool,
}

impl<S: Subject, R: Send + Sync + 'static> Rounds<S, R> {
    /// Rounds of readings by `read`. Threads are started with the first round.
    pub(super) fn new(read: impl Fn(&S, Option<&R>) -> R + Send + Sync + 'static) -> Self {
        let state = State {
            readings: BTreeMap::new(),
            pending: VecDeque::new(),
            running: BTreeMap::new(),
            round: None,
            last: None,
            readers: 0,
            next_reader: 0,
            overdue: 0,
        };
        Self {
            shared: Arc::new(Shared {
                read: Box::new(read),
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        }
    }

    /// Begins a round unless one is in progress or the last one is fresh, waits for its end, but not longer
    /// than `patience`, and returns the newest readings.
    pub(super) fn newest(&self, subjects: &[S], patience: Duration) -> Readings<S::Key, R> {
        let end = Instant::now() + patience;
        let mut state = self.shared.lock();
        let mut has_joined = state.round.is_some();
        if !has_joined {
            state.begin(subjects, Instant::now());
            self.shared.changed.notify_all();
        }
        loop {
            let now = Instant::now();
            state.write_off(now);
            // The round that was in progress did not have a subject that is new.
            if has_joined && state.round.is_none() && state.lacks(subjects) {
                has_joined = false;
                state.begin(subjects, now);
                self.shared.changed.notify_all();
            }
            self.shared.start_readers(&mut state);
            if state.round.is_none() || now >= end {
                return state.readings.clone();
            }
            // Woken by each reading; otherwise to notice those that hang.
            let wait = (end - now).min(LATE / 4);
            let woken = self.shared.changed.wait_timeout(state, wait);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Number of readings that were written off.
    pub(super) fn overdue(&self) -> u64 {
        self.shared.lock().overdue
    }

    /// Duration of the last complete round.
    pub(super) fn last_duration(&self) -> Duration {
        self.shared.lock().last.map_or(Duration::ZERO, |(_, took)| took)
    }
}

impl<S: Subject, R> State<S, R> {
    /// Begins a round of all subjects, or of those without a reading if the last round is fresh.
    fn begin(&mut self, subjects: &[S], now: Instant) {
        let is_fresh =
            self.last.is_some_and(|(end, took)| took > CHEAP && now.duration_since(end) < took * REST);
        let keys: Vec<S::Key> = subjects.iter().map(S::key).collect();
        if !is_fresh {
            let known: std::collections::BTreeSet<&S::Key> = keys.iter().collect();
            self.readings.retain(|key, _| known.contains(key));
        }
        for (subject, key) in subjects.iter().zip(keys) {
            // One that hangs is not tried again before it has ended.
            let hangs = self.running.values().any(|running| running.key == key);
            let is_known = is_fresh && self.readings.contains_key(&key);
            if !hangs && !is_known {
                self.pending.push_back(subject.clone());
            }
        }
        if !self.pending.is_empty() {
            self.round = Some((now, !is_fresh));
        }
    }

    /// Whether a subject has no reading.
    fn lacks(&self, subjects: &[S]) -> bool {
        subjects.iter().any(|subject| !self.readings.contains_key(&subject.key()))
    }

    /// Writes off readings that hang, and ends a round that waits for nothing else.
    fn write_off(&mut self, now: Instant) {
        for running in self.running.values_mut() {
            if !running.is_late && now.duration_since(running.began) >= LATE {
                running.is_late = true;
                self.overdue += 1;
            }
        }
        if self.pending.is_empty()
            && self.running.values().all(|running| running.is_late)
            && let Some((began, is_complete)) = self.round.take()
            && is_complete
        {
            // A round ends when it waits for nothing but readings that hang, even if that is noticed later.
            let hung = self.running.values().map(|running| running.began + LATE).max();
            let end = hung.map_or(now, |hung| hung.min(now)).max(began);
            self.last = Some((end, end.duration_since(began)));
        }
    }

    /// Number of threads that do not hang.
    fn able_readers(&self) -> usize {
        self.readers - self.running.values().filter(|running| running.is_late).count()
    }
}

impl<S: Subject, R: Send + Sync + 'static> Shared<S, R> {
    // A poisoned lock is taken, because every change is a single step.
    fn lock(&self) -> MutexGuard<'_, State<S, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts threads, if there is work and some are missing.
    fn start_readers(self: &Arc<Self>, state: &mut State<S, R>) {
        while !state.pending.is_empty() && state.able_readers() < READERS && state.readers < MAX_READERS {
            let (shared, number) = (self.clone(), state.next_reader);
            let thread = thread::Builder::new().name("portmap-reader".to_owned());
            if let Err(error) = thread.spawn(move || shared.run_reader(number)) {
                warn!("statistics are incomplete: cannot start a thread: {error}");
                return;
            }
            state.next_reader += 1;
            state.readers += 1;
        }
    }

    fn run_reader(&self, number: u64) {
        let mut state = self.lock();
        loop {
            let Some(subject) = state.pending.pop_front() else {
                if state.able_readers() > READERS {
                    state.readers -= 1;
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (key, began) = (subject.key(), Instant::now());
            state.running.insert(number, Running { key: key.clone(), began, is_late: false });
            let before = state.readings.get(&key).cloned();
            drop(state);
            let read = || (self.read)(&subject, before.as_ref().map(|before| &before.value));
            // The kernel returns values that containers choose; no surprise in them may cost a thread.
            let value = panic::catch_unwind(AssertUnwindSafe(read));
            state = self.lock();
            // While this reading still counts as late, if it is.
            state.write_off(Instant::now());
            state.running.remove(&number);
            match value {
                Ok(value) => drop(state.readings.insert(key, Arc::new(Dated { began, value }))),
                // The panic itself is in the log.
                Err(_panic) => state.overdue += 1,
            }
            state.write_off(Instant::now());
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicU32, Ordering},
        mpsc,
    };

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    impl Subject for u32 {
        type Key = Self;

        fn key(&self) -> Self {
            *self
        }
    }

    fn keys<R>(readings: &Readings<u32, R>) -> Vec<u32> {
        readings.keys().copied().collect()
    }

    #[test]
    fn collector_reads_all_subjects_and_forgets_others() {
        let rounds = Rounds::new(|subject: &u32, before: Option<&u32>| before.map_or(*subject, |b| b + 100));
        assert_eq!(keys(&rounds.newest(&(0..50).collect::<Vec<_>>(), LONG)), (0..50).collect::<Vec<_>>());
        let second = rounds.newest(&[7, 8], LONG);
        assert_eq!(keys(&second), [7, 8]);
        assert_eq!(second[&7].value, 107, "a reading is given the one before it");
    }

    /// A reading that hangs delays no other: the others are read in every round, by another thread, and what it
    /// reads in the end counts.
    #[test]
    fn collector_survives_readings_that_hang() {
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let reads = Arc::new(AtomicU32::new(0));
        let counted = reads.clone();
        let rounds = Rounds::new(move |subject: &u32, _: Option<&u32>| {
            if *subject < 3 {
                let _ = released.lock().expect("not poisoned").recv();
            } else {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            *subject
        });
        let all: Vec<u32> = (0..20).collect();
        // The three occupy both threads, until they are written off.
        let first = rounds.newest(&all, LONG);
        assert_eq!(keys(&first), (3..20).collect::<Vec<_>>());
        assert_eq!((rounds.overdue(), reads.load(Ordering::Relaxed)), (3, 17));
        // The first round took long, so this one reads only the new subject.
        let second = rounds.newest(&(0..21).collect::<Vec<_>>(), LONG);
        assert_eq!(keys(&second), (3..21).collect::<Vec<_>>());
        assert_eq!((rounds.overdue(), reads.load(Ordering::Relaxed)), (3, 18));
        drop(release);
        while rounds.newest(&all, LONG).len() < 21 {
            thread::yield_now();
        }
        assert_eq!(rounds.overdue(), 3);
    }

    #[test]
    fn collector_answers_impatient_requests_with_what_there_is() {
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let rounds = Rounds::new(move |subject: &u32, _: Option<&u32>| {
            if *subject == 0 {
                let _ = released.lock().expect("not poisoned").recv();
            }
            *subject
        });
        assert_eq!(keys(&rounds.newest(&[0], Duration::ZERO)), [0; 0]);
        drop(release);
        assert_eq!(keys(&rounds.newest(&[0], LONG)), [0]);
    }

    #[test]
    fn collector_requests_at_the_same_time_share_a_round() {
        let reads = Arc::new(AtomicU32::new(0));
        let (counted, has_begun) = (reads.clone(), Arc::new(Barrier::new(2)));
        let begins = has_begun.clone();
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let rounds = Rounds::new(move |subject: &u32, _: Option<&u32>| {
            if counted.fetch_add(1, Ordering::Relaxed) == 0 {
                begins.wait();
                let _ = released.lock().expect("not poisoned").recv();
            }
            *subject
        });
        thread::scope(|scope| {
            let first = scope.spawn(|| rounds.newest(&[1], LONG));
            has_begun.wait();
            // These join the round that has begun.
            assert!(rounds.newest(&[1], Duration::ZERO).is_empty());
            assert!(rounds.newest(&[1, 2], Duration::ZERO).is_empty());
            let second = scope.spawn(|| rounds.newest(&[1], LONG));
            assert_eq!(reads.load(Ordering::Relaxed), 1);
            drop(release);
            assert_eq!(keys(&first.join().expect("no panic")), [1]);
            assert_eq!(keys(&second.join().expect("no panic")), [1]);
        });
        // The second one began another round if it came after the end of the first.
        assert!(reads.load(Ordering::Relaxed) <= 2, "{reads:?}");
    }
}
