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
/// A round is used again for this many times its duration, so that requests cause at most a constant load.
pub(super) const REST: u32 = 4;

/// Something that can be read.
pub(super) trait Subject: Clone + Send + 'static {
    /// Its identity: a reading of another identity is never taken for one of this.
    type Key: Clone + Ord + Send + Sync + 'static;
    /// What a reading finds out.
    type Reading: Send + Sync + 'static;

    fn key(&self) -> Self::Key;

    /// Whether a reading of this identity is one of the subject as it is now.
    fn is_answered_by(&self, reading: &Self::Reading) -> bool;
}

/// A reading and the time at which it began.
#[derive(Clone, Debug)]
pub(in crate::daemon) struct Dated<R> {
    pub(in crate::daemon) began: Instant,
    pub(in crate::daemon) value: R,
}

/// The newest reading of each subject.
pub(super) type Readings<S> = BTreeMap<<S as Subject>::Key, Arc<Dated<<S as Subject>::Reading>>>;

type Read<S> = dyn Fn(&S, Option<&<S as Subject>::Reading>) -> <S as Subject>::Reading + Send + Sync;

/// Reads subjects in rounds.
pub(super) struct Rounds<S: Subject> {
    shared: Arc<Shared<S>>,
}

struct Shared<S: Subject> {
    /// Reads one subject, given its reading before this.
    read: Box<Read<S>>,
    /// A younger round is used again.
    floor: Duration,
    state: Mutex<State<S>>,
    /// There are subjects to read.
    has_work: Condvar,
    /// A round has ended.
    has_ended: Condvar,
}

struct State<S: Subject> {
    readings: Readings<S>,
    pending: VecDeque<S>,
    /// Readings in progress, by thread.
    running: BTreeMap<u64, Running<S::Key>>,
    /// Start of the round in progress, and whether it reads all subjects.
    round: Option<(Instant, bool)>,
    /// End and duration of the last complete round.
    last: Option<(Instant, Duration)>,
    /// Number of rounds of all subjects.
    rounds: u64,
    readers: usize,
    next_reader: u64,
    overdue: u64,
}

struct Running<K> {
    key: K,
    began: Instant,
    is_late: bool,
}

impl<S: Subject> Rounds<S> {
    /// Rounds of readings by `read`, each of which is used again for `floor` at least. Threads are started with the
    /// first round.
    pub(super) fn new(
        floor: Duration,
        read: impl Fn(&S, Option<&S::Reading>) -> S::Reading + Send + Sync + 'static,
    ) -> Self {
        let state = State {
            readings: BTreeMap::new(),
            pending: VecDeque::new(),
            running: BTreeMap::new(),
            round: None,
            last: None,
            rounds: 0,
            readers: 0,
            next_reader: 0,
            overdue: 0,
        };
        Self {
            shared: Arc::new(Shared {
                read: Box::new(read),
                floor,
                state: Mutex::new(state),
                has_work: Condvar::new(),
                has_ended: Condvar::new(),
            }),
        }
    }

