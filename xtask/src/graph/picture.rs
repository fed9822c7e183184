//! The picture of the groups: boxes in layers, and an arrow for each pair of groups.
//!
//! Arrows to one box have its colour and share a lane past the rows between. The number of imports stands
//! where an arrow leaves its box, in a place of its own, so that no two numbers are over one another.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{groups::Groups, layers};

/// Pixels at which the picture is made to be read.
const WIDTH: f64 = 800.0;
const MARGIN: f64 = 16.0;
/// Room for the title.
const HEADING: f64 = 64.0;
/// Between two boxes of a row.
const GAP: f64 = 14.0;
/// Between the places where arrows leave a box; two digits fit.
const PORT: f64 = 16.0;
const LANE: f64 = 12.0;
/// Room below a box for its numbers, and between two rows for the arrows.
const NUMBERS: f64 = 18.0;
const ARROWS: f64 = 56.0;
const LINE: f64 = 15.0;
/// The width of a character in a box, on average.
const CHARACTER: f64 = 6.4;
/// Characters of a line in a box.
const LINE_LENGTH: usize = 24;

/// Colours that colour-blind people tell apart (Okabe and Ito), but for the yellow one, which is faint on
/// white.
const COLORS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#a0487a", "#56b4e9", "#b07a00", "#555555"];

/// What stands in a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    /// A group.
    Group(String),
    /// The lane of all arrows to a group that pass the row.
    Lane(String),
}

impl Cell {
    fn group(&self) -> &str {
        let (Self::Group(name) | Self::Lane(name)) = self;
        name
    }
}

/// A cell with its place.
struct Placed {
    cell: Cell,
    left: f64,
    width: f64,
}

impl Placed {
    fn middle(&self) -> f64 {
        self.left + self.width / 2.0
    }
}

/// A row of cells.
struct Row {
    cells: Vec<Placed>,
    top: f64,
    height: f64,
}

/// Draws the groups of a package as SVG.
pub(super) fn draw(package: &str, groups: &Groups) -> String {
    let rows = rows(groups);
    let rows = placed(groups, &rows);
    let height = rows.last().map_or(HEADING, |row| row.top + row.height) + MARGIN;
    let width = rows
        .iter()
        .filter_map(|row| row.cells.last())
        .map(|last| last.left + last.width + MARGIN)
        .fold(WIDTH, f64::max);
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
         imports and has the colour of the latter; its number counts imports between files.</text>\n",
        groups.members.len()
    );
    arrows(&mut svg, groups, &rows);
    for row in &rows {
        for placed in &row.cells {
            if let Cell::Group(name) = &placed.cell {
                group(&mut svg, name, groups, placed, row.top);
            }
        }
    }
    svg + "</svg>\n"
}

/// The groups by row: their layers, of which a wide one takes several rows.
fn rows(groups: &Groups) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for layer in layers::layers(groups) {
        let mut width = WIDTH;
        for name in layer {
            let more = box_width(&name, groups) + GAP;
            // Lanes need some of the row.
            if width + more > WIDTH * 0.8 {
                rows.push(Vec::new());
                width = 0.0;
            }
            width += more;
            if let Some(row) = rows.last_mut() {
                row.push(name);
            }
        }
    }
    rows
}

/// Adds lanes to the rows, and gives every cell a place from which its arrows are short.
fn placed(groups: &Groups, rows: &[Vec<String>]) -> Vec<Row> {
    let row_of: BTreeMap<&str, usize> = rows
        .iter()
        .enumerate()
        .flat_map(|(row, names)| names.iter().map(move |name| (&**name, row)))
        .collect();
    let mut cells: Vec<Vec<Cell>> =
        rows.iter().map(|names| names.iter().cloned().map(Cell::Group).collect()).collect();
    let mut lanes = BTreeSet::new();
    for (from, to) in groups.edges.keys() {
        lanes.extend((row_of[&**from] + 1..row_of[&**to]).map(|row| (row, to.clone())));
    }
    for (row, to) in lanes {
        cells[row].push(Cell::Lane(to));
    }
    // The usual way to fewer crossings: sort each row by the places of its neighbours, up and down, several
    // times.
    for pass in 0..12 {
        let order: Vec<usize> = if pass % 2 == 0 {
            (1..cells.len()).collect()
        } else {
            (0..cells.len().saturating_sub(1)).rev().collect()
        };
        for row in order {
            let other = if pass % 2 == 0 { row - 1 } else { row + 1 };
            let (upper, lower) = (row.min(other), row.max(other));
            let place = |cell: &Cell, at: usize| {
                #[expect(clippy::cast_precision_loss, reason = "a row has few cells")]
                let of = |place: usize, row: &Vec<Cell>| place as f64 / row.len() as f64;
                let neighbours: Vec<f64> = cells[other]
                    .iter()
                    .enumerate()
                    .filter(|(_, neighbour)| {
                        if other == upper {
                            leads(groups, neighbour, cell)
                        } else {
                            leads(groups, cell, neighbour)
                        }
                    })
                    .map(|(place, _)| of(place, &cells[other]))
                    .collect();
                #[expect(clippy::cast_precision_loss, reason = "a row has few cells")]
                let count = neighbours.len() as f64;
                if count == 0.0 { of(at, &cells[row]) } else { neighbours.iter().sum::<f64>() / count }
            };
            debug_assert_eq!(upper + 1, lower, "neighbouring rows");
            let mut sorted: Vec<(f64, Cell)> =
                cells[row].iter().enumerate().map(|(at, cell)| (place(cell, at), cell.clone())).collect();
            sorted.sort_by(|one, other| one.0.total_cmp(&other.0));
            cells[row] = sorted.into_iter().map(|(_, cell)| cell).collect();
        }
    }
    let mut top = HEADING;
    cells
        .into_iter()
        .map(|cells| {
            let row = row(groups, cells, top);
            top += row.height + ARROWS;
            row
        })
        .collect()
}

