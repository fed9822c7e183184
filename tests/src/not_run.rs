//! Tests that cannot run on a machine.

use std::{
    fmt::Display,
    io::{self, Write as _},
    thread,
};

/// Precedes the name of a test that did not run, and the reason; `cargo xtask test` lists these lines in its
/// summary.
const MARK: &str = "[not run]";

/// Reports that the calling test, or a part of it that the reason names, cannot run here. The harness counts
/// the test as passed, because it knows no other outcome, so a test must not return early without this line.
pub fn not_run(reason: impl Display) {
    // The harness names the thread of a test after the test.
    let thread = thread::current();
    let test = thread.name().unwrap_or("test");
    // Unlike `println!`, this bypasses the harness, which discards the output of a test that passes.
    writeln!(io::stdout(), "{MARK} {test}: {reason}").expect("standard output is open");
}
