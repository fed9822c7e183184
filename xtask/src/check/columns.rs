//! Lines of at most [`MOST`] columns. Fenced code in Markdown is excepted, because it contains real output.

use anyhow::Result;

use super::{
    files::{self, File, Format},
    hits::{self, Hit},
};

/// Columns that a line may have. rustfmt breaks code earlier, but leaves comments and string literals alone.
const MOST: usize = 120;

/// Fails if a line is too long, and lists all of those.
pub(super) fn check() -> Result<()> {
    let hits: Vec<Hit> = files::read()?.iter().flat_map(hits).collect();
    hits::none("lines that are too long", &hits)
}

fn hits(file: &File) -> Vec<Hit> {
    let format = files::format(&file.path);
    let mut is_fenced = false;
    let lines = file.text.lines().enumerate();
    lines
        .filter(|(_, line)| {
            is_fenced ^= format == Some(Format::Markdown) && line.trim_start().starts_with("```");
            !is_fenced && !may_be_long(line, format)
        })
        .filter_map(|(number, line)| {
            let columns = line.chars().count();
            let message = format!("{columns} columns: wrap the line, {MOST} is the limit");
            (columns > MOST).then(|| Hit { file: file.path.clone(), line: number + 1, message })
        })
        .collect()
}

/// Whether the line cannot be wrapped: a row of a table, a raw string of Rust, which a line break would
/// change, or an address on the web.
fn may_be_long(line: &str, format: Option<Format>) -> bool {
    let is_table_row = format == Some(Format::Markdown) && line.trim_start().starts_with('|');
    let is_raw_string = format == Some(Format::Rust) && line.contains("r#\"");
    is_table_row || is_raw_string || line.contains("https://") || line.contains("http://")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        hits(&File { path: path.to_owned(), text: text.to_owned() }).iter().map(|hit| hit.line).collect()
    }

    #[test]
    fn columns_counts_characters_and_names_each_line() {
        let (long, right) = ("é".repeat(121), "é".repeat(120));
        assert_eq!(lines("a.rs", &format!("{right}\n{long}\n\n{long}\n")), [2, 4]);
    }

    #[test]
    fn columns_excepts_fenced_code_of_markdown() {
        let long = "x".repeat(130);
        assert_eq!(lines("a.md", &format!("```\n{long}\n```\n{long}\n")), [4]);
        assert_eq!(lines("a.rs", &format!("// ```\n// {long}\n// ```\n")), [2]);
    }

    #[test]
    fn columns_excepts_tables_raw_strings_and_addresses() {
        let row = format!("| {} |\n", "x".repeat(130));
        assert_eq!(lines("a.md", &row), [0; 0]);
        assert_eq!(lines("a.rs", &row), [1]);
        assert_eq!(lines("a.rs", &format!("const JSON: &str = r#\"{row}\"#;")), [0; 0]);
        assert_eq!(lines("a.toml", &format!("# https://example.org/{}\n", "x".repeat(130))), [0; 0]);
    }
}
