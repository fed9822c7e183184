//! Notifications that `netlink-packet-route` cannot parse: of settings of interfaces, and of next-hop objects.

use std::io;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket, protocols::NETLINK_ROUTE};
use nix::libc::{ENOBUFS, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF, RTNLGRP_NEXTHOP};

use super::link::LOOPBACK;
use crate::kernel::error::{Context as _, Result};

/// Numbers of messages, from `linux/rtnetlink.h`.
const RTM_NEWNETCONF: u16 = 80;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
/// The attribute of a `netconf` message with the interface's index, and the size in bytes of the header before it,
/// from `linux/netconf.h`.
const NETCONFA_IFINDEX: u16 = 1;
const NETCONF_HEADER: usize = 4;

/// What has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A setting of the loopback device that decides on forwarding.
    pub loopback_settings: bool,
    /// A next-hop object.
    pub next_hops: bool,
}

impl Changes {
    /// Everything may have changed, as the kernel had no room for notifications.
    const UNKNOWN: Self = Self { loopback_settings: true, next_hops: true };

    /// Reads the messages of a datagram. Other messages, and the rest after one that is no message, change nothing.
    fn read(mut datagram: &[u8]) -> Self {
        let mut changes = Self::default();
        while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
            match message.message_type() {
                RTM_NEWNETCONF => changes.loopback_settings |= is_of_loopback(message.payload()),
                RTM_NEWNEXTHOP | RTM_DELNEXTHOP => changes.next_hops = true,
                _ => {}
            }
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4);
            datagram = datagram.get(length..).unwrap_or_default();
        }
        changes
    }
}

/// Whether a `netconf` message is about the loopback device.
fn is_of_loopback(payload: &[u8]) -> bool {
    NlasIterator::new(payload.get(NETCONF_HEADER..).unwrap_or_default())
        .map_while(Result::ok)
        .any(|attribute| attribute.kind() == NETCONFA_IFINDEX && attribute.value() == LOOPBACK.to_ne_bytes())
}

/// A subscription.
pub struct Notifications(TokioSocket);

impl Notifications {
    /// Subscribes to notifications of the calling thread's namespace. A kernel that lacks one of the groups sends
    /// nothing of it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the socket.
    pub fn subscribe() -> Result<Self> {
        let subscribe = || -> io::Result<Self> {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            let inner = socket.socket_mut();
            inner.bind_auto()?;
            for group in [RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF, RTNLGRP_NEXTHOP] {
                inner.add_membership(group)?;
            }
            Ok(Self(socket))
        };
        subscribe().context(|| "cannot watch settings of the host's interfaces")
    }

    /// Waits for notifications, and returns what has changed.
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub async fn next(&self) -> io::Result<Changes> {
        match self.0.recv_from_full().await {
            Ok((datagram, _sender)) => Ok(Changes::read(&datagram)),
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => Ok(Changes::UNKNOWN),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a message of the kernel's.
    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).expect("a short message");
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], payload].concat()
    }

    /// Returns a `netconf` message about an interface: `forwarding` is off.
    fn netconf(interface: i32) -> Vec<u8> {
        let (index, forwarding) = ([8, 0, 1, 0], [8, 0, 2, 0, 0, 0, 0, 0]);
        let payload = [&[2, 0, 0, 0], &index[..], &interface.to_ne_bytes(), &forwarding].concat();
        message(RTM_NEWNETCONF, &payload)
    }

    #[test]
    fn notifications_tell_what_has_changed() {
        let (none, next_hops) = (Changes::default(), Changes { next_hops: true, ..Changes::default() });
        let settings = Changes { loopback_settings: true, ..none };
        let next_hop = message(RTM_NEWNEXTHOP, &[2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Changes::read(&netconf(1)), settings);
        // Of all interfaces, of future ones, and of one.
        for other in [-1, -2, 7] {
            assert_eq!(Changes::read(&netconf(other)), none, "{other}");
        }
        assert_eq!(Changes::read(&next_hop), next_hops);
        assert_eq!(Changes::read(&message(RTM_DELNEXTHOP, &[0; 8])), next_hops);
        assert_eq!(Changes::read(&[netconf(7), next_hop, netconf(1)].concat()), Changes::UNKNOWN);
        // Messages that end early, and one without attributes.
        let whole = netconf(1);
        for end in 0..whole.len() {
            assert_eq!(Changes::read(&whole[..end]), none, "{end}");
        }
        assert_eq!(Changes::read(&message(RTM_NEWNETCONF, &[2])), none);
    }
}
