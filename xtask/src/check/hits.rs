//! Places in files that a check refuses.

use anyhow::{Result, bail};

/// A line that a check refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    /// The file's path from the workspace's directory.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The reason and the remedy.
    pub message: String,
}

/// Fails unless there are no hits: lists each one, then their number in each file and in all.
pub(super) fn none(what: &str, hits: &[Hit]) -> Result<()> {
    if hits.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> =
        hits.iter().map(|Hit { file, line, message }| format!("{file}:{line}: {message}")).collect();
    let counts: Vec<_> = hits
        .chunk_by(|one, next| one.file == next.file)
        .map(|of_file| format!("{:>6} {}", of_file.len(), of_file[0].file))
        .collect();
    bail!("{}\n\n{}\n{:>6} in all: {what}", lines.join("\n"), counts.join("\n"), hits.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_all_listed_and_counted() {
        none("nothing", &[]).expect("no hit is no error");
        let hit = |file: &str, line| Hit { file: file.to_owned(), line, message: "x".to_owned() };
        let error = none("are bad", &[hit("a", 1), hit("a", 2), hit("b", 3)]).expect_err("three hits");
        let text = error.to_string();
        assert_eq!(text, "a:1: x\na:2: x\nb:3: x\n\n     2 a\n     1 b\n     3 in all: are bad");
    }
}
