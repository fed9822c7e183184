//! One container on the screen of `portmap top`: paths, drops, queues.

use std::time::Duration;

use ratatui::{
    style::{Modifier, Style},
    text::Line,
};

use super::{
    app::App,
    queue::Queue,
    state::{DropRates, History, Row},
    text,
    theme::Theme,
};
use crate::{
    api::Reasons,
    cli::flows,
    model::{PortSet, PortUse},
    sizes,
};

/// Width of the text beside a sparkline.
const LABEL: usize = 18;
/// Age from which on the detail states that of a reading.
const OLD: Duration = Duration::from_secs(5);

/// The lines of the selected container.
pub(super) fn lines(app: &App, theme: Theme, width: usize) -> Vec<Line<'static>> {
    let Some(row) = app.detail() else {
        let name = text::escaped(app.selected());
        return vec![Line::styled(
            format!("{name} has been removed: Escape shows the others"),
            theme.alert(),
        )];
    };
    let mut lines = vec![Line::styled(text::escaped(&row.stats.name), theme.title())];
    if let Some(container) = &row.container {
        lines.push(Line::from(format!(
            "slot {}  {}  state {}  ports {}  ephemeral {}",
            container.slot,
            container.host_veth,
            container.state.name(),
            ports(&container.ports),
            container.ephemeral_ports,
        )));
        if !container.draining_ports.is_empty() {
            lines.push(Line::from(format!("draining ports {}", container.draining_ports)));
        }
        let labels = container.labels.iter().map(|(key, value)| format!("{key}={value}"));
        lines.extend(labels.map(|label| Line::from(format!("label {}", text::escaped(&label)))));
    }
    if let Some(PortUse { in_use, total, peak, exhausted }) = row.stats.ephemeral_ports {
        let short = if row.is_short_of_ports() { ": few are free!" } else { "" };
        let none = if exhausted > 0 { format!(", none free in {exhausted} readings") } else { String::new() };
        let line = format!("ephemeral ports: {in_use} of {total} in use, at most {peak}{none}{short}");
        let style = if row.is_short_of_ports() { theme.alert() } else { Style::new() };
        lines.push(Line::styled(line, style));
    }
    if let Some(rtt) = row.stats.rtt_us {
        let [p50, p90, p95, p99] = [rtt.p50, rtt.p90, rtt.p95, rtt.p99].map(|rtt| flows::rtt(rtt.into()));
        lines.push(Line::from(format!("round-trip times: p50 {p50}  p90 {p90}  p95 {p95}  p99 {p99}")));
    }
    if let Some(age) = row.stats.read_age_ms.map(Duration::from_millis).filter(|age| *age >= OLD) {
        let line = format!("ports, queues and round-trip times are {:.0} s old", age.as_secs_f64());
        lines.push(Line::styled(line, theme.warning()));
    }
    for (name, rate, history) in [("received", row.rx, &row.rx_history), ("sent", row.tx, &row.tx_history)] {
        let label = format!("{name:<9}{:>6}", app.rate(rate.bytes));
        lines.push(Line::from(format!("{label:<LABEL$}{}", sparkline(history, width, theme))));
    }
    lines.push(Line::default());
    paths(app, row, &mut lines);
    drops(row, theme, &mut lines);
    queues(app, row, theme, &mut lines);
    talkers(app, &mut lines);
    lines.into_iter().flat_map(|line| wrapped(line, width)).collect()
}

/// The lines of one that is too long for the terminal, because nothing scrolls to the right.
fn wrapped(line: Line<'static>, width: usize) -> Vec<Line<'static>> {
    if line.width() <= width {
        return vec![line];
    }
    let style = line.style;
    text::wrapped(&line.to_string(), width).into_iter().map(|part| Line::styled(part, style)).collect()
}

fn ports(ports: &PortSet) -> String {
    if ports.is_empty() { "-".to_owned() } else { ports.to_string() }
}

fn sparkline(history: &History, width: usize, theme: Theme) -> String {
    let width = width.saturating_sub(LABEL);
    text::sparkline(history.last(width), width, theme.is_ascii)
}

fn heading(text: String) -> Line<'static> {
    Line::styled(text, Style::new().add_modifier(Modifier::BOLD))
}

