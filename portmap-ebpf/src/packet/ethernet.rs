//! Ethernet headers.

use portmap_common::{reason::Reason, tables::Mac};

use crate::frame::{Frame, Head as _};

/// Bytes of an Ethernet header without tags.
pub const HEADER: usize = 14;

/// Type of a frame that carries IPv4.
pub const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
/// Type of a frame that carries IPv6.
pub const IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad and the older stacked tag, for frames whose tag the kernel has left in place.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// The part of a tag that is the VLAN's number; 0 is none, such a tag has a priority only.
const VLAN_NUMBER: u16 = 0x0fff;

/// What an Ethernet frame carries, as far as anybody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Tells what a frame carries. The error says what it is instead of an IP packet.
#[inline(always)]
pub fn kind(frame: &impl Frame) -> Result<Kind, Reason> {
    if frame.vlan_tag().is_some() {
        return Err(Reason::Vlan);
    }
    untagged_kind(frame)
}

/// The same where a tag without a VLAN's number is as good as none, as it is for the kernel.
#[inline(always)]
pub fn kind_or_priority_tagged(frame: &impl Frame) -> Result<Kind, Reason> {
    if frame.vlan_tag().is_some_and(|tag| tag & VLAN_NUMBER != 0) {
        return Err(Reason::Vlan);
    }
    untagged_kind(frame)
}

#[inline(always)]
fn untagged_kind(frame: &impl Frame) -> Result<Kind, Reason> {
    match ether_type(frame).ok_or(Reason::Malformed)? {
        IPV4 => Ok(Kind::V4),
        IPV6 => Ok(Kind::V6),
        ARP => Err(Reason::Arp),
        tag if tag == TAGS[0] || tag == TAGS[1] || tag == TAGS[2] => Err(Reason::Vlan),
        _ => Err(Reason::EtherType),
    }
}

/// The type of what follows the header.
#[inline(always)]
pub fn ether_type(frame: &impl Frame) -> Option<u16> {
    Some(frame.head::<HEADER>()?.half::<12>())
}

/// The destination MAC address.
#[inline(always)]
pub fn destination(frame: &impl Frame) -> Option<Mac> {
    let head = frame.head::<HEADER>()?;
    Some(mac(head.word::<0>(), head.half::<4>()))
}

/// The source MAC address.
#[inline(always)]
pub fn source(frame: &impl Frame) -> Option<Mac> {
    let head = frame.head::<HEADER>()?;
    Some(mac(head.word::<6>(), head.half::<10>()))
}

#[inline(always)]
fn mac(first: u32, last: u16) -> Mac {
    Mac { bytes: (u64::from(first) << 32 | u64::from(last) << 16).to_be_bytes() }
}

/// Whether a MAC address is that of a group of stations, of all of them for example.
#[inline(always)]
pub const fn is_group(mac: Mac) -> bool {
    mac.bytes[0] & 1 != 0
}