    /// Begins a round unless one is in progress or the last one is fresh, waits for its end, but not longer
    /// than `patience`, and returns the newest readings.
    pub(super) fn newest(&self, subjects: &[S], patience: Duration) -> Readings<S> {
        let end = Instant::now() + patience;
        let mut state = self.shared.lock();
        let mut has_joined = state.round.is_some();
        if !has_joined {
            self.shared.begin(&mut state, subjects, Instant::now());
        }
        loop {
            let now = Instant::now();
            state.write_off(now);
            // The round that was in progress did not have a subject that is new.
            if has_joined && state.round.is_none() && state.lacks(subjects) {
                has_joined = false;
                self.shared.begin(&mut state, subjects, now);
            }
            self.shared.start_readers(&mut state);
            if state.round.is_none() || now >= end {
                return state.readings.clone();
            }
            // Woken by the end of the round; otherwise to notice readings that hang.
            let wait = (end - now).min(LATE / 4);
            let woken = self.shared.has_ended.wait_timeout(state, wait);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Number of readings that were written off.
    pub(super) fn overdue(&self) -> u64 {
        self.shared.lock().overdue
    }

    /// Number of rounds of all subjects that have begun.
    pub(super) fn rounds(&self) -> u64 {
        self.shared.lock().rounds
    }

    /// Duration of the last complete round.
    pub(super) fn last_duration(&self) -> Duration {
        self.shared.lock().last.map_or(Duration::ZERO, |(_, took)| took)
    }
}

impl<S: Subject> State<S> {
    /// Begins a round of all subjects, or of those without a reading if the last round is fresh.
    fn begin(&mut self, subjects: &[S], floor: Duration, now: Instant) {
        let is_fresh = self.last.is_some_and(|(end, took)| now.duration_since(end) < floor.max(took * REST));
        let keys: Vec<S::Key> = subjects.iter().map(S::key).collect();
        if !is_fresh {
            let known: std::collections::BTreeSet<&S::Key> = keys.iter().collect();
            self.readings.retain(|key, _| known.contains(key));
        }
        for (subject, key) in subjects.iter().zip(keys) {
            // One that hangs is not tried again before it has ended.
            let hangs = self.running.values().any(|running| running.key == key);
            let is_known = is_fresh && self.has(subject, &key);
            if !hangs && !is_known {
                self.pending.push_back(subject.clone());
            }
        }
        if !self.pending.is_empty() {
            self.round = Some((now, !is_fresh));
            self.rounds += u64::from(!is_fresh);
        }
    }

    /// Whether a subject has no reading.
    fn lacks(&self, subjects: &[S]) -> bool {
        subjects.iter().any(|subject| !self.has(subject, &subject.key()))
    }

    fn has(&self, subject: &S, key: &S::Key) -> bool {
        self.readings.get(key).is_some_and(|dated| subject.is_answered_by(&dated.value))
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

impl<S: Subject> Shared<S> {
    // A poisoned lock is taken, because every change is a single step.
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, state: &mut State<S>, subjects: &[S], now: Instant) {
        state.begin(subjects, self.floor, now);
        self.has_work.notify_all();
    }

    /// Starts threads, if there is work and some are missing.
    fn start_readers(self: &Arc<Self>, state: &mut State<S>) {
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
                state = self.has_work.wait(state).unwrap_or_else(PoisonError::into_inner);
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
            // Not woken for each reading, because a round has thousands.
            if state.round.is_none() {
                self.has_ended.notify_all();
            }
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
        type Reading = Self;

        fn key(&self) -> Self {
            *self
        }

        fn is_answered_by(&self, _reading: &Self) -> bool {
            true
        }
    }

    fn keys(readings: &Readings<u32>) -> Vec<u32> {
        readings.keys().copied().collect()
    }

    #[test]
    fn collector_reads_all_subjects_and_forgets_others() {
        let rounds = Rounds::new(Duration::ZERO, |subject: &u32, before: Option<&u32>| {
            before.map_or(*subject, |b| b + 100)
        });
        assert_eq!(keys(&rounds.newest(&(0..50).collect::<Vec<_>>(), LONG)), (0..50).collect::<Vec<_>>());
        // Once the first round has been used again for a while.
        let second = loop {
            let second = rounds.newest(&[7, 8], LONG);
            if second.len() == 2 {
                break second;
            }
        };
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
        let rounds = Rounds::new(Duration::ZERO, move |subject: &u32, _: Option<&u32>| {
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
        let rounds = Rounds::new(Duration::ZERO, move |subject: &u32, _: Option<&u32>| {
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
        let rounds = Rounds::new(Duration::ZERO, move |subject: &u32, _: Option<&u32>| {
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

    /// However many requests there are, they use a reading again while it is young; only what has none is read.
    #[test]
    fn collector_requests_use_a_young_reading_again() {
        let reads = Arc::new(AtomicU32::new(0));
        let counted = reads.clone();
        let rounds = Rounds::new(LONG, move |subject: &u32, _: Option<&u32>| {
            counted.fetch_add(1, Ordering::Relaxed);
            *subject
        });
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert_eq!(keys(&rounds.newest(&[1, 2], LONG)), [1, 2]);
                    }
                });
            }
        });
        assert_eq!((reads.load(Ordering::Relaxed), rounds.rounds()), (2, 1));
        assert_eq!(keys(&rounds.newest(&[1, 2, 3], LONG)), [1, 2, 3]);
        assert_eq!((reads.load(Ordering::Relaxed), rounds.rounds()), (3, 1));
    }
}
