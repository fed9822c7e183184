//! What the user has chosen in `portmap top`: sorting, filter, selection, pause.

use super::{
    action::{Action, Mode},
    sort::SortKey,
    state::{Reading, Row, Table},
    text,
};
use crate::api::Flows;

/// How the loop goes on after an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Continue,
    Suspend,
    Quit,
}

/// The state of the program.
#[derive(Debug)]
pub(super) struct App {
    live: Table,
    /// The table as it was when the display was paused.
    paused: Option<Table>,
    /// The flows of the container that is shown, with their container's name.
    flows: Option<Flows>,
    /// Why they could not be read at last.
    pub(super) flows_trouble: Option<String>,
    /// Why the last reading failed.
    pub(super) trouble: Option<String>,
    pub(super) mode: Mode,
    pub(super) sort: SortKey,
    pub(super) is_inverted: bool,
    /// A part of the names that are shown.
    pub(super) filter: String,
    /// Whether rates are in bytes per second.
    pub(super) in_bytes: bool,
    /// The selected container, by name, because its line moves.
    selected: Option<String>,
    /// First line on the screen, of the table or of the detail.
    pub(super) offset: usize,
    /// Lines of the screen that scroll, as of the last drawing.
    pub(super) height: usize,
}

impl App {
    pub(super) fn new() -> Self {
        Self {
            live: Table::default(),
            paused: None,
            flows: None,
            flows_trouble: None,
            trouble: None,
            mode: Mode::Table,
            sort: SortKey::Tx,
            is_inverted: false,
            filter: String::new(),
            in_bytes: false,
            selected: None,
            offset: 0,
            height: 1,
        }
    }

    /// Rates in the unit that the user has chosen.
    pub(super) fn rate(&self, bytes_per_second: f64) -> String {
        text::short(if self.in_bytes { bytes_per_second } else { bytes_per_second * 8.0 })
    }

