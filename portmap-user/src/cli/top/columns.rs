//! Which columns the table of `portmap top` has on a terminal, and how wide they are. Values only.

use super::sort::SortKey;

/// A column beside the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Number(SortKey),
    /// Reasons for drops.
    Why,
    /// The sparkline of bytes received and sent.
    History,
}

/// Least width of the name.
const NAME: usize = 12;
/// Width of the reasons if it is one, and, unless there is nothing else for the space, if there are more.
const ONE_REASON: usize = 18;
const REASONS: usize = 30;
/// Width of the ports in use as two numbers instead of percent.
const PORTS: usize = 13;

impl Column {
    /// All columns from left to right.
    const ALL: [Self; 12] = [
        Self::Number(SortKey::Rx),
        Self::Number(SortKey::RxPackets),
        Self::Number(SortKey::Tx),
        Self::Number(SortKey::TxPackets),
        Self::Number(SortKey::Uplink),
        Self::Number(SortKey::Limit),
        Self::Number(SortKey::Queue),
        Self::Number(SortKey::Ports),
        Self::Number(SortKey::Rtt),
        Self::Number(SortKey::Drops),
        Self::Why,
        Self::History,
    ];

    /// The same, in the order in which they get space.
    const BY_WEIGHT: [Self; 12] = [
        Self::Number(SortKey::Drops),
        Self::Number(SortKey::Limit),
        Self::Number(SortKey::Ports),
        Self::Number(SortKey::Tx),
        Self::Number(SortKey::Rx),
        Self::Number(SortKey::Uplink),
        Self::Why,
        Self::Number(SortKey::Queue),
        Self::Number(SortKey::Rtt),
        Self::Number(SortKey::TxPackets),
        Self::Number(SortKey::RxPackets),
        Self::History,
    ];

    /// The title.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Number(SortKey::Name) => "NAME",
            Self::Number(SortKey::Rx) => "RX",
            Self::Number(SortKey::Tx) => "TX",
            Self::Number(SortKey::RxPackets | SortKey::TxPackets) => "PKT/S",
            Self::Number(SortKey::Uplink) => "UPLINK",
            Self::Number(SortKey::Limit) => "LIMIT",
            Self::Number(SortKey::Queue) => "QUEUE",
            Self::Number(SortKey::Ports) => "PORTS",
            Self::Number(SortKey::Rtt) => "RTT",
            Self::Number(SortKey::Drops) => "DROPS",
            Self::Why => "WHY",
            Self::History => "RX AND TX",
        }
    }

    /// The least width, with a space before it.
    const fn least_width(self) -> usize {
        match self {
            Self::Number(SortKey::Uplink | SortKey::Rtt) => 7,
            Self::Number(SortKey::Limit) => 9,
            Self::Number(_) => 6,
            Self::Why => 15,
            Self::History => 17,
        }
    }

    /// Whether its text begins at the left, after a space.
    pub(super) const fn is_text(self) -> bool {
        matches!(self, Self::Why | Self::History)
    }
}

/// The columns of the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Columns {
    /// Width of the name.
    pub(super) name: usize,
    /// The others from left to right, with their widths.
    pub(super) others: Vec<(Column, usize)>,
}

