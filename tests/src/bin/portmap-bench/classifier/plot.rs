//! The plot: cost per packet against the number of containers.

use std::path::Path;

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        FontStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::classifier::{
    layout::{self, Mix},
    summary::{PathCase, Summary},
};
use crate::{
    paper::{Drawn, FAINT, FONT, INK, Sheet, heading},
    text::grouped,
};

const SIZE: (u32, u32) = (1200, 760);
const MESOS: RGBColor = RGBColor(192, 57, 43);
const PORTMAP: RGBColor = RGBColor(31, 97, 168);
const EMPTY: RGBColor = RGBColor(120, 120, 120);

/// Room to the right of the lines, for their names.
const NAMES: u32 = 270;
/// Least distance between two names.
const LINE_HEIGHT: i32 = 22;
/// Numbers of containers at which the ratio is written.
const RATIOS: [u16; 2] = [100, 1_000];

/// A line: its name, colour and mix, and which cost it shows.
struct Line {
    name: &'static str,
    color: RGBColor,
    mix: Mix,
    cost: fn(&PathCase) -> f64,
}

/// Lines to ports of containers have hollow points.
const LINES: [Line; 5] = [
    Line { name: "Mesos u32, to the host", color: MESOS, mix: Mix::Unowned, cost: |case| case.u32.value },
    Line { name: "Mesos u32, into a container", color: MESOS, mix: Mix::Owned, cost: |case| case.u32.value },
    Line {
        name: "portmap, into a container",
        color: PORTMAP,
        mix: Mix::Owned,
        cost: |case| case.portmap.value,
    },
    Line { name: "portmap, to the host", color: PORTMAP, mix: Mix::Unowned, cost: |case| case.portmap.value },
    Line { name: "empty program", color: EMPTY, mix: Mix::Unowned, cost: |case| case.empty.value },
];

/// Draws the plot as SVG and PNG.
pub(crate) fn draw(directory: &Path, summary: &Summary) -> Result<()> {
    let sheet = Sheet { name: "cost", size: SIZE };
    sheet.draw(directory, |area| draw_on(area, summary), |area| draw_on(area, summary))
}

fn draw_on<B: DrawingBackend>(area: &DrawingArea<B, Shift>, summary: &Summary) -> Drawn<B> {
    let subtitle = format!(
        "{} ranges of ports per container, uniform over all ports; XDP live frames; {}, Linux {}",
        layout::RANGES,
        summary.machine.cpu,
        summary.machine.kernel
    );
    heading(area, "What a classifier adds to a packet", &subtitle)?;

    let least = LINES.iter().flat_map(|line| points(summary, line)).map(|(_, y)| y).fold(10.0, f64::min);
    let most = LINES.iter().flat_map(|line| points(summary, line)).map(|(_, y)| y).fold(1e5, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(20)
        .margin_top(84)
        .margin_right(NAMES)
        .x_label_area_size(56)
        .y_label_area_size(96)
        .build_cartesian_2d(
            (0.8..f64::from(layout::MOST_CONTAINERS) * 1.12).log_scale(),
            (least * 0.8..most * 1.3).log_scale(),
        )?;
    let label = (FONT, 17).into_font().color(&INK);
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .x_labels(4)
        .y_labels(6)
        .x_label_formatter(&|value| grouped(*value))
        .y_label_formatter(&|value| {
            if *value < 1000.0 { format!("{value} ns") } else { format!("{} µs", value / 1000.0) }
        })
        .x_desc("containers")
        .y_desc("cost per packet over no classifier")
        .axis_desc_style((FONT, 18).into_font().color(&INK))
        .label_style(label)
        .draw()?;

    let mut names = Vec::new();
    for line in &LINES {
        let points = points(summary, line);
        chart.draw_series(LineSeries::new(points.clone(), line.color.stroke_width(3)))?;
        for point in points {
            chart.draw_series([Circle::new(point, 6, line.color.filled())])?;
            if line.mix == Mix::Owned {
                chart.draw_series([Circle::new(point, 3, WHITE.filled())])?;
            }
            if point.0 >= f64::from(layout::MOST_CONTAINERS) {
                names.push((chart.backend_coord(&point), line, point.1));
            }
        }
    }
    for containers in RATIOS {
        draw_ratio(area, &chart, summary.case(containers, Mix::Unowned))?;
    }
    draw_names(area, names)?;
    area.present()
}

fn points(summary: &Summary, line: &Line) -> Vec<(f64, f64)> {
    layout::CONTAINERS
        .into_iter()
        // A logarithm has no place for a cost that noise has made nothing or less.
        .map(|containers| (f64::from(containers), (line.cost)(summary.case(containers, line.mix)).max(1.0)))
        .collect()
}

type LogLog = Cartesian2d<LogCoord<f64>, LogCoord<f64>>;

/// An arrow from portmap's cost for the host's packets to that of u32, with the ratio beside it.
fn draw_ratio<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    chart: &ChartContext<'_, B, LogLog>,
    case: &PathCase,
) -> Drawn<B> {
    const GAP: i32 = 12;
    let at = |y: f64| chart.backend_coord(&(f64::from(case.containers), y));
    let (bottom, top) = (at(case.portmap.value.max(1.0)), at(case.u32.value.max(1.0)));
    let (from, to) = ((bottom.0, bottom.1 - GAP), (top.0, top.1 + GAP));
    let style = INK.stroke_width(1);
    area.draw(&PathElement::new([from, to], style))?;
    for (tip, back) in [(from, -7), (to, 7)] {
        let head = [(tip.0 - 4, tip.1 + back), tip, (tip.0 + 4, tip.1 + back)];
        area.draw(&PathElement::new(head, style))?;
    }
    let text = format!("{}×", grouped(case.ratio.value));
    let right = Pos::new(HPos::Right, VPos::Center);
    let style = (FONT, 20).into_font().style(FontStyle::Bold).color(&INK).pos(right);
    // Above the middle, where the line of the packets into containers does not cross.
    area.draw_text(&text, &style, (from.0 - 10, from.1 + (to.1 - from.1) * 45 / 100))
}

/// The lines' names beside their ends, moved apart where they would overlap.
fn draw_names<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    mut names: Vec<((i32, i32), &Line, f64)>,
) -> Drawn<B> {
    names.sort_unstable_by_key(|((_, y), ..)| *y);
    let mut lowest = i32::MIN;
    for ((x, y), line, cost) in names {
        let y = y.max(lowest);
        lowest = y + LINE_HEIGHT;
        let cost = if cost < 1000.0 { format!("{cost:.0} ns") } else { format!("{:.1} µs", cost / 1000.0) };
        let style = (FONT, 15)
            .into_font()
            .style(FontStyle::Bold)
            .color(&line.color)
            .pos(Pos::new(HPos::Left, VPos::Center));
        area.draw_text(&format!("{} {cost}", line.name), &style, (x + 24, y))?;
    }
    Ok(())
}
