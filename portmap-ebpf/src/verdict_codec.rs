//! A verdict as a program reports it when it is asked rather than given a packet.
//!
//! A test run (`BPF_PROG_TEST_RUN`) of a program on a frame with [`DRY_RUN_MARK`] and [`DRY_RUN_TIME`] counts nothing and writes
//! nothing down. The program says what it would do in seven words of the `__sk_buff`, which a test run hands back. A mark
//! alone, which a container's root can give a packet, makes no difference.

use portmap_common::{reason::Reason, tables::PortEntry};

use crate::verdict::{IcmpIdRewrite, NextHop, Origin, Verdict};

/// Mark of a frame about which a program is asked.
pub const DRY_RUN_MARK: u32 = 0x504d_3f3f;

/// What such a frame has besides, which no packet can have: the moment at which hardware has seen it (`hwtstamp`). Programs
/// cannot write that and senders cannot set it, drivers of hardware alone can. This moment is centuries from now (and, where
/// a kernel keeps an address in its place, no address).
pub const DRY_RUN_TIME: u64 = 0x504d_3f3f_504d_3f3f;

/// The words: five of `cb`, then `priority` and `mark`.
pub type EncodedVerdict = [u32; 7];

const CONTINUE: u8 = 1;
const DECIDED: u8 = 2;
const OWN: u8 = 3;
const DROP: u8 = 4;
const TO_CONTAINER_FROM_OUTSIDE: u8 = 5;
const TO_CONTAINER_FROM_HOST: u8 = 6;
const TO_CONTAINER_FROM_CONTAINER: u8 = 7;
const TO_OUTSIDE_V4: u8 = 8;
const TO_OUTSIDE_V6: u8 = 9;
const TO_HOST: u8 = 10;
const TO_ETH0: u8 = 11;
const TO_LOOPBACK: u8 = 12;
const IN_FLOW: u8 = 13;

/// Writes a verdict down.
#[inline(always)]
pub fn encode(verdict: &Verdict) -> EncodedVerdict {
    let short = |kind, detail, slot| [first(kind, detail, slot), 0, 0, 0, 0, 0, 0];
    match *verdict {
        Verdict::Continue(reason) => short(CONTINUE, reason as u8, 0),
        Verdict::Decided => short(DECIDED, 0, 0),
        Verdict::InFlow(flow) => short(IN_FLOW, 0, flow),
        Verdict::Own(slot) => short(OWN, 0, slot),
        Verdict::Drop { slot, reason } => short(DROP, reason as u8, slot),
        Verdict::ToContainer { origin, owner, by_loopback, renumber } => {
            let (kind, sender) = match origin {
                Origin::Outside => (TO_CONTAINER_FROM_OUTSIDE, 0),
                Origin::Host => (TO_CONTAINER_FROM_HOST, 0),
                Origin::Container(sender) => (TO_CONTAINER_FROM_CONTAINER, sender),
            };
            let entry = u32::from(owner.slot) | u32::from(owner.flags) << 16;
            let (ids, message) = encode_renumber(renumber);
            [first(kind, u8::from(by_loopback), sender), owner.ifindex, entry, 0, 0, ids, message]
        }
        Verdict::ToOutside { slot, next_hop, renumber } => {
            let (ids, message) = encode_renumber(renumber);
            match next_hop {
                NextHop::V4(address) => {
                    [first(TO_OUTSIDE_V4, 0, slot), u32::from_be_bytes(address), 0, 0, 0, ids, message]
                }
                NextHop::V6(address) => {
                    let word = |bits: u32| ((u128::from_be_bytes(address) >> bits) & 0xffff_ffff) as u32;
                    [first(TO_OUTSIDE_V6, 0, slot), word(96), word(64), word(32), word(0), ids, message]
                }
            }
        }
        Verdict::ToHost(slot) => short(TO_HOST, 0, slot),
        Verdict::ToEth0(ifindex) => [first(TO_ETH0, 0, 0), ifindex, 0, 0, 0, 0, 0],
        Verdict::ToLoopback => short(TO_LOOPBACK, 0, 0),
    }
}