impl Columns {
    /// The columns for a terminal of `width` characters. The column by which the table is sorted is there if any
    /// is. Round-trip times get space late if there are none. `longest` is the length of the longest name.
    pub(super) fn new(width: usize, sort: SortKey, has_rtt: bool, longest: usize) -> Self {
        let rtt = Column::Number(SortKey::Rtt);
        let late = (!has_rtt).then_some(rtt);
        let wanted = [Column::Number(sort)].into_iter();
        let wanted = wanted.chain(Column::BY_WEIGHT.into_iter().filter(|column| Some(*column) != late));
        let mut free = width.saturating_sub(NAME);
        let mut chosen = Vec::new();
        for column in wanted.chain(late) {
            if late == Some(column) && column != Column::Number(sort) && !chosen.contains(&Column::History) {
                continue;
            }
            let least = column.least_width();
            // Packets of both directions or of none, unless the table is sorted by one of them.
            let other = match column {
                Column::Number(SortKey::RxPackets) => Some(Column::Number(SortKey::TxPackets)),
                Column::Number(SortKey::TxPackets) => Some(Column::Number(SortKey::RxPackets)),
                _ => None,
            };
            let missing = other.filter(|other| column != Column::Number(sort) && !chosen.contains(other));
            let needed = least + missing.map_or(0, Column::least_width);
            if Column::ALL.contains(&column) && !chosen.contains(&column) && needed <= free {
                free -= least;
                chosen.push(column);
            }
        }
        let mut others: Vec<(Column, usize)> = Column::ALL
            .into_iter()
            .filter(|column| chosen.contains(column))
            .map(|column| (column, column.least_width()))
            .collect();
        let mut widen = |free: &mut usize, wide: Column, to: usize| {
            if let Some((_, width)) = others.iter_mut().find(|(column, _)| *column == wide) {
                *width += take(free, to.saturating_sub(*width));
            }
        };
        widen(&mut free, Column::Why, ONE_REASON);
        // One long name must not move the numbers away from all the others.
        let name = NAME + take(&mut free, (longest + 1).min(width / 3).saturating_sub(NAME));
        widen(&mut free, Column::Number(SortKey::Ports), PORTS);
        widen(&mut free, Column::Why, REASONS);
        widen(&mut free, Column::History, width);
        widen(&mut free, Column::Why, width);
        Self { name: name + free, others }
    }
}

/// Takes at most `wanted` of the free space.
fn take(free: &mut usize, wanted: usize) -> usize {
    let taken = wanted.min(*free);
    *free -= taken;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(width: usize, sort: SortKey, has_rtt: bool) -> Vec<&'static str> {
        let columns = Columns::new(width, sort, has_rtt, 12);
        let sum: usize = columns.name + columns.others.iter().map(|(_, width)| width).sum::<usize>();
        assert_eq!(sum, width.max(NAME), "{columns:?}");
        columns.others.iter().map(|(column, _)| column.title()).collect()
    }

    #[test]
    fn top_columns_give_way_on_narrow_terminals() {
        let (tx, rtt) = (SortKey::Tx, SortKey::Rtt);
        let all = [
            "RX",
            "PKT/S",
            "TX",
            "PKT/S",
            "UPLINK",
            "LIMIT",
            "QUEUE",
            "PORTS",
            "RTT",
            "DROPS",
            "WHY",
            "RX AND TX",
        ];
        assert_eq!(titles(160, tx, false), all);
        let narrow = ["RX", "TX", "UPLINK", "LIMIT", "QUEUE", "PORTS", "RTT", "DROPS", "WHY"];
        assert_eq!(titles(80, tx, true), narrow);
        // No space for a column without values, unless the table is sorted by it.
        assert!(!titles(80, tx, false).contains(&"RTT"));
        assert!(!titles(80, tx, false).contains(&"PKT/S"), "both or none");
        assert_eq!(titles(92, tx, true).iter().filter(|title| **title == "PKT/S").count(), 2);
        assert!(titles(80, rtt, false).contains(&"RTT"));
        assert_eq!(titles(40, tx, false), ["TX", "LIMIT", "PORTS", "DROPS"]);
        assert_eq!(titles(40, SortKey::RxPackets, false), ["PKT/S", "LIMIT", "PORTS", "DROPS"]);
    }

    #[test]
    fn top_columns_fill_every_width() {
        for width in 0..400 {
            for sort in SortKey::ALL {
                titles(width, sort, width % 2 == 0);
            }
        }
    }

    #[test]
    fn top_long_names_get_space_before_histories() {
        let name = |width| Columns::new(width, SortKey::Tx, true, 64).name;
        assert_eq!((name(80), name(300)), (12, 65));
    }
}
