//! A netlink socket of the calling thread's network namespace.
//!
//! The kernel carries a request out before `sendto` returns, so there is nothing to wait for, and answers are looked at one by
//! one as they come: a list of a thousand interfaces is never in memory.

use std::{cell::Cell, io};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc::{EIO, MSG_TRUNC};
use tracing::debug;

use crate::{
    fault,
    kernel::error::{Context as _, Result},
};

/// What the kernel is asked to do, and the flags of the question besides those that every question has.
pub type Request = (RouteNetlinkMessage, u16);

/// Bytes of the answers that are taken at a time. The kernel makes none larger than half of this.
const ROOM: usize = 64 << 10;

/// How often a list is asked for that changes while it is given.
const ATTEMPTS: u32 = 4;

/// A connection to the kernel's routing subsystem. It stays in the namespace in which it was opened.
pub struct Netlink {
    socket: Socket,
    /// Number of the last request.
    sequence: Cell<u32>,
}

impl Netlink {
    /// Opens a connection in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let doing = || "cannot open a netlink socket";
        let mut socket = Socket::new(NETLINK_ROUTE).context(doing)?;
        socket.bind_auto().context(doing)?;
        Ok(Self { socket, sequence: Cell::new(0) })
    }

    /// Has the kernel do something. The error is the kernel's refusal, by its number.
    pub fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request_at_once(vec![(message, flags)])
    }

    /// Has the kernel carry out several requests one right after the other: not even the end of this process comes between
    /// them. All of them are tried, and the first refusal is the result.
    pub fn request_at_once(&self, requests: Vec<Request>) -> io::Result<()> {
        self.exchange(requests, NLM_F_ACK, |_flags, _none| {})
    }

    /// Asks for one thing.
    pub fn get(&self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut found = None;
        self.exchange(vec![(message, 0)], NLM_F_ACK, |_flags, answer| found = Some(answer))?;
        let nonsense = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        found.ok_or_else(|| nonsense("the kernel has no answer".to_owned()))?.map_err(nonsense)
    }

    /// Asks for a list, of which `keep` says what is kept. A list that has changed meanwhile is asked for again, in which
    /// something could be twice or missing; one that changes all the time is taken as it is in the end.
    pub fn list<T>(
        &self,
        message: &RouteNetlinkMessage,
        mut keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (mut kept, mut has_changed) = (Vec::new(), false);
            self.exchange(vec![(message.clone(), 0)], NLM_F_DUMP, |flags, answer| {
                has_changed |= flags & NLM_F_DUMP_INTR != 0;
                match answer {
                    Ok(answer) => kept.extend(keep(answer)),
                    // Of something with properties that this library does not know, thus not ours.
                    Err(error) => debug!("part of a list is not understood: {error}"),
                }
            })?;
            if !has_changed || attempts == ATTEMPTS {
                return Ok(kept);
            }
        }
    }

    /// Sends requests in one system call, and hands over what comes back with its flags, until all are answered.
    fn exchange(
        &self,
        requests: Vec<Request>,
        common_flags: u16,
        mut on_answer: impl FnMut(u16, Result<RouteNetlinkMessage, String>),
    ) -> io::Result<()> {
        order_a_refusal()?;
        let (mut unanswered, mut result) = (requests.len(), Ok(()));
        let first = self.send(requests, common_flags)?;
        let mut received = Vec::with_capacity(ROOM);
        while unanswered > 0 {
            received.clear();
            let length = self.socket.recv(&mut received, MSG_TRUNC)?;
            if length > received.len() {
                return Err(io::Error::other(format!("an answer of {length} bytes has no room in {ROOM}")));
            }
            let mut rest = received.as_slice();
            while !rest.is_empty() {
                let header = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
                let length = usize::try_from(header.length()).unwrap_or(usize::MAX).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                // Others are left of an exchange that came to an early end.
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

    /// Sends requests in one system call; returns the number of the first.
    fn send(&self, requests: Vec<Request>, common_flags: u16) -> io::Result<u32> {
        let first = self.sequence.get() + 1;
        let mut sent = Vec::new();
        for (number, (message, flags)) in (first..).zip(requests) {
            self.sequence.set(number);
            let mut request = NetlinkMessage::from(message);
            request.header.flags = NLM_F_REQUEST | common_flags | flags;
            request.header.sequence_number = number;
            request.finalize();
            // Every message begins at a multiple of four bytes.
            let start = sent.len().next_multiple_of(4);
            sent.resize(start + request.buffer_len(), 0);
            request.serialize(&mut sent[start..]);
        }
        self.socket.send_to(&sent, &SocketAddr::new(0, 0), 0)?;
        Ok(first)
    }
}

/// The first number of a message that is not about netlink itself (linux/netlink.h).
const NLMSG_MIN_TYPE: u16 = 16;

/// Fails if a test wants the next request to.
fn order_a_refusal() -> io::Result<()> {
    fault::step("netlink").map_err(|_ordered| io::Error::from_raw_os_error(EIO))
}
