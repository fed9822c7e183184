//! The plots: errors of rates, and times of round trips.

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

use super::{Findings, latency::Scenario, traffic::Transport};
use crate::{
    paper::{Drawn, FAINT, FONT, INK, Sheet, heading},
    text::number,
};

const BAND: RGBColor = RGBColor(232, 244, 234);
const OTHER: RGBColor = RGBColor(31, 97, 168);
const SAME: RGBColor = RGBColor(192, 57, 43);

/// Room for the heading of a plot.
const HEADING: u32 = 84;

/// Draws both as SVG and PNG.
pub(crate) fn draw(directory: &Path, findings: &[Findings]) -> Result<()> {
    let panels = u32::try_from(findings.len())?;
    let rates = Sheet { name: "rates", size: (1200, HEADING + 380 * panels) };
    rates.draw(directory, |area| draw_rates(area, findings), |area| draw_rates(area, findings))?;
    let rows: usize = findings.iter().map(|one| 1 + one.latency.len() / 2).sum();
    let latency = Sheet { name: "latency", size: (1200, HEADING + 60 + 40 * u32::try_from(rows)?) };
    latency.draw(directory, |area| draw_latency(area, findings), |area| draw_latency(area, findings))
}

/// One line of points for each kind of traffic; limits that no traffic reaches have none.
const KINDS: [(Transport, u16, RGBColor); 4] = [
    (Transport::Tcp, 1, RGBColor(31, 97, 168)),
    (Transport::Tcp, 16, RGBColor(120, 170, 220)),
    (Transport::Udp, 1, RGBColor(192, 57, 43)),
    (Transport::Udp, 16, RGBColor(230, 150, 130)),
];

fn draw_rates<B: DrawingBackend>(area: &DrawingArea<B, Shift>, findings: &[Findings]) -> Drawn<B> {
    const MOST: f64 = 4.0;
    let subtitle = "what arrives outside of a container that sends as much as it can; the goal is 2 %";
    heading(area, "How exactly limits are kept", subtitle)?;
    let (_, below) = area.split_vertically(HEADING);
    for (panel, one) in below.split_evenly((findings.len(), 1)).iter().zip(findings) {
        let caption = format!("Linux {}", one.machine.kernel);
        let mut chart = ChartBuilder::on(panel)
            .margin(16)
            .margin_right(190)
            .caption(caption, (FONT, 18).into_font().color(&INK))
            .x_label_area_size(46)
            .y_label_area_size(70)
            .build_cartesian_2d((0.7..8000.0_f64).log_scale(), -MOST..MOST)?;
        chart.draw_series([Rectangle::new([(0.7, -2.0), (8000.0, 2.0)], BAND.filled())])?;
        chart
            .configure_mesh()
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .y_labels(9)
            .x_label_formatter(&|value| number(*value).trim_end_matches(".0").to_owned())
            .y_label_formatter(&|value| format!("{value:+.0} %"))
            .x_desc("limit, Mbit/s")
            .label_style((FONT, 15).into_font().color(&INK))
            .draw()?;
        for (transport, flows, color) in KINDS {
            #[expect(clippy::cast_precision_loss, reason = "limits are round numbers")]
            let points: Vec<(f64, f64)> = one
                .rates
                .iter()
                .filter(|finding| (finding.transport, finding.flows) == (transport, flows))
                .filter_map(|finding| {
                    Some((finding.limit? as f64 / 1e6, finding.error()?.clamp(-MOST, MOST)))
                })
                .collect();
            chart
                .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
                .label(format!("{}, {flows} flow{}", transport.name(), if flows == 1 { "" } else { "s" }))
                .legend(move |at| Circle::new((at.0 + 8, at.1), 5, color.filled()));
            chart.draw_series(points.into_iter().map(|point| Circle::new(point, 5, color.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::Coordinate(860, 20))
            .label_font((FONT, 15).into_font().color(&INK))
            .draw()?;
    }
    area.present()
}

/// From the median to the 99th percentile of each scenario, on a logarithmic scale.
fn draw_latency<B: DrawingBackend>(area: &DrawingArea<B, Shift>, findings: &[Findings]) -> Drawn<B> {
    const NAMES: i32 = 250;
    const RIGHT: i32 = 1080;
    heading(
        area,
        "What neighbours feel",
        "round trips of one byte while a container saturates a link: median to 99th percentile; blue: from another container, red: from the same",
    )?;
    let all = findings.iter().flat_map(|one| &one.latency);
    let (least, most) = all.fold((f64::INFINITY, 0.0_f64), |(least, most), finding| {
        (least.min(finding.median), most.max(finding.p99))
    });
    let (least, most) = ((least * 0.8).ln(), (most * 1.2).ln());
    #[expect(clippy::cast_possible_truncation, reason = "it is a place on the sheet")]
    let x = |time: f64| NAMES + ((time.ln() - least) / (most - least) * f64::from(RIGHT - NAMES)) as i32;
    let mut y = 110;
    let middle = |horizontal| Pos::new(horizontal, VPos::Center);
    let small = (FONT, 15).into_font().color(&INK);
    for one in findings {
        let bold = (FONT, 17).into_font().style(FontStyle::Bold).color(&INK).pos(middle(HPos::Left));
        let link = format!("Linux {}, link of {} Mbit/s", one.machine.kernel, one.link / 1_000_000);
        area.draw_text(&link, &bold, (28, y))?;
        y += 36;
        for scenario in Scenario::ALL {
            let mut row = one.latency.iter().filter(|finding| finding.scenario == scenario).peekable();
            if row.peek().is_none() {
                continue;
            }
            area.draw_text(scenario.name(), &small.clone().pos(middle(HPos::Left)), (48, y))?;
            for finding in row {
                let (color, at) = if finding.is_same { (SAME, y + 7) } else { (OTHER, y - 7) };
                let (from, to) = (x(finding.median), x(finding.p99));
                area.draw(&PathElement::new([(from, at), (to, at)], color.stroke_width(5)))?;
                area.draw(&Circle::new((from, at), 5, color.filled()))?;
                let text = format!("{} – {} µs", number(finding.median), number(finding.p99));
                let style = (FONT, 13).into_font().color(&color).pos(middle(HPos::Left));
                area.draw_text(&text, &style, (to + 12, at))?;
            }
            y += 40;
        }
    }
    area.present()
}
