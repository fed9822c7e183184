//! A frame in user space, for tests and for tools that predict a verdict.

use portmap_common::tables::Mac;

use crate::frame::{Frame, Head};

impl Head for &[u8] {
    fn byte<const AT: usize>(self) -> u8 {
        self[AT]
    }

    fn be16<const AT: usize>(self) -> u16 {
        u16::from_be_bytes(at::<2>(self, AT))
    }

    fn be32<const AT: usize>(self) -> u32 {
        u32::from_be_bytes(at::<4>(self, AT))
    }

    fn be64<const AT: usize>(self) -> u64 {
        u64::from_be_bytes(at::<8>(self, AT))
    }
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&bytes[offset..offset + N]);
    found
}

/// A frame in user space, with the metadata that the kernel would have.
#[derive(Clone, Copy, Debug, Default)]
pub struct PacketBuf<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Index of the interface at which the hook is.
    pub ifindex: u32,
    /// MAC address of that interface.
    pub mac: Mac,
    /// Index of the interface through which the frame entered the stack; 0 if the stack itself sent it.
    pub ingress_ifindex: u32,
    /// VLAN tag that the kernel has removed.
    pub vlan_tag: Option<u16>,
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->priority`.
    pub priority: u32,
    /// Payload bytes of each segment into which the kernel will cut the frame; 0 if it will not cut it.
    pub gso_size: u32,
    /// Longest frame in bytes that the MTU of all interfaces allows; `None` if there is no limit.
    pub max_frame_len: Option<u32>,
    /// Whether the sender has requested offloads that no kernel requests.
    pub has_invalid_offloads: bool,
    /// Whether [`Frame::linearize`] fails.
    pub linearize_fails: bool,
}

impl Frame for PacketBuf<'_> {
    fn head<const N: usize>(&self) -> Option<impl Head> {
        self.bytes.get(..N)
    }

    fn load_be32s<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let (words, _) = self.bytes.get(offset..)?.as_chunks::<4>();
        words.first_chunk::<N>().map(|words| words.map(u32::from_be_bytes))
    }

    fn linearize(&self, _max_bytes: u32) -> bool {
        !self.linearize_fails
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
        self.bytes.starts_with(&self.mac.octets())
    }

    fn vlan_tag(&self) -> Option<u16> {
        self.vlan_tag
    }

    fn mtu_allows(&self, _ifindex: u32, max_frame_len: u32) -> bool {
        self.max_frame_len.is_none_or(|allowed| max_frame_len <= allowed)
    }

    fn has_valid_offloads(&self, _transport: usize, _is_sctp: bool) -> bool {
        !self.has_invalid_offloads
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn priority(&self) -> u32 {
        self.priority
    }

    fn mark(&self) -> u32 {
        self.mark
    }
}
