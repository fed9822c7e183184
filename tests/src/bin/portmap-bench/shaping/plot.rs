//! The figures: deviations of rates, and round-trip times.

use std::path::Path;

use anyhow::Result;
use plotters::{coord::Shift, prelude::*, style::text_anchor::HPos};

use super::{
    Findings,
    latency::{Finding, Scenario},
    rates,
    traffic::Transport,
};
use crate::{
    canvas::{
        BLUE, Drawn, FAINT, FONT, Figure, HEADING, INK, ORANGE, SKY, VERMILION, WIDTH, bold_style, heading,
        text_style,
    },
    text::{grouped, number},
};

/// The goal for rates.
const BAND: RGBColor = RGBColor(236, 240, 244);
/// Space for a legend.
const LEGEND: u32 = 30;

/// Draws both as SVG and PNG.
pub(crate) fn draw(directory: &Path, findings: &[Findings]) -> Result<()> {
    let panels = u32::try_from(findings.len())?;
    let rates = Figure { name: "rates", height: HEADING + LEGEND + 230 * panels };
    rates.draw(directory, |area| draw_rates(area, findings), |area| draw_rates(area, findings))?;
    let latency = Figure { name: "latency", height: u32::try_from(latency_bottom(findings))? + 56 };
    latency.draw(directory, |area| draw_latency(area, findings), |area| draw_latency(area, findings))
}

/// One line of points for each kind of traffic. Points of several flows are hollow.
const KINDS: [(Transport, u16, RGBColor); 4] = [
    (Transport::Tcp, 1, BLUE),
    (Transport::Tcp, 16, SKY),
    (Transport::Udp, 1, VERMILION),
    (Transport::Udp, 16, ORANGE),
];

fn point<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    at: (i32, i32),
    color: RGBColor,
    is_hollow: bool,
) -> Drawn<B> {
    area.draw(&Circle::new(at, 5, color.filled()))?;
    if is_hollow { area.draw(&Circle::new(at, 3, WHITE.filled())) } else { Ok(()) }
}

#[expect(clippy::cast_precision_loss, reason = "limits are round numbers")]
fn megabits(limit: u64) -> f64 {
    limit as f64 / 1e6
}

fn draw_rates<B: DrawingBackend>(area: &DrawingArea<B, Shift>, findings: &[Findings]) -> Drawn<B> {
    const MOST: f64 = 2.5;
    let all = || findings.iter().flat_map(|one| &one.rates);
    let worst = all().filter_map(rates::Finding::error).map(f64::abs).fold(0.0, f64::max);
    // Rounded up, so that the title is true.
    let worst = (worst * 10.0).ceil() / 10.0;
    let limits = || all().filter_map(|finding| finding.limit).map(megabits);
    let title = format!(
        "Limits from {} to {} Mbit/s are kept within {worst:.1} %",
        grouped(limits().fold(f64::INFINITY, f64::min)),
        grouped(limits().fold(0.0, f64::max)),
    );
    heading(
        area,
        &title,
        "Throughput outside of a container that sends at full speed; shaded: the goal, ±2 %",
    )?;
    let (head, below) = area.split_vertically(HEADING + LEGEND);
    for ((transport, flows, color), x) in KINDS.into_iter().zip((92..).step_by(150)) {
        let y = i32::try_from(HEADING).unwrap_or_default() + 10;
        point(&head, (x, y), color, flows > 1)?;
        let name = format!("{}, {flows} flow{}", transport.name(), if flows == 1 { "" } else { "s" });
        head.draw_text(&name, &text_style(HPos::Left, 13, INK), (x + 12, y))?;
    }
    for (panel, one) in below.split_evenly((findings.len(), 1)).iter().zip(findings) {
        let mut chart = ChartBuilder::on(panel)
            .margin(8)
            .margin_right(24)
            .caption(kernel(one), (FONT, 14).into_font().color(&INK))
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((0.7..8000.0_f64).log_scale(), -MOST..MOST)?;
        chart.draw_series([Rectangle::new([(0.7, -2.0), (8000.0, 2.0)], BAND.filled())])?;
        chart
            .configure_mesh()
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .y_labels(5)
            .x_label_formatter(&|value| number(*value).trim_end_matches(".0").to_owned())
            .y_label_formatter(&|value| format!("{value:+.0}"))
            .x_desc("limit, Mbit/s (log scale)")
            .y_desc("deviation, %")
            .axis_desc_style((FONT, 14).into_font().color(&INK))
            .label_style((FONT, 13).into_font().color(&INK))
            .draw()?;
        for (transport, flows, color) in KINDS {
            let of_kind =
                one.rates.iter().filter(|finding| (finding.transport, finding.flows) == (transport, flows));
            let points: Vec<(f64, f64)> = of_kind
                .filter_map(|finding| Some((megabits(finding.limit?), finding.error()?.clamp(-MOST, MOST))))
                .collect();
            chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?;
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 5, color.filled())))?;
            if flows > 1 {
                chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, WHITE.filled())))?;
            }
        }
    }
    area.present()
}

/// The kernel, and whether its machine is emulated.
fn kernel(findings: &Findings) -> String {
    let emulated = if findings.machine.is_emulated() { ", emulated machine" } else { "" };
    format!("Linux {}{emulated}", findings.machine.kernel)
}

