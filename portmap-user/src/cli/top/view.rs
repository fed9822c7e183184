//! The screen of `portmap top`.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
};

use super::{
    action::Mode,
    app::App,
    detail,
    sort::SortKey,
    state::{Rate, Row},
    text,
    theme::Theme,
};

/// A column: its title, its width, and the key that sorts by it.
struct Column {
    title: &'static str,
    width: usize,
    key: Option<SortKey>,
}

const fn column(title: &'static str, width: usize, key: SortKey) -> Column {
    Column { title, width, key: Some(key) }
}

/// The columns between the name and the sparkline. With a name of [`NAME`] characters and a sparkline of
/// [`SPARKLINE`] they fill 80 characters.
const COLUMNS: [Column; 8] = [
    column("RX", 6, SortKey::Rx),
    column("PKT/S", 6, SortKey::RxPackets),
    column("TX", 6, SortKey::Tx),
    column("PKT/S", 6, SortKey::TxPackets),
    column("UPLINK", 7, SortKey::Uplink),
    column("DROP/S", 7, SortKey::Drops),
    column("LIMIT", 6, SortKey::Limit),
    column("QUEUE", 6, SortKey::Queue),
];
/// Least width of the name, and of the sparkline.
const NAME: usize = 14;
const SPARKLINE: usize = 16;

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App, theme: Theme) {
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Fill(1),
        Constraint::Length(1),
    ]);
    let [title, totals, body, footer] = areas.areas(frame.area());
    frame.render_widget(title_line(app, theme), title);
    draw_totals(frame, app, theme, totals);
    match app.mode {
        Mode::Table | Mode::Filter => draw_table(frame, app, theme, body),
        Mode::Detail => {
            let lines = detail::lines(app, theme, usize::from(body.width));
            draw_text(frame, app, lines, body);
        }
        Mode::Help => draw_text(frame, app, help(theme), body),
    }
    frame.render_widget(footer_line(app, theme), footer);
}

fn title_line(app: &App, theme: Theme) -> Line<'static> {
    let table = app.table();
    let all = table.rows.len();
    let shown = app.rows().len();
    let containers = if app.filter.is_empty() {
        format!("{all} containers")
    } else {
        format!("{shown} of {all} containers")
    };
    let interval = table
        .interval
        .map_or_else(|| "reading …".to_owned(), |interval| format!("{:.1} s", interval.as_secs_f64()));
    let order = if app.is_inverted { ", inverted" } else { "" };
    let mut spans = vec![
        Span::styled("portmap top", theme.title()),
        format!("  {containers}  {interval}  {}  by {}{order}", app.unit(), app.sort.label()).into(),
    ];
    if app.is_paused() {
        spans.push(Span::styled("  PAUSED", theme.warning().add_modifier(Modifier::BOLD)));
    }
    Line::from(spans)
}

/// All containers together, and the host.
fn draw_totals(frame: &mut Frame<'_>, app: &App, theme: Theme, area: Rect) {
    let table = app.table();
    let sum = |of: fn(&Row) -> Rate| {
        let rates = table.rows.iter().map(of);
        rates.fold(Rate::default(), |sum, rate| Rate {
            packets: sum.packets + rate.packets,
            bytes: sum.bytes + rate.bytes,
        })
    };
    let [rx, tx, uplink] = [sum(|row| row.rx), sum(|row| row.tx), sum(|row| row.uplink)];
    let drops: f64 = table.rows.iter().map(Row::drops).sum();
    let rate = |rate: Rate| app.rate(rate.bytes);
    let all = format!(
        "all    rx {:>5} {:>5} pkt/s  tx {:>5} {:>5} pkt/s  uplink {:>5}  drops {:>5}/s",
        rate(rx),
        text::short(rx.packets),
        rate(tx),
        text::short(tx.packets),
        rate(uplink),
        text::short(drops),
    );
    let passed = |hook: &str| text::short(table.host.passed.get(hook).copied().unwrap_or_default());
    let host = format!(
        "host   {:>5} pkt/s from the uplink  {:>5} pkt/s by lo  dropped {:>5}/s",
        passed("uplink"),
        passed("lo"),
        text::short(table.host.drops),
    );
    let style = |drops: f64| if drops > 0.0 { theme.alert() } else { Style::new() };
    let lines = vec![Line::styled(all, style(drops)), Line::styled(host, style(table.host.drops))];
    frame.render_widget(ratatui::widgets::Paragraph::new(lines), area);
}

