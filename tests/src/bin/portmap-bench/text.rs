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