fn paths(app: &App, row: &Row, lines: &mut Vec<Line<'static>>) {
    let title = format!("{:<24}{:>8}{:>9}{:>16}{:>20}", "PATH", app.unit(), "PKT/S", "PACKETS", "BYTES");
    lines.push(heading(title));
    // The others would fill a small screen with zeros.
    let used = row.stats.traffic.iter().filter(|(_, total)| total.packets > 0);
    for (path, total) in used {
        let rate = row.paths.get(path).copied().unwrap_or_default();
        lines.push(Line::from(format!(
            "{path:<24}{:>8}{:>9}{:>16}{:>20}",
            app.rate(rate.bytes),
            text::short(rate.packets),
            total.packets,
            total.bytes,
        )));
    }
}

fn drops(row: &Row, theme: Theme, lines: &mut Vec<Line<'static>>) {
    let all: [(&str, &Reasons, &DropRates); 2] =
        [("rx", &row.stats.drops.rx, &row.rx_drops), ("tx", &row.stats.drops.tx, &row.tx_drops)];
    if all.iter().all(|(_, reasons, _)| reasons.is_empty()) {
        lines.push(Line::from("no packets were dropped by the programs"));
        return;
    }
    lines.push(heading(format!("{:<32}{:>9}{:>16}", "DROPPED", "PKT/S", "PACKETS")));
    for (direction, reasons, rates) in all {
        for (reason, packets) in reasons {
            let rate = rates.get(reason).copied().unwrap_or_default();
            let line =
                format!("{:<32}{:>9}{packets:>16}", format!("{direction}: {reason}"), text::short(rate));
            let style = if rate > 0.0 { theme.alert() } else { Style::new() };
            lines.push(Line::styled(line, style));
        }
    }
}

fn queues(app: &App, row: &Row, theme: Theme, lines: &mut Vec<Line<'static>>) {
    let both = [("sends", &row.queues.egress), ("receives", &row.queues.ingress)];
    if both.iter().all(|(_, queue)| queue.limit.is_none()) {
        lines.push(Line::from("no rate limits"));
        return;
    }
    lines.push(heading(format!(
        "{:<10}{:>15}{:>7}{:>12}{:>10}{:>12}",
        "LIMIT", "RATE", "USED", "WAITING B", "DROP/S", "DELAYED/S"
    )));
    for (name, queue) in both {
        let Queue { limit: Some(limit), used, backlog, drops, overlimits } = queue else { continue };
        let rate = if app.in_bytes { format!("{limit} B/s") } else { sizes::rate(*limit) };
        let line = format!(
            "{name:<10}{rate:>15}{:>7}{backlog:>12}{:>10}{:>12}",
            text::share(*used),
            text::short(*drops),
            text::short(*overlimits),
        );
        lines.push(Line::styled(line, if *overlimits > 0.0 { theme.warning() } else { Style::new() }));
    }
    if row.is_policed() {
        let line = "the host drops the excess that it sends, because its own queue does not hold the limit: see \
                    `portmap doctor`";
        lines.push(Line::styled(line, theme.alert()));
    }
}

/// The largest flows.
fn talkers(app: &App, lines: &mut Vec<Line<'static>>) {
    if let Some(trouble) = &app.flows_trouble {
        lines.extend([Line::default(), Line::from(format!("no flows: {}", text::escaped(trouble)))]);
    }
    let Some(flows) = app.flows() else { return };
    // Short numbers leave space for the others on a narrow terminal.
    #[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
    let text = flows::text_with(flows, |bytes| text::short(bytes as f64));
    let mut text = text.lines().map(|line| text::escaped(line.trim_end()));
    lines.push(Line::default());
    if flows.flows.is_empty() {
        lines.extend(text.map(Line::from));
    } else {
        lines.extend(text.next().map(heading));
        lines.extend(text.map(Line::from));
    }
}