fn draw_table(frame: &mut Frame<'_>, app: &mut App, theme: Theme, area: Rect) {
    let height = usize::from(area.height.saturating_sub(1));
    let width = usize::from(area.width);
    let fixed: usize = COLUMNS.iter().map(|column| column.width).sum();
    let free = width.saturating_sub(fixed + NAME + SPARKLINE);
    // Half of the additional space of a wide terminal is for names.
    let name = NAME + free / 2;
    let sparkline = width.saturating_sub(fixed + name + 1);
    let (count, selected) = {
        let rows = app.rows();
        (rows.len(), app.selected_in(&rows))
    };
    app.fit(count, height, Some(selected));
    let rows = app.rows();
    let mut lines = vec![header(app, name)];
    let visible = rows.iter().enumerate().skip(app.offset).take(height);
    lines.extend(visible.map(|(number, row)| {
        let line = row_line(app, theme, row, name, sparkline);
        if number == selected { line.style(Style::new().add_modifier(Modifier::REVERSED)) } else { line }
    }));
    if count == 0 {
        let filter = text::escaped(&app.filter);
        let nothing = if app.filter.is_empty() {
            "no containers: `portmap add` adds one".to_owned()
        } else {
            format!("no container's name contains {filter:?}: Escape removes the filter")
        };
        lines.push(Line::from(nothing));
    }
    frame.render_widget(ratatui::widgets::Paragraph::new(lines), area);
}

fn header(app: &App, name: usize) -> Line<'static> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let style = |key: SortKey| if app.sort == key { bold.add_modifier(Modifier::UNDERLINED) } else { bold };
    let mut spans = vec![Span::styled("NAME", style(SortKey::Name)), " ".repeat(name - 4).into()];
    for Column { title, width, key } in &COLUMNS {
        spans.push(" ".repeat(width - title.len()).into());
        spans.push(Span::styled(*title, key.map_or(bold, style)));
    }
    spans.push(Span::styled(" RX AND TX", bold));
    Line::from(spans)
}

fn row_line(app: &App, theme: Theme, row: &Row, name: usize, sparkline: usize) -> Line<'static> {
    let drops = row.drops();
    let limit = row.limit_used().map_or_else(|| "-".to_owned(), text::percent);
    let alert = |is_bad: bool, style: Style| if is_bad { style } else { Style::new() };
    let cells = [
        (app.rate(row.rx.bytes), Style::new()),
        (text::short(row.rx.packets), Style::new()),
        (app.rate(row.tx.bytes), Style::new()),
        (text::short(row.tx.packets), Style::new()),
        (app.rate(row.uplink.bytes), Style::new()),
        (text::short(drops), alert(drops > 0.0, theme.alert())),
        (limit, alert(row.is_delayed(), theme.warning())),
        (queue(row), alert(row.backlog() > 0, theme.warning())),
    ];
    let mut spans = vec![Span::from(padded(&text::escaped(&row.stats.name), name))];
    for (Column { width, .. }, (cell, style)) in COLUMNS.iter().zip(cells) {
        spans.push(Span::styled(format!("{cell:>width$}"), style));
    }
    let both = row.rx_history.last(sparkline).zip(row.tx_history.last(sparkline)).map(|(rx, tx)| rx + tx);
    spans.push(Span::styled(
        format!(" {}", text::sparkline(both, sparkline, theme.is_ascii)),
        theme.coloured(Color::Green),
    ));
    Line::from(spans)
}

/// Bytes that wait, with a mark while the limit delays packets.
fn queue(row: &Row) -> String {
    #[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
    let waiting = row.backlog() as f64;
    text::short(waiting)
}

/// A name in exactly `width` columns.
fn padded(name: &str, width: usize) -> String {
    let shown: String = if name.chars().count() < width {
        name.to_owned()
    } else {
        name.chars().take(width.saturating_sub(2)).chain(['~']).collect()
    };
    format!("{shown:<width$}")
}

/// Text that scrolls.
fn draw_text(frame: &mut Frame<'_>, app: &mut App, lines: Vec<Line<'static>>, area: Rect) {
    let height = usize::from(area.height);
    app.fit(lines.len(), height, None);
    let visible: Vec<Line<'_>> = lines.into_iter().skip(app.offset).take(height).collect();
    frame.render_widget(ratatui::widgets::Paragraph::new(visible), area);
}

fn footer_line(app: &App, theme: Theme) -> Line<'static> {
    if let Some(trouble) = &app.trouble {
        return Line::styled(format!("no data: {}", text::escaped(trouble)), theme.alert());
    }
    match app.mode {
        Mode::Filter => {
            Line::from(format!("filter: {}_   Enter keeps it, Escape removes it", text::escaped(&app.filter)))
        }
        Mode::Table if !app.filter.is_empty() => {
            Line::from(format!("filter: {}   Escape removes it", text::escaped(&app.filter)))
        }
        Mode::Table => Line::from("q quit  ? keys  / filter  < > sort  i invert  Space pause  Enter detail"),
        Mode::Detail | Mode::Help => Line::from("Escape back  Up Down scroll  Space pause  b bits or bytes"),
    }
}

