//! What keys can ask for in `portmap top`, and in which mode.

use super::sort::SortKey;

/// What the screen shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// All containers.
    Table,
    /// The same, while the filter is edited.
    Filter,
    /// One container.
    Detail,
    /// The keys.
    Help,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// End.
    Quit,
    /// Suspend this process, as a shell's job control does.
    Suspend,
    /// Move the selection, or scroll, by lines.
    Move(isize),
    /// Move by screens.
    Page(isize),
    /// Go to the first or the last line.
    First,
    Last,
    /// Show one container.
    Open,
    /// Leave the detail, the help or the filter.
    Back,
    /// Show the keys.
    Help,
    /// Sort by this column.
    Sort(SortKey),
    /// Sort by the column this many to the right.
    SortNext(isize),
    /// Invert the order.
    Invert,
    /// Stop or continue the display.
    Pause,
    /// Change between bits and bytes per second.
    Unit,
    /// Edit the filter: begin, add a character, remove one, empty it, keep it.
    Filter,
    Type(char),
    Erase,
    EraseAll,
    Accept,
}
