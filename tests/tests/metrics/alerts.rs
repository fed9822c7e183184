//! The rules in `contrib/prometheus`: valid, and each alert fires.

use std::collections::BTreeSet;

use crate::tools::{file, program, read, succeed};

fn names(text: &str, key: &str) -> BTreeSet<String> {
    let of_line = |line: &str| {
        let (_, name) = line.split_once(key)?;
        Some(name.split([',', '}', '\n']).next()?.trim().to_owned())
    };
    text.lines().filter_map(of_line).collect()
}

#[test]
fn alert_rules_are_valid_and_fire() {
    let directory = file("contrib/prometheus");
    let promtool = program("promtool");
    succeed(&promtool, &["check", "config", "scrape.yml"], &directory, "");
    succeed(&promtool, &["check", "rules", "--lint=all", "--lint-fatal", "alerts.yml"], &directory, "");
    succeed(&promtool, &["test", "rules", "alerts_test.yml"], &directory, "");
    let (alerts, tests) = (read("contrib/prometheus/alerts.yml"), read("contrib/prometheus/alerts_test.yml"));
    let fires = names(
        &tests
            .lines()
            .collect::<Vec<_>>()
            .windows(2)
            .filter(|lines| lines[1].contains("exp_alerts"))
            .map(|lines| lines[0])
            .collect::<Vec<_>>()
            .join("\n"),
        "alertname:",
    );
    assert_eq!(names(&alerts, "- alert:"), fires, "alerts, and those that a test makes fire");
}
