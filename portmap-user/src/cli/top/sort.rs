//! The order of the table of `portmap top`.

use super::state::{LimitUse, Row};

/// A column by which the table is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SortKey {
    Name,
    Rx,
    RxPackets,
    Tx,
    TxPackets,
    Uplink,
    Limit,
    Queue,
    Ports,
    Rtt,
    Drops,
}

impl SortKey {
    /// All of them, in the order of the columns.
    pub(super) const ALL: [Self; 11] = [
        Self::Name,
        Self::Rx,
        Self::RxPackets,
        Self::Tx,
        Self::TxPackets,
        Self::Uplink,
        Self::Limit,
        Self::Queue,
        Self::Ports,
        Self::Rtt,
        Self::Drops,
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
            Self::Limit => 'l',
            Self::Queue => 'w',
            Self::Ports => 'p',
            Self::Rtt => 'm',
            Self::Drops => 'd',
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
            Self::Limit => "use of the limit",
            Self::Queue => "waiting bytes",
            Self::Ports => "ephemeral ports in use",
            Self::Rtt => "round-trip time",
            Self::Drops => "drops",
        }
    }

    /// The key with this letter.
    pub(super) fn by_letter(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.letter() == letter)
    }

    /// The rows at these indices in order: names ascending, numbers descending, and equal ones by name.
    pub(super) fn sort(self, rows: &[Row], indices: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut keyed: Vec<(f64, usize)> = indices.map(|index| (self.value(&rows[index]), index)).collect();
        keyed.sort_by(|(a, i), (b, j)| {
            b.total_cmp(a).then_with(|| rows[*i].stats.name.cmp(&rows[*j].stats.name))
        });
        keyed.into_iter().map(|(_, index)| index).collect()
    }

    /// The number by which a row is sorted. Containers without one, such as those without a limit, come last.
    fn value(self, row: &Row) -> f64 {
        match self {
            Self::Name => 0.0,
            Self::Rx => row.rx.bytes,
            Self::RxPackets => row.rx.packets,
            Self::Tx => row.tx.bytes,
            Self::TxPackets => row.tx.packets,
            Self::Uplink => row.uplink.bytes,
            Self::Limit => row.limit().map_or(-1.0, LimitUse::weight),
            #[expect(clippy::cast_precision_loss, reason = "it is compared with others only")]
            Self::Queue => row.backlog() as f64,
            Self::Ports => row.ports_used().unwrap_or(-1.0),
            Self::Rtt => row.rtt().map_or(-1.0, f64::from),
            Self::Drops => row.drops(),
        }
    }
}
