//! A netlink socket of the calling thread's network namespace.

use std::future::Future;

use futures_util::StreamExt as _;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::Handle;
use tokio::runtime::{Builder, Runtime};

use crate::error::{Context as _, Result};

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
        let mut answers = self.handle.clone().request(request)?;
        self.wait(async {
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

    /// Waits for an answer.
    pub fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.block_on(answer)
    }
}

/// The error number in the kernel's answer, positive, if it was the kernel that refused.
pub fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}
