//! Traffic that reached its destination, by container and path.

/// Packets and bytes of one path.
///
/// A packet is what the kernel hands over in one piece: a GSO or GRO super-packet counts once, as it does in
/// the counters of an interface. Bytes include the Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Number of packets.
    pub packets: u64,
    /// Number of bytes.
    pub bytes: u64,
}

impl Tally {
    /// Adds one packet of `bytes` bytes.
    #[inline(always)]
    pub const fn count(&mut self, bytes: u32) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes as u64);
    }

    /// Adds another tally, for example that of another CPU.
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
        /// Delivered traffic of one container on one CPU; `rx` and `tx` are the container's point of view.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])* pub $field: Tally,)*
        }

        impl Counters {
            /// Every path with its name.
            pub fn by_path(&self) -> [(&'static str, Tally); 8] {
                [$((stringify!($field), self.$field)),*]
            }

            /// The sum of two CPUs' counters.
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
    /// From the container to itself, over its loopback device.
    own
    /// Reserved, 0.
    reserved
}

// Two cache lines; an entry of the per-CPU array never shares one with another container's.
const _: () = assert!(size_of::<Counters>() == 128);
