//! What the programs look up: the owner of a port, the host's addresses, a container's interfaces.
//!
//! Addresses are bytes in network order, interface indices and ports are native integers.

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
    /// The bytes as they are sent, then two of zero.
    pub bytes: [u8; 8],
}

impl Address4 {
    /// The address with these bytes.
    pub const fn new(bytes: [u8; 4]) -> Self {
        Self { bytes }
    }
}

impl Address6 {
    /// The address with these bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self { bytes }
    }
}

impl Mac {
    /// The address with these bytes.
    pub const fn new(octets: [u8; 6]) -> Self {
        let mut bytes = [0; 8];
        bytes.split_at_mut(6).0.copy_from_slice(octets.as_slice());
        Self { bytes }
    }

    /// Its six bytes.
    pub const fn octets(self) -> [u8; 6] {
        let [octets @ .., _, _] = self.bytes;
        octets
    }
}

/// Number of entries of the port map: one for every 16-bit port, for all protocols and both IP versions.
pub const PORTS: usize = 65_536;

/// Who owns a port. Eight bytes, aligned, so that the daemon publishes or revokes one by a single store and a
/// program never sees half of an entry.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortEntry {
    /// The owner's host veth; 0 if the port is the host's.
    pub ifindex: u32,
    /// The owner's slot; 0 if the port is the host's.
    pub slot: u16,
    /// Which packets for the owner pass by its queue, [`QUEUE_OUTSIDE`] and [`QUEUE_LOCAL`], and [`LOOPBACK_PRIVATE`].
    pub flags: u16,
}

/// Flag of an owner: what comes from outside passes by the queue of its host veth, which limits its rate.
pub const QUEUE_OUTSIDE: u16 = 1;
/// Flag of an owner: the same for what comes from the host or from other containers.
pub const QUEUE_LOCAL: u16 = 2;
/// Flag of an owner: what is from or for a loopback address neither leaves it nor reaches it.
pub const LOOPBACK_PRIVATE: u16 = 4;

impl PortEntry {
    /// Whether no container owns the port.
    #[inline(always)]
    pub const fn is_host(&self) -> bool {
        self.ifindex == 0
    }

    /// The entry as the one word that is stored in the map.
    pub fn to_word(self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.ifindex.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.slot.to_ne_bytes());
        bytes[6..].copy_from_slice(&self.flags.to_ne_bytes());
        u64::from_ne_bytes(bytes)
    }

    /// The entry that is stored as this word.
    pub fn from_word(word: u64) -> Self {
        let [ifindex @ .., s0, s1, f0, f1] = word.to_ne_bytes();
        Self {
            ifindex: u32::from_ne_bytes(ifindex),
            slot: u16::from_ne_bytes([s0, s1]),
            flags: u16::from_ne_bytes([f0, f1]),
        }
    }
}

/// A container as the programs and `bpftool` see it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The host's end of the container's veth pair, as in the host's namespace; 0 if the slot is free.
    pub host_ifindex: u32,
    /// The other end, as in the container's namespace.
    pub eth0_ifindex: u32,
    /// First port of the container's ephemeral block.
    pub ephemeral_first: u16,
    /// Last port of the container's ephemeral block.
    pub ephemeral_last: u16,
    /// A number that no earlier container in this slot had, so that what was meant for one never reaches the next.
    pub generation: u32,
    /// The flags of its ports.
    pub flags: u16,
    /// Reserved, 0.
    pub reserved: u16,
}

impl Endpoint {
    /// The container's entry in the port map.
    #[inline(always)]
    pub const fn entry(&self, slot: u16) -> PortEntry {
        PortEntry { ifindex: self.host_ifindex, slot, flags: self.flags }
    }
}

/// A network namespace whose sockets are bound to ports of its container only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guarded {
    /// The container's slot.
    pub slot: u32,
}

/// The host's side of the network, the same for all containers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The IPv4 address that all containers share.
    pub host_ip: Address4,
    /// Its netmask; a destination inside it is on the link.
    pub netmask: Address4,
    /// Next hop for every other destination; zero if there is none.
    pub gateway: Address4,
    /// Interface index of the uplink.
    pub uplink_ifindex: u32,
    /// The IPv6 address that all containers share; zero if there is none.
    pub host_ip6: Address6,
    /// Its netmask.
    pub netmask6: Address6,
    /// Next hop for every other IPv6 destination; zero if there is none.
    pub gateway6: Address6,
    /// MAC address of the uplink and of every container's `eth0`.
    pub mac: Mac,
    /// MAC address of the host's loopback device, which frames for the host must carry.
    pub lo_mac: Mac,
    /// Number of flows of the uplink's queue, in which every container has one of its own; 0 if the queue is not ours.
    pub uplink_flows: u32,
    /// What containers may reach of the host: [`HOST_ACCESS_LIMITED`].
    pub reach: u32,
    /// Where the daemon listens, if that is not for containers.
    pub listener: Listener,
    /// A number that no container knows, from which follows which other identifiers a ping may get.
    pub secret: u64,
    /// Number of entries of [`MAP_BROADCASTS`](crate::names::MAP_BROADCASTS), which is looked at if there are any.
    pub broadcasts: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// Most broadcast addresses of the host's networks that programs know, besides those of the shared network.
pub const BROADCASTS: usize = 1024;

/// Flag of [`Config::reach`]: of the host's ports, containers may reach those that
/// [`MAP_HOST_ACCESS`](crate::names::MAP_HOST_ACCESS) has.
pub const HOST_ACCESS_LIMITED: u32 = 1;

/// The daemon's TCP listener. A destination leads there if it is the address in all bits of the mask.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// The IPv6 address; one that its mask does not cover, if no IPv6 address leads there.
    pub address6: Address6,
    /// Its mask; zero if all addresses lead there.
    pub mask6: Address6,
    /// The IPv4 address, likewise.
    pub address4: Address4,
    /// Its mask.
    pub mask4: Address4,
    /// The port; 0 if there is nothing to be kept from containers.
    pub port: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

impl Listener {
    /// Nothing to be kept from containers.
    pub const NONE: Self = Self {
        address6: Address6::new([0; 16]),
        mask6: Address6::new([0; 16]),
        address4: Address4::new([0; 4]),
        mask4: Address4::new([0; 4]),
        port: 0,
        reserved: 0,
    };
}

/// Number of entries of the map of the host's ports that containers may reach: one for every 64 ports.
pub const HOST_ACCESS_WORDS: usize = PORTS / 64;

const _: () = assert!(size_of::<PortEntry>() == 8);
const _: () = assert!(size_of::<Endpoint>() == 20);
const _: () = assert!(size_of::<Guarded>() == 4);
const _: () = assert!(size_of::<Listener>() == 48);
const _: () = assert!(size_of::<Config>() == 152);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_being_stored() {
        let entry = PortEntry { ifindex: 0x0102_0304, slot: 0x0506, flags: 0x0708 };
        assert_eq!(PortEntry::from_word(entry.to_word()), entry);
        assert_eq!(PortEntry::default().to_word(), 0);
    }
}
