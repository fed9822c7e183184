//! Faults on purpose in what runs in a sandbox; see the crate `portmap`, module `fault`.

use std::{env, fs};

use crate::sandbox::Sandbox;

/// The file with the order, on the sandbox's host.
pub(crate) const ORDER: &str = "/run/faults";

/// What happens at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends before it, by SIGKILL.
    Kill,
    /// It fails.
    Fail,
    /// It never comes to its end.
    Hang,
}

impl Sandbox {
    /// Has something happen at a step, counted from now on.
    pub fn order(&self, fault: Fault, step: usize) {
        let fault = match fault {
            Fault::Kill => "kill",
            Fault::Fail => "fail",
            Fault::Hang => "hang",
        };
        fs::write(self.path(ORDER), format!("{fault} {step}")).expect("written");
    }

    /// Takes the order back, and says at which step it was carried out if it was.
    pub fn struck(&self) -> Option<String> {
        let left = fs::read_to_string(self.path(ORDER)).expect("there is an order");
        fs::remove_file(self.path(ORDER)).expect("there is an order");
        left.strip_prefix("at ").map(str::to_owned)
    }
}

/// One in how many cases is tried: all, unless `PORTMAP_SAMPLE` says otherwise, as it does on emulated machines.
pub fn sample() -> usize {
    env::var("PORTMAP_SAMPLE").map_or(1, |number| number.parse().expect("a number"))
}