fn help(theme: Theme) -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled("Keys", theme.title())];
    let keys = [
        ("q, Ctrl-C", "quit"),
        ("Up Down PgUp PgDn Home End", "select a container"),
        ("Enter", "show the selected container: paths, drops, queues"),
        ("/", "filter by a part of the name; Escape removes the filter"),
        ("< >", "sort by the column to the left or to the right"),
        ("i", "invert the order"),
        ("Space", "pause the display, or continue"),
        ("b", "rates in bits or in bytes per second"),
        ("Ctrl-Z", "suspend"),
    ];
    lines.extend(keys.map(|(key, effect)| Line::from(format!("  {key:<28}{effect}"))));
    lines.push(Line::default());
    lines.push(Line::styled("Sort by", theme.title()));
    lines.extend(
        SortKey::ALL.map(|key| Line::from(format!("  {:<28}{}", key.letter().to_string(), key.label()))),
    );
    lines.push(Line::default());
    lines.push(Line::styled("Columns", theme.title()));
    let columns = [
        ("RX, TX", "received and sent, without packets to itself"),
        ("UPLINK", "the part of both that is exchanged with the outside"),
        ("DROP/S", "packets that the programs or the queues drop, per second"),
        ("LIMIT", "the share of its rate limit that a container uses"),
        ("QUEUE", "bytes that wait for the limit"),
    ];
    lines.extend(columns.map(|(column, meaning)| Line::from(format!("  {column:<28}{meaning}"))));
    lines
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::cli::top::{
        action::Action,
        state::tests::{reading, stats},
    };

    const PLAIN: Theme = Theme { has_colour: false, is_ascii: true };

    /// The screen of an app, line by line.
    fn screen(app: &mut App, width: u16, height: u16, theme: Theme) -> (Vec<String>, bool) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, app, theme)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let lines = buffer.content.chunks(usize::from(width));
        let text = |line: &[ratatui::buffer::Cell]| line.iter().map(ratatui::buffer::Cell::symbol).collect();
        let has_colour = buffer.content.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        (lines.map(text).collect(), has_colour)
    }

    /// An app that has read the counters of so many containers twice.
    fn app(count: u64) -> App {
        let (mut app, start) = (App::new(), Instant::now());
        for second in 0..2 {
            let containers = (0..count).map(|n| stats(&format!("job-{n}"), second * n * 1000, second * n));
            let at = start + Duration::from_secs(second);
            app.read(Ok(reading(at, containers.collect())));
        }
        app
    }

    #[test]
    fn top_shows_1000_containers_on_80_by_24() {
        let mut app = app(1000);
        let (lines, _) = screen(&mut app, 80, 24, PLAIN);
        assert!(lines[0].starts_with("portmap top  1000 containers  1.0 s  bit/s  by sent"), "{}", lines[0]);
        assert!(lines[3].starts_with("NAME              RX PKT/S"), "{}", lines[3]);
        assert!(lines[4].starts_with("job-999        7.99M 9.99k 7.99k"), "{}", lines[4]);
        assert!(lines[22].starts_with("job-981 "), "{}", lines[22]);
        app.act(Action::Last);
        let (lines, _) = screen(&mut app, 80, 24, PLAIN);
        assert!(lines[22].starts_with("job-0 "), "the last one: {}", lines[22]);
        app.act(Action::Page(-1));
        let (lines, _) = screen(&mut app, 80, 24, PLAIN);
        assert!(lines[4].starts_with("job-19 "), "{}", lines[4]);
    }

    /// No size of a window may stop the view.
    #[test]
    fn top_fits_every_size() {
        for (width, height) in [(1, 1), (20, 5), (79, 24), (300, 90), (80, 3)] {
            let mut app = app(3);
            for action in [Action::Move(1), Action::Help, Action::Back, Action::Open, Action::Last] {
                app.act(action);
                screen(&mut app, width, height, Theme { has_colour: true, is_ascii: false });
            }
        }
    }

    #[test]
    fn top_without_colour_has_none() {
        let mut app = app(3);
        app.read(Err("no daemon".to_owned()));
        assert!(!screen(&mut app, 80, 24, PLAIN).1);
        assert!(screen(&mut app, 80, 24, Theme { has_colour: true, ..PLAIN }).1);
    }

    #[test]
    fn top_names_are_escaped() {
        let (mut app, start) = (App::new(), Instant::now());
        app.read(Ok(reading(start, vec![stats("a\x1b[2J", 1, 1)])));
        let (lines, _) = screen(&mut app, 80, 24, PLAIN);
        assert!(lines[4].starts_with("a\\u{1b}[2J "), "{}", lines[4]);
    }
}
