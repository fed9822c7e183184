//! Keys and values of the maps that the daemon writes: port owners, the host's configuration, containers.
//!
//! Addresses are bytes in network order; interface indices and ports are native integers.

/// An IPv4 address. Aligned, so that programs load it as one word.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address4 {
    /// The bytes in network order.
    pub bytes: [u8; 4],
}

/// An IPv6 address. Aligned, so that programs load it as two words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address6 {
    /// The bytes in network order.
    pub bytes: [u8; 16],
}

/// A MAC address. Aligned, so that programs load it as one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac {
    /// The six bytes in network order, then two zero bytes.
    pub bytes: [u8; 8],
}

impl Address4 {
    /// Returns the address with these bytes.
    pub const fn new(bytes: [u8; 4]) -> Self {
        Self { bytes }
    }
}

impl Address6 {
    /// Returns the address with these bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self { bytes }
    }
}

impl Mac {
    /// Returns the address with these bytes.
    pub const fn new(octets: [u8; 6]) -> Self {
        let mut bytes = [0; 8];
        bytes.split_at_mut(6).0.copy_from_slice(octets.as_slice());
        Self { bytes }
    }

    /// Returns the six bytes of the address.
    pub const fn octets(self) -> [u8; 6] {
        let [octets @ .., _, _] = self.bytes;
        octets
    }
}

/// Number of entries of the port map: one per 16-bit port, for all protocols and both IP versions.
pub const PORTS: usize = 65_536;

/// The owner of a port. It has eight aligned bytes, so that the daemon publishes or revokes a port with a
/// single store and a program never reads a torn entry.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortEntry {
    /// The owner's host veth; 0 if the port is the host's.
    pub ifindex: u32,
    /// The owner's slot; 0 if the port is the host's.
    pub slot: u16,
    /// Flags of the owner: [`QUEUE_OUTSIDE`], [`QUEUE_LOCAL`] and [`LOOPBACK_PRIVATE`]; and of the port:
    /// [`HOST_CONNECTIONS`].
    pub flags: u16,
}

/// Flag of an owner: packets from outside pass through the qdisc of its host veth, which limits their rate.
pub const QUEUE_OUTSIDE: u16 = 1;
/// Flag of an owner: packets from the host and from other containers pass through that qdisc.
pub const QUEUE_LOCAL: u16 = 2;
/// Flag of an owner: packets from or to a loopback address neither leave its namespace nor enter it.
pub const LOOPBACK_PRIVATE: u16 = 4;
/// Flag of a port, which the program at the egress of the host's interfaces sets: a connection of the host's
/// uses the port, see [`HostConnectionKey`](crate::flow_state::HostConnectionKey). It stays until the host owns
/// the port.
pub const HOST_CONNECTIONS: u16 = 8;

impl PortEntry {
    /// Returns whether no container owns the port.
    #[inline(always)]
    pub const fn is_host(&self) -> bool {
        self.ifindex == 0
    }

    /// Returns the entry of the owner's ports, without flags of the single port.
    #[must_use]
    #[inline(always)]
    pub const fn of_owner(mut self) -> Self {
        self.flags &= !HOST_CONNECTIONS;
        self
    }

    /// Returns the entry as the word that the map stores.
    pub fn to_word(self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.ifindex.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.slot.to_ne_bytes());
        bytes[6..].copy_from_slice(&self.flags.to_ne_bytes());
        u64::from_ne_bytes(bytes)
    }

    /// Returns the entry of a word from the map.
    pub fn from_word(word: u64) -> Self {
        let [ifindex @ .., s0, s1, f0, f1] = word.to_ne_bytes();
        Self {
            ifindex: u32::from_ne_bytes(ifindex),
            slot: u16::from_ne_bytes([s0, s1]),
            flags: u16::from_ne_bytes([f0, f1]),
        }
    }
}

/// A container's interfaces and ephemeral ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Interface index of the host veth in the host's namespace; 0 if the slot is free.
    pub host_ifindex: u32,
    /// Interface index of `eth0` in the container's namespace.
    pub eth0_ifindex: u32,
    /// First port of the container's ephemeral block.
    pub ephemeral_first: u16,
    /// Last port of the container's ephemeral block.
    pub ephemeral_last: u16,
    /// A number that no earlier container in this slot had, so that no packet for an earlier container
    /// reaches this one.
    pub generation: u32,
    /// Flags of its ports, as in [`PortEntry::flags`].
    pub flags: u16,
    /// Reserved, 0.
    pub reserved: u16,
}

impl Endpoint {
    /// Returns the container's entry for the port map.
    #[inline(always)]
    pub const fn entry(&self, slot: u16) -> PortEntry {
        PortEntry { ifindex: self.host_ifindex, slot, flags: self.flags }
    }
}

/// The container that owns a network namespace, for the bind guard.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetnsOwner {
    /// The container's slot.
    pub slot: u32,
}

