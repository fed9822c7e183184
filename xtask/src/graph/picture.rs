//! The picture of the groups: a box for each group, and an arrow for each pair of groups.
//!
//! Arrows to one box have its colour and share a lane past the rows between. The number of imports stands
//! where an arrow leaves its box.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    groups::Groups,
    layout::{Cell, LINE, Layout, MARGIN, Placed, Row, Texts},
    reduction,
};

/// Characters of a line that lists modules.
const LINE_LENGTH: usize = 24;

/// Colours that colour-blind people tell apart (Okabe and Ito), but for the yellow one, which is faint on
/// white.
const COLORS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#a0487a", "#56b4e9", "#b07a00", "#555555"];

/// Draws the groups of a package as SVG.
pub(super) fn draw(package: &str, groups: &Groups) -> String {
    let texts: Texts = groups.members.keys().map(|name| (name.clone(), lines(name, groups))).collect();
    let shown = reduction::reduced(groups);
    let Layout { rows, width } = Layout::new(&shown, &texts);
    let height = rows.last().map_or(0.0, |row| row.top + row.height) + MARGIN;
    let files: usize = groups.members.values().map(Vec::len).sum();
    let circles = groups.circles().len();
    let finding =
        if circles == 0 { "imports lead downwards only".to_owned() } else { format!("{circles} circles") };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"28\" font-size=\"18\" font-weight=\"bold\" fill=\"#222222\">{package}: \
         {files} modules in {} groups, {finding}</text>\n\
         <text x=\"{MARGIN}\" y=\"48\" font-size=\"12\" fill=\"#222222\">An arrow leads from a group to one that it \
         imports, and has the colour of the latter; its number counts imports between files.</text>\n\
         <text x=\"{MARGIN}\" y=\"64\" font-size=\"12\" fill=\"#222222\">{}</text>\n",
        groups.members.len(),
        if circles == 0 {
            "Imports that a path of arrows implies have no arrow; the number of importing groups includes them."
        } else {
            ""
        }
    );
    arrows(&mut svg, &shown, &rows);
    for row in &rows {
        for placed in &row.cells {
            if let Cell::Group(name) = &placed.cell {
                group(&mut svg, name, color(name, &rows), &texts[name], placed, row.top);
            }
        }
    }
    svg + "</svg>\n"
}

/// The lines of text in a group's box, below its name: its modules and its importers.
fn lines(name: &str, groups: &Groups) -> Vec<String> {
    let members = &groups.members[name];
    let mut lines = Vec::new();
    if name.ends_with("base") {
        for member in members {
            let stem = member.rsplit('/').next().unwrap_or(member).trim_end_matches(".rs");
            match lines.last_mut() {
                Some(last) if String::len(last) + stem.len() < LINE_LENGTH => {
                    *last += " ";
                    *last += stem;
                }
                _ => lines.push(stem.to_owned()),
            }
        }
    } else if members.len() > 1 {
        lines.push(format!("{} modules", members.len()));
    }
    match groups.edges.keys().filter(|(_, to)| to == name).count() {
        0 => {}
        count => lines.push(format!("imported by {count}")),
    }
    lines
}

/// The colour of a group. Groups of a row and of the next one have different colours, as long as there are
/// enough.
fn color(name: &str, rows: &[Row]) -> &'static str {
    let boxes = rows.iter().flat_map(|row| &row.cells).filter(|placed| matches!(placed.cell, Cell::Group(_)));
    let place = boxes.into_iter().position(|placed| placed.cell.group() == name).unwrap_or(0);
    COLORS[place % COLORS.len()]
}

fn group(svg: &mut String, name: &str, color: &str, lines: &[String], placed: &Placed, top: f64) {
    let Placed { middle, width, height, .. } = placed;
    // Writing to a string does not fail.
    let _ = writeln!(
        svg,
        "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"4\" \
         fill=\"#f6f8fa\" stroke=\"{color}\" stroke-width=\"2\"/>\n\
         <text x=\"{middle:.1}\" y=\"{:.1}\" font-size=\"13\" font-weight=\"bold\" text-anchor=\"middle\" \
         fill=\"#222222\">{name}</text>",
        placed.left(),
        top + 19.0
    );
    let mut y = top + 19.0;
    for line in lines {
        y += LINE;
        let _ = writeln!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{y:.1}\" font-size=\"12\" text-anchor=\"middle\" \
             fill=\"#222222\">{line}</text>"
        );
    }
}

