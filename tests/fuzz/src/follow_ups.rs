//! Frames that follow an earlier one: subsequent fragments of its datagram, replies and errors.

use portmap_ebpf::{Verdict, verdict::IcmpIdRewrite};

use crate::{
    reader::{self, Content, Packet, Part},
    values::MAC,
};

/// Returns another fragment of the datagram of `frame`. `position` is its offset in units of eight bytes.
pub fn subsequent_fragment(frame: &[u8], position: u8) -> Option<Vec<u8>> {
    let packet = reader::packet(frame)?;
    let behind = packet.behind()?;
    if behind.part == Part::Whole {
        return None;
    }
    let mut other = frame.to_vec();
    let position = u16::from(position % 32) + 1;
    // The transport starts behind the fragment header, if that is the last one.
    let (at, value) = if packet.is_v6 {
        (Packet::START + behind.at.checked_sub(6)?, position << 3)
    } else {
        (Packet::START + 6, position)
    };
    other.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
    Some(other)
}

/// Returns the reply to a packet that has left, at the uplink: with ports and addresses swapped, and for an
/// echo request the reply with the identifier on the wire. `flags` are those of a TCP reply, unless they are 0.
pub fn reply(frame: &[u8], verdict: &Verdict, flags: u8) -> Option<Vec<u8>> {
    let packet = reader::packet(frame)?;
    let behind = packet.behind()?;
    let mut other = frame.to_vec();
    other.get_mut(..6)?.copy_from_slice(&MAC);
    let length = if packet.is_v6 { 16 } else { 4 };
    let at = Packet::START + if packet.is_v6 { 8 } else { 12 };
    other.get_mut(at..at + 2 * length)?.rotate_left(length);
    let at = Packet::START + behind.at;
    match packet.content(behind)? {
        Content::Ports(..) => {
            other.get_mut(at..at + 4)?.rotate_left(2);
            if behind.protocol == 6
                && flags != 0
                && let Some(old) = other.get_mut(at + 13)
            {
                *old = flags;
            }
        }
        Content::Echo { .. } => {
            *other.get_mut(at)? = if packet.is_v6 { 129 } else { 0 };
            if let Verdict::ToOutside { rewrite: rewrite @ IcmpIdRewrite { to, .. }, .. } = verdict
                && !rewrite.is_none()
            {
                other.get_mut(at + 4..at + 6)?.copy_from_slice(&to.to_be_bytes());
            }
        }
        Content::Error { .. } => return None,
    }
    Some(other)
}

/// Returns an error about a packet that has left, at the uplink.
pub fn error(frame: &[u8], verdict: &Verdict) -> Option<Vec<u8>> {
    let packet = reader::packet(frame)?;
    let behind = packet.behind()?;
    let mut inner = packet.bytes.to_vec();
    if let Verdict::ToOutside { rewrite: rewrite @ IcmpIdRewrite { to, .. }, .. } = verdict
        && !rewrite.is_none()
    {
        inner.get_mut(behind.at + 4..behind.at + 6)?.copy_from_slice(&to.to_be_bytes());
    }
    let mut other = frame.get(..Packet::START)?.to_vec();
    other[..6].copy_from_slice(&MAC);
    let length = u16::try_from(inner.len() + 8).ok()?;
    // Its source is the packet's destination.
    if packet.is_v6 {
        other.extend([0x60, 0, 0, 0]);
        other.extend(length.to_be_bytes());
        other.extend([58, 64]);
        other.extend(packet.destination);
        other.extend(packet.source);
        other.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    } else {
        other.extend([0x45, 0]);
        other.extend(length.checked_add(20)?.to_be_bytes());
        other.extend([0, 0, 0, 0, 64, 1, 0, 0]);
        other.extend(&packet.destination[12..]);
        other.extend(&packet.source[12..]);
        other.extend([3, 3, 0, 0, 0, 0, 0, 0]);
    }
    other.extend(inner);
    Some(other)
}