/// Configuration of the host's network, the same for all containers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The primary shared IPv4 address.
    pub host_ip: Address4,
    /// Its netmask. With `direct4`, a destination in this network is on-link.
    pub netmask: Address4,
    /// With `direct4`, the gateway for all other IPv4 destinations; zero if there is none.
    pub gateway: Address4,
    /// Interface index of the main uplink.
    pub uplink_ifindex: u32,
    /// The primary shared IPv6 address; zero if there is none.
    pub host_ip6: Address6,
    /// Its netmask.
    pub netmask6: Address6,
    /// With `direct6`, the gateway for all other IPv6 destinations; zero if there is none.
    pub gateway6: Address6,
    /// MAC address of every container's `eth0`: the main uplink's, if that has one.
    pub mac: Mac,
    /// MAC address of the host's loopback device. A frame to the host must carry it as destination.
    pub lo_mac: Mac,
    /// Number of flows of the main uplink's qdisc, one of them per container; 0 if the qdisc is not portmap's.
    pub uplink_flows: u32,
    /// Which of the host's ports containers may reach: [`HOST_ACCESS_LIMITED`] or 0.
    pub reach: u32,
    /// The daemon's TCP listener, if containers must not reach it.
    pub listener: Listener,
    /// A random number unknown to containers. It determines the alternative identifiers of an echo request.
    pub secret: u64,
    /// Number of entries of [`MAP_BROADCASTS`](crate::names::MAP_BROADCASTS). If 0, programs skip the lookup.
    pub broadcasts: u32,
    /// Number of further shared IPv4 addresses, the entries of [`MAP_ADDRESSES4`](crate::names::MAP_ADDRESSES4).
    /// If 0, programs skip the lookup.
    pub more_addresses4: u32,
    /// The same for IPv6.
    pub more_addresses6: u32,
    /// 1 if the kernel's decision on every IPv4 destination is known from this structure: on-link in the
    /// network of `host_ip`, else `gateway`, by the uplink. 0 if programs must ask the kernel's FIB.
    pub direct4: u32,
    /// The same for IPv6.
    pub direct6: u32,
    /// Interface indices of the further uplinks whose qdiscs have these flows, too; 0 in unused places.
    pub more_flows: [u32; FURTHER_FLOWS],
}

impl Config {
    /// Returns whether the qdisc of an interface has one flow per container.
    #[inline(always)]
    pub fn has_flows(&self, ifindex: u32) -> bool {
        if self.uplink_flows == 0 {
            return false;
        }
        // The compiler would make a branch of each comparison, and the verifier explore each combination of them. A
        // difference of 0 becomes the only number with the highest bit.
        let is_equal = |index: u32| u64::from(ifindex ^ index).wrapping_sub(1);
        let mut equal = is_equal(self.uplink_ifindex);
        for further in &self.more_flows {
            equal |= is_equal(*further);
        }
        equal >> 63 != 0
    }
}

/// Number of further uplinks that can have one flow per container.
pub const FURTHER_FLOWS: usize = 7;

/// Capacity of [`MAP_ADDRESSES4`](crate::names::MAP_ADDRESSES4) and
/// [`MAP_ADDRESSES6`](crate::names::MAP_ADDRESSES6).
pub const ADDRESSES: usize = 4096;

/// Capacity of [`MAP_BROADCASTS`](crate::names::MAP_BROADCASTS).
pub const BROADCASTS: usize = 1024;

/// Flag of [`Config::reach`]: containers may reach only those of the host's ports that
/// [`MAP_HOST_ACCESS`](crate::names::MAP_HOST_ACCESS) contains.
pub const HOST_ACCESS_LIMITED: u32 = 1;

/// The daemon's TCP listener. A destination address matches if it equals the address in all bits of the mask.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// IPv6 address. If no IPv6 destination may match, it has bits outside the mask.
    pub address6: Address6,
    /// Its mask; zero if all IPv6 destinations match.
    pub mask6: Address6,
    /// IPv4 address, with the same rules.
    pub address4: Address4,
    /// Its mask.
    pub mask4: Address4,
    /// Port; 0 if there is no listener to protect.
    pub port: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

impl Listener {
    /// No listener to protect.
    pub const NONE: Self = Self {
        address6: Address6::new([0; 16]),
        mask6: Address6::new([0; 16]),
        address4: Address4::new([0; 4]),
        mask4: Address4::new([0; 4]),
        port: 0,
        reserved: 0,
    };
}

/// Number of entries of [`MAP_HOST_ACCESS`](crate::names::MAP_HOST_ACCESS): one per 64 ports.
pub const HOST_ACCESS_WORDS: usize = PORTS / 64;

const _: () = assert!(size_of::<PortEntry>() == 8);
const _: () = assert!(size_of::<Endpoint>() == 20);
const _: () = assert!(size_of::<NetnsOwner>() == 4);
const _: () = assert!(size_of::<Listener>() == 48);
const _: () = assert!(size_of::<Config>() == 192);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_at_the_uplinks_that_have_them() {
        let one = Config { uplink_ifindex: 2, uplink_flows: 4097, ..Config::default() };
        assert_eq!([2, 3].map(|index| one.has_flows(index)), [true, false]);
        for place in 0..FURTHER_FLOWS {
            let mut several = one;
            several.more_flows[place] = 3;
            assert_eq!([2, 3, 4].map(|index| several.has_flows(index)), [true, true, false]);
            several.uplink_flows = 0;
            assert_eq!([2, 3, 4].map(|index| several.has_flows(index)), [false; 3]);
        }
    }

    #[test]
    fn port_entry_survives_conversion_to_a_word() {
        let entry = PortEntry { ifindex: 0x0102_0304, slot: 0x0506, flags: 0x0708 };
        assert_eq!(PortEntry::from_word(entry.to_word()), entry);
        assert_eq!(PortEntry::default().to_word(), 0);
    }
}