    /// The name of that unit.
    pub(super) const fn unit(&self) -> &'static str {
        if self.in_bytes { "B/s" } else { "bit/s" }
    }

    /// The table on the screen.
    pub(super) fn table(&self) -> &Table {
        self.paused.as_ref().unwrap_or(&self.live)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Takes a reading in, or why there is none. While paused, readings go on behind the screen, so that the
    /// first rates afterwards are those of one interval.
    pub(super) fn read(&mut self, reading: Result<Reading, String>) {
        match reading {
            Ok(reading) => {
                self.live.advance(reading);
                self.trouble = None;
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    /// Takes the flows of a container in, or why there are none, unless the display is paused.
    pub(super) fn read_flows(&mut self, flows: Result<Flows, String>) {
        if self.is_paused() {
            return;
        }
        match flows {
            Ok(flows) => {
                self.flows = Some(flows);
                self.flows_trouble = None;
            }
            Err(trouble) => self.flows_trouble = Some(trouble),
        }
    }

    /// The flows of the selected container, if they have been read.
    pub(super) fn flows(&self) -> Option<&Flows> {
        self.flows.as_ref().filter(|flows| Some(&flows.name) == self.selected.as_ref())
    }

    /// The indices of the rows that pass the filter, in order.
    pub(super) fn order(&self) -> Vec<usize> {
        let rows = &self.table().rows;
        let shown = (0..rows.len()).filter(|index| rows[*index].stats.name.contains(&self.filter));
        let mut order = self.sort.sort(rows, shown);
        if self.is_inverted {
            order.reverse();
        }
        order
    }

    fn name(&self, index: usize) -> &str {
        &self.table().rows[index].stats.name
    }

    /// The line of the selected container among the rows at these indices; the first if it is not there.
    pub(super) fn selected_in(&self, order: &[usize]) -> usize {
        let selected = self.selected.as_deref();
        order.iter().position(|index| Some(self.name(*index)) == selected).unwrap_or_default()
    }

    /// The container that is shown alone; `None` if none is, or if it has been removed.
    pub(super) fn detail(&self) -> Option<&Row> {
        if self.mode != Mode::Detail {
            return None;
        }
        let name = self.selected.as_deref()?;
        self.table().rows.iter().find(|row| row.stats.name == name)
    }

    /// The name of the selected container.
    pub(super) fn selected(&self) -> &str {
        self.selected.as_deref().unwrap_or_default()
    }

    /// Does what a key asks for.
    pub(super) fn act(&mut self, action: Action) -> Next {
        let page = isize::try_from(self.height).unwrap_or(isize::MAX);
        match action {
            Action::Quit => return Next::Quit,
            Action::Suspend => return Next::Suspend,
            Action::Move(lines) => self.scroll(lines),
            Action::Page(pages) => self.scroll(pages.saturating_mul(page)),
            Action::First => self.scroll(isize::MIN),
            Action::Last => self.scroll(isize::MAX),
            Action::Open if self.mode == Mode::Table => {
                let order = self.order();
                if let Some(index) = order.get(self.selected_in(&order)) {
                    self.selected = Some(self.name(*index).to_owned());
                    self.flows_trouble = None;
                    self.show(Mode::Detail);
                }
            }
            Action::Help if self.mode != Mode::Help => self.show(Mode::Help),
            Action::Open | Action::Help => self.show(Mode::Table),
            Action::Back => {
                // The filter stays when the detail is left, and goes with the next Escape.
                if matches!(self.mode, Mode::Table | Mode::Filter) {
                    self.filter.clear();
                }
                self.show(Mode::Table);
            }
            Action::Sort(key) => self.sort = key,
            Action::SortNext(by) => {
                let all = SortKey::ALL;
                let at = all.iter().position(|key| *key == self.sort).unwrap_or_default();
                let count = all.len();
                let next = if by < 0 { at + count - 1 } else { at + 1 };
                self.sort = all[next % count];
            }
            Action::Invert => self.is_inverted = !self.is_inverted,
            Action::Pause => {
                self.paused = if self.paused.is_none() { Some(self.live.clone()) } else { None };
            }
            Action::Unit => self.in_bytes = !self.in_bytes,
            Action::Filter => self.show(Mode::Filter),
            Action::Type(character) => self.filter.push(character),
            Action::Erase => drop(self.filter.pop()),
            Action::EraseAll => self.filter.clear(),
            Action::Accept => self.mode = Mode::Table,
        }
        Next::Continue
    }

    fn show(&mut self, mode: Mode) {
        self.mode = mode;
        self.offset = 0;
    }

    /// Moves the selection of the table, or the text of the other modes.
    fn scroll(&mut self, lines: isize) {
        if self.mode != Mode::Table {
            self.offset = self.offset.saturating_add_signed(lines);
            return;
        }
        let order = self.order();
        let at = self.selected_in(&order).saturating_add_signed(lines).min(order.len().saturating_sub(1));
        self.selected = order.get(at).map(|index| self.name(*index).to_owned());
    }

    /// Keeps the first line within a text of `lines` lines, of which `height` fit on the screen, and, in the
    /// table, the selected line on the screen.
    pub(super) fn fit(&mut self, lines: usize, height: usize, selected: Option<usize>) {
        self.height = height.max(1);
        if let Some(selected) = selected {
            let first = (selected + 1).saturating_sub(self.height);
            self.offset = self.offset.clamp(first, selected.max(first));
        }
        self.offset = self.offset.min(lines.saturating_sub(self.height));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::cli::top::state::tests::{reading, stats};

    /// An app that has read counters of these containers twice, a second apart; the bytes are those received
    /// and sent in between.
    fn app(containers: &[(&str, u64, u64)]) -> App {
        let (mut app, start) = (App::new(), Instant::now());
        let zero = containers.iter().map(|(name, ..)| stats(name, 0, 0)).collect();
        app.read(Ok(reading(start, zero)));
        let now = containers.iter().map(|(name, rx, tx)| stats(name, *rx, *tx)).collect();
        app.read(Ok(reading(start + Duration::from_secs(1), now)));
        app
    }

    fn names(app: &App) -> Vec<&str> {
        app.order().into_iter().map(|index| app.name(index)).collect()
    }

    #[test]
    fn top_sorts_and_filters() {
        let mut app = app(&[("web", 100, 300), ("api", 200, 200), ("batch", 300, 100), ("idle", 0, 0)]);
        assert_eq!(names(&app), ["web", "api", "batch", "idle"], "by sent bytes, the largest first");
        app.act(Action::Sort(SortKey::Rx));
        assert_eq!(names(&app), ["batch", "api", "web", "idle"]);
        app.act(Action::Invert);
        assert_eq!(names(&app), ["idle", "web", "api", "batch"]);
        app.act(Action::Invert);
        app.act(Action::Sort(SortKey::Drops));
        assert_eq!(names(&app), ["api", "batch", "idle", "web"], "equal ones by name");
        for character in "ba".chars() {
            app.act(Action::Type(character));
        }
        assert_eq!(names(&app), ["batch"]);
        app.act(Action::Erase);
        assert_eq!(names(&app), ["batch", "web"]);
        app.act(Action::Back);
        assert_eq!(names(&app).len(), 4);
    }

    #[test]
    fn top_selection_follows_its_container() {
        let mut app = app(&[("a", 0, 300), ("b", 0, 200), ("c", 0, 100)]);
        app.act(Action::Move(1));
        assert_eq!(app.selected(), "b");
        app.act(Action::Sort(SortKey::Name));
        app.act(Action::Invert);
        app.act(Action::Move(-1));
        assert_eq!(app.selected(), "c", "the one above b now");
        app.act(Action::Last);
        assert_eq!(app.selected(), "a");
        app.act(Action::Page(9));
        assert_eq!(app.selected(), "a", "it stops at the end");
    }

    #[test]
    fn top_pause_keeps_the_screen_and_goes_on_reading() {
        let mut app = app(&[("a", 0, 100)]);
        app.act(Action::Pause);
        app.read(Ok(reading(Instant::now() + Duration::from_secs(2), vec![stats("a", 0, 900)])));
        assert!((app.table().rows[0].tx.bytes - 100.0).abs() < 1.0, "{:?}", app.table().rows[0].tx);
        app.act(Action::Pause);
        assert!(app.table().rows[0].tx.bytes > 500.0, "{:?}", app.table().rows[0].tx);
    }

    #[test]
    fn top_lost_daemon_is_reported_until_it_is_back() {
        let mut app = app(&[("a", 0, 100)]);
        app.read(Err("no daemon".to_owned()));
        assert_eq!((app.trouble.as_deref(), names(&app)), (Some("no daemon"), vec!["a"]));
        app.read(Ok(reading(Instant::now() + Duration::from_secs(9), vec![stats("a", 0, 100)])));
        assert_eq!(app.trouble, None);
    }

    #[test]
    fn top_selected_line_stays_on_the_screen() {
        let mut app = App::new();
        app.fit(1000, 10, Some(500));
        assert_eq!(app.offset, 491);
        app.fit(1000, 10, Some(495));
        assert_eq!(app.offset, 491, "it does not move without need");
        app.fit(1000, 10, Some(3));
        assert_eq!(app.offset, 3);
        app.fit(4, 10, Some(3));
        assert_eq!(app.offset, 0, "fewer lines than the screen has");
    }
}
