//! Tables and numbers in reports.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

/// Returns an empty Markdown table; all columns but the first are aligned to the right.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Formats a number with one decimal place below 100.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 100.0 { format!("{value:.1}") } else { grouped(value) }
}

/// Formats a whole number with commas between thousands.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", &*digits), |rest| ("-", rest));
    let mut text = sign.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Columns of prose in a report.
const COLUMNS: usize = 110;

/// Wraps the paragraphs and list items of a report; tables, headings and pictures keep their lines.
pub(crate) fn wrapped(text: &str) -> String {
    let mut wrapped = String::with_capacity(text.len());
    for line in text.lines() {
        let is_prose = !line.starts_with(['|', '#', '!']);
        let indentation = if line.starts_with("- ") { "  " } else { "" };
        let mut columns = 0;
        for word in line.split(' ') {
            let width = word.chars().count();
            if columns > 0 && is_prose && columns + 1 + width > COLUMNS {
                wrapped.push('\n');
                wrapped.push_str(indentation);
                columns = indentation.len();
            } else if columns > 0 {
                wrapped.push(' ');
                columns += 1;
            }
            wrapped.push_str(word);
            columns += width;
        }
        wrapped.push('\n');
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_breaks_prose_and_keeps_tables() {
        let words = "word ".repeat(40);
        let text = wrapped(&format!("# {words}\n\n- {words}\n| {words}|\n"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[0].len() > COLUMNS && lines[4].len() > COLUMNS);
        assert!(lines[2].len() <= COLUMNS && lines[3].starts_with("  word"));
        assert_eq!(text.split_whitespace().count(), 3 * 40 + 4);
    }
}