/// Whether an arrow leads from a cell to one of the next row.
fn leads(groups: &Groups, from: &Cell, to: &Cell) -> bool {
    match from {
        Cell::Lane(target) => target == to.group(),
        Cell::Group(name) => groups.edges.contains_key(&(name.clone(), to.group().to_owned())),
    }
}

/// Spreads cells over the width.
fn row(groups: &Groups, cells: Vec<Cell>, top: f64) -> Row {
    let width = |cell: &Cell| match cell {
        Cell::Group(name) => box_width(name, groups),
        Cell::Lane(_) => LANE,
    };
    let all: f64 = cells.iter().map(|cell| width(cell) + GAP).sum();
    #[expect(clippy::cast_precision_loss, reason = "a row has few cells")]
    let space = ((WIDTH - 2.0 * MARGIN - all) / cells.len() as f64).max(0.0);
    let height = cells
        .iter()
        .map(|cell| if let Cell::Group(name) = cell { box_height(name, groups) } else { 0.0 })
        .fold(0.0, f64::max);
    let mut left = MARGIN + f64::midpoint(GAP, space);
    let cells = cells
        .into_iter()
        .map(|cell| {
            let placed = Placed { left, width: width(&cell), cell };
            left += placed.width + GAP + space;
            placed
        })
        .collect();
    Row { cells, top, height: height + NUMBERS }
}

/// The lines of text in a group's box, below its name.
fn lines(name: &str, groups: &Groups) -> Vec<String> {
    let members = &groups.members[name];
    if !name.ends_with("base") {
        return if members.len() == 1 { Vec::new() } else { vec![format!("{} modules", members.len())] };
    }
    let mut lines = vec![String::new()];
    for member in members {
        let stem = member.rsplit('/').next().unwrap_or(member).trim_end_matches(".rs");
        let last = lines.last().map_or(0, String::len);
        if last > 0 && last + stem.len() + 1 > LINE_LENGTH {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            *line += if line.is_empty() { "" } else { " " };
            *line += stem;
        }
    }
    lines
}

#[expect(clippy::cast_precision_loss, reason = "texts are short")]
fn box_width(name: &str, groups: &Groups) -> f64 {
    let text = lines(name, groups).iter().map(String::len).max().unwrap_or(0) as f64 * CHARACTER;
    let title = name.len() as f64 * (CHARACTER + 1.6);
    let ports = groups.edges.keys().filter(|(from, _)| from == name).count() as f64 * PORT;
    text.max(title).max(ports).max(56.0) + 16.0
}

#[expect(clippy::cast_precision_loss, reason = "texts are short")]
fn box_height(name: &str, groups: &Groups) -> f64 {
    28.0 + lines(name, groups).len() as f64 * LINE
}

/// The colour of a group: the more import it, the earlier in the list.
fn color(name: &str, groups: &Groups) -> &'static str {
    let importers = |name: &str| groups.edges.keys().filter(|(_, to)| to == name).count();
    let mut names: Vec<&String> = groups.members.keys().collect();
    names.sort_by_key(|other| (usize::MAX - importers(other), (*other).clone()));
    let place = names.iter().position(|other| *other == name).unwrap_or(0);
    COLORS[place % COLORS.len()]
}

fn group(svg: &mut String, name: &str, groups: &Groups, placed: &Placed, top: f64) {
    let Placed { left, width, .. } = placed;
    let (middle, height, color) = (placed.middle(), box_height(name, groups), color(name, groups));
    // Writing to a string does not fail.
    let _ = writeln!(
        svg,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"4\" \
         fill=\"#f6f8fa\" stroke=\"{color}\" stroke-width=\"2\"/>\n\
         <text x=\"{middle:.1}\" y=\"{:.1}\" font-size=\"13\" font-weight=\"bold\" text-anchor=\"middle\" \
         fill=\"#222222\">{name}</text>",
        top + 19.0
    );
    let mut y = top + 19.0;
    for line in lines(name, groups) {
        y += LINE;
        let _ = writeln!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{y:.1}\" font-size=\"12\" text-anchor=\"middle\" \
             fill=\"#222222\">{line}</text>"
        );
    }
}

