//! `NETLINK_SOCK_DIAG`: dumps of the sockets of the calling thread's network namespace.
//!
//! Responses are handed over one by one, so a namespace with a million sockets costs no memory. The kernel
//! walks tables that all namespaces share: a dump takes time even in a namespace without sockets, and a
//! filter saves only the responses.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::ControlFlow,
    time::Instant,
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use nix::libc::AF_INET;

use crate::model::PortRange;

/// Size of the receive buffer in bytes; the kernel's messages have at most half of this.
const ROOM: usize = 64 << 10;
/// Message types (`linux/netlink.h`).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Type of requests and responses of one protocol and address family (`linux/sock_diag.h`).
pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Length of a message's header.
const HEADER: usize = 16;
/// `INET_DIAG_REQ_BYTECODE`, and its operations that compare the local port (`linux/inet_diag.h`).
const BYTECODE: u16 = 1;
const PORT_AT_LEAST: u8 = 2;
const PORT_AT_MOST: u8 = 3;

/// How a dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All sockets were visited.
    Complete,
    /// The visitor wanted no more.
    Stopped,
    /// The deadline passed.
    TimedOut,
}

/// A socket of this kind in the namespace in which it was opened.
pub(super) struct SockDiag(Socket);

impl SockDiag {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        Ok(Self(socket))
    }

    /// Requests a dump, and passes the body of each response to `visit`. The deadline is checked between the
    /// kernel's messages, of a few hundred sockets each. After an incomplete dump this value is of no further use.
    ///
    /// # Errors
    ///
    /// `NotFound` if the kernel lacks the protocol.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        deadline: Option<Instant>,
        mut visit: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<Ended> {
        self.0.send_to(&request(kind, body), &NetlinkAddr::new(0, 0), 0)?;
        let mut received = Vec::with_capacity(ROOM);
        loop {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Ended::TimedOut);
            }
            received.clear();
            self.0.recv(&mut received, 0)?;
            if let ControlFlow::Break(ended) = each_response(&received, kind, &mut visit)? {
                return Ok(ended);
            }
        }
    }
}

/// `TCP_BOUND_INACTIVE` (`net/tcp_states.h`): TCP sockets that are bound, and neither listen nor are connected. A
/// state in requests only; responses have `TCP_CLOSE`. Kernels before Linux 6.8 do not list these sockets.
pub(super) const BOUND_INACTIVE: u32 = 1 << 13;

/// The body of a request for the sockets of one protocol and address family in these states, a set of their
/// numbers: a `struct inet_diag_req_v2`.
pub(super) fn request_v2(family: i32, protocol: i32, states: u32) -> Vec<u8> {
    let byte = |word: i32| u8::try_from(word).unwrap_or_default();
    let mut body = vec![byte(family), byte(protocol), 0, 0];
    body.extend(states.to_ne_bytes());
    // `struct inet_diag_sockid`, unused in a dump.
    body.extend([0; 48]);
    body
}

