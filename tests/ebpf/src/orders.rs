//! Orders in test frames for the attacker's programs, shared by the tests and the BPF object.

/// First byte of a frame with orders, which are in place of the destination MAC address.
pub(crate) const ORDER: u8 = 0x06;
/// Target in the lowest bits of the actions: the host veth, bypassing the container's `eth0`.
pub(crate) const TO_PEER: u8 = 0;
/// Target: the container's `eth0`.
pub(crate) const TO_ETH0: u8 = 1;
/// Target: both, the frame and a clone of it.
pub(crate) const CLONE_TO_ETH0: u8 = 2;
/// Action: push a VLAN tag.
pub(crate) const TAG: u8 = 1 << 2;
/// Action: add room in front and move the headers there.
pub(crate) const PUSH: u8 = 1 << 3;
/// Action: remove bytes behind the MAC header.
pub(crate) const POP: u8 = 1 << 4;
/// Action: encapsulate it in a tunnel.
pub(crate) const WRAP: u8 = 1 << 5;
/// Action: keep the segment size (`BPF_F_ADJ_ROOM_FIXED_GSO`).
pub(crate) const FIXED: u8 = 1 << 6;
/// Length in bytes of the headers that [`PUSH`] moves.
pub(crate) const HEAD: usize = 128;
/// Length in bytes of the decoy in front of those headers, which the kernel has parsed as the frame's
/// headers.
pub(crate) const DECOY: usize = 64;
/// Index of a tunnel's headers in the programs' words.
pub(crate) const TUNNEL: u32 = 200;
/// Index of the counter of packets that leave with one of the marks.
pub(crate) const MARKED: u32 = 240;
