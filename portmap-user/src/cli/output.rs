//! Writing to standard output and standard error, as a table or as JSON.

use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::{
    error::{Context as _, Error, Result},
    log,
};

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Tables, for people.
    Table,
    /// JSON, for programs; stable.
    Json,
}

/// Prints an error on standard error.
pub(super) fn error(error: &Error) {
    log::line(format_args!("portmap: {error}"));
}

/// Prints a value: as JSON, or as the text that `table` makes of it.
pub(super) fn print(
    output: Output,
    value: &(impl Serialize + ?Sized),
    table: impl FnOnce() -> String,
) -> Result<()> {
    let text = match output {
        Output::Json => serde_json::to_string(value).context(|| "cannot encode JSON")?,
        Output::Table => table(),
    };
    // The table pads its last column.
    let lines = text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    line(&lines).map(drop)
}

/// Prints one or more lines. Returns false if the reader has closed standard output.
pub(super) fn line(text: &str) -> Result<bool> {
    bytes(format!("{text}\n").as_bytes())
}

/// Prints text unchanged. Returns false if the reader has closed standard output.
pub(super) fn bytes(text: &[u8]) -> Result<bool> {
    let mut output = io::stdout();
    match output.write_all(text).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).context(|| "cannot print"),
    }
}

/// An empty table without borders.
pub(super) fn plain() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

/// The table as text, its columns two spaces apart.
pub(super) fn text(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.to_string()
}
