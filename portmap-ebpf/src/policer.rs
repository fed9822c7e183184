//! The egress rate policer: whether a packet conforms to its container's rate limit.
//!
//! The qdisc inside the container shapes its traffic to the limit without loss. The container's root can
//! delete that qdisc; the policer then drops the excess traffic. Its tolerance covers the time by which the
//! qdisc can be late.

use crate::tables::Tables;

/// Returns whether a packet with `bytes` bytes on the wire conforms to the limit of `slot`, and charges it if
/// so.
#[inline(always)]
pub fn conforms(tables: &impl Tables, bytes: u32, slot: u16, is_local: bool) -> bool {
    let Some(limit) = tables.policer(slot) else { return true };
    if limit.ns_per_byte == 0 || (is_local && limit.counts_local == 0) {
        return true;
    }
    tables.advance_tat(slot, limit.transmission_time(bytes), tables.now(), limit.tolerance)
}

#[cfg(test)]
mod tests {
    use portmap_common::gcra::GcraState;

    use super::*;
    use crate::testing::FakeTables;

    const SLOT: u16 = 1;

    fn tables(rate: u64, tolerance: u64, counts_local: bool) -> FakeTables {
        let mut tables = FakeTables::default();
        tables.policers.insert(SLOT, GcraState::new(rate, tolerance, counts_local));
        tables.now.set(1 << 40);
        tables
    }

    fn passes(tables: &FakeTables, is_local: bool) -> bool {
        conforms(tables, 1000, SLOT, is_local)
    }

    #[test]
    fn limit_allows_the_burst_then_the_rate() {
        // A byte takes a microsecond, and a burst of ten thousand conforms.
        let tables = tables(1_000_000, 10_000_000, true);
        let mut sent = 0;
        for _ in 0..1000 {
            sent += u32::from(passes(&tables, false));
            tables.now.update(|now| now + 100_000);
        }
        // In a tenth of a second, a hundred packets besides the eleven of the burst.
        assert!((110..=112).contains(&sent), "{sent}");
    }

    #[test]
    fn limit_accumulates_no_credit_while_idle() {
        let tables = tables(1_000_000, 0, true);
        tables.now.update(|now| now + 1_000_000_000);
        assert!(passes(&tables, false));
        assert!(!passes(&tables, false));
    }

    #[test]
    fn limit_applies_to_local_packets_on_request() {
        for counts_local in [false, true] {
            let tables = tables(1_000_000, 0, counts_local);
            assert!(passes(&tables, true));
            assert_eq!(passes(&tables, true), !counts_local);
        }
    }
}
