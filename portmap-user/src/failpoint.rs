//! Failpoints: a test can have the process killed at any step, or have the step fail or hang.
//!
//! Every step that changes or queries the kernel or the state directory passes a failpoint. The environment
//! variable [`VARIABLE`] names a file with an order: `kill N R`, `fail N R` or `hang N R` injects a fault at the
//! Nth failpoint from then on. The process writes its progress back into the file: an order with a smaller
//! number, or `at STEP` once the fault has been injected.
//!
//! Operations repeat themselves: a start pins each map, loads each program, and writes each setting. Two steps
//! in succession count only the first R times that the process takes them, so that a test meets each kind of
//! moment without meeting each of hundreds.
//!
//! Background reconciliation and read-only requests suppress failpoints, because they would make the numbers
//! non-deterministic.
//!
//! Failpoints are compiled out of builds without debug assertions, such as those that are installed.

#[cfg(debug_assertions)]
pub(crate) use self::injected::{hit, inherit_suppression, suppressed};

/// Environment variable with the path of the order.
pub const VARIABLE: &str = "PORTMAP_FAULTS";

#[cfg(not(debug_assertions))]
pub(crate) use self::compiled_out::{hit, inherit_suppression, suppressed};

#[cfg(not(debug_assertions))]
mod compiled_out {
    use std::io;

    #[expect(clippy::unnecessary_wraps, reason = "it can fail in debug builds")]
    pub(crate) const fn hit(_step: &str) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn suppressed<T>(work: impl FnOnce() -> T) -> T {
        work()
    }

    pub(crate) fn inherit_suppression<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
        work
    }
}

#[cfg(debug_assertions)]
mod injected {
    use std::{
        cell::Cell,
        collections::HashMap,
        env, fs, io,
        path::PathBuf,
        sync::{LazyLock, Mutex, PoisonError},
    };

    use nix::sys::signal::{Signal, raise};

    /// The file with the order; `None` in a process that no test has started.
    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| env::var_os(super::VARIABLE).map(PathBuf::from));

    /// Serialises access to the file, and knows the steps so far.
    static COUNTING: LazyLock<Mutex<Steps>> = LazyLock::new(Mutex::default);

    /// The steps since the process has read another order.
    #[derive(Default)]
    struct Steps {
        /// What the file contained after the last step.
        order: String,
        last: String,
        /// How often a step followed another one.
        successions: HashMap<(String, String), u32>,
    }

    impl Steps {
        /// Counts a step. Returns how often it has followed the step before it.
        fn count(&mut self, order: &str, step: &str) -> u32 {
            if self.order != order {
                *self = Self::default();
            }
            let last = std::mem::replace(&mut self.last, step.to_owned());
            let count = self.successions.entry((last, step.to_owned())).or_default();
            *count += 1;
            *count
        }
    }

    thread_local! {
        /// Whether failpoints of this thread are suppressed.
        static SUPPRESSED: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs `work` with failpoints suppressed.
    pub(crate) fn suppressed<T>(work: impl FnOnce() -> T) -> T {
        let before = SUPPRESSED.replace(true);
        let result = work();
        SUPPRESSED.set(before);
        result
    }

    /// Wraps work for another thread, so that its failpoints are suppressed if those of this thread are.
    pub(crate) fn inherit_suppression<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
        let is_suppressed = SUPPRESSED.get();
        move || if is_suppressed { suppressed(work) } else { work() }
    }

    /// Passes a failpoint before a step. Fails if a test has ordered it to.
    pub(crate) fn hit(step: &str) -> io::Result<()> {
        if SUPPRESSED.get() {
            return Ok(());
        }
        let Some(file) = FILE.as_deref() else { return Ok(()) };
        let mut steps = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(order) = fs::read_to_string(file) else { return Ok(()) };
        let mut words = order.split_whitespace();
        let (Some(fault), Some(number), Some(repeats)) = (words.next(), words.next(), words.next()) else {
            return Ok(());
        };
        let (Ok(number), Ok(repeats)) = (number.parse::<u32>(), repeats.parse::<u32>()) else {
            return Ok(());
        };
        let repeated = steps.count(&order, step) > repeats;
        if repeated || number > 1 {
            steps.order = format!("{fault} {} {repeats}", number - u32::from(!repeated));
            return fs::write(file, &steps.order);
        }
        *steps = Steps::default();
        fs::write(file, format!("at {step}"))?;
        if fault == "kill" {
            let _ = raise(Signal::SIGKILL);
        }
        if fault == "hang" {
            drop(steps);
            loop {
                std::thread::park();
            }
        }
        Err(io::Error::other(format!("fault injected at the step `{step}`")))
    }
}
