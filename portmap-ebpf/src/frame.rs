//! A frame as a hook sees it: its bytes, and what the kernel knows about it.

/// The first bytes of a frame, in one piece.
///
/// The numbers in them are read by their offset, the first byte the most significant. Reading behind what was asked for
/// is a mistake in the program: it panics on a host, and the verifier refuses it in the kernel.
pub trait Head: Copy {
    /// A byte.
    fn byte<const AT: usize>(self) -> u8;

    /// Two bytes.
    fn half<const AT: usize>(self) -> u16;

    /// Four bytes.
    fn word<const AT: usize>(self) -> u32;

    /// Eight bytes.
    fn double<const AT: usize>(self) -> u64;
}

/// A frame at a hook.
pub trait Frame {
    /// The first `N` bytes, or `None` if the frame is shorter.
    ///
    /// To make one piece of them the frame may have to move. What an earlier call has returned is then no longer
    /// the frame, so it must not be used after a later call.
    fn head<const N: usize>(&self) -> Option<impl Head>;

    /// `N` words of four bytes at `offset`, the first byte of each the most significant, or `None` if the frame ends
    /// before.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// Moves the first bytes of the frame, `most` of them if it has as many, to where nobody but the kernel can write:
    /// what is read of them from then on is what will be sent. False if there is no memory for that.
    ///
    /// [`head`](Self::head) does the same with what it returns.
    fn linearize(&self, most: u32) -> bool;

    /// Length of the frame in bytes, Ethernet header included.
    fn length(&self) -> u32;

    /// Index of the interface at which the hook is.
    fn ifindex(&self) -> u32;

    /// Index of the interface by which the frame came to this network namespace's stack; 0 if it was made here.
    fn ingress_ifindex(&self) -> u32;

    /// Whether the destination MAC address is that of the interface.
    fn is_packet_host(&self) -> bool;

    /// The tag (priority and VLAN) that the kernel has taken off the frame already, if there was one.
    fn vlan_tag(&self) -> Option<u16>;

    /// Whether an interface's MTU allows frames of `longest` bytes, Ethernet header included, and, as far as the kernel
    /// knows, this frame or each of the segments that it has yet to cut it into.
    fn fits(&self, ifindex: u32, longest: u32) -> bool;

    /// Whether what the sender has left to others is what a kernel leaves: a checksum, which is written behind the ports of
    /// the transport header at `transport` (0: there is none, and no checksum may be left), and segments of TCP, UDP or
    /// SCTP. What an earlier [`head`](Self::head) has returned must not be used later.
    fn is_sound(&self, transport: usize, is_sctp: bool) -> bool;

    /// Bytes of payload in each of the segments that the kernel has yet to cut the frame into; 0 if it stays whole.
    fn segment(&self) -> u32;

    /// The priority that the frame has in the kernel: where it is to go in a queue.
    fn priority(&self) -> u32;

    /// The mark that the frame has in the kernel.
    fn mark(&self) -> u32;
}
