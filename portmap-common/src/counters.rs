//! Counters of delivered traffic, by container and path.

/// Packets and bytes of one path, as they are on the wire: of a GSO or GRO super-packet every segment counts,
/// with its own headers. Bytes include the Ethernet header.
///
/// Counts of drops and of packets that are left to the host ([`ReasonCounts`](crate::reason::ReasonCounts))
/// are per `sk_buff` instead: there, a super-packet counts once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCount {
    /// Number of packets.
    pub packets: u64,
    /// Number of bytes.
    pub bytes: u64,
}

impl PacketCount {
    /// Adds packets with a total of `bytes` bytes.
    #[inline(always)]
    pub const fn count(&mut self, packets: u32, bytes: u32) {
        self.packets = self.packets.wrapping_add(packets as u64);
        self.bytes = self.bytes.wrapping_add(bytes as u64);
    }

    /// Returns the sum of two counts, for example of two CPUs.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }
}

macro_rules! paths {
    ($($(#[doc = $doc:literal])* $field:ident)*) => {
        /// Delivered traffic of one container on one CPU. `rx` and `tx` are from the container's point of
        /// view.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])* pub $field: PacketCount,)*
        }

        impl Counters {
            /// Returns all paths with their names.
            pub fn by_path(&self) -> [(&'static str, PacketCount); 8] {
                [$((stringify!($field), self.$field)),*]
            }

            /// Returns the sum of two CPUs' counters.
            #[must_use]
            pub const fn plus(self, other: &Self) -> Self {
                Self { $($field: self.$field.plus(other.$field)),* }
            }
        }
    };
}

paths! {
    /// From outside to the container.
    rx_outside
    /// From the host to the container.
    rx_host
    /// From another container to this one.
    rx_container
    /// From the container to the outside.
    tx_outside
    /// From the container to the host.
    tx_host
    /// From the container to another one.
    tx_container
    /// From the container to itself over its loopback device.
    own
    /// Reserved, 0.
    reserved
}

// Two cache lines; an entry of the per-CPU array never shares one with another container's.
const _: () = assert!(size_of::<Counters>() == 128);