/// Reads a verdict back; none if no program can have written these words.
pub fn decode(words: EncodedVerdict) -> Option<Verdict> {
    let [first, a, b, c, d, ids, message] = words;
    let [kind, detail, low, high] = first.to_le_bytes();
    let slot = u16::from_le_bytes([low, high]);
    let reason = || Reason::ALL.get(usize::from(detail)).copied();
    let renumber = decode_renumber(ids, message);
    let to_container = |origin| {
        let [s0, s1, f0, f1] = b.to_le_bytes();
        let (slot, flags) = (u16::from_le_bytes([s0, s1]), u16::from_le_bytes([f0, f1]));
        let owner = PortEntry { ifindex: a, slot, flags };
        Verdict::ToContainer { origin, owner, by_loopback: detail != 0, renumber }
    };
    Some(match kind {
        CONTINUE => Verdict::Continue(reason()?),
        DECIDED => Verdict::Decided,
        IN_FLOW => Verdict::InFlow(slot),
        OWN => Verdict::Own(slot),
        DROP => Verdict::Drop { slot, reason: reason()? },
        TO_CONTAINER_FROM_OUTSIDE => to_container(Origin::Outside),
        TO_CONTAINER_FROM_HOST => to_container(Origin::Host),
        TO_CONTAINER_FROM_CONTAINER => to_container(Origin::Container(slot)),
        TO_OUTSIDE_V4 => Verdict::ToOutside { slot, next_hop: NextHop::V4(a.to_be_bytes()), renumber },
        TO_OUTSIDE_V6 => {
            let mut address = [0; 16];
            for (place, word) in address.chunks_exact_mut(4).zip([a, b, c, d]) {
                place.copy_from_slice(&word.to_be_bytes());
            }
            Verdict::ToOutside { slot, next_hop: NextHop::V6(address), renumber }
        }
        TO_HOST => Verdict::ToHost(slot),
        TO_ETH0 => Verdict::ToEth0(a),
        TO_LOOPBACK => Verdict::ToLoopback,
        _ => return None,
    })
}

/// First word: what, a detail of it, and a slot.
#[inline(always)]
fn first(kind: u8, detail: u8, slot: u16) -> u32 {
    u32::from(kind) | u32::from(detail) << 8 | u32::from(slot) << 16
}

/// Both identifiers in one word, and the place of the message in another.
#[expect(clippy::cast_possible_truncation, reason = "no frame is that long")]
#[inline(always)]
const fn encode_renumber(renumber: IcmpIdRewrite) -> (u32, u32) {
    (renumber.from as u32 | (renumber.to as u32) << 16, renumber.message as u32)
}

const fn decode_renumber(ids: u32, message: u32) -> IcmpIdRewrite {
    let [f0, f1, t0, t1] = ids.to_le_bytes();
    let (from, to) = (u16::from_le_bytes([f0, f1]), u16::from_le_bytes([t0, t1]));
    IcmpIdRewrite { message: message as usize, from, to }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{vec, vec::Vec};

    use super::*;

    #[test]
    fn every_verdict_survives_being_reported() {
        let owner = PortEntry { ifindex: 1_000_007, slot: 7, flags: 3 };
        let renumber = IcmpIdRewrite { message: 14 + 40 + 2048, from: 0xfffe, to: 1 };
        let mut verdicts: Vec<Verdict> = vec![
            Verdict::Decided,
            Verdict::InFlow(4097),
            Verdict::Own(4095),
            Verdict::ToHost(1),
            Verdict::ToEth0(2),
            Verdict::ToLoopback,
            Verdict::ToOutside { slot: 9, next_hop: NextHop::V4([10, 0, 0, 254]), renumber },
            Verdict::ToOutside { slot: 9, next_hop: NextHop::V6(*b"0123456789abcdef"), renumber },
            Verdict::ToOutside { slot: 9, next_hop: NextHop::V6([0xff; 16]), renumber: IcmpIdRewrite::NONE },
        ];
        for reason in Reason::ALL {
            verdicts.push(Verdict::Continue(*reason));
            verdicts.push(Verdict::Drop { slot: 4095, reason: *reason });
        }
        for origin in [Origin::Outside, Origin::Host, Origin::Container(12)] {
            for by_loopback in [false, true] {
                verdicts.push(Verdict::ToContainer { origin, owner, by_loopback, renumber });
                verdicts.push(Verdict::ToContainer {
                    origin,
                    owner,
                    by_loopback,
                    renumber: IcmpIdRewrite::NONE,
                });
            }
        }
        for verdict in verdicts {
            assert_eq!(decode(encode(&verdict)), Some(verdict));
        }
        assert_eq!(decode([0; 7]), None);
    }
}
