//! The encoding of the verdict that a program reports in a dry run.
//!
//! A dry run is a test run (`BPF_PROG_TEST_RUN`) with [`DRY_RUN_MARK`](portmap_common::marks::DRY_RUN_MARK)
//! and [`DRY_RUN_HWTSTAMP`](portmap_common::marks::DRY_RUN_HWTSTAMP). The program has no side effects, and
//! reports its verdict in seven words of the `__sk_buff`, which a test run returns.

use portmap_common::{reason::Reason, tables::PortEntry};

use crate::verdict::{AF_INET, AF_INET6, IcmpIdRewrite, NextHop, Origin, Verdict};

/// The seven words: five of `cb`, then `priority` and `mark`.
pub type EncodedVerdict = [u32; 7];

const CONTINUE: u8 = 1;
const ALREADY_HANDLED: u8 = 2;
const DELIVER_LOCAL: u8 = 3;
const DROP: u8 = 4;
const TO_CONTAINER_FROM_OUTSIDE: u8 = 5;
const TO_CONTAINER_FROM_HOST: u8 = 6;
const TO_CONTAINER_FROM_CONTAINER: u8 = 7;
const TO_OUTSIDE_V4: u8 = 8;
const TO_OUTSIDE_V6: u8 = 9;
const TO_HOST: u8 = 10;
const TO_ETH0: u8 = 11;
const TO_LOOPBACK: u8 = 12;
const ASSIGN_FLOW: u8 = 13;
const TO_OUTSIDE_KERNEL: u8 = 14;

/// Bits of a kind of verdict.
const KIND_BITS: u32 = 4;

/// Encodes a verdict.
#[inline(always)]
pub fn encode(verdict: &Verdict) -> EncodedVerdict {
    let short = |kind, detail, slot| [first(kind, detail, slot), 0, 0, 0, 0, 0, 0];
    match *verdict {
        Verdict::Continue(reason) => short(CONTINUE, reason as u8, 0),
        Verdict::AlreadyHandled => short(ALREADY_HANDLED, 0, 0),
        Verdict::AssignFlow(flow) => short(ASSIGN_FLOW, 0, flow),
        Verdict::DeliverLocal(slot) => short(DELIVER_LOCAL, 0, slot),
        Verdict::Drop { slot, reason } => short(DROP, reason as u8, slot),
        Verdict::ToContainer { origin, owner, by_loopback, rewrite } => {
            let (kind, sender) = match origin {
                Origin::Outside => (TO_CONTAINER_FROM_OUTSIDE, 0),
                Origin::Host => (TO_CONTAINER_FROM_HOST, 0),
                Origin::Container(sender) => (TO_CONTAINER_FROM_CONTAINER, sender),
            };
            let entry = u32::from(owner.slot) | u32::from(owner.flags) << 16;
            let (ids, message) = encode_rewrite(rewrite);
            [first(kind, u8::from(by_loopback), sender), owner.ifindex, entry, 0, 0, ids, message]
        }
        Verdict::ToOutside { slot, ifindex, next_hop, rewrite } => {
            let (ids, message) = encode_rewrite(rewrite);
            let kind = match next_hop.family {
                AF_INET => TO_OUTSIDE_V4,
                AF_INET6 => TO_OUTSIDE_V6,
                _ => TO_OUTSIDE_KERNEL,
            };
            let [a, b, c, d] = next_hop.address;
            // Seven words have room for all only if slot and offset share one with the kind.
            [u32::from(kind) | u32::from(slot) << KIND_BITS | message << 16, a, b, c, d, ids, ifindex]
        }
        Verdict::ToHost(slot) => short(TO_HOST, 0, slot),
        Verdict::ToEth0(ifindex) => [first(TO_ETH0, 0, 0), ifindex, 0, 0, 0, 0, 0],
        Verdict::ToLoopback => short(TO_LOOPBACK, 0, 0),
    }
}

