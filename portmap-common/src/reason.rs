//! Reasons for which portmap drops a packet or leaves it to the host's own stack.
//!
//! Every packet that a program sees is counted exactly once: under one of these reasons, or on one of the
//! paths of [`Counters`](crate::counters::Counters). The numbers are an interface (maps, metrics): a new
//! reason is appended, an old one keeps its number.

/// Capacity for reasons in a map value. The layout stays the same until it is used up.
pub const REASON_PLACES: usize = 32;

macro_rules! reasons {
    ($($number:literal $variant:ident $name:ident $text:literal)*; $unused:literal unused) => {
        /// Why a packet was not delivered by portmap.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $text] $variant = $number,)*
        }

        impl Reason {
            /// Every reason, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the name that maps, metrics and commands use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($name),)* }
            }

            /// Returns a description in one sentence.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        /// Number of frames by reason: a frame that will be segmented (GSO) counts once.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ReasonCounts {
            $(#[doc = $text] pub $name: u64,)*
            /// Reserved, 0.
            pub unused: [u64; $unused],
        }

        impl ReasonCounts {
            /// Returns the count of one reason.
            pub const fn get(&self, reason: Reason) -> u64 {
                match reason { $(Reason::$variant => self.$name,)* }
            }

            /// Returns the sum of two CPUs' counts.
            #[must_use]
            pub const fn plus(self, other: &Self) -> Self {
                Self { $($name: self.$name.wrapping_add(other.$name),)* unused: [0; $unused] }
            }
        }
    };
}

reasons! {
    0 HostPort host_port "The destination port is owned by no container."
    1 OtherAddress other_address "The destination is not an address that the containers share."
    2 OtherStation other_station "The destination MAC address is not the uplink's."
    3 Vlan vlan "The frame carries a VLAN tag."
    4 EtherType ether_type "The frame is neither IPv4, IPv6 nor ARP."
    5 Arp arp "The frame is ARP, which only the host handles."
    6 Ipv6 ipv6 "The packet is IPv6, and the host has no IPv6 address to share."
    7 Malformed malformed "The packet is shorter than its headers claim, or contradicts itself."
    8 Protocol protocol "The protocol has no ports: it is none of TCP, UDP, UDP-Lite, SCTP, DCCP and ICMP."
    9 Icmp icmp
        "The ICMP message is neither about a container's packet nor an echo that a container may send."
    10 Fragment fragment
        "The packet is a fragment other than the first, and the fragment cache has no valid entry of its datagram."
    11 SourceAddress source_address "The source is not an address that the sender may use."
    12 SourcePort source_port "The source port is not owned by the sending container."
    13 Destination destination
        "The destination is a multicast, broadcast or other address that the sender cannot reach."
    14 NoRoute no_route "The host has no route to the destination, or one that rejects it."
    15 SourceMac source_mac "The source MAC address is not the sender's."
    16 ExtensionHeaders extension_headers "The packet has more IPv6 extension headers than are parsed."
    17 Neighbour neighbour "The packet is IPv6 neighbour discovery, which only the host handles."
    18 Quoted quoted
        "The ICMP error embeds a packet that its receiver cannot have sent or its sender cannot have received."
    19 EchoBusy echo_busy "All candidate identifiers of the echo request are in use."
    20 TooBig too_big
        "The frame or one of its segments exceeds the MTU of the outgoing interface, or it has too many segments."
    21 Rate rate "The container exceeds its egress rate limit."
    22 Loopback loopback
        "The packet is from or to a loopback address that its sender or its receiver keeps private."
    23 Listener listener "The packet is to the daemon's TCP listener, which containers must not reach."
    24 HostAccess host_access "The port is one of the host's that containers may not reach."
    25 Neighbours neighbours
        "The destination is a neighbour on one of the host's networks, and the sender has used too many new ones."
    26 HostConnection host_connection
        "The packet belongs to a connection of the host's, or of its NAT, from a port that a container owns."
    ; 5 unused
}

/// Hooks at which packets are left to the host: indices of [`MAP_HOST`](crate::names::MAP_HOST).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostHook {
    /// Ingress of the uplink.
    Uplink = 0,
    /// Ingress of the host's loopback device.
    Loopback = 1,
}

impl HostHook {
    /// Both hooks.
    pub const ALL: [Self; 2] = [Self::Uplink, Self::Loopback];

    /// Returns the name that commands use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Loopback => "lo",
        }
    }
}

/// Dropped packets of one slot. The host's slot counts packets from outside.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Packets to the slot.
    pub rx: ReasonCounts,
    /// Packets from the slot.
    pub tx: ReasonCounts,
}

const _: () = assert!(Reason::ALL.len() <= REASON_PLACES && REASON_PLACES.is_power_of_two());
const _: () = assert!(size_of::<ReasonCounts>() == REASON_PLACES * 8);
const _: () = assert!(size_of::<Drops>() == 2 * REASON_PLACES * 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_numbers_are_indices_of_all() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{}", reason.name());
        }
    }

    #[test]
    fn reason_names_and_texts_are_well_formed() {
        for reason in Reason::ALL {
            assert!(
                reason
                    .name()
                    .bytes()
                    .all(|byte| byte == b'_' || byte.is_ascii_lowercase() || byte.is_ascii_digit())
            );
            assert!(reason.text().ends_with('.'), "{}", reason.name());
        }
    }
}
