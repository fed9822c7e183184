//! Netlink attributes of HTB, the hierarchical token bucket, which the netlink crate lacks.
//! `linux/pkt_sched.h` has the layouts, `net/sched/sch_htb.c` the meaning of the fields.

use netlink_packet_core::{DefaultNla, NlaBuffer, NlasIterator};
use netlink_packet_route::tc::{TcAttribute, TcOption};

/// Kind of the qdisc.
pub const KIND: &str = "htb";

/// `TCA_HTB_PARMS`, `TCA_HTB_INIT`, `TCA_HTB_DIRECT_QLEN`, `TCA_HTB_RATE64`, `TCA_HTB_CEIL64`.
const PARMS: u16 = 1;
const INIT: u16 = 2;
const DIRECT_QLEN: u16 = 5;
const RATE64: u16 = 6;
const CEIL64: u16 = 7;

/// Version of the interface (`HTB_VER >> 16`).
const VERSION: u32 = 3;
/// Divisor of the rate that gives the quantum of classes without one; ours have one.
const RATE_TO_QUANTUM: u32 = 10;
/// `TC_LINKLAYER_ETHERNET`: the kernel computes transmission times itself instead of using a table.
const LINK_LAYER: u8 = 1;
/// Nanoseconds per tick of bucket times (`PSCHED_TICKS2NS`).
const TICK: u64 = 64;
/// Sizes of `struct tc_ratespec` and `struct tc_htb_opt` in bytes.
const RATE_SPEC: usize = 12;
const OPTIONS: usize = 2 * RATE_SPEC + 5 * 4;

/// Parameters of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Long-term rate in bytes per second.
    pub rate: u64,
    /// Rate while the burst lasts, in bytes per second.
    pub ceil: u64,
    /// Bytes that may exceed the rate at once.
    pub burst: u64,
    /// Bytes that may exceed the ceil at once.
    pub ceil_burst: u64,
    /// Bytes sent before the next class's turn.
    pub quantum: u32,
}

/// Options of the qdisc: unclassified packets use the class with this minor number, and the direct queue is
/// empty.
///
/// HTB sends packets whose priority equals its handle through the unlimited direct queue, and `SO_PRIORITY`
/// can set that. With `direct_qlen 0` the qdisc drops them.
pub(super) fn qdisc(default_class: u32) -> TcAttribute {
    let mut init = Vec::new();
    for word in [VERSION, RATE_TO_QUANTUM, default_class, 0, 0] {
        init.extend(word.to_ne_bytes());
    }
    TcAttribute::Options(vec![option(INIT, init), option(DIRECT_QLEN, 0_u32.to_ne_bytes().to_vec())])
}

/// Options of a class.
pub(super) fn class(class: &Class) -> TcAttribute {
    let mut options = Vec::with_capacity(OPTIONS);
    options.extend(rate_spec(class.rate));
    options.extend(rate_spec(class.ceil));
    options.extend(ticks(class.burst, class.rate).to_ne_bytes());
    options.extend(ticks(class.ceil_burst, class.ceil).to_ne_bytes());
    options.extend(class.quantum.to_ne_bytes());
    // Level and priority.
    options.extend([0; 8]);
    let mut all = Vec::new();
    for (kind, rate) in [(RATE64, class.rate), (CEIL64, class.ceil)] {
        // Only rates that do not fit into 32 bits, as tc does.
        if u32::try_from(rate).is_err() {
            all.push(option(kind, rate.to_ne_bytes().to_vec()));
        }
    }
    all.push(option(PARMS, options));
    TcAttribute::Options(all)
}

/// Parses a class as the kernel dumps it. Bursts have lost precision, because the kernel stores them in
/// ticks.
pub(super) fn read_class(options: &[TcOption]) -> Option<Class> {
    // The crate keeps the attribute of an unknown kind unparsed.
    let TcOption::Other(whole) = options.first()? else { return None };
    let mut value = vec![0; netlink_packet_core::Nla::value_len(whole)];
    netlink_packet_core::Nla::emit_value(whole, &mut value);
    let (mut parameters, mut rate64, mut ceil64) = (None, None, None);
    for attribute in NlasIterator::new(value.as_slice()) {
        let attribute: NlaBuffer<&[u8]> = attribute.ok()?;
        let number = || attribute.value().first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        match attribute.kind() {
            PARMS => parameters = Some(attribute.value().to_vec()),
            RATE64 => rate64 = number(),
            CEIL64 => ceil64 = number(),
            _ => {}
        }
    }
    let parameters = parameters?;
    let word = |at: usize| Some(u32::from_ne_bytes(*parameters.get(at..)?.first_chunk()?));
    let rate = rate64.unwrap_or(word(8)?.into());
    let ceil = ceil64.unwrap_or(word(RATE_SPEC + 8)?.into());
    let bytes = |at: usize, rate: u64| Some(bytes(word(at)?, rate));
    Some(Class {
        rate,
        ceil,
        burst: bytes(2 * RATE_SPEC, rate)?,
        ceil_burst: bytes(2 * RATE_SPEC + 4, ceil)?,
        quantum: word(2 * RATE_SPEC + 8)?,
    })
}

/// A `struct tc_ratespec`.
fn rate_spec(rate: u64) -> [u8; RATE_SPEC] {
    let mut spec = [0; RATE_SPEC];
    spec[1] = LINK_LAYER;
    spec[8..].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    spec
}

/// Transmission time of some bytes at a rate, in ticks.
fn ticks(bytes: u64, rate: u64) -> u32 {
    let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    u32::try_from(nanoseconds / u128::from(TICK)).unwrap_or(u32::MAX)
}

/// Bytes that a rate sends in some ticks.
fn bytes(ticks: u32, rate: u64) -> u64 {
    let bytes = u128::from(ticks) * u128::from(TICK) * u128::from(rate) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn option(kind: u16, value: Vec<u8>) -> TcOption {
    TcOption::Other(DefaultNla::new(kind, value))
}