fn arrows(svg: &mut String, groups: &Groups, rows: &[Row]) {
    let mut lanes = BTreeSet::new();
    for (number, row) in rows.iter().enumerate() {
        for placed in &row.cells {
            let Cell::Group(name) = &placed.cell else { continue };
            let find = |to: &str| rows.get(number + 1).and_then(|row| row.find(to));
            let mut targets: Vec<(f64, &str, usize)> = groups
                .edges
                .iter()
                .filter(|((from, _), _)| from == name)
                .map(|((_, to), count)| (find(to).map_or(0.0, |next| next.middle), &**to, *count))
                .collect();
            targets.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(other.1)));
            #[expect(clippy::cast_precision_loss, reason = "a box has few arrows")]
            let step = placed.width / (targets.len() + 1) as f64;
            let bottom = row.top + placed.height;
            let mut x = placed.left();
            for (_, to, count) in targets {
                x += step;
                let color = color(to, rows);
                let _ = writeln!(
                    svg,
                    "<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"11\" font-weight=\"bold\" text-anchor=\"middle\" \
                     fill=\"{color}\">{count}</text>",
                    bottom + 12.0
                );
                // Otherwise the two are in a circle, and the other one is not below.
                if let Some(next) = find(to) {
                    curve(svg, (x, bottom + 14.0, row.top + row.height), (next, rows[number + 1].top), color);
                    lanes.extend(lanes_of(rows, number + 1, to));
                }
            }
        }
    }
    // Each lane once, whatever number of arrows shares it.
    for (number, to) in lanes {
        let (row, Some(below)) = (&rows[number], rows.get(number + 1)) else { continue };
        if let (Some(lane), Some(next)) = (row.find(to), below.find(to)) {
            let from = (lane.middle, row.top, row.top + row.height);
            curve(svg, from, (next, below.top), color(to, rows));
        }
    }
}

/// The rows from `first` on in which a group has a lane.
fn lanes_of<'a>(rows: &[Row], first: usize, group: &'a str) -> Vec<(usize, &'a str)> {
    (first..rows.len())
        .take_while(|row| rows[*row].find(group).is_some_and(|placed| matches!(placed.cell, Cell::Lane(_))))
        .map(|row| (row, group))
        .collect()
}

/// A line that leads straight down to a row's bottom, then in a curve to a cell of the next row; with a head
/// at a box.
fn curve(svg: &mut String, (x, top, bottom): (f64, f64, f64), (next, to_y): (&Placed, f64), color: &str) {
    let has_head = matches!(next.cell, Cell::Group(_));
    let (to_x, end) = (next.middle, if has_head { to_y - 6.0 } else { to_y });
    let middle = f64::midpoint(bottom, end);
    let _ = writeln!(
        svg,
        "<path d=\"M{x:.1} {top:.1}V{bottom:.1}C{x:.1} {middle:.1} {to_x:.1} {middle:.1} {to_x:.1} {end:.1}\" \
         fill=\"none\" stroke=\"{color}\" stroke-width=\"1.4\"/>"
    );
    if has_head {
        let _ = writeln!(
            svg,
            "<path d=\"M{:.1} {end:.1}h8L{to_x:.1} {to_y:.1}z\" fill=\"{color}\"/>",
            to_x - 4.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_has_a_box_for_each_group_and_a_number_for_each_arrow() {
        let edges = [
            ("cli", "api", 3),
            ("cli", "base", 12),
            ("api", "model", 4),
            ("model", "base", 7),
            ("api", "base", 1),
        ];
        let members = [("cli", 5), ("api", 3), ("model", 6), ("base", 2)];
        let groups = Groups {
            members: members
                .into_iter()
                .map(|(name, count)| {
                    (name.to_owned(), (0..count).map(|at| format!("{name}{at}.rs")).collect())
                })
                .collect(),
            edges: edges
                .into_iter()
                .map(|(from, to, count)| ((from.to_owned(), to.to_owned()), count))
                .collect(),
        };
        let svg = draw("p", &groups);
        for text in [
            "p: 16 modules in 4 groups, imports lead downwards only",
            ">5 modules<",
            ">base0 base1<",
            ">imported by 3<",
            ">7<",
        ] {
            assert!(svg.contains(text), "{text} in {svg}");
        }
        assert_eq!(svg.matches("<rect x=").count(), 4);
        assert!(!svg.contains(">12<"), "a path implies that arrow");
        assert_eq!(svg, draw("p", &groups), "the same picture each time");
    }
}
