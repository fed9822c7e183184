//! Numbers, names and sparklines as text of a fixed width. Values only.

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

/// A share in percent.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// A name without characters that control the terminal.
pub(super) fn escaped(name: &str) -> String {
    name.chars()
        .flat_map(|character| {
            let is_control = character.is_control();
            let (escape, plain) = (character.escape_default(), character);
            let escaped = is_control.then_some(escape).into_iter().flatten();
            escaped.chain((!is_control).then_some(plain))
        })
        .collect()
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
