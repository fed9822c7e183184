//! One way to break a file.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{process, workspace};

/// The files that decide, and those that say what the numbers in the tables mean.
const FILES: [&str; 7] = [
    "portmap-ebpf/src/*.rs",
    "portmap-ebpf/src/hooks/*.rs",
    "portmap-ebpf/src/packet/*.rs",
    "portmap-common/src/limit.rs",
    "portmap-common/src/queue.rs",
    "portmap-common/src/slot.rs",
    "portmap-common/src/tables.rs",
];

/// Files among them that decide nothing.
const NO_DECISIONS: [&str; 2] = ["portmap-ebpf/src/main.rs", "portmap-ebpf/src/packet_buf.rs"];

/// A small change that breaks a file, as cargo-mutants lists it.
#[derive(Deserialize)]
pub(super) struct Mutation {
    /// File, line, column and what is done.
    pub name: String,
    /// The file, from the root of the repository.
    pub file: String,
    span: Span,
    replacement: String,
    /// The line where the change is, without indentation.
    #[serde(skip)]
    line: String,
}

#[derive(Deserialize)]
struct Span {
    start: Position,
    end: Position,
}

/// Both are counted from 1.
#[derive(Clone, Copy, Deserialize)]
struct Position {
    line: usize,
    column: usize,
}

/// All of them.
pub(super) fn all() -> Result<Vec<Mutation>> {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()).args(["mutants", "--list", "--json"]);
    command.args(["--package", "portmap-ebpf", "--package", "portmap-common"]);
    command.args(FILES.iter().flat_map(|file| ["--file", file]));
    command.args(NO_DECISIONS.iter().flat_map(|file| ["--exclude", file]));
    let text = process::read(&mut command)?;
    let mut mutations: Vec<Mutation> =
        serde_json::from_str(&text).context("cannot understand the list of cargo-mutants")?;
    for mutation in &mut mutations {
        let source = fs::read_to_string(workspace::root().join(&mutation.file))?;
        let line = source.lines().nth(mutation.span.start.line - 1).unwrap_or_default();
        line.trim().clone_into(&mut mutation.line);
    }
    Ok(mutations)
}

impl Mutation {
    /// The broken form of a file's content.
    pub(super) fn applied(&self, source: &str) -> Result<String> {
        let place = |position| {
            offset(source, position).with_context(|| format!("there is no such place as {}", self.name))
        };
        let (start, end) = (place(self.span.start)?, place(self.span.end)?);
        Ok([&source[..start], &self.replacement, &source[end..]].concat())
    }

    /// How it is put on record: without numbers of lines, which change.
    pub(super) fn row(&self) -> String {
        // What is done follows the file, the line and the column.
        let what = self.name.splitn(4, ':').nth(3).unwrap_or(&self.name).trim();
        // A bar would end the cell.
        let cell = |text: &str| text.replace('|', "\\|");
        format!("| {} | {} | `{}` |", self.file, cell(what), cell(&self.line))
    }
}

/// Where a position is in a text, in bytes.
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
    fn the_place_is_replaced_and_nothing_else() {
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
