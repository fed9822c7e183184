//! The keys and columns on the screen of `portmap top`.

use ratatui::text::Line;

use super::{sort::SortKey, theme::Theme};

const KEYS: [(&str, &str); 9] = [
    ("q, Ctrl-C", "quit"),
    ("Up Down PgUp PgDn Home End", "select a container"),
    ("Enter", "show the selected container: paths, drops, queues, peers"),
    ("/", "filter by a part of the name; Escape removes the filter"),
    ("< >", "sort by another column"),
    ("i", "invert the order"),
    ("Space", "pause the display, or continue"),
    ("b", "rates in bits or in bytes per second"),
    ("Ctrl-Z", "suspend"),
];

const COLUMNS: [(&str, &str); 9] = [
    ("RX, TX", "received and sent per second, without packets to itself"),
    ("UPLINK", "the part of both that is exchanged with the outside"),
    ("LIMIT", "direction and used share of its rate limit; ! it slows it down"),
    ("QUEUE", "bytes that wait for the limit"),
    ("PORTS", "ephemeral ports in use; ! few are free"),
    ("RTT", "half of its connections have at most this round-trip time"),
    ("DROPS", "packets that the programs or the queues drop, per second"),
    ("WHY", "their directions and reasons, the most frequent first"),
    ("RX AND TX", "the history of both"),
];

/// The lines of the help.
pub(super) fn lines(theme: Theme) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let section =
        |lines: &mut Vec<Line<'static>>, title, entries: &mut dyn Iterator<Item = (String, &str)>| {
            lines.push(Line::styled(title, theme.title()));
            lines.extend(entries.map(|(name, text)| Line::from(format!("  {name:<28}{text}"))));
        };
    let named = |(name, text): (&str, &'static str)| (name.to_owned(), text);
    section(&mut lines, "Keys", &mut KEYS.into_iter().map(named));
    let sorts = SortKey::ALL.map(|key| (key.letter().to_string(), key.label()));
    section(&mut lines, "Sort by", &mut sorts.into_iter());
    section(&mut lines, "Columns", &mut COLUMNS.into_iter().map(named));
    lines
}