/// Where the cell of a row is: the lane of an arrow or its end.
fn find<'a>(rows: &'a [Row], row: usize, group: &str) -> Option<&'a Placed> {
    rows.get(row)?.cells.iter().find(|placed| placed.cell.group() == group)
}

fn arrows(svg: &mut String, groups: &Groups, rows: &[Row]) {
    let mut lanes = BTreeSet::new();
    for (number, row) in rows.iter().enumerate() {
        for placed in &row.cells {
            let Cell::Group(name) = &placed.cell else { continue };
            let mut targets: Vec<(f64, &str, usize)> = groups
                .edges
                .iter()
                .filter(|((from, _), _)| from == name)
                .map(|((_, to), count)| {
                    (find(rows, number + 1, to).map_or(0.0, Placed::middle), &**to, *count)
                })
                .collect();
            targets.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(other.1)));
            #[expect(clippy::cast_precision_loss, reason = "a box has few arrows")]
            let step = placed.width / (targets.len() + 1) as f64;
            let bottom = row.top + box_height(name, groups);
            let mut x = placed.left;
            for (_, to, count) in targets {
                x += step;
                let color = color(to, groups);
                let _ = writeln!(
                    svg,
                    "<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"11\" font-weight=\"bold\" text-anchor=\"middle\" \
                     fill=\"{color}\">{count}</text>",
                    bottom + 12.0
                );
                let Some(next) = find(rows, number + 1, to) else {
                    // The other one is not below: the two are in a circle.
                    continue;
                };
                let from = (x, bottom + 14.0, row.top + row.height);
                curve(
                    svg,
                    from,
                    (next.middle(), rows[number + 1].top),
                    color,
                    matches!(next.cell, Cell::Group(_)),
                );
                lanes.extend(past(rows, number + 1, to));
            }
        }
    }
    // Each lane once, whatever number of arrows shares it.
    for (row, to) in lanes {
        let (Some(lane), Some(next)) = (find(rows, row, to), find(rows, row + 1, to)) else { continue };
        let from = (lane.middle(), rows[row].top, rows[row].top + rows[row].height);
        let is_end = matches!(next.cell, Cell::Group(_));
        curve(svg, from, (next.middle(), rows[row + 1].top), color(to, groups), is_end);
    }
}

/// The rows from `first` on in which a group has a lane.
fn past<'a>(rows: &[Row], first: usize, group: &'a str) -> Vec<(usize, &'a str)> {
    (first..rows.len())
        .take_while(|row| find(rows, *row, group).is_some_and(|placed| matches!(placed.cell, Cell::Lane(_))))
        .map(|row| (row, group))
        .collect()
}

/// A line that goes straight down to a row's bottom, then in a curve to the next row; with a head at its end.
fn curve(
    svg: &mut String,
    (x, top, bottom): (f64, f64, f64),
    (to_x, to_y): (f64, f64),
    color: &str,
    has_head: bool,
) {
    let end = if has_head { to_y - 6.0 } else { to_y };
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

    fn groups() -> Groups {
        let edges = [
            ("cli", "api", 3),
            ("cli", "base", 12),
            ("api", "model", 4),
            ("model", "base", 7),
            ("api", "base", 1),
        ];
        let members = [("cli", 5), ("api", 3), ("model", 6), ("base", 2)];
        Groups {
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
        }
    }

    #[test]
    fn picture_has_a_box_for_each_group_and_a_number_for_each_pair() {
        let svg = draw("p", &groups());
        for text in [
            "p: 16 modules in 4 groups, imports lead downwards only",
            ">5 modules<",
            ">base0 base1<",
            ">12<",
            ">7<",
        ] {
            assert!(svg.contains(text), "{text} in {svg}");
        }
        assert_eq!(svg.matches("<rect x=").count(), 4);
        assert_eq!(svg, draw("p", &groups()), "the same picture each time");
    }

    #[test]
    fn picture_has_no_cells_over_one_another() {
        let groups = groups();
        for row in placed(&groups, &rows(&groups)) {
            for pair in row.cells.windows(2) {
                assert!(pair[0].left + pair[0].width < pair[1].left);
            }
            let last = row.cells.last().expect("a row has cells");
            assert!(last.left + last.width <= WIDTH);
        }
    }

    #[test]
    fn picture_leads_arrows_past_rows_by_one_lane() {
        let groups = groups();
        let rows = placed(&groups, &rows(&groups));
        let lanes: Vec<usize> = rows
            .iter()
            .map(|row| row.cells.iter().filter(|placed| matches!(placed.cell, Cell::Lane(_))).count())
            .collect();
        assert_eq!(lanes, [0, 1, 1, 0]);
    }
}
