//! The decision of a hook, with everything that is needed to apply it and to count it exactly once.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use portmap_common::{reason::Reason, tables::PortEntry};

/// The origin of a packet to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The uplink.
    Outside,
    /// A process of the host.
    Host,
    /// The container in this slot.
    Container(u16),
}

/// The neighbour that receives a frame, in the form of the kernel's `struct bpf_redir_neigh`.
///
/// This is no enum, because LLVM merges the arms and reads registers that one arm left uninitialised; the
/// verifier rejects that.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct NextHop {
    /// Address family of the neighbour; 0 if the kernel chooses it.
    pub family: u32,
    /// Its address in network order; of an IPv4 address only the first word is used.
    pub address: [u32; 4],
}

/// [`NextHop::family`] of an IPv4 address.
pub const AF_INET: u32 = 2;
/// [`NextHop::family`] of an IPv6 address.
pub const AF_INET6: u32 = 10;

impl NextHop {
    /// The kernel chooses the neighbour while it sends the packet, resolves it, and informs the sender if it
    /// does not answer.
    pub const KERNEL: Self = Self { family: 0, address: [0; 4] };

    /// Returns the neighbour with this IPv4 address.
    #[inline(always)]
    pub const fn v4(address: [u8; 4]) -> Self {
        Self { family: AF_INET, address: [u32::from_ne_bytes(address), 0, 0, 0] }
    }

    /// Returns the neighbour with this IPv6 address.
    #[inline(always)]
    pub fn v6(address: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(address);
        #[expect(clippy::cast_possible_truncation, reason = "it is a quarter of the address")]
        let word = |shift: u32| ((bits >> shift) as u32).to_be();
        Self { family: AF_INET6, address: [word(96), word(64), word(32), word(0)] }
    }

    /// Returns the neighbour's address; `None` if the kernel chooses it.
    pub fn ip(self) -> Option<IpAddr> {
        let [first, ..] = self.address;
        match self.family {
            AF_INET => Some(Ipv4Addr::from(first.to_ne_bytes()).into()),
            AF_INET6 => {
                let bits =
                    self.address.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)));
                Some(Ipv6Addr::from_bits(bits).into())
            }
            _ => None,
        }
    }
}

impl fmt::Debug for NextHop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            Some(address) => write!(formatter, "{address}"),
            None => formatter.write_str("the kernel's choice"),
        }
    }
}

/// A rewrite of the identifier of an ICMP echo message, which is the packet's own or embedded in an ICMP
/// error.
///
/// This is no `Option`, because LLVM merges the arms and reads registers that one arm left uninitialised; the
/// verifier rejects that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpIdRewrite {
    /// Offset of the message in bytes from the start of the frame.
    pub message: usize,
    /// Its current identifier.
    pub from: u16,
    /// Its new identifier.
    pub to: u16,
}

impl IcmpIdRewrite {
    /// No rewrite.
    pub const NONE: Self = Self { message: 0, from: 0, to: 0 };

    /// Returns the rewrite of one identifier to another; [`NONE`](Self::NONE) if they are equal.
    #[inline(always)]
    pub const fn new(message: usize, from: u16, to: u16) -> Self {
        if from == to { Self::NONE } else { Self { message, from, to } }
    }

    /// Returns whether nothing changes.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.from == self.to
    }
}

/// The decision on one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave the packet to other programs and to the stack, as if no program had seen it.
    Continue(Reason),
    /// Pass the packet on without counting it: another hook counts it, or there is nothing to decide.
    AlreadyHandled,
    /// Pass a packet from the host on to the uplink, in this flow of the uplink's qdisc.
    AssignFlow(u16),
    /// Pass the packet on inside the container in this slot.
    DeliverLocal(u16),
    /// Drop the packet.
    Drop {
        /// The slot that it counts for: the sender's, or the host's for a packet from outside.
        slot: u16,
        /// The reason.
        reason: Reason,
    },
    /// Redirect the packet to the container that owns the destination port.
    ToContainer {
        /// Its origin.
        origin: Origin,
        /// The entry of the destination port.
        owner: PortEntry,
        /// Whether its source or destination is `::1`, which Linux accepts on a loopback device only.
        by_loopback: bool,
        /// The rewrite of its ICMP identifier.
        rewrite: IcmpIdRewrite,
    },
    /// Redirect the packet of a container out of one of the host's interfaces.
    ToOutside {
        /// The sender's slot.
        slot: u16,
        /// Index of the interface.
        ifindex: u32,
        /// The neighbour that receives the frame.
        next_hop: NextHop,
        /// The rewrite of its ICMP identifier.
        rewrite: IcmpIdRewrite,
    },
    /// Redirect the packet of the container in this slot into the host's stack, through the host's loopback
    /// device.
    ToHost(u16),
    /// Redirect the packet from a container's loopback device to its `eth0`, which has this interface index.
    /// The hook at the host veth decides on it and counts it.
    ToEth0(u32),
    /// Redirect the packet from a container's `eth0` into the container's loopback device. It is already
    /// counted.
    ToLoopback,
}
