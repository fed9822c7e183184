//! Fault injection into the processes of a sandbox; see the module `fault` of the crate `portmap`.

use std::{env, fs};

use crate::sandbox::Sandbox;

/// The file that arms a fault, on the sandbox's host.
pub(crate) const FILE: &str = "/run/faults";

/// A fault that is injected at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL before the step.
    Kill,
    /// The step fails.
    Fail,
    /// The step never returns.
    Hang,
}

impl Sandbox {
    /// Arms a fault at a step, counted from now on. The same two steps in succession count twice, or as often as
    /// `PORTMAP_REPEATS` says.
    pub fn arm_fault(&self, fault: Fault, step: usize) {
        let fault = match fault {
            Fault::Kill => "kill",
            Fault::Fail => "fail",
            Fault::Hang => "hang",
        };
        fs::write(self.path(FILE), format!("{fault} {step} {}", repeats())).expect("written");
    }

    /// Disarms the fault. Returns the name of the step at which it fired, if it did.
    pub fn fault_fired(&self) -> Option<String> {
        let left = fs::read_to_string(self.path(FILE)).expect("a fault is armed");
        fs::remove_file(self.path(FILE)).expect("a fault is armed");
        left.strip_prefix("at ").map(str::to_owned)
    }
}

/// Returns the sampling stride of cases that are alike: 1 (every case) unless `PORTMAP_SAMPLE` is set, as on
/// emulated machines.
pub fn sample() -> usize {
    env::var("PORTMAP_SAMPLE").map_or(1, |number| number.parse().expect("a number"))
}

/// Returns how often the same two steps in succession count: twice, unless `PORTMAP_REPEATS` is set.
fn repeats() -> u32 {
    env::var("PORTMAP_REPEATS").map_or(2, |number| number.parse().expect("a number"))
}
