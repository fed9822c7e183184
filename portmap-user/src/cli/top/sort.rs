//! The order of the table of `portmap top`.

use std::cmp::Ordering;

use super::state::Row;

/// A column by which the table is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SortKey {
    Name,
    Rx,
    RxPackets,
    Tx,
    TxPackets,
    Uplink,
    Drops,
    Limit,
    Queue,
}

impl SortKey {
    /// All of them, in the order of the columns.
    pub(super) const ALL: [Self; 9] = [
        Self::Name,
        Self::Rx,
        Self::RxPackets,
        Self::Tx,
        Self::TxPackets,
        Self::Uplink,
        Self::Drops,
        Self::Limit,
        Self::Queue,
    ];

    /// Its key.
    pub(super) const fn letter(self) -> char {
        match self {
            Self::Name => 'n',
            Self::Rx => 'r',
            Self::RxPackets => 'R',
            Self::Tx => 't',
            Self::TxPackets => 'T',
            Self::Uplink => 'u',
            Self::Drops => 'd',
            Self::Limit => 'l',
            Self::Queue => 'w',
        }
    }

    /// Its name on the screen.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Rx => "received",
            Self::RxPackets => "packets received",
            Self::Tx => "sent",
            Self::TxPackets => "packets sent",
            Self::Uplink => "traffic at the uplink",
            Self::Drops => "drops",
            Self::Limit => "use of the limit",
            Self::Queue => "waiting bytes",
        }
    }

    /// The key with this letter.
    pub(super) fn by_letter(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.letter() == letter)
    }

    /// Compares two rows: names ascending, numbers descending.
    pub(super) fn compare(self, a: &Row, b: &Row) -> Ordering {
        let number = |of: fn(&Row) -> f64| of(b).total_cmp(&of(a));
        match self {
            Self::Name => Ordering::Equal,
            Self::Rx => number(|row| row.rx.bytes),
            Self::RxPackets => number(|row| row.rx.packets),
            Self::Tx => number(|row| row.tx.bytes),
            Self::TxPackets => number(|row| row.tx.packets),
            Self::Uplink => number(|row| row.uplink.bytes),
            Self::Drops => number(Row::drops),
            // Containers without a limit come last.
            Self::Limit => number(|row| row.limit_used().unwrap_or(-1.0)),
            Self::Queue => b.backlog().cmp(&a.backlog()),
        }
        .then_with(|| a.stats.name.cmp(&b.stats.name))
    }
}
