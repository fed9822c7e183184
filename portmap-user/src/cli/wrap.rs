//! Text that fits into the cells of a table, and a table that fits onto a screen. All of it takes time that grows with the
//! text's length, no faster.

use std::borrow::Cow;

/// Characters of a line of a cell.
const WIDTH: usize = 160;
/// Lines of a cell; `-o json` has the rest.
const LINES: usize = 6;
/// Characters of a cell that is to be one line.
const SHORT: usize = 64;

/// A cell's text in one line: what is too long is cut where an item of a list ends.
pub(super) fn short(text: &str) -> Cow<'_, str> {
    if text.chars().nth(SHORT).is_none() {
        return text.into();
    }
    let (begin, rest) = split(text, SHORT);
    format!("{begin} {}", and_more(rest)).into()
}

/// A cell's text in as many lines as it takes.
pub(super) fn lines(text: &str) -> String {
    broken(text, usize::MAX)
}

/// A cell's text in a few lines, the last of which says how much is left out.
pub(super) fn paragraph(text: &str) -> String {
    broken(text, LINES)
}

fn broken(text: &str, most: usize) -> String {
    // Errors of other programs, such as the kernel's verifier, have more lines than one.
    let mut lines = Vec::new();
    'text: for line in text.lines() {
        let mut rest = line;
        while rest.chars().nth(WIDTH).is_some() {
            if lines.len() + 1 >= most {
                break 'text;
            }
            let (begin, after) = split(rest, WIDTH);
            lines.push(begin.to_owned());
            rest = after;
        }
        if lines.len() >= most {
            break;
        }
        lines.push(rest.to_owned());
    }
    // Everything but white space at the ends of lines.
    let kept: usize =
        lines.iter().map(|line| line.chars().filter(|char| !char.is_whitespace()).count()).sum();
    let mut left = text.char_indices().filter(|(_, char)| !char.is_whitespace()).skip(kept);
    if let Some((at, _)) = left.next() {
        lines.push(and_more(&text[at..]));
    }
    lines.join("\n")
}

/// Cuts text after at most so many characters: after a comma or semicolon if there is one late enough, else at a space.
fn split(text: &str, width: usize) -> (&str, &str) {
    let end = text.char_indices().nth(width).map_or(text.len(), |(end, _)| end);
    let begin = &text[..end];
    let after = |found: Option<usize>| found.map(|at| at + 1).filter(|at| *at > end / 2);
    let at =
        after(begin.rfind([',', ';'])).or_else(|| after(begin.rfind(char::is_whitespace))).unwrap_or(end);
    // White space may be longer than a byte.
    let at = (at..=end).find(|at| text.is_char_boundary(*at)).unwrap_or(end);
    (text[..at].trim_end(), text[at..].trim_start())
}

/// How much is left out, in items if it is a list.
fn and_more(rest: &str) -> String {
    let separator = if rest.contains("; ") { "; " } else { "," };
    let items = rest.split(separator).filter(|item| !item.trim().is_empty()).count();
    if items > 1 {
        format!("… and {items} more (-o json has all)")
    } else {
        format!("… and {} more characters (-o json has all)", rest.chars().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_as_it_was() {
        for text in ["", "short", &"x".repeat(SHORT)] {
            assert_eq!(short(text), text);
            assert_eq!(paragraph(text), text);
        }
        let message = "the queue of eth0 that limits it is gone: run `portmap update web` to put it back; what it sends \
                       faster than its limit is dropped at the host";
        assert_eq!(paragraph(message), message);
    }

    #[test]
    fn lists_are_cut_between_items_and_counted() {
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
        assert_eq!(lines(&ports).replace('\n', ""), ports, "nothing is left out");
    }

    #[test]
    fn what_has_no_gaps_and_what_is_no_ascii_is_cut_as_well() {
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
