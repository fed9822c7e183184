//! Failpoints: a test can have the process killed at any step, or have the step fail or hang.
//!
//! Every step that changes or queries the kernel or the state directory passes a failpoint. The environment
//! variable [`VARIABLE`] names a file with an order: `kill N`, `fail N` or `hang N` injects a fault at the
//! Nth failpoint from then on. The process writes its progress back into the file: an order with a smaller
//! number, or `at STEP` once the fault has been injected.
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
        env, fs, io,
        path::PathBuf,
        sync::{LazyLock, Mutex, PoisonError},
    };

    use nix::sys::signal::{Signal, raise};

    /// The file with the order; `None` in a process that no test has started.
    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| env::var_os(super::VARIABLE).map(PathBuf::from));

    /// Serialises access to the file.
    static COUNTING: Mutex<()> = Mutex::new(());

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
        let counting = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(order) = fs::read_to_string(file) else { return Ok(()) };
        let Some((fault, number)) = order.split_once(' ') else { return Ok(()) };
        let Ok(number) = number.trim().parse::<u32>() else { return Ok(()) };
        if number > 1 {
            return fs::write(file, format!("{fault} {}", number - 1));
        }
        fs::write(file, format!("at {step}"))?;
        if fault == "kill" {
            let _ = raise(Signal::SIGKILL);
        }
        if fault == "hang" {
            drop(counting);
            loop {
                std::thread::park();
            }
        }
        Err(io::Error::other(format!("fault injected at the step `{step}`")))
    }
}
