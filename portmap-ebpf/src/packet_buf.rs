//! A frame outside of the kernel: for tests, and for whoever predicts a verdict.

use portmap_common::tables::Mac;

use crate::frame::{Frame, Head};

impl Head for &[u8] {
    fn byte<const AT: usize>(self) -> u8 {
        self[AT]
    }

    fn half<const AT: usize>(self) -> u16 {
        u16::from_be_bytes(at::<2>(self, AT))
    }

    fn word<const AT: usize>(self) -> u32 {
        u32::from_be_bytes(at::<4>(self, AT))
    }

    fn double<const AT: usize>(self) -> u64 {
        u64::from_be_bytes(at::<8>(self, AT))
    }
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&bytes[offset..offset + N]);
    found
}

/// A frame outside of the kernel, at a hook that it is said to be at.
#[derive(Clone, Copy, Debug, Default)]
pub struct PacketBuf<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Index of the interface at which the hook is.
    pub ifindex: u32,
    /// MAC address of that interface.
    pub station: Mac,
    /// Index of the interface by which the frame came to the stack; 0 if it was made there.
    pub ingress_ifindex: u32,
    /// The tag that the kernel has taken off.
    pub vlan_tag: Option<u16>,
    /// Its mark.
    pub mark: u32,
    /// Its priority.
    pub priority: u32,
    /// Bytes of payload in each of the segments that it is to be cut into; 0 if it stays whole.
    pub segment: u32,
    /// Length in bytes of the longest frame that interfaces carry; none if they carry any.
    pub longest: Option<u32>,
    /// Whether its sender has left to others what no kernel leaves.
    pub is_unsound: bool,
    /// Whether there is no memory to linearize it in.
    pub needs_linearize: bool,
}

impl Frame for PacketBuf<'_> {
    fn head<const N: usize>(&self) -> Option<impl Head> {
        self.bytes.get(..N)
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let (words, _) = self.bytes.get(offset..)?.as_chunks::<4>();
        words.first_chunk::<N>().map(|words| words.map(u32::from_be_bytes))
    }

    fn linearize(&self, _most: u32) -> bool {
        !self.needs_linearize
    }

    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex
    }

    fn is_packet_host(&self) -> bool {
        self.bytes.starts_with(&self.station.octets())
    }

    fn vlan_tag(&self) -> Option<u16> {
        self.vlan_tag
    }

    fn fits(&self, _ifindex: u32, longest: u32) -> bool {
        self.longest.is_none_or(|carried| longest <= carried)
    }

    fn is_sound(&self, _transport: usize, _is_sctp: bool) -> bool {
        !self.is_unsound
    }

    fn segment(&self) -> u32 {
        self.segment
    }

    fn priority(&self) -> u32 {
        self.priority
    }

    fn mark(&self) -> u32 {
        self.mark
    }
}
