//! Orders that a frame of the tests gives to the attacker's programs, which the tests and the object have in common.

/// What frames with orders begin with: in place of the destination's MAC address they say what is to be done.
pub(crate) const ORDER: u8 = 0x06;
/// Where the frame goes, in the lowest bits of what is to be done: into the host veth, past the container's `eth0`.
pub(crate) const TO_PEER: u8 = 0;
/// By the container's `eth0`.
pub(crate) const TO_ETH0: u8 = 1;
/// Both, the frame and a clone.
pub(crate) const CLONE_TO_ETH0: u8 = 2;
/// What happens to it before: it gets a VLAN tag.
pub(crate) const TAG: u8 = 1 << 2;
/// Room in front, to which the headers move.
pub(crate) const PUSH: u8 = 1 << 3;
/// It loses bytes behind its MAC header.
pub(crate) const POP: u8 = 1 << 4;
/// It gets into a tunnel.
pub(crate) const WRAP: u8 = 1 << 5;
/// The size of its segments stays.
pub(crate) const FIXED: u8 = 1 << 6;
/// Bytes of the header that moves to the front of a frame which gets room there.
pub(crate) const HEAD: usize = 128;
/// Bytes in front of that header, in which the kernel has found what it believes to be the frame's headers.
pub(crate) const DECOY: usize = 64;
/// Where in the words that the programs look up a tunnel's headers are.
pub(crate) const TUNNEL: u32 = 200;
/// Where the packets are counted that leave with one of the marks.
pub(crate) const MARKED: u32 = 240;
