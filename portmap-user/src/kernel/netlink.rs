//! A netlink socket of the calling thread's network namespace.

use std::future::Future;

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