/// Decodes a verdict; `None` if no program can have written these words.
pub fn decode(words: EncodedVerdict) -> Option<Verdict> {
    let [first, a, b, c, d, ids, message] = words;
    let [kind, detail, low, high] = first.to_le_bytes();
    let kind = match kind & ((1 << KIND_BITS) - 1) {
        outside @ (TO_OUTSIDE_V4 | TO_OUTSIDE_V6 | TO_OUTSIDE_KERNEL) => outside,
        _ => kind,
    };
    let slot = u16::from_le_bytes([low, high]);
    let reason = || Reason::ALL.get(usize::from(detail)).copied();
    let rewrite = decode_rewrite(ids, message);
    let to_container = |origin| {
        let [s0, s1, f0, f1] = b.to_le_bytes();
        let (slot, flags) = (u16::from_le_bytes([s0, s1]), u16::from_le_bytes([f0, f1]));
        let owner = PortEntry { ifindex: a, slot, flags };
        Verdict::ToContainer { origin, owner, by_loopback: detail != 0, rewrite }
    };
    Some(match kind {
        CONTINUE => Verdict::Continue(reason()?),
        ALREADY_HANDLED => Verdict::AlreadyHandled,
        ASSIGN_FLOW => Verdict::AssignFlow(slot),
        DELIVER_LOCAL => Verdict::DeliverLocal(slot),
        DROP => Verdict::Drop { slot, reason: reason()? },
        TO_CONTAINER_FROM_OUTSIDE => to_container(Origin::Outside),
        TO_CONTAINER_FROM_HOST => to_container(Origin::Host),
        TO_CONTAINER_FROM_CONTAINER => to_container(Origin::Container(slot)),
        TO_OUTSIDE_V4 | TO_OUTSIDE_V6 | TO_OUTSIDE_KERNEL => {
            let family = match kind {
                TO_OUTSIDE_V4 => AF_INET,
                TO_OUTSIDE_V6 => AF_INET6,
                _ => 0,
            };
            let [a0, a1, b0, b1] = first.to_le_bytes();
            let (slot, at) = (u16::from_le_bytes([a0, a1]) >> KIND_BITS, u16::from_le_bytes([b0, b1]));
            Verdict::ToOutside {
                slot,
                ifindex: message,
                next_hop: NextHop { family, address: [a, b, c, d] },
                rewrite: decode_rewrite(ids, at.into()),
            }
        }
        TO_HOST => Verdict::ToHost(slot),
        TO_ETH0 => Verdict::ToEth0(a),
        TO_LOOPBACK => Verdict::ToLoopback,
        _ => return None,
    })
}

/// Returns the first word: the kind of verdict, a detail and a slot.
#[inline(always)]
fn first(kind: u8, detail: u8, slot: u16) -> u32 {
    u32::from(kind) | u32::from(detail) << 8 | u32::from(slot) << 16
}

/// Encodes both identifiers in one word, and the offset of the message in another.
#[expect(clippy::cast_possible_truncation, reason = "no frame is that long")]
#[inline(always)]
const fn encode_rewrite(rewrite: IcmpIdRewrite) -> (u32, u32) {
    (rewrite.from as u32 | (rewrite.to as u32) << 16, rewrite.message as u32)
}

const fn decode_rewrite(ids: u32, message: u32) -> IcmpIdRewrite {
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
    fn verdict_codec_round_trips_every_verdict() {
        let owner = PortEntry { ifindex: 1_000_007, slot: 7, flags: 3 };
        let rewrite = IcmpIdRewrite { message: 14 + 40 + 2048, from: 0xfffe, to: 1 };
        let mut verdicts: Vec<Verdict> = vec![
            Verdict::AlreadyHandled,
            Verdict::AssignFlow(4097),
            Verdict::DeliverLocal(4095),
            Verdict::ToHost(1),
            Verdict::ToEth0(2),
            Verdict::ToLoopback,
        ];
        for next_hop in [
            NextHop::v4([10, 0, 0, 254]),
            NextHop::v6(*b"0123456789abcdef"),
            NextHop::v6([0xff; 16]),
            NextHop::KERNEL,
        ] {
            for (slot, ifindex) in [(9, 2), (4095, u32::MAX)] {
                verdicts.push(Verdict::ToOutside { slot, ifindex, next_hop, rewrite });
                let rewrite = IcmpIdRewrite::NONE;
                verdicts.push(Verdict::ToOutside { slot, ifindex, next_hop, rewrite });
            }
        }
        for reason in Reason::ALL {
            verdicts.push(Verdict::Continue(*reason));
            verdicts.push(Verdict::Drop { slot: 4095, reason: *reason });
        }
        for origin in [Origin::Outside, Origin::Host, Origin::Container(12)] {
            for by_loopback in [false, true] {
                verdicts.push(Verdict::ToContainer { origin, owner, by_loopback, rewrite });
                verdicts.push(Verdict::ToContainer {
                    origin,
                    owner,
                    by_loopback,
                    rewrite: IcmpIdRewrite::NONE,
                });
            }
        }
        for verdict in verdicts {
            assert_eq!(decode(encode(&verdict)), Some(verdict));
        }
        assert_eq!(decode([0; 7]), None);
    }
}