fn request(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(u32::try_from(HEADER + body.len()).unwrap_or_default().to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Parses a message of the kernel, which contains several responses.
fn each_response(
    mut remaining: &[u8],
    kind: u16,
    visit: &mut impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<Ended>> {
    let invalid = || io::Error::from(ErrorKind::InvalidData);
    let failure = |code: i32| io::Error::from_raw_os_error(-code);
    while remaining.len() >= HEADER {
        let length = usize::try_from(u32::from_ne_bytes(array(remaining, 0))).unwrap_or(usize::MAX);
        let body = remaining.get(HEADER..length).ok_or_else(invalid)?;
        match u16::from_ne_bytes(array(remaining, 4)) {
            NLMSG_DONE => {
                let code = i32::from_ne_bytes(array(body, 0));
                return if code < 0 { Err(failure(code)) } else { Ok(ControlFlow::Break(Ended::Complete)) };
            }
            NLMSG_ERROR => return Err(failure(i32::from_ne_bytes(array(body, 0)))),
            found if found == kind && visit(body).is_break() => {
                return Ok(ControlFlow::Break(Ended::Stopped));
            }
            _ => {}
        }
        remaining = remaining.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(ControlFlow::Continue(()))
}

/// The attribute of a request by which the kernel returns only sockets with a local port in `range`.
pub(super) fn port_filter(range: PortRange) -> Vec<u8> {
    // Each operation has the offsets of the next one if it holds and if not, and takes its operand from the
    // following operation. The end of the bytecode accepts a socket, four bytes beyond it reject it.
    let mut attribute = Vec::from(20_u16.to_ne_bytes());
    attribute.extend(BYTECODE.to_ne_bytes());
    for (operation, no, port) in [(PORT_AT_LEAST, 20_u16, range.first()), (PORT_AT_MOST, 12, range.last())] {
        attribute.extend([operation, 8]);
        attribute.extend(no.to_ne_bytes());
        attribute.extend([0, 0]);
        attribute.extend(port.to_ne_bytes());
    }
    attribute
}

/// `N` bytes of a message; zeros beyond its end.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

/// A `struct inet_diag_msg` (`linux/inet_diag.h`), with which every response begins, and its attributes.
pub(super) struct Response<'a>(&'a [u8]);

impl<'a> Response<'a> {
    const LENGTH: usize = 72;

    /// `None` if the response is too short.
    pub(super) fn new(body: &'a [u8]) -> Option<Self> {
        (body.len() >= Self::LENGTH).then_some(Self(body))
    }

    /// The state, by its number.
    pub(super) const fn state(&self) -> u8 {
        self.0[1]
    }

    /// The local port.
    pub(super) fn local_port(&self) -> u16 {
        u16::from_be_bytes(array(self.0, 4))
    }

    /// The local address and port.
    pub(super) fn local(&self) -> SocketAddr {
        SocketAddr::new(self.address(8), self.local_port())
    }

    /// The peer's address and port.
    pub(super) fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.address(24), u16::from_be_bytes(array(self.0, 6)))
    }

    fn address(&self, at: usize) -> IpAddr {
        match i32::from(self.0[0]) {
            AF_INET => IpAddr::V4(Ipv4Addr::from(array::<4>(self.0, at))),
            _ => IpAddr::V6(Ipv6Addr::from(array::<16>(self.0, at))).to_canonical(),
        }
    }

    /// Bytes received and not yet read; of a listening socket, connections not yet accepted.
    pub(super) fn receive_queue(&self) -> u32 {
        u32::from_ne_bytes(array(self.0, 56))
    }

    /// Bytes sent and not yet acknowledged; of a listening socket, the limit on waiting connections.
    pub(super) fn send_queue(&self) -> u32 {
        u32::from_ne_bytes(array(self.0, 60))
    }

    /// The user that created the socket.
    pub(super) fn uid(&self) -> u32 {
        u32::from_ne_bytes(array(self.0, 64))
    }

    /// The inode number; 0 if no process holds the socket any more.
    pub(super) fn inode(&self) -> u32 {
        u32::from_ne_bytes(array(self.0, 68))
    }

    /// The value of the attribute of this kind.
    pub(super) fn attribute(&self, kind: u16) -> Option<&'a [u8]> {
        let mut remaining = self.0.get(Self::LENGTH..)?;
        while remaining.len() >= 4 {
            let length = usize::from(u16::from_ne_bytes(array(remaining, 0)));
            let value = remaining.get(4..length)?;
            if u16::from_ne_bytes(array(remaining, 2)) == kind {
                return Some(value);
            }
            remaining = remaining.get(length.next_multiple_of(4)..)?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sock_diag_attribute_is_found() {
        let mut body = vec![0; Response::LENGTH];
        // An empty attribute, one with a byte and its padding, and one with four.
        body.extend([4, 0, 1, 0, 5, 0, 8, 0, 7, 0, 0, 0, 8, 0, 2, 0, 1, 2, 3, 4]);
        let response = Response::new(&body).expect("it is long enough");
        assert_eq!(response.attribute(8), Some(&[7][..]));
        assert_eq!(response.attribute(2), Some(&[1, 2, 3, 4][..]));
        assert_eq!(response.attribute(1), Some(&[][..]));
        assert_eq!(response.attribute(3), None);
        // Lengths below the header's and beyond the end must not loop or read further.
        for length in [0, 3, 200] {
            body.splice(Response::LENGTH.., [length, 0, 1, 0]);
            let response = Response::new(&body).expect("it is long enough");
            assert_eq!(response.attribute(1), None, "{length}");
        }
    }

    #[test]
    fn sock_diag_error_of_the_kernel_is_returned() {
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let mut message = Vec::from(20_u32.to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend([0; 10]);
            message.extend((-2_i32).to_ne_bytes());
            let error = each_response(&message, 20, &mut |_| ControlFlow::Continue(())).expect_err("ENOENT");
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
    }
}
