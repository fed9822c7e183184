//! The policies of IPsec (XFRM) in the calling thread's network namespace.
//!
//! The kernel is asked; no other program runs, and no kernel module is loaded.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::OnceLock,
};

use netlink_sys::protocols::NETLINK_XFRM;
use nix::libc::AF_INET;

use super::{
    btf,
    dump::{Attributes, Dump, dump},
    sock_diag::array,
};
use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
};

/// Message types (`linux/xfrm.h`).
const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
/// Attributes: the transformations of a policy, a `struct xfrm_mark`, and the interface that a policy is for.
const XFRMA_TMPL: u16 = 5;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;
/// Size of `struct xfrm_userpolicy_id`, with which a request begins.
const POLICY_ID: usize = 64;
/// Size of `struct xfrm_userpolicy_info`, with which a response begins, and offsets in it.
const POLICY: usize = 168;
const DESTINATION: usize = 0;
const SOURCE: usize = 16;
const FAMILY: usize = 40;
const DESTINATION_LENGTH: usize = 42;
const SOURCE_LENGTH: usize = 43;
const DIRECTION: usize = 160;
const ACTION: usize = 161;
/// `XFRM_POLICY_OUT`. 0 is that of packets to this host, 2 of those that it forwards; those of sockets have higher
/// numbers.
const OUT: u8 = 1;
/// `XFRM_POLICY_ALLOW`.
const ALLOW: u8 = 0;

/// A policy for all packets between two networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether it is for packets that this host sends; else for packets to it.
    pub is_outgoing: bool,
    /// The source network: address and prefix length.
    pub source: (IpAddr, u8),
    /// The destination network.
    pub destination: (IpAddr, u8),
}

impl Policy {
    /// Returns whether packets between two addresses can meet it.
    pub fn concerns(&self, source: IpAddr, destination: IpAddr) -> bool {
        contains(self.source, source) && contains(self.destination, destination)
    }

    /// The policy in a response. `None` if it does not decide on ordinary packets: it is that of a socket, of packets
    /// with a mark, of an XFRM interface, which containers use as the host does, or of forwarded packets; or it lets
    /// packets pass as they are.
    fn parse(body: &[u8]) -> Option<Self> {
        let attributes = Attributes(body.get(POLICY..)?);
        let direction = body[DIRECTION];
        let has_mark = attributes.bytes(XFRMA_MARK).iter().any(|byte| *byte != 0);
        let is_of_interface = attributes.native_number(XFRMA_IF_ID).is_some_and(|interface| interface != 0);
        let lets_pass = body[ACTION] == ALLOW && attributes.bytes(XFRMA_TMPL).is_empty();
        if direction > OUT || has_mark || is_of_interface || lets_pass {
            return None;
        }
        let is_v4 = i32::from(u16::from_ne_bytes(array(body, FAMILY))) == AF_INET;
        let network = |at: usize, length: usize| {
            let address = if is_v4 {
                Ipv4Addr::from(array::<4>(body, at)).into()
            } else {
                Ipv6Addr::from(array::<16>(body, at)).into()
            };
            (address, body[length])
        };
        Some(Self {
            is_outgoing: direction == OUT,
            source: network(SOURCE, SOURCE_LENGTH),
            destination: network(DESTINATION, DESTINATION_LENGTH),
        })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.is_outgoing { "out" } else { "in" };
        let ((from, from_length), (to, to_length)) = (self.source, self.destination);
        write!(f, "dir {direction} src {from}/{from_length} dst {to}/{to_length}")
    }
}

/// Returns whether a network contains an address.
fn contains((network, length): (IpAddr, u8), address: IpAddr) -> bool {
    let (network, address, bits) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u128::from(network.to_bits()), u128::from(address.to_bits()), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        _ => return false,
    };
    let host = bits - u32::from(length).min(bits);
    (network ^ address).checked_shr(host).unwrap_or_default() == 0
}

/// Returns the policies that decide on packets from or to this host.
///
/// # Errors
///
/// If the kernel refuses the dump.
pub fn policies() -> Result<Vec<Policy>> {
    let doing = || "cannot list the host's IPsec policies";
    failpoint::hit("list IPsec policies").context(doing)?;
    let mut found = Vec::new();
    if has_xfrm().context(doing)? {
        let request = Dump {
            protocol: NETLINK_XFRM,
            request: XFRM_MSG_GETPOLICY,
            response: XFRM_MSG_NEWPOLICY,
            subheader: POLICY_ID,
        };
        dump(request, |body| found.extend(Policy::parse(body))).context(doing)?;
    }
    Ok(found)
}

/// Returns whether the kernel has `xfrm_user`, built in or as a loaded module: a request would load the module.
fn has_xfrm() -> io::Result<bool> {
    static IS_BUILT_IN: OnceLock<bool> = OnceLock::new();
    Ok(fs::exists("/sys/module/xfrm_user")?
        || *IS_BUILT_IN.get_or_init(|| btf::vmlinux_has_name("xfrm_dump_policy").unwrap_or(false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `XFRM_POLICY_BLOCK`.
    const BLOCK: u8 = 1;

    fn message(direction: u8, attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![0; POLICY];
        body[DESTINATION..4].copy_from_slice(&[192, 0, 2, 0]);
        body[SOURCE..SOURCE + 4].copy_from_slice(&[10, 0, 0, 0]);
        body[FAMILY..FAMILY + 2].copy_from_slice(&2_u16.to_ne_bytes());
        (body[DESTINATION_LENGTH], body[SOURCE_LENGTH], body[DIRECTION]) = (24, 8, direction);
        body[ACTION] = BLOCK;
        body.extend_from_slice(attributes);
        body
    }

    #[test]
    fn ipsec_policies_are_parsed() {
        let policy = Policy::parse(&message(1, &[])).expect("a policy");
        assert_eq!(policy.to_string(), "dir out src 10.0.0.0/8 dst 192.0.2.0/24");
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(policy.concerns(address("10.1.2.3"), address("192.0.2.255")));
        assert!(!policy.concerns(address("11.1.2.3"), address("192.0.2.255")));
        assert!(!policy.concerns(address("10.1.2.3"), address("192.0.3.0")));
        assert!(!policy.concerns(address("::1"), address("::1")));
        assert!(Policy::parse(&message(0, &[])).is_some_and(|policy| !policy.is_outgoing));
        assert_eq!(Policy::parse(&message(2, &[])), None, "of forwarded packets");
        assert_eq!(Policy::parse(&message(4, &[])), None, "of a socket");
        assert_eq!(Policy::parse(&message(1, &[8, 0, 31, 0, 7, 0, 0, 0])), None, "of an interface");
        assert!(Policy::parse(&message(1, &[8, 0, 31, 0, 0, 0, 0, 0])).is_some());
        let allowing = |attributes: &[u8]| {
            let mut body = message(1, attributes);
            body[ACTION] = ALLOW;
            Policy::parse(&body)
        };
        assert_eq!(allowing(&[]), None, "it lets packets pass as they are");
        assert!(allowing(&[8, 0, 5, 0, 0, 0, 0, 0]).is_some(), "it transforms packets");
        assert_eq!(Policy::parse(&[0; 100]), None, "too short");
    }
}
