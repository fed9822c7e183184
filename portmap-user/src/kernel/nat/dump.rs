//! Dumps of netfilter's subsystems, processed message by message.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::libc::{EINVAL, EOPNOTSUPP};

use super::interpreter::Attributes;
use crate::kernel::sock_diag::array;

/// Size of the receive buffer in bytes; the kernel's messages have at most half of this.
const ROOM: usize = 64 << 10;
/// Length of a message's header, and of the `struct nfgenmesg` that follows it.
const HEADER: usize = 16;
const SUBHEADER: usize = 4;
/// Message types (`linux/netlink.h`).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Splits a message into the family and the attributes.
pub(super) fn split(message: &[u8]) -> Option<(u8, Attributes<'_>)> {
    let attributes = message.get(SUBHEADER..)?;
    Some((*message.first()?, Attributes(attributes)))
}

/// Requests a dump of all families, and passes the body of each response to `visit`. Returns whether it is
/// consistent. Without the subsystem that the request is for, it is empty.
pub(super) fn dump(request: u16, response: u16, mut visit: impl FnMut(&[u8])) -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(&message(request), &SocketAddr::new(0, 0), 0)?;
    let (mut received, mut is_consistent) = (Vec::with_capacity(ROOM), true);
    loop {
        received.clear();
        socket.recv(&mut received, 0)?;
        let mut remaining = received.as_slice();
        while !remaining.is_empty() {
            let header = NetlinkBuffer::new_checked(remaining).map_err(io::Error::other)?;
            let length = usize::try_from(header.length()).unwrap_or(usize::MAX);
            let body = remaining.get(HEADER..length).unwrap_or_default();
            is_consistent &= header.flags() & NLM_F_DUMP_INTR == 0;
            match header.message_type() {
                NLMSG_DONE => return Ok(is_consistent),
                NLMSG_ERROR => {
                    let code = -i32::from_ne_bytes(array(body, 0));
                    let is_missing = matches!(code, EINVAL | EOPNOTSUPP);
                    return if is_missing { Ok(true) } else { Err(io::Error::from_raw_os_error(code)) };
                }
                found if found == response => visit(body),
                _ => {}
            }
            remaining = remaining.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A request for a dump of the objects of all families.
fn message(kind: u16) -> [u8; HEADER + SUBHEADER] {
    let mut message = [0; HEADER + SUBHEADER];
    let length = u32::try_from(message.len()).unwrap_or_default();
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message
}
