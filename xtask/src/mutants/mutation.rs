//! A mutation of a source file.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{process, workspace};

/// The decision code, and the files that define the numbers in the maps.
const FILES: [&str; 7] = [
    "portmap-ebpf/src/*.rs",
    "portmap-ebpf/src/hooks/*.rs",
    "portmap-ebpf/src/packet/*.rs",
    "portmap-common/src/gcra.rs",
    "portmap-common/src/queue.rs",
    "portmap-common/src/slot.rs",
    "portmap-common/src/tables.rs",
];

/// Files among them without decisions.
const NO_DECISIONS: [&str; 2] = ["portmap-ebpf/src/packet_buf.rs", "portmap-ebpf/src/testing.rs"];

/// A mutation in the form of cargo-mutants.
#[derive(Deserialize)]
pub(super) struct Mutation {
    /// File, line, column and change.
    pub name: String,
    /// The file, relative to the root of the repository.
    pub file: String,
    span: Span,
    replacement: String,
    /// The changed line, without indentation.
    #[serde(skip)]
    line: String,
}

#[derive(Deserialize)]
struct Span {
    start: Position,
    end: Position,
}

/// A position; both numbers are 1-based.
#[derive(Clone, Copy, Deserialize)]
struct Position {
    line: usize,
    column: usize,
}

/// Returns all mutations.
pub(super) fn all() -> Result<Vec<Mutation>> {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()).args(["mutants", "--list", "--json"]);
    command.args(["--package", "portmap-ebpf", "--package", "portmap-common"]);
    command.args(FILES.iter().flat_map(|file| ["--file", file]));
    command.args(NO_DECISIONS.iter().flat_map(|file| ["--exclude", file]));
    let text = process::read(&mut command)?;
    let mut mutations: Vec<Mutation> =
        serde_json::from_str(&text).context("cannot parse the list of cargo-mutants")?;
    for mutation in &mut mutations {
        let source = fs::read_to_string(workspace::root().join(&mutation.file))?;
        let line = source.lines().nth(mutation.span.start.line - 1).unwrap_or_default();
        line.trim().clone_into(&mut mutation.line);
    }
    Ok(mutations)
}

impl Mutation {
    /// Returns the mutated content of a file.
    pub(super) fn applied(&self, source: &str) -> Result<String> {
        let offset_of = |position| {
            offset(source, position).with_context(|| format!("the source has no position {}", self.name))
        };
        let (start, end) = (offset_of(self.span.start)?, offset_of(self.span.end)?);
        Ok([&source[..start], &self.replacement, &source[end..]].concat())
    }

    /// Returns the start of its row in the record, without line numbers, because those change.
    pub(super) fn row(&self) -> String {
        // The change follows the file, the line and the column.
        let what = self.name.splitn(4, ':').nth(3).unwrap_or(&self.name).trim();
        // An unescaped bar would end the cell.
        let cell = |text: &str| text.replace('|', "\\|");
        format!("| {} | {} | `{}` |", self.file, cell(what), cell(&self.line))
    }
}

/// Returns the byte offset of a position in a text.
fn offset(source: &str, position: Position) -> Option<usize> {
    let start: usize = source.split_inclusive('\n').take(position.line.checked_sub(1)?).map(str::len).sum();
    let line = &source[start..];
    let column = position.column.checked_sub(1)?;
    line.char_indices().map(|(at, _)| at).chain([line.len()]).nth(column).map(|at| start + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutation_replaces_only_its_span() {
        let position = |line, column| Position { line, column };
        let mutation = Mutation {
            name: "src/a.rs:2:4: replace || with && in f".to_owned(),
            file: "src/a.rs".to_owned(),
            span: Span { start: position(2, 4), end: position(2, 6) },
            replacement: "&&".to_owned(),
            line: "ä || b".to_owned(),
        };
        assert_eq!(
            mutation.applied("fn f() {\n ä || b\n}\n").ok().as_deref(),
            Some("fn f() {\n ä && b\n}\n")
        );
        assert_eq!(mutation.row(), "| src/a.rs | replace \\|\\| with && in f | `ä \\|\\| b` |");
        assert!(mutation.applied("fn f() {}\n").is_err());
    }
}
