//! The screen of `portmap top`.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect, Size},
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, Wrap},
};

use super::{
    action::Mode,
    app::App,
    detail, help,
    state::{Rate, Row},
    table, text,
    theme::Theme,
};

/// The smallest terminal: below it there is no space for the important columns.
const LEAST: Size = Size { width: 40, height: 8 };

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App, theme: Theme) {
    let Rect { width, height, .. } = frame.area();
    if width < LEAST.width || height < LEAST.height {
        let Size { width: columns, height: lines } = LEAST;
        let small = format!("too small: {width}x{height}, needs {columns}x{lines} (q quits)");
        frame.render_widget(Paragraph::new(small).wrap(Wrap { trim: true }), frame.area());
        return;
    }
    let order = app.order();
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(3),
        Constraint::Fill(1),
        Constraint::Length(1),
    ]);
    let [title, totals, body, footer] = areas.areas(frame.area());
    frame.render_widget(title_line(app, order.len(), theme), title);
    draw_totals(frame, app, theme, totals);
    match app.mode {
        Mode::Table | Mode::Filter => table::draw(frame, app, &order, theme, body),
        Mode::Detail => {
            let lines = detail::lines(app, theme, usize::from(body.width));
            draw_text(frame, app, lines, body);
        }
        Mode::Help => draw_text(frame, app, help::lines(theme), body),
    }
    frame.render_widget(footer_line(app, theme), footer);
}

fn title_line(app: &App, shown: usize, theme: Theme) -> Line<'static> {
    let table = app.table();
    let all = table.rows.len();
    let containers = if app.filter.is_empty() {
        format!("{all} containers")
    } else {
        format!("{shown} of {all} containers")
    };
    let interval = table
        .interval
        .map_or_else(|| "reading".to_owned(), |interval| format!("{:.1} s", interval.as_secs_f64()));
    let order = if app.is_inverted { ", inverted" } else { "" };
    let mut spans = vec![Span::styled("portmap top", theme.title())];
    // First, because a narrow terminal has no space for all.
    if app.is_paused() {
        spans.push(Span::styled("  PAUSED", theme.warning().add_modifier(Modifier::BOLD)));
    }
    spans.push(format!("  {containers}  {interval}  {}  by {}{order}", app.unit(), app.sort.label()).into());
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
        "host   {:>5} pkt/s by uplink  {:>5} pkt/s by lo  drops {:>5}/s {}",
        passed("uplink"),
        passed("lo"),
        text::short(table.host.drops),
        text::escaped(table.host.reason.as_deref().unwrap_or_default()),
    );
    let count = |is_concerned: fn(&Row) -> bool| table.rows.iter().filter(|row| is_concerned(row)).count();
    let [losing, slowed, short] =
        [count(|row| row.drops() > 0.0), count(Row::is_slowed), count(Row::is_short_of_ports)];
    let watch = format!("now    {losing} with drops  {slowed} slowed by limits  {short} short of ports");
    let style = |is_bad: bool| if is_bad { theme.alert() } else { Style::new() };
    let lines = vec![
        Line::styled(all, style(drops > 0.0)),
        Line::styled(host, style(table.host.drops > 0.0)),
        Line::styled(watch, style(losing + slowed + short > 0)),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

/// Text that scrolls.
fn draw_text(frame: &mut Frame<'_>, app: &mut App, lines: Vec<Line<'static>>, area: Rect) {
    let height = usize::from(area.height);
    app.fit(lines.len(), height, None);
    let visible: Vec<Line<'_>> = lines.into_iter().skip(app.offset).take(height).collect();
    frame.render_widget(Paragraph::new(visible), area);
}

fn footer_line(app: &App, theme: Theme) -> Line<'static> {
    // The filter that the user types is more important.
    if let Some(trouble) = &app.trouble
        && app.mode != Mode::Filter
    {
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

#[cfg(test)]
mod tests;
