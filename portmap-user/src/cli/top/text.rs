//! Numbers, names and sparklines as text of a fixed width. Values only.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::model::labels::is_printable;

/// Steps of a sparkline, from nothing to the largest value.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The same for terminals that show ASCII only.
const ASCII: [char; 9] = [' ', '.', '.', ':', ':', '+', '+', '#', '#'];

/// A number in at most five characters, with a decimal unit.
pub(super) fn short(number: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];

    // A sum of nothing is -0.
    let (mut number, mut unit) = (if number > 0.0 { number } else { 0.0 }, 0);
    // 999.5 would become 1000.
    while number >= 999.5 && unit + 1 < UNITS.len() {
        number /= 1000.0;
        unit += 1;
    }
    let digits = if number >= 99.95 || (unit == 0 && number.fract() == 0.0) {
        0
    } else if number >= 9.995 {
        1
    } else {
        // A small rate is not zero.
        2 - usize::from(unit == 0)
    };
    format!("{number:.digits$}{}", UNITS[unit])
}

/// A share in percent, in at most four characters.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0}%", (share * 100.0).min(999.0))
}

/// The same for a share that may be unknown.
pub(super) fn share(share: Option<f64>) -> String {
    share.map_or_else(|| "?".to_owned(), percent)
}

/// Text in lines of at most `width` columns, which end after a space or a comma where possible.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let (mut lines, mut rest) = (Vec::new(), text);
    while rest.width() > width.max(1) {
        let (mut end, mut used, mut gap) = (0, 0, None);
        for (at, character) in rest.char_indices() {
            used += character.width().unwrap_or_default();
            // At least one character, however narrow the line is.
            if used > width && at > 0 {
                break;
            }
            end = at + character.len_utf8();
            if matches!(character, ' ' | ',') {
                gap = Some(end);
            }
        }
        let (line, others) = rest.split_at(gap.unwrap_or(end));
        lines.push(line.trim_end().to_owned());
        rest = others.trim_start();
    }
    if !rest.is_empty() || lines.is_empty() {
        lines.push(rest.to_owned());
    }
    lines
}

/// Text without characters that control the terminal, change the order of others, or cannot be seen.
pub(super) fn escaped(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for character in text.chars() {
        if is_printable(character) {
            all.push(character);
        } else {
            all.extend(character.escape_default());
        }
    }
    all
}

/// Escaped text in exactly `width` columns of the terminal. Text that is too long ends with `~`. Characters of East
/// Asian scripts are two columns wide.
pub(super) fn padded(text: &str, width: usize) -> String {
    let text = escaped(text);
    let used = text.width();
    let (mut shown, used) = if used <= width {
        (text, used)
    } else {
        let (mut shown, mut used) = (String::new(), 0);
        for character in text.chars() {
            let columns = character.width().unwrap_or_default();
            if used + columns + 1 > width {
                break;
            }
            shown.push(character);
            used += columns;
        }
        if used < width {
            shown.push('~');
            used += 1;
        }
        (shown, used)
    };
    shown.extend(std::iter::repeat_n(' ', width - used));
    shown
}

/// A sparkline of `width` characters, the newest value last. The largest value has the full height.
pub(super) fn sparkline(values: impl Iterator<Item = f64>, width: usize, is_ascii: bool) -> String {
    let values: Vec<f64> = values.collect();
    let values = &values[values.len().saturating_sub(width)..];
    let largest = values.iter().copied().fold(0.0, f64::max);
    let steps = if is_ascii { ASCII } else { BLOCKS };
    let step = |value: &f64| {
        if *value <= 0.0 || largest <= 0.0 {
            return steps[0];
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 1 to 8")]
        let index = (value / largest * 8.0).ceil() as usize;
        steps[index.clamp(1, 8)]
    };
    let line: String = values.iter().map(step).collect();
    format!("{line:>width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_numbers_have_at_most_five_characters() {
        for (number, text) in [
            (0.0, "0"),
            (0.25, "0.2"),
            (7.0, "7"),
            (12.5, "12.5"),
            (999.0, "999"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1000.0, "1.00k"),
            (12_345.0, "12.3k"),
            (123_456.0, "123k"),
            (999_950.0, "1.00M"),
            (1_250_000_000.0, "1.25G"),
            (-1.0, "0"),
            (-0.0, "0"),
        ] {
            assert_eq!(short(number), text, "{number}");
        }
        let mut number = 0.001;
        while number < 1e17 {
            assert!(short(number).len() <= 5, "{}", short(number));
            number *= 1.07;
        }
    }

    #[test]
    fn top_names_cannot_control_the_terminal() {
        assert_eq!(escaped("web-1.a"), "web-1.a");
        assert_eq!(escaped("a\x1b[2Jb\n\u{9b}c"), "a\\u{1b}[2Jb\\n\\u{9b}c");
        assert_eq!(escaped("a\u{202e}b\u{200b}\u{7f}"), "a\\u{202e}b\\u{200b}\\u{7f}");
    }

    #[test]
    fn top_names_fill_their_column_exactly() {
        for (text, width, expected) in [
            ("web", 5, "web  "),
            ("web", 3, "web"),
            ("web-1", 4, "web~"),
            ("日本語", 6, "日本語"),
            ("日本語", 8, "日本語  "),
            ("日本語", 5, "日本~"),
            ("日本語", 4, "日~ "),
            ("\u{1b}", 4, "\\u{~"),
            ("web", 1, "~"),
            ("web", 0, ""),
        ] {
            assert_eq!(padded(text, width), expected, "{text:?} {width}");
        }
    }

    #[test]
    fn top_percents_have_at_most_four_characters() {
        for (number, text) in [(0.0, "0%"), (0.994, "99%"), (1.0, "100%"), (6244.72, "999%")] {
            assert_eq!(percent(number), text, "{number}");
        }
        assert_eq!(share(None), "?");
    }

    #[test]
    fn top_long_texts_are_wrapped() {
        for (text, width, lines) in [
            ("ports 1-9", 9, &["ports 1-9"][..]),
            ("ports 1-9,11,13", 12, &["ports 1-9,", "11,13"]),
            ("label k=xxxxxx", 8, &["label", "k=xxxxxx"]),
            ("xxxxxxx", 3, &["xxx", "xxx", "x"]),
            ("日本語", 4, &["日本", "語"]),
            ("日本", 1, &["日", "本"]),
            ("", 4, &[""]),
        ] {
            assert_eq!(wrapped(text, width), lines, "{text:?} {width}");
        }
    }

    #[test]
    fn top_sparkline_scales_to_its_largest_value() {
        let line = |values: &[f64], width| sparkline(values.iter().copied(), width, false);
        assert_eq!(line(&[0.0, 1.0, 4.0, 8.0], 4), " ▁▄█");
        assert_eq!(line(&[8.0, 8.0], 4), "  ██", "the newest value is at the right");
        assert_eq!(line(&[1.0, 2.0, 2.0], 2), "██", "and the oldest are left out");
        assert_eq!(line(&[0.0, 0.0], 3), "   ");
        assert_eq!(sparkline([1.0, 8.0].into_iter(), 3, true), " .#");
    }
}
