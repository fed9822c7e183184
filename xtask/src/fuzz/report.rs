//! Reports of fuzz targets.

use std::fmt::{self, Display};

/// The statistics that a target prints at its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    executions: u64,
    per_second: u64,
    coverage: u64,
}

impl Numbers {
    /// Reads the statistics in the output of a target.
    pub(super) fn read(text: &str) -> Option<Self> {
        let last = |mark: &str| {
            let rest = &text[text.rfind(mark)? + mark.len()..];
            rest.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            executions: last("stat::number_of_executed_units:")?,
            per_second: last("stat::average_exec_per_sec:")?,
            coverage: last(" cov: ")?,
        })
    }
}

impl Display for Numbers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { executions, per_second, coverage } = self;
        write!(formatter, "{executions} runs ({per_second} a second), {coverage} edges covered, no failure")
    }
}

/// Returns the failure of a target, and the commands that reproduce and keep the input.
pub(super) fn finding(target: &str, text: &str) -> String {
    // A replay names each file before it runs it; a search writes the input into a file.
    let written =
        text.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, file)| file);
    let replayed = text.lines().rev().find_map(|line| line.strip_prefix("Running: "));
    let base64 = text.lines().find_map(|line| line.strip_prefix("Base64: "));
    let said = text.find("panicked at").or_else(|| text.find("ERROR: libFuzzer")).unwrap_or_default();
    let said: Vec<_> =
        text[said..].lines().take_while(|line| !line.starts_with("note: run with")).take(12).collect();
    let mut lines = vec![said.join("\n")];
    if let Some(file) = written.or(replayed) {
        lines.push(format!("input: {file}"));
        lines.extend(
            base64.map(|text| format!("       on another machine: echo {text} | base64 --decode > INPUT")),
        );
        lines.push(format!("reproduce it: cargo xtask fuzz {target} {file}"));
        if !file.contains("/fixtures/") {
            lines.push(format!("keep it:      cargo xtask fuzz {target} --fixture SOME-NAME {file}"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_reads_the_last_statistics() {
        let text = "#2 INITED cov: 5 ft: 6\n#900 DONE   cov: 1972 ft: 4204 corp: 1/2b\n\
            stat::number_of_executed_units: 900\nstat::average_exec_per_sec:     30\n";
        assert_eq!(Numbers::read(text), Some(Numbers { executions: 900, per_second: 30, coverage: 1972 }));
        assert_eq!(Numbers::read(""), None);
    }

    #[test]
    fn report_of_a_finding_names_the_input_and_commands() {
        let text = "INFO: Seed: 1\nthread '<unnamed>' (7) panicked at src/check.rs:1:2:\nspecified: Left\n\
            note: run with `RUST_BACKTRACE=1`\nTest unit written to /a/crash-1\nBase64: AAEC\n";
        let finding = finding("verdict", text);
        for part in [
            "specified: Left",
            "echo AAEC | base64",
            "cargo xtask fuzz verdict --fixture SOME-NAME /a/crash-1",
        ] {
            assert!(finding.contains(part), "{finding}");
        }
        assert!(!finding.contains("RUST_BACKTRACE"), "{finding}");
    }

    #[test]
    fn report_names_a_fixture_that_fails() {
        let text = "Running: /a\nExecuted /a in 0 ms\nRunning: /fixtures/b\nthread panicked at x\nno\n";
        let finding = finding("verdict", text);
        assert!(
            finding.ends_with("cargo xtask fuzz verdict /fixtures/b") && !finding.contains("--fixture"),
            "{finding}"
        );
    }
}
