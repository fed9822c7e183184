//! A frame as a hook sees it: its bytes, and what the kernel knows about it.

/// Bytes at the start of a frame that are read most: Ethernet header, IPv4 header without options, ports.
pub const HEAD: usize = 14 + 20 + 4;

/// A frame at a hook.
pub trait Frame {
    /// The first [`HEAD`] bytes, or `None` if the frame is shorter.
    fn head(&self) -> Option<&[u8; HEAD]>;

    /// `N` bytes at `offset`, or `None` if the frame ends before.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Length of the frame in bytes, Ethernet header included.
    fn length(&self) -> u32;

    /// Index of the interface at which the hook is.
    fn ifindex(&self) -> u32;

    /// Whether the destination MAC address is that of the interface.
    fn is_for_this_station(&self) -> bool;

    /// Whether the frame had a VLAN tag that the kernel has taken off already.
    fn has_vlan_tag(&self) -> bool;
}
