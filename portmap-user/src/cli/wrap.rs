//! Wraps and truncates text for the cells of a table, in time linear in the text's length.

use std::borrow::Cow;

/// Maximum characters in a line of a cell.
const WIDTH: usize = 160;
/// Maximum lines of a cell; `-o json` has the complete text.
const LINES: usize = 6;
/// Maximum characters of a one-line cell.
const SHORT: usize = 64;

/// Truncates a text to one line, after an item if it is a list.
pub(super) fn short(text: &str) -> Cow<'_, str> {
    if text.chars().nth(SHORT).is_none() {
        return text.into();
    }
    let (head, tail) = split(text, SHORT);
    format!("{head} {}", and_more(tail)).into()
}

/// Wraps a text without truncating it.
pub(super) fn lines(text: &str) -> String {
    wrapped(text, usize::MAX)
}

/// Wraps a text to at most [`LINES`] lines, and says how much is omitted.
pub(super) fn paragraph(text: &str) -> String {
    wrapped(text, LINES)
}

fn wrapped(text: &str, max_lines: usize) -> String {
    // Errors of libraries, such as the verifier's log, have several lines.
    let mut lines = Vec::new();
    'text: for line in text.lines() {
        let mut remaining = line;
        while remaining.chars().nth(WIDTH).is_some() {
            if lines.len() + 1 >= max_lines {
                break 'text;
            }
            let (head, tail) = split(remaining, WIDTH);
            lines.push(head.to_owned());
            remaining = tail;
        }
        if lines.len() >= max_lines {
            break;
        }
        lines.push(remaining.to_owned());
    }
    // Counted without white space, because wrapping removes it at the ends of lines.
    let kept: usize =
        lines.iter().map(|line| line.chars().filter(|char| !char.is_whitespace()).count()).sum();
    let mut left = text.char_indices().filter(|(_, char)| !char.is_whitespace()).skip(kept);
    if let Some((at, _)) = left.next() {
        lines.push(and_more(&text[at..]));
    }
    lines.join("\n")
}

/// Splits a text after at most `width` characters: after a comma or semicolon in its second half, else at a
/// space there.
fn split(text: &str, width: usize) -> (&str, &str) {
    let end = text.char_indices().nth(width).map_or(text.len(), |(end, _)| end);
    let head = &text[..end];
    let after = |found: Option<usize>| found.map(|at| at + 1).filter(|at| *at > end / 2);
    let at = after(head.rfind([',', ';'])).or_else(|| after(head.rfind(char::is_whitespace))).unwrap_or(end);
    // A white-space character may have several bytes.
    let at = (at..=end).find(|at| text.is_char_boundary(*at)).unwrap_or(end);
    (text[..at].trim_end(), text[at..].trim_start())
}

/// Says how much is omitted, in items if it is a list.
fn and_more(omitted: &str) -> String {
    let separator = if omitted.contains("; ") { "; " } else { "," };
    let items = omitted.split(separator).filter(|item| !item.trim().is_empty()).count();
    if items > 1 {
        format!("… and {items} more (-o json has all)")
    } else {
        format!("… and {} more characters (-o json has all)", omitted.chars().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrap_leaves_short_text_unchanged() {
        for text in ["", "short", &"x".repeat(SHORT)] {
            assert_eq!(short(text), text);
            assert_eq!(paragraph(text), text);
        }
        let message = "the qdisc of eth0 that limits it is missing: run `portmap update web` to restore it; \
                       the host drops the excess that it sends";
        assert_eq!(paragraph(message), message);
    }

    #[test]
    fn wrap_truncates_lists_between_items() {
        let list: Vec<String> =
            (20000..30000).map(|port| format!("UDP port {port} is used by x (pid 1)")).collect();
        let text = paragraph(&list.join("; "));
        assert_eq!(text.lines().count(), LINES);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let shown = text.matches("UDP port").count();
        let (_, end) = text.rsplit_once('\n').expect("more lines than one");
        assert_eq!(end, format!("… and {} more (-o json has all)", 10000 - shown));
        let ports: Vec<String> = (0..1000).map(|port| (20000 + 2 * port).to_string()).collect();
        let ports = ports.join(",");
        assert_eq!(short(&ports), format!("{} … and 990 more (-o json has all)", &ports[..60]));
        assert_eq!(lines(&ports).replace('\n', ""), ports, "nothing is omitted");
    }

    #[test]
    fn wrap_truncates_text_without_spaces_and_non_ascii() {
        let text = paragraph(&"ä".repeat(10000));
        assert_eq!(text.lines().count(), LINES);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(
            text.ends_with(&format!(
                "… and {} more characters (-o json has all)",
                10000 - (LINES - 1) * WIDTH
            ))
        );
        assert_eq!(paragraph("one\ntwo"), "one\ntwo");
    }
}
