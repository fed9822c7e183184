//! Layout of the picture: rows of boxes, lanes for arrows that pass a row, and a place for each of them.

use std::collections::{BTreeMap, BTreeSet};

use super::{groups::Groups, layers};

/// Least width of the picture in pixels.
pub(super) const WIDTH: f64 = 800.0;
/// Margin of the picture.
pub(super) const MARGIN: f64 = 16.0;
/// Height of the title and the legend.
pub(super) const HEADING: f64 = 84.0;
/// Height of a line of text in a box.
pub(super) const LINE: f64 = 15.0;
/// Distance between two boxes of a row.
const GAP: f64 = 32.0;
/// Distance between the places where arrows leave a box; three digits fit.
const PORT: f64 = 24.0;
/// Width of a lane.
const LANE: f64 = 12.0;
/// Height of the numbers below a box, and of the arrows between two rows.
const NUMBERS: f64 = 18.0;
const ARROWS: f64 = 38.0;
/// Width of a character in a box, and of one in its title, on average.
const CHARACTER: f64 = 6.6;
const BOLD_CHARACTER: f64 = 8.8;
/// Times that the order and the places of all rows are improved.
const PASSES: usize = 24;

/// Text lines of each group's box, below its name.
pub(super) type Texts = BTreeMap<String, Vec<String>>;

/// A box or a lane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cell {
    /// The box of a group.
    Group(String),
    /// The lane of all arrows to a group that pass the row.
    Lane(String),
}

impl Cell {
    /// The group, or the one to which the lane leads.
    pub(super) fn group(&self) -> &str {
        let (Self::Group(name) | Self::Lane(name)) = self;
        name
    }
}

/// A cell with its place.
pub(super) struct Placed {
    pub cell: Cell,
    /// Horizontal centre.
    pub middle: f64,
    pub width: f64,
    /// Height of a box; 0 for a lane.
    pub height: f64,
}

impl Placed {
    pub(super) fn left(&self) -> f64 {
        self.middle - self.width / 2.0
    }
}

/// A row of cells.
pub(super) struct Row {
    pub cells: Vec<Placed>,
    pub top: f64,
    /// Height of the highest box with the numbers below it.
    pub height: f64,
}

impl Row {
    /// The cell of an arrow to a group: its lane, or its end.
    pub(super) fn find(&self, group: &str) -> Option<&Placed> {
        self.cells.iter().find(|placed| placed.cell.group() == group)
    }
}

/// The rows from top to bottom, and the width that they need.
pub(super) struct Layout {
    pub rows: Vec<Row>,
    pub width: f64,
}

impl Layout {
    /// Lays out the groups and the arrows between them.
    pub(super) fn new(groups: &Groups, texts: &Texts) -> Self {
        let mut cells = cells(groups, texts);
        sort(groups, &mut cells);
        let (middles, width) = middles(groups, texts, &cells);
        let mut top = HEADING;
        let mut rows = Vec::new();
        for (cells, middles) in cells.into_iter().zip(middles) {
            let cells: Vec<Placed> = cells
                .into_iter()
                .zip(middles)
                .map(|(cell, middle)| Placed {
                    width: cell_width(&cell, groups, texts),
                    height: cell_height(&cell, texts),
                    cell,
                    middle,
                })
                .collect();
            let height = cells.iter().map(|placed| placed.height).fold(0.0, f64::max) + NUMBERS;
            rows.push(Row { cells, top, height });
            top += height + ARROWS;
        }
        Self { rows, width }
    }
}

/// The cells of each row. A row has the groups of a layer; a wide layer takes several rows.
fn cells(groups: &Groups, texts: &Texts) -> Vec<Vec<Cell>> {
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    let mut row_of = BTreeMap::new();
    for layer in layers::layers(groups) {
        let mut width = WIDTH;
        for name in layer {
            let cell = Cell::Group(name.clone());
            let more = cell_width(&cell, groups, texts) + GAP;
            // Lanes need some of the row.
            if width + more > WIDTH * 0.8 {
                rows.push(Vec::new());
                width = 0.0;
            }
            width += more;
            row_of.insert(name, rows.len() - 1);
            if let Some(row) = rows.last_mut() {
                row.push(cell);
            }
        }
    }
    let mut lanes = BTreeSet::new();
    for (from, to) in groups.edges.keys() {
        lanes.extend((row_of[from] + 1..row_of[to]).map(|row| (row, to.clone())));
    }
    for (row, to) in lanes {
        rows[row].push(Cell::Lane(to));
    }
    rows
}

