//! A `NETLINK_ROUTE` socket in the calling thread's network namespace.
//!
//! The kernel executes a request before `sendto` returns, so the calls are synchronous. Dumps are processed
//! message by message, so a list of a thousand interfaces is never in memory.

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    time::Instant,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc::{EIO, MSG_TRUNC};
use tracing::debug;

use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
};

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns its descriptor, and outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

/// A request, and its flags in addition to those of every request.
pub type Request = (RouteNetlinkMessage, u16);

/// Size of the receive buffer in bytes; the kernel's messages have at most half of this.
const ROOM: usize = 64 << 10;

/// Number of attempts to get a consistent dump.
const ATTEMPTS: u32 = 4;

/// A socket of the kernel's routing subsystem. It stays in the namespace in which it was opened.
pub struct Netlink {
    socket: Socket,
    /// Sequence number of the last request.
    sequence: Cell<u32>,
    /// When dumps are given up.
    deadline: Cell<Option<Instant>>,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let doing = || "cannot open a netlink socket";
        let mut socket = Socket::new(NETLINK_ROUTE).context(doing)?;
        socket.bind_auto().context(doing)?;
        Ok(Self { socket, sequence: Cell::new(0), deadline: Cell::new(None) })
    }

    /// Makes requests fail that are unanswered at this time, which is checked between the kernel's messages. The
    /// socket is of no further use then.
    pub fn set_deadline(&self, deadline: Instant) {
        self.deadline.set(Some(deadline));
    }

    /// Sends a request and waits for its acknowledgement. The error has the kernel's errno.
    pub fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request_at_once(vec![(message, flags)])
    }

    /// Sends several requests in one system call, so that not even a kill of this process interrupts the
    /// batch. The kernel executes all of them; the first error is the result.
    pub fn request_at_once(&self, requests: Vec<Request>) -> io::Result<()> {
        self.exchange(requests, NLM_F_ACK, |_flags, _none| {})
    }

    /// Requests one object.
    pub fn get(&self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut found = None;
        self.exchange(vec![(message, 0)], NLM_F_ACK, |_flags, answer| found = Some(answer))?;
        let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        found.ok_or_else(|| invalid("the kernel sent no response".to_owned()))?.map_err(invalid)
    }

    /// Requests a dump, and returns the objects that `keep` maps to `Some`. An inconsistent dump, which may
    /// miss or repeat objects, is repeated a few times, and accepted in the end.
    pub fn list<T>(
        &self,
        message: &RouteNetlinkMessage,
        mut keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (mut kept, mut is_inconsistent) = (Vec::new(), false);
            self.exchange(vec![(message.clone(), 0)], NLM_F_DUMP, |flags, answer| {
                is_inconsistent |= flags & NLM_F_DUMP_INTR != 0;
                match answer {
                    Ok(answer) => kept.extend(keep(answer)),
                    // An object with attributes that the library cannot parse is not portmap's.
                    Err(error) => debug!("skipping a message of a dump that cannot be parsed: {error}"),
                }
            })?;
            if !is_inconsistent || attempts == ATTEMPTS {
                return Ok(kept);
            }
        }
    }

    /// Sends requests in one system call, and calls `on_answer` with each response and its flags until all
    /// are complete.
    fn exchange(
        &self,
        requests: Vec<Request>,
        common_flags: u16,
        mut on_answer: impl FnMut(u16, Result<RouteNetlinkMessage, String>),
    ) -> io::Result<()> {
        failpoint()?;
        let (mut unanswered, mut result) = (requests.len(), Ok(()));
        let first = self.send(requests, common_flags)?;
        let mut received = Vec::with_capacity(ROOM);
        while unanswered > 0 {
            if self.deadline.get().is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            received.clear();
            let length = self.socket.recv(&mut received, MSG_TRUNC)?;
            if length > received.len() {
                return Err(io::Error::other(format!(
                    "a response of {length} bytes exceeds the buffer of {ROOM}"
                )));
            }
            let mut remaining = received.as_slice();
            while !remaining.is_empty() {
                let header = NetlinkBuffer::new_checked(remaining).map_err(io::Error::other)?;
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(remaining);
                let length = usize::try_from(header.length()).unwrap_or(usize::MAX).next_multiple_of(4);
                remaining = remaining.get(length..).unwrap_or_default();
                // A late response to an exchange that ended early.
                if header.sequence_number() < first {
                    continue;
                }
                let code = match answer.map(|answer| answer.payload) {
                    Ok(NetlinkPayload::Error(error)) => error.raw_code(),
                    Ok(NetlinkPayload::Done(done)) => done.code,
                    Ok(NetlinkPayload::InnerMessage(message)) => {
                        on_answer(header.flags(), Ok(message));
                        continue;
                    }
                    Err(error) if header.message_type() >= NLMSG_MIN_TYPE => {
                        on_answer(header.flags(), Err(error.to_string()));
                        continue;
                    }
                    Err(error) => return Err(io::Error::other(error)),
                    Ok(_) => continue,
                };
                unanswered -= 1;
                if code < 0 && result.is_ok() {
                    result = Err(io::Error::from_raw_os_error(-code));
                }
            }
        }
        result
    }

    /// Sends requests in one system call; returns the sequence number of the first.
    fn send(&self, requests: Vec<Request>, common_flags: u16) -> io::Result<u32> {
        let first = self.sequence.get() + 1;
        let mut sent = Vec::new();
        for (number, (message, flags)) in (first..).zip(requests) {
            self.sequence.set(number);
            let mut request = NetlinkMessage::from(message);
            request.header.flags = NLM_F_REQUEST | common_flags | flags;
            request.header.sequence_number = number;
            request.finalize();
            // Messages are aligned to four bytes.
            let start = sent.len().next_multiple_of(4);
            sent.resize(start + request.buffer_len(), 0);
            request.serialize(&mut sent[start..]);
        }
        self.socket.send_to(&sent, &SocketAddr::new(0, 0), 0)?;
        Ok(first)
    }
}

/// The first message type that is not a control message (`linux/netlink.h`).
const NLMSG_MIN_TYPE: u16 = 16;

/// Failpoint of all requests.
fn failpoint() -> io::Result<()> {
    failpoint::hit("netlink").map_err(|_injected| io::Error::from_raw_os_error(EIO))
}
