//! The figure: cost per packet over the number of containers.

use std::path::Path;

use anyhow::Result;
use plotters::{coord::Shift, prelude::*, style::text_anchor::HPos};

use crate::classifier::{
    layout::{self, Mix},
    summary::{PathCase, Summary},
};
use crate::{
    canvas::{
        BLUE, Drawn, FAINT, FONT, Figure, GREY, HEADING, INK, VERMILION, bold_style, heading, text_style,
    },
    text::grouped,
};

const HEIGHT: u32 = 520;
/// Space to the right of the lines, for their names.
const NAMES: u32 = 190;
/// Least distance between two names.
const LINE_HEIGHT: i32 = 18;

/// A line: its name, colour and mix, and the cost that it shows.
struct Line {
    name: &'static str,
    color: RGBColor,
    mix: Mix,
    cost: fn(&PathCase) -> f64,
}

/// Lines to ports of containers have hollow points.
const LINES: [Line; 5] = [
    Line { name: "u32, to the host", color: VERMILION, mix: Mix::Unowned, cost: |case| case.u32.value },
    Line { name: "u32, to a container", color: VERMILION, mix: Mix::Owned, cost: |case| case.u32.value },
    Line { name: "portmap, to a container", color: BLUE, mix: Mix::Owned, cost: |case| case.portmap.value },
    Line { name: "portmap, to the host", color: BLUE, mix: Mix::Unowned, cost: |case| case.portmap.value },
    Line { name: "empty program", color: GREY, mix: Mix::Unowned, cost: |case| case.empty.value },
];

/// Draws the figure as SVG and PNG.
pub(crate) fn draw(directory: &Path, summary: &Summary) -> Result<()> {
    let figure = Figure { name: "cost", height: HEIGHT };
    figure.draw(directory, |area| draw_on(area, summary), |area| draw_on(area, summary))
}

fn draw_on<B: DrawingBackend>(area: &DrawingArea<B, Shift>, summary: &Summary) -> Drawn<B> {
    let most_containers = summary.case(layout::MOST_CONTAINERS, Mix::Unowned);
    let title = format!(
        "With {} containers, Mesos' u32 list costs {} times as much as portmap",
        grouped(f64::from(layout::MOST_CONTAINERS)),
        grouped(most_containers.ratio.value)
    );
    let subtitle = format!(
        "Nanoseconds that a classifier adds to a packet; {} port ranges per container; {}, Linux {}",
        layout::RANGES,
        summary.machine.cpu.split(" (").next().unwrap_or_default(),
        summary.machine.kernel
    );
    heading(area, &title, &subtitle)?;

    let least = LINES.iter().flat_map(|line| points(summary, line)).map(|(_, y)| y).fold(10.0, f64::min);
    let most = LINES.iter().flat_map(|line| points(summary, line)).map(|(_, y)| y).fold(1e5, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_top(HEADING)
        .margin_right(NAMES)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d(
            (0.8..f64::from(layout::MOST_CONTAINERS) * 1.12).log_scale(),
            (least * 0.8..most * 1.3).log_scale(),
        )?;
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .x_labels(4)
        .y_labels(6)
        .x_label_formatter(&|value| grouped(*value))
        .y_label_formatter(&|value| grouped(*value))
        .x_desc("containers (log scale)")
        .y_desc("cost per packet, ns (log scale)")
        .axis_desc_style((FONT, 14).into_font().color(&INK))
        .label_style((FONT, 13).into_font().color(&INK))
        .draw()?;

    let mut names = Vec::new();
    for line in &LINES {
        let points = points(summary, line);
        chart.draw_series(LineSeries::new(points.clone(), line.color.stroke_width(2)))?;
        for point in points {
            chart.draw_series([Circle::new(point, 5, line.color.filled())])?;
            if line.mix == Mix::Owned {
                chart.draw_series([Circle::new(point, 3, WHITE.filled())])?;
            }
            if point.0 >= f64::from(layout::MOST_CONTAINERS) {
                names.push((chart.backend_coord(&point), line));
            }
        }
    }
    draw_ratio(area, &chart, most_containers)?;
    draw_names(area, names)?;
    area.present()
}

fn points(summary: &Summary, line: &Line) -> Vec<(f64, f64)> {
    layout::CONTAINERS
        .into_iter()
        // A logarithmic axis has no zero, and noise can make a small cost zero or negative.
        .map(|containers| (f64::from(containers), (line.cost)(summary.case(containers, line.mix)).max(1.0)))
        .collect()
}

type LogLog = Cartesian2d<LogCoord<f64>, LogCoord<f64>>;

/// Draws an arrow from portmap's cost for the host's packets to that of u32, with the ratio beside it.
fn draw_ratio<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    chart: &ChartContext<'_, B, LogLog>,
    case: &PathCase,
) -> Drawn<B> {
    const GAP: i32 = 10;
    let at = |y: f64| chart.backend_coord(&(f64::from(case.containers), y));
    let (bottom, top) = (at(case.portmap.value.max(1.0)), at(case.u32.value.max(1.0)));
    let (from, to) = ((bottom.0, bottom.1 - GAP), (top.0, top.1 + GAP));
    let style = INK.stroke_width(1);
    area.draw(&PathElement::new([from, to], style))?;
    for (tip, back) in [(from, -7), (to, 7)] {
        let head = [(tip.0 - 4, tip.1 + back), tip, (tip.0 + 4, tip.1 + back)];
        area.draw(&PathElement::new(head, style))?;
    }
    let text = format!("× {}", grouped(case.ratio.value));
    // Above the middle, where no line crosses.
    area.draw_text(
        &text,
        &text_style(HPos::Right, 16, INK),
        (from.0 - 8, from.1 + (to.1 - from.1) * 45 / 100),
    )
}

/// Writes the lines' names beside their ends, moved apart where they would overlap.
fn draw_names<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    mut names: Vec<((i32, i32), &Line)>,
) -> Drawn<B> {
    names.sort_unstable_by_key(|((_, y), _)| *y);
    let mut lowest = i32::MIN;
    for ((x, y), line) in names {
        let y = y.max(lowest);
        lowest = y + LINE_HEIGHT;
        area.draw_text(line.name, &bold_style(13, line.color), (x + 12, y))?;
    }
    Ok(())
}
