//! Ethernet headers.

use portmap_common::{reason::Reason, tables::Mac};

use crate::frame::{Frame, Head as _};

/// Length in bytes of an Ethernet header without tags.
pub const HEADER: usize = 14;

/// Ethertype of IPv4.
pub const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
/// Ethertype of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Ethertypes of 802.1Q, 802.1ad and the older stacked tag, for frames whose tag the kernel has left in
/// place.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// Mask of the VLAN identifier in a tag. Identifier 0 means no VLAN: the tag carries a priority only.
const VLAN_ID: u16 = 0x0fff;

/// The L3 protocols that portmap handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L3 {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Returns the L3 protocol of a frame. The error says what the frame carries instead of an IP packet.
#[inline(always)]
pub fn l3(frame: &impl Frame) -> Result<L3, Reason> {
    if frame.vlan_tag().is_some() {
        return Err(Reason::Vlan);
    }
    untagged_l3(frame)
}

/// Returns the L3 protocol of a frame, like [`l3`], but ignores a tag with VLAN identifier 0, as the kernel
/// does.
#[inline(always)]
pub fn l3_ignoring_priority_tag(frame: &impl Frame) -> Result<L3, Reason> {
    if frame.vlan_tag().is_some_and(|tag| tag & VLAN_ID != 0) {
        return Err(Reason::Vlan);
    }
    untagged_l3(frame)
}

#[inline(always)]
fn untagged_l3(frame: &impl Frame) -> Result<L3, Reason> {
    match ether_type(frame).ok_or(Reason::Malformed)? {
        IPV4 => Ok(L3::V4),
        IPV6 => Ok(L3::V6),
        ARP => Err(Reason::Arp),
        tag if tag == TAGS[0] || tag == TAGS[1] || tag == TAGS[2] => Err(Reason::Vlan),
        _ => Err(Reason::EtherType),
    }
}

/// Returns the Ethertype.
#[inline(always)]
pub fn ether_type(frame: &impl Frame) -> Option<u16> {
    Some(frame.head::<HEADER>()?.be16::<12>())
}

/// Returns the destination MAC address.
#[inline(always)]
pub fn destination(frame: &impl Frame) -> Option<Mac> {
    let head = frame.head::<HEADER>()?;
    Some(mac(head.be32::<0>(), head.be16::<4>()))
}

/// Returns the source MAC address.
#[inline(always)]
pub fn source(frame: &impl Frame) -> Option<Mac> {
    let head = frame.head::<HEADER>()?;
    Some(mac(head.be32::<6>(), head.be16::<10>()))
}

#[inline(always)]
fn mac(first: u32, last: u16) -> Mac {
    Mac { bytes: (u64::from(first) << 32 | u64::from(last) << 16).to_be_bytes() }
}

/// Returns whether a MAC address is a multicast or broadcast address.
#[inline(always)]
pub const fn is_group(mac: Mac) -> bool {
    mac.bytes[0] & 1 != 0
}
