//! The table of all containers on the screen of `portmap top`.

use ratatui::{
    Frame,
    layout::Rect,
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::Paragraph,
};

use super::{
    app::App,
    columns::{Column, Columns},
    sort::SortKey,
    state::{LimitUse, Row},
    text,
    theme::Theme,
};
use crate::{cli::flows, model::PortUse};

/// Draws the rows at these indices, as many as there is space for.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App, order: &[usize], theme: Theme, area: Rect) {
    let height = usize::from(area.height.saturating_sub(1));
    let selected = app.selected_in(order);
    app.fit(order.len(), height, Some(selected));
    let rows = &app.table().rows;
    let longest = order.iter().map(|index| rows[*index].stats.name.chars().count()).max().unwrap_or_default();
    let columns = Columns::new(usize::from(area.width), app.sort, app.table().has_rtt, longest);
    let mut lines = vec![header(app, &columns)];
    for (number, index) in order.iter().enumerate().skip(app.offset).take(height) {
        let line = row_line(app, theme, &rows[*index], &columns);
        let is_selected = number == selected;
        lines.push(if is_selected {
            line.style(Style::new().add_modifier(Modifier::REVERSED))
        } else {
            line
        });
    }
    if order.is_empty() {
        let filter = text::escaped(&app.filter);
        let nothing = if app.filter.is_empty() {
            "no containers: `portmap add` adds one".to_owned()
        } else {
            format!("no container's name contains {filter:?}: Escape removes the filter")
        };
        lines.push(Line::from(nothing));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn header(app: &App, columns: &Columns) -> Line<'static> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let style = |key: SortKey| if app.sort == key { bold.add_modifier(Modifier::UNDERLINED) } else { bold };
    let name = Column::Number(SortKey::Name).title();
    let mut spans = vec![
        Span::styled(name, style(SortKey::Name)),
        " ".repeat(columns.name.saturating_sub(name.len())).into(),
    ];
    for (column, width) in &columns.others {
        let title = column.title();
        let space = " ".repeat(width - title.len() - usize::from(column.is_text()));
        if column.is_text() {
            spans.extend([" ".into(), Span::styled(title, bold), space.into()]);
        } else {
            let Column::Number(key) = column else { continue };
            spans.extend([space.into(), Span::styled(title, style(*key))]);
        }
    }
    Line::from(spans)
}

fn row_line(app: &App, theme: Theme, row: &Row, columns: &Columns) -> Line<'static> {
    // A space after the name, however long it is.
    let mut spans = vec![Span::from(text::padded(&row.stats.name, columns.name.saturating_sub(1)) + " ")];
    for (column, width) in &columns.others {
        let width = *width;
        spans.push(match column {
            Column::Number(key) => {
                let (cell, style) = number(app, theme, row, *key, width);
                Span::styled(format!("{cell:>width$}"), style)
            }
            Column::Why => {
                Span::styled(format!(" {}", text::padded(&why(row, width - 1), width - 1)), theme.alert())
            }
            Column::History => {
                let width = width - 1;
                let (rx, tx) = (row.rx_history.last(width), row.tx_history.last(width));
                let both = rx.zip(tx).map(|(rx, tx)| rx + tx);
                let line = text::sparkline(both, width, theme.is_ascii);
                Span::styled(format!(" {line}"), theme.coloured(Color::Green))
            }
        });
    }
    Line::from(spans)
}

/// The text of a cell and its style. What the style says is in the text, too.
fn number(app: &App, theme: Theme, row: &Row, key: SortKey, width: usize) -> (String, Style) {
    let alert = |is_bad: bool, style: Style| if is_bad { style } else { Style::new() };
    match key {
        SortKey::Name => (String::new(), Style::new()),
        SortKey::Rx => (app.rate(row.rx.bytes), Style::new()),
        SortKey::RxPackets => (text::short(row.rx.packets), Style::new()),
        SortKey::Tx => (app.rate(row.tx.bytes), Style::new()),
        SortKey::TxPackets => (text::short(row.tx.packets), Style::new()),
        SortKey::Uplink => (app.rate(row.uplink.bytes), Style::new()),
        SortKey::Limit => (limit(row), alert(row.is_slowed(), theme.warning())),
        SortKey::Queue => {
            #[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
            let waiting = text::short(row.backlog() as f64);
            (waiting, alert(row.backlog() > 0, theme.warning()))
        }
        SortKey::Ports => (ports(row, width), alert(row.is_short_of_ports(), theme.alert())),
        SortKey::Rtt => {
            (row.rtt().map_or_else(|| "-".to_owned(), |rtt| flows::rtt(rtt.into())), Style::new())
        }
        SortKey::Drops => (text::short(row.drops()), alert(row.drops() > 0.0, theme.alert())),
    }
}

/// The direction and the used share of a limit, with a mark while it slows the container down.
fn limit(row: &Row) -> String {
    let Some(LimitUse { direction, used, slows }) = row.limit() else { return "-".to_owned() };
    let mark = if slows { "!" } else { "" };
    format!("{direction} {}{mark}", text::share(used))
}

/// Ephemeral ports in use and their number if there is space for them, otherwise their share, with a mark if few are
/// free.
fn ports(row: &Row, width: usize) -> String {
    let (Some(PortUse { in_use, total, .. }), Some(used)) = (row.stats.ephemeral_ports, row.ports_used())
    else {
        return "-".to_owned();
    };
    let mark = if row.is_short_of_ports() { "!" } else { "" };
    let numbers = format!("{in_use}/{total}{mark}");
    // The least width is that of a share.
    if width > 6 && numbers.len() < width { numbers } else { format!("{}{mark}", text::percent(used)) }
}

/// The reasons for drops, as many as there is space for, and `+` if there are more.
fn why(row: &Row, width: usize) -> String {
    let mut reasons = row.drop_reasons().into_iter().map(|(reason, _)| reason);
    let mut shown = reasons.next().unwrap_or_default();
    for reason in reasons {
        if shown.len() + 1 + reason.len() > width {
            shown.push_str(if shown.len() < width { "+" } else { "" });
            break;
        }
        shown.extend([" ", reason.as_str()]);
    }
    shown
}