/// Left and right end of the time axis.
const AXIS: (i32, i32) = (230, 776);
/// The first kernel's name.
const TOP: i32 = HEADING.cast_signed() + 44;
const ROW: i32 = 30;

/// The scenarios of a kernel, each with the round trips from another container and from the same one.
fn rows(findings: &Findings) -> impl Iterator<Item = (Scenario, Vec<&Finding>)> {
    Scenario::ALL.into_iter().filter_map(|scenario| {
        let row: Vec<_> = findings.latency.iter().filter(|finding| finding.scenario == scenario).collect();
        (!row.is_empty()).then_some((scenario, row))
    })
}

/// Where the rows end and the axis is.
fn latency_bottom(findings: &[Findings]) -> i32 {
    findings.iter().fold(TOP, |y, one| rows(one).fold(y + ROW, |y, _| y + ROW)) - ROW / 2
}

/// Draws a bar from the median to the 99th percentile of each scenario, on a logarithmic axis.
fn draw_latency<B: DrawingBackend>(area: &DrawingArea<B, Shift>, findings: &[Findings]) -> Drawn<B> {
    let title = isolation(findings).map_or_else(
        || "Round trips while a container saturates the link".to_owned(),
        |times| {
            format!("Limiting a container cuts its neighbours' median round trip {}-fold", grouped(times))
        },
    );
    heading(
        area,
        &title,
        "Round trips of one byte while a container saturates the link: from the median (dot) to the 99th percentile",
    )?;
    let legend_y = TOP - 36;
    for (x, color, name) in
        [(AXIS.0, BLUE, "from another container"), (AXIS.0 + 210, VERMILION, "from the same container")]
    {
        point(area, (x, legend_y), color, color == VERMILION)?;
        area.draw_text(name, &text_style(HPos::Left, 13, INK), (x + 12, legend_y))?;
    }
    let bottom = latency_bottom(findings);
    let x = time_axis(area, findings, bottom)?;
    let mut y = TOP;
    for one in findings {
        let link = format!("{}, link of {} Mbit/s", kernel(one), grouped(megabits(one.link)));
        area.draw(&Rectangle::new(
            [(0, y - 12), (i32::try_from(WIDTH).unwrap_or(i32::MAX), y + 12)],
            WHITE.filled(),
        ))?;
        area.draw_text(&link, &bold_style(13, INK), (16, y))?;
        y += ROW;
        for (scenario, row) in rows(one) {
            area.draw_text(scenario.name(), &text_style(HPos::Left, 13, INK), (28, y))?;
            for finding in row {
                let (color, at) = if finding.is_same { (VERMILION, y + 6) } else { (BLUE, y - 6) };
                let (from, to) = (x(finding.median), x(finding.p99));
                area.draw(&PathElement::new([(from, at), (to, at)], color.stroke_width(4)))?;
                point(area, (from, at), color, finding.is_same)?;
            }
            y += ROW;
        }
    }
    area.present()
}

/// By how much HTB divides the median round trip of a neighbour on the first machine.
fn isolation(findings: &[Findings]) -> Option<f64> {
    let latency = &findings.first()?.latency;
    let median = |scenario| {
        let mut of = latency.iter().filter(|finding| finding.scenario == scenario && !finding.is_same);
        of.next().map(|finding| finding.median)
    };
    Some(median(Scenario::NoLimit)? / median(Scenario::Htb)?)
}

/// Draws the axis with a line for each power of ten, and returns the place of a time in microseconds.
fn time_axis<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    findings: &[Findings],
    bottom: i32,
) -> Result<impl Fn(f64) -> i32 + use<B>, DrawingAreaErrorKind<B::ErrorType>> {
    let times = || findings.iter().flat_map(|one| &one.latency);
    let least = times().map(|finding| finding.median).fold(f64::INFINITY, f64::min).max(1.0);
    let most = times().map(|finding| finding.p99).fold(10.0, f64::max);
    let (start, end) = (least.log10().floor(), most.log10().ceil());
    #[expect(clippy::cast_possible_truncation, reason = "it is a place in the figure")]
    let x = move |time: f64| {
        AXIS.0 + ((time.log10() - start) / (end - start) * f64::from(AXIS.1 - AXIS.0)).round() as i32
    };
    let mut power = start;
    while power <= end {
        let time = 10_f64.powf(power);
        let at = x(time);
        area.draw(&PathElement::new([(at, TOP - 16), (at, bottom)], FAINT.stroke_width(1)))?;
        area.draw(&PathElement::new([(at, bottom), (at, bottom + 5)], INK.stroke_width(1)))?;
        let label = match time {
            time if time < 1e3 => format!("{time:.0} µs"),
            time if time < 1e6 => format!("{:.0} ms", time / 1e3),
            time => format!("{:.0} s", time / 1e6),
        };
        area.draw_text(&label, &text_style(HPos::Center, 13, INK), (at, bottom + 16))?;
        power += 1.0;
    }
    area.draw(&PathElement::new([(AXIS.0, bottom), (AXIS.1, bottom)], INK.stroke_width(1)))?;
    let middle = AXIS.0.midpoint(AXIS.1);
    area.draw_text("round-trip time (log scale)", &text_style(HPos::Center, 14, INK), (middle, bottom + 38))?;
    Ok(x)
}