/// Reduces crossings: sorts each row by the places of its neighbours above and below, several times.
fn sort(groups: &Groups, rows: &mut [Vec<Cell>]) {
    #[expect(clippy::cast_precision_loss, reason = "a row has few cells")]
    let place = |at: usize, row: &[Cell]| at as f64 / row.len() as f64;
    for pass in 0..PASSES {
        for (row, other) in rows_of_pass(pass, rows.len()) {
            let mut sorted: Vec<(f64, Cell)> = rows[row]
                .iter()
                .enumerate()
                .map(|(at, cell)| {
                    let neighbours = rows[other].iter().enumerate();
                    let neighbours = neighbours.filter(|(_, neighbour)| {
                        if other < row {
                            leads(groups, neighbour, cell)
                        } else {
                            leads(groups, cell, neighbour)
                        }
                    });
                    let places = neighbours.map(|(at, _)| (place(at, &rows[other]), 1.0));
                    (mean(places).unwrap_or_else(|| place(at, &rows[row])), cell.clone())
                })
                .collect();
            sorted.sort_by(|one, other| one.0.total_cmp(&other.0));
            rows[row] = sorted.into_iter().map(|(_, cell)| cell).collect();
        }
    }
}

/// The horizontal centres of all cells, and the width of the picture. Cells are moved towards their neighbours
/// above and below, several times, and lanes most of all, so that these are straight.
fn middles(groups: &Groups, texts: &Texts, rows: &[Vec<Cell>]) -> (Vec<Vec<f64>>, f64) {
    let widths: Vec<Vec<f64>> =
        rows.iter().map(|row| row.iter().map(|cell| cell_width(cell, groups, texts)).collect()).collect();
    let needed = |row: &Vec<f64>| row.iter().map(|width| width + GAP).sum::<f64>() - GAP + 2.0 * MARGIN;
    let width = widths.iter().map(needed).fold(WIDTH, f64::max);
    let mut middles: Vec<Vec<f64>> =
        widths.iter().map(|row| apart(&vec![width / 2.0; row.len()], row, width)).collect();
    for pass in 0..PASSES {
        for (row, _) in rows_of_pass(pass, rows.len()) {
            let desired: Vec<f64> = rows[row]
                .iter()
                .enumerate()
                .map(|(at, cell)| {
                    let above = row.checked_sub(1).into_iter().flat_map(|above| {
                        let cells = rows[above].iter().zip(&middles[above]);
                        cells.filter(|(other, _)| leads(groups, other, cell))
                    });
                    let below = rows.get(row + 1).into_iter().flat_map(|below| {
                        let cells = below.iter().zip(&middles[row + 1]);
                        cells.filter(|(other, _)| leads(groups, cell, other))
                    });
                    let is_lane = |cell: &Cell| matches!(cell, Cell::Lane(_));
                    let weighted = above.chain(below).map(|(other, middle)| {
                        (*middle, if is_lane(cell) && is_lane(other) { 8.0 } else { 1.0 })
                    });
                    mean(weighted).unwrap_or(middles[row][at])
                })
                .collect();
            middles[row] = apart(&desired, &widths[row], width);
        }
    }
    centre(&mut middles, &widths, width);
    (middles, width)
}

/// Moves all cells together to the centre of the picture.
fn centre(middles: &mut [Vec<f64>], widths: &[Vec<f64>], width: f64) {
    let cells = || middles.iter().flatten().zip(widths.iter().flatten());
    let left = cells().map(|(middle, width)| middle - width / 2.0).fold(width, f64::min);
    let right = cells().map(|(middle, width)| middle + width / 2.0).fold(0.0, f64::max);
    for middle in middles.iter_mut().flatten() {
        *middle += width / 2.0 - f64::midpoint(left, right);
    }
}

/// Places cells of these widths, in this order, as near to the desired centres as their distance allows.
fn apart(desired: &[f64], widths: &[f64], width: f64) -> Vec<f64> {
    let distance = |at: usize| f64::midpoint(widths[at], widths[at + 1]) + GAP;
    let (mut lowest, mut highest) = (vec![0.0; widths.len()], vec![0.0; widths.len()]);
    for at in 0..widths.len() {
        lowest[at] = if at == 0 { MARGIN + widths[at] / 2.0 } else { lowest[at - 1] + distance(at - 1) };
    }
    for at in (0..widths.len()).rev() {
        let is_last = at + 1 == widths.len();
        highest[at] =
            if is_last { width - MARGIN - widths[at] / 2.0 } else { highest[at + 1] - distance(at) };
    }
    let within: Vec<f64> = desired
        .iter()
        .zip(lowest.iter().zip(&highest))
        .map(|(x, (low, high))| x.max(*low).min(*high))
        .collect();
    // Cells that are too near are pushed to the right, or to the left; the mean of both is as good on both
    // sides.
    let (mut to_right, mut to_left) = (within.clone(), within);
    for at in 1..widths.len() {
        to_right[at] = to_right[at].max(to_right[at - 1] + distance(at - 1));
    }
    for at in (1..widths.len()).rev() {
        to_left[at - 1] = to_left[at - 1].min(to_left[at] - distance(at - 1));
    }
    to_right.into_iter().zip(to_left).map(|(right, left)| f64::midpoint(right, left)).collect()
}

