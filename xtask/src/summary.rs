//! Reading and totalling what test programs say at their end.

use std::ops::AddAssign;

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Test programs that came to their end.
    pub suites: u32,
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that are marked as not to be run.
    pub ignored: u32,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { suites, passed, failed, ignored } = other;
        self.suites += suites;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
    }
}

impl Counts {
    /// Adds the numbers of a line such as `test result: ok. 5 passed; 0 failed; 1 ignored; …`; other lines
    /// change nothing.
    pub(crate) fn read_line(&mut self, line: &str) {
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
    pub(crate) fn closing_line(self) -> String {
        let Self { suites: _, passed, failed, ignored } = self;
        let skipped = if ignored > 0 { format!(", {ignored} skipped") } else { String::new() };
        format!("{passed} passed, {failed} failed{skipped}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_test_programs_are_added_up() {
        let mut counts = Counts::default();
        counts.read_line("running 3 tests");
        counts.read_line(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
        );
        counts.read_line(
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        );
        assert_eq!(counts, Counts { suites: 2, passed: 4, failed: 2, ignored: 1 });
        assert_eq!(counts.closing_line(), "4 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn nothing_skipped_is_not_mentioned() {
        let counts = Counts { suites: 1, passed: 7, failed: 0, ignored: 0 };
        assert_eq!(counts.closing_line(), "7 passed, 0 failed");
    }
}
