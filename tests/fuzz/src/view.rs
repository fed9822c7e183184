//! A frame in memory, as a hook sees it.

use portmap_ebpf::{Frame, frame::Head};

/// A frame, and what the kernel knows about it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Index of the interface at which the hook is.
    pub ifindex: u32,
    /// Index of the interface by which it came to the stack.
    pub ingress_ifindex: u32,
    /// MAC address of the interface.
    pub station: [u8; 6],
    /// The tag that the kernel has taken off.
    pub vlan_tag: Option<u16>,
    /// Its mark.
    pub mark: u32,
}

impl Frame for View<'_> {
    fn head<const N: usize>(&self) -> Option<impl Head> {
        self.bytes.get(..N)
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        let bytes = self.bytes.get(offset..)?.get(..4 * N)?;
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_be_bytes(*bytes.first_chunk()?);
        }
        Some(words)
    }

    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("inputs are short")
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex
    }

    fn is_for_this_station(&self) -> bool {
        self.bytes.starts_with(&self.station)
    }

    fn vlan_tag(&self) -> Option<u16> {
        self.vlan_tag
    }

    fn mark(&self) -> u32 {
        self.mark
    }
}
