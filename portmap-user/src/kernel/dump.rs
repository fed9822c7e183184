//! Dumps of the kernel's tables for which no library has types, processed message by message.

use std::{io, iter};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::{Socket, SocketAddr};
use nix::libc::{EINVAL, EOPNOTSUPP};

use super::sock_diag::array;

/// Size of the receive buffer in bytes; the kernel's messages have at most half of this.
const ROOM: usize = 64 << 10;
/// Length of a message's header.
const HEADER: usize = 16;
/// Message types (`linux/netlink.h`).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A request for a dump.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dump {
    /// Protocol of the netlink socket.
    pub(super) protocol: isize,
    /// Message type of the request.
    pub(super) request: u16,
    /// Message type of the responses.
    pub(super) response: u16,
    /// Length of the structure that follows the header of the request, whose bytes are 0: it asks for all objects.
    pub(super) subheader: usize,
}

/// Requests a dump, and passes the body of each response to `visit`. Returns whether it is consistent. Without the
/// subsystem that the request is for, it is empty.
pub(super) fn dump(dump: Dump, mut visit: impl FnMut(&[u8])) -> io::Result<bool> {
    let mut socket = Socket::new(dump.protocol)?;
    socket.bind_auto()?;
    socket.send_to(&message(dump), &SocketAddr::new(0, 0), 0)?;
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
                found if found == dump.response => visit(body),
                _ => {}
            }
            remaining = remaining.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn message(dump: Dump) -> Vec<u8> {
    let mut message = vec![0; HEADER + dump.subheader];
    let length = u32::try_from(message.len()).unwrap_or_default();
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&dump.request.to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message
}

/// The kinds and values of the attributes in a buffer (`struct nlattr`), up to the first malformed one.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// Length of a header.
    const HEADER: usize = 4;
    /// `NLA_TYPE_MASK`: the kind without its flags.
    const KIND: u16 = 0x3fff;
    iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & KIND;
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Nested attributes.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of an attribute; empty without one.
    pub(super) fn bytes(&self, kind: u16) -> &'a [u8] {
        attributes(self.0).find(|(found, _)| *found == kind).map_or(&[], |(_, value)| value)
    }

    /// The attributes inside an attribute.
    pub(super) fn nested(&self, kind: u16) -> Self {
        Self(self.bytes(kind))
    }

    /// A number in the machine's byte order.
    pub(super) fn native_number(&self, kind: u16) -> Option<u32> {
        self.bytes(kind).first_chunk().map(|number| u32::from_ne_bytes(*number))
    }

    /// A number in network byte order, as netfilter has all of its own.
    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        self.bytes(kind).first_chunk().map(|number| u32::from_be_bytes(*number))
    }

    /// A text, which ends with a zero byte.
    pub(super) fn text(&self, kind: u16) -> Option<&'a str> {
        let text = self.bytes(kind);
        let text = text.strip_suffix(&[0]).unwrap_or(text);
        str::from_utf8(text).ok().filter(|text| !text.is_empty())
    }
}
