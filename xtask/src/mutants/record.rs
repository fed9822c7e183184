//! The record of what survives, and why.

use std::fs;

use anyhow::{Context as _, Result};

use super::mutation::Mutation;
use crate::workspace;

const FILE: &str = "docs/mutants.md";

/// The rows of the record.
pub(super) struct Record {
    rows: Vec<String>,
}

impl Record {
    pub(super) fn read() -> Result<Self> {
        let text = fs::read_to_string(workspace::root().join(FILE))
            .with_context(|| format!("cannot read {FILE}"))?;
        Ok(Self::of(&text))
    }

    fn of(text: &str) -> Self {
        let rows = text.lines().filter(|line| line.starts_with("| portmap-"));
        Self { rows: rows.map(str::to_owned).collect() }
    }

    /// Whether something is on record.
    pub(super) fn has(&self, mutation: &Mutation) -> bool {
        let row = mutation.row();
        self.rows.iter().any(|known| known.starts_with(&row))
    }

    /// What is on record and not among the survivors.
    pub(super) fn without(&self, survivors: &[&Mutation]) -> Vec<&str> {
        let rows: Vec<_> = survivors.iter().map(|mutation| mutation.row()).collect();
        let is_gone = |known: &&String| !rows.iter().any(|row| known.starts_with(row));
        self.rows.iter().filter(is_gone).map(String::as_str).collect()
    }
}
