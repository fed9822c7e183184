//! The interface between a hook and a frame: the frame's bytes and its metadata in the kernel.

/// The first bytes of a frame, contiguous in memory.
///
/// Numbers are read in network order at a constant offset in bytes. An offset behind the requested length is
/// a bug: it panics on a host, and the verifier rejects the program.
pub trait Head: Copy {
    /// Returns the byte at an offset.
    fn byte<const AT: usize>(self) -> u8;

    /// Returns the 16-bit number at an offset.
    fn be16<const AT: usize>(self) -> u16;

    /// Returns the 32-bit number at an offset.
    fn be32<const AT: usize>(self) -> u32;

    /// Returns the 64-bit number at an offset.
    fn be64<const AT: usize>(self) -> u64;
}

/// A frame at a hook.
pub trait Frame {
    /// Returns the first `N` bytes, or `None` if the frame is shorter.
    ///
    /// The kernel may have to move the frame's data for that. The result of an earlier call must not be used
    /// after a later call.
    fn head<const N: usize>(&self) -> Option<impl Head>;

    /// Loads `N` 32-bit numbers in network order at `offset`, or returns `None` if the frame ends before.
    fn load_be32s<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// Pulls the first `max_bytes` bytes of the frame, or all of a shorter frame, into the linear part of the
    /// buffer, which only the kernel can write: bytes that are read afterwards are the bytes that will be
    /// sent. Returns false if the kernel is out of memory.
    ///
    /// [`head`](Self::head) does the same for the bytes that it returns.
    fn linearize(&self, max_bytes: u32) -> bool;

    /// Returns the length of the frame in bytes, including the Ethernet header.
    fn length(&self) -> u32;

    /// Returns the index of the interface at which the hook is.
    fn ifindex(&self) -> u32;

    /// Returns the index of the interface through which the frame entered the stack of this network
    /// namespace; 0 if the stack itself sent it.
    fn ingress_ifindex(&self) -> u32;

    /// Returns whether the destination MAC address is that of the interface (`PACKET_HOST`).
    fn is_packet_host(&self) -> bool;

    /// Returns the VLAN tag (priority and VLAN identifier) that the kernel has removed from the frame, if
    /// any.
    fn vlan_tag(&self) -> Option<u16>;

    /// Returns whether the MTU of an interface allows a frame of `max_frame_len` bytes, including the
    /// Ethernet header, and, as far as the kernel knows, this frame or each of its segments.
    fn mtu_allows(&self, ifindex: u32, max_frame_len: u32) -> bool;

    /// Returns whether the offloads that the sender has requested are ones that a kernel requests: a checksum
    /// behind the ports of the transport header at offset `transport` (0: there is none, and no checksum may
    /// be requested), and segmentation of TCP, UDP or SCTP. Results of earlier calls of [`head`](Self::head)
    /// must not be used afterwards.
    fn has_valid_offloads(&self, transport: usize, is_sctp: bool) -> bool;

    /// Returns the payload bytes of each segment into which the kernel will cut the frame; 0 if it will not
    /// cut it.
    fn gso_size(&self) -> u32;

    /// Returns `skb->priority`, which selects a class or flow of a qdisc.
    fn priority(&self) -> u32;

    /// Returns `skb->mark`.
    fn mark(&self) -> u32;

    /// Returns the same number. In the kernel the verifier takes it for any number of 32 bits, so that paths that
    /// differ in nothing else are one to it.
    #[inline(always)]
    fn forget(&self, number: u32) -> u32 {
        number
    }
}
