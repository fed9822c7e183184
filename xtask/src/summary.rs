//! The numbers that test programs print at their end, and their total.

use std::ops::AddAssign;

/// Precedes the name of a test that could not run, and the reason (`portmap_tests::not_run`).
const NOT_RUN: &str = "[not run] ";

/// Numbers of tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Test programs that ran to their end.
    pub suites: u32,
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that are marked as ignored.
    pub ignored: u32,
    /// Tests that could not run, each with the reason. The harness counts them as passed.
    pub not_run: Vec<String>,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { suites, passed, failed, ignored, not_run } = other;
        self.suites += suites;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
        self.not_run.extend(not_run);
    }
}

impl Counts {
    /// Adds the numbers of a line such as `test result: ok. 5 passed; 0 failed; 1 ignored; …`, or a test that
    /// did not run; other lines change nothing.
    pub(crate) fn read_line(&mut self, line: &str) {
        // The harness may have begun the line with the name of the test.
        if let Some((_, test)) = line.split_once(NOT_RUN) {
            self.not_run.push(test.trim().to_owned());
        }
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let Some((_, numbers)) = rest.split_once(". ") else { return };
        self.suites += 1;
        for part in numbers.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u32>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// The closing line: all numbers, alone on their line.
    pub(crate) fn closing_line(&self) -> String {
        let Self { suites: _, passed, failed, ignored, not_run } = self;
        let not_run = u32::try_from(not_run.len()).unwrap_or(u32::MAX);
        let skipped = ignored + not_run;
        let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        format!("{} passed, {failed} failed{skipped}", passed.saturating_sub(not_run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_adds_up_lines_of_test_programs() {
        let mut counts = Counts::default();
        counts.read_line("running 3 tests");
        counts.read_line(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
        );
        counts.read_line(
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        );
        assert_eq!(counts, Counts { suites: 2, passed: 4, failed: 2, ignored: 1, not_run: Vec::new() });
        assert_eq!(counts.closing_line(), "4 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn summary_lists_tests_that_did_not_run_and_counts_them_as_skipped() {
        let mut counts = Counts::default();
        counts.read_line("[not run] a: this kernel has no links");
        counts.read_line("test b ... [not run] b: no compiler");
        counts.read_line("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        assert_eq!(counts.not_run, ["a: this kernel has no links", "b: no compiler"]);
        assert_eq!(counts.closing_line(), "1 passed, 0 failed, 3 skipped");
    }

    #[test]
    fn summary_does_not_mention_that_nothing_was_skipped() {
        let counts = Counts { suites: 1, passed: 7, ..Counts::default() };
        assert_eq!(counts.closing_line(), "7 passed, 0 failed");
    }
}
