//! Faults on purpose: a test has the process killed before any one step, or has that step fail.
//!
//! A step is whatever asks or changes the kernel or the state directory. The environment variable
//! [`VARIABLE`] names a file with an order, `kill N`, `fail N` or `hang N`: the process ends itself before,
//! sees fail, or never takes the Nth step from then on. What it writes back tells how far it came: an order
//! with a smaller number, or `at STEP` once it has been carried out.
//!
//! What the daemon does by itself, whenever it notices something, is not counted, and what it does for who
//! only asks is not, either: numbers would mean nothing.
//!
//! Builds without debug assertions, those that are installed, have none of this.

#[cfg(debug_assertions)]
pub(crate) use self::ordered::{aside, carried, step};

/// Names the file with the order.
pub const VARIABLE: &str = "PORTMAP_FAULTS";

#[cfg(not(debug_assertions))]
pub(crate) use self::none::{aside, carried, step};

#[cfg(not(debug_assertions))]
mod none {
    use std::io;

    #[expect(clippy::unnecessary_wraps, reason = "it can fail in debug builds")]
    pub(crate) const fn step(_what: &str) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
        work()
    }

    pub(crate) fn carried<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
        work
    }
}

#[cfg(debug_assertions)]
mod ordered {
    use std::{
        cell::Cell,
        env, fs, io,
        path::PathBuf,
        sync::{LazyLock, Mutex, PoisonError},
    };

    use nix::sys::signal::{Signal, raise};

    /// The file with the order; none in a process that no test has started.
    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| env::var_os(super::VARIABLE).map(PathBuf::from));

    /// Held by whoever counts a step.
    static TURN: Mutex<()> = Mutex::new(());

    thread_local! {
        /// Whether what this thread does is not counted.
        static ASIDE: Cell<bool> = const { Cell::new(false) };
    }

    /// Does something whose steps are not counted.
    pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
        let before = ASIDE.replace(true);
        let result = work();
        ASIDE.set(before);
        result
    }

    /// What another thread is to do for this one: its steps are counted where those of this one are.
    pub(crate) fn carried<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
        let is_aside = ASIDE.get();
        move || if is_aside { aside(work) } else { work() }
    }

    /// Marks a step that is about to be taken; fails if it is to fail.
    pub(crate) fn step(what: &str) -> io::Result<()> {
        if ASIDE.get() {
            return Ok(());
        }
        let Some(file) = FILE.as_deref() else { return Ok(()) };
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(order) = fs::read_to_string(file) else { return Ok(()) };
        let Some((fault, number)) = order.split_once(' ') else { return Ok(()) };
        let Ok(number) = number.trim().parse::<u32>() else { return Ok(()) };
        if number > 1 {
            return fs::write(file, format!("{fault} {}", number - 1));
        }
        fs::write(file, format!("at {what}"))?;
        if fault == "kill" {
            let _ = raise(Signal::SIGKILL);
        }
        if fault == "hang" {
            drop(turn);
            loop {
                std::thread::park();
            }
        }
        Err(io::Error::other(format!("made to fail at the step `{what}`")))
    }
}
