//! A netlink socket of the calling thread's network namespace.

use std::{future::Future, num::NonZeroI32};

use futures_util::StreamExt as _;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc::EIO;
use rtnetlink::Handle;
use tokio::runtime::{Builder, Runtime};

use crate::{
    error::{Context as _, Result},
    fault,
};

/// A connection to the kernel's routing subsystem. It stays in the namespace in which it was opened.
pub struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Opens a connection in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let doing = || "cannot open a netlink socket".to_owned();
        // The connection is driven by whoever waits for an answer; it needs no thread of its own.
        let runtime = Builder::new_current_thread().enable_io().build().context(doing)?;
        let guard = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection().context(doing)?;
        drop(guard);
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// Requests are made of this.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Sends a request and waits for the kernel to say how it went.
    pub fn request(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), rtnetlink::Error> {
        self.answers(message, NLM_F_ACK | flags).map(|_none| ())
    }

    /// Asks for a list.
    pub fn list(&self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, rtnetlink::Error> {
        self.answers(message, NLM_F_DUMP)
    }

    fn answers(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, rtnetlink::Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        self.wait(async {
            let mut answers = self.handle.clone().request(request)?;
            let mut messages = Vec::new();
            while let Some(answer) = answers.next().await {
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(rtnetlink::Error::NetlinkError(error));
                    }
                    NetlinkPayload::InnerMessage(message) => messages.push(message),
                    _ => {}
                }
            }
            Ok(messages)
        })
    }

    /// Asks, and waits for an answer.
    pub fn wait<T>(
        &self,
        answer: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, rtnetlink::Error> {
        order_a_refusal()?;
        self.runtime.block_on(answer)
    }
}

/// Has the kernel carry out several requests one right after the other: not even the end of this process comes between
/// them. All of them are tried, and the first refusal is the result. They go to the calling thread's namespace.
pub fn request_at_once(requests: Vec<(RouteNetlinkMessage, u16)>) -> Result<(), rtnetlink::Error> {
    order_a_refusal()?;
    let failed = |error: std::io::Error| refusal(error.raw_os_error().unwrap_or(EIO));
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
    socket.bind_auto().map_err(failed)?;
    let mut sent = Vec::new();
    let mut unanswered = requests.len();
    for (number, (message, flags)) in (1..).zip(requests) {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.header.sequence_number = number;
        request.finalize();
        // Every message begins at a multiple of four bytes.
        let start = sent.len().next_multiple_of(4);
        sent.resize(start + request.buffer_len(), 0);
        request.serialize(&mut sent[start..]);
    }
    // The kernel works on all of it before it returns.
    socket.send_to(&sent, &SocketAddr::new(0, 0), 0).map_err(failed)?;
    let mut result = Ok(());
    while unanswered > 0 {
        let (received, _kernel) = socket.recv_from_full().map_err(failed)?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|_error| rtnetlink::Error::RequestFailed)?;
            let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            if let NetlinkPayload::Error(error) = answer.payload {
                unanswered -= 1;
                if error.code.is_some() && result.is_ok() {
                    result = Err(rtnetlink::Error::NetlinkError(error));
                }
            }
        }
    }
    result
}

/// Fails if a test wants the next request to.
fn order_a_refusal() -> Result<(), rtnetlink::Error> {
    fault::step("netlink").map_err(|_ordered| refusal(EIO))
}

/// What the kernel would answer if it refused for this reason.
fn refusal(errno: i32) -> rtnetlink::Error {
    let mut message = ErrorMessage::default();
    message.code = NonZeroI32::new(-errno);
    rtnetlink::Error::NetlinkError(message)
}

/// The error number in the kernel's answer, positive, if it was the kernel that refused.
pub fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}
