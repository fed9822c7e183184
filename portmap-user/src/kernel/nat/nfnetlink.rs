//! Dumps of netfilter's subsystems.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::kernel::dump::{self, Attributes, Dump};

/// Length of the `struct nfgenmesg` behind a message's header.
const SUBHEADER: usize = 4;

/// Splits a message into the family and the attributes.
pub(super) fn split(message: &[u8]) -> Option<(u8, Attributes<'_>)> {
    let attributes = message.get(SUBHEADER..)?;
    Some((*message.first()?, Attributes(attributes)))
}

/// Requests a dump of all families, see [`dump::dump`].
pub(super) fn dump(request: u16, response: u16, visit: impl FnMut(&[u8])) -> io::Result<bool> {
    dump::dump(Dump { protocol: NETLINK_NETFILTER, request, response, subheader: SUBHEADER }, visit)
}