/// The order of the rows in a pass, each with the row that was before it: downwards and upwards by turns.
fn rows_of_pass(pass: usize, rows: usize) -> Vec<(usize, usize)> {
    let downwards = (1..rows).map(|row| (row, row - 1));
    if pass.is_multiple_of(2) {
        downwards.collect()
    } else {
        downwards.map(|(lower, upper)| (upper, lower)).rev().collect()
    }
}

/// The mean of weighted values; `None` without any.
fn mean(values: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (sum, weights) =
        values.fold((0.0, 0.0), |(sum, weights), (value, weight)| (sum + value * weight, weights + weight));
    (weights > 0.0).then(|| sum / weights)
}

/// Whether an arrow leads from a cell to one of the next row.
fn leads(groups: &Groups, from: &Cell, to: &Cell) -> bool {
    match from {
        Cell::Lane(target) => target == to.group(),
        Cell::Group(name) => groups.edges.contains_key(&(name.clone(), to.group().to_owned())),
    }
}

#[expect(clippy::cast_precision_loss, reason = "texts are short")]
fn cell_width(cell: &Cell, groups: &Groups, texts: &Texts) -> f64 {
    let Cell::Group(name) = cell else { return LANE };
    let text = texts[name].iter().map(String::len).max().unwrap_or(0) as f64 * CHARACTER;
    let title = name.len() as f64 * BOLD_CHARACTER;
    let ports = groups.edges.keys().filter(|(from, _)| from == name).count() as f64 * PORT;
    text.max(title).max(ports).max(56.0) + 16.0
}

#[expect(clippy::cast_precision_loss, reason = "texts are short")]
fn cell_height(cell: &Cell, texts: &Texts) -> f64 {
    let Cell::Group(name) = cell else { return 0.0 };
    28.0 + texts[name].len() as f64 * LINE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(edges: &[(&str, &str)]) -> Layout {
        let names: BTreeSet<&str> = edges.iter().flat_map(|(from, to)| [*from, *to]).collect();
        let groups = Groups {
            members: names.iter().map(|name| ((*name).to_owned(), vec![format!("{name}.rs")])).collect(),
            edges: edges.iter().map(|(from, to)| (((*from).to_owned(), (*to).to_owned()), 1)).collect(),
        };
        let texts = names.iter().map(|name| ((*name).to_owned(), vec!["1 module".to_owned()])).collect();
        Layout::new(&groups, &texts)
    }

    const EDGES: [(&str, &str); 7] = [
        ("cli", "api"),
        ("cli", "base"),
        ("daemon", "api"),
        ("daemon", "kernel"),
        ("api", "model"),
        ("kernel", "model"),
        ("model", "base"),
    ];

    #[test]
    fn layout_has_no_cells_over_one_another() {
        let layout = layout(&EDGES);
        for row in &layout.rows {
            for pair in row.cells.windows(2) {
                assert!(pair[0].left() + pair[0].width < pair[1].left());
            }
            let (first, last) = (&row.cells[0], row.cells.last().expect("a row has cells"));
            assert!(first.left() >= MARGIN - 0.1 && last.left() + last.width <= layout.width);
        }
    }

    #[test]
    fn layout_leads_arrows_past_rows_by_one_lane() {
        let lanes: Vec<usize> = layout(&EDGES)
            .rows
            .iter()
            .map(|row| row.cells.iter().filter(|placed| matches!(placed.cell, Cell::Lane(_))).count())
            .collect();
        assert_eq!(lanes, [0, 1, 1, 0]);
    }

    #[test]
    fn layout_places_cells_as_near_to_the_desired_centres_as_possible() {
        assert_eq!(apart(&[200.0, 400.0], &[40.0, 40.0], WIDTH), [200.0, 400.0]);
        assert_eq!(apart(&[300.0, 300.0], &[40.0, 40.0], WIDTH), [264.0, 336.0]);
        assert_eq!(apart(&[0.0, 900.0], &[40.0, 40.0], WIDTH), [36.0, 764.0]);
    }
}
