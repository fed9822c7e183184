//! A session in one network namespace: what an operation needs to work there, opened once and handed down.

use std::{
    cell::OnceCell,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use nix::libc;

use super::{netlink::Netlink, sysctl::Sysctls};
use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
};

/// A netlink socket and the settings of a network namespace: the one that the thread was in which opened the
/// session.
pub struct NetSession {
    /// The netlink socket.
    pub netlink: Netlink,
    sysctls: OnceCell<Sysctls>,
}

impl NetSession {
    /// Opens a session in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If the kernel has no socket for this process.
    pub fn open() -> Result<Self> {
        Ok(Self { netlink: Netlink::open()?, sysctls: OnceCell::new() })
    }

    /// The namespace's settings, whose directories are opened when they are first needed.
    ///
    /// Only the thread that opened the session may call this: `/proc/sys/net` shows the namespace of the
    /// thread that looks.
    ///
    /// # Errors
    ///
    /// If `/proc/sys/net` cannot be opened.
    pub fn sysctls(&self) -> Result<&Sysctls> {
        if let Some(opened) = self.sysctls.get() {
            return Ok(opened);
        }
        let opened = Sysctls::open()?;
        Ok(self.sysctls.get_or_init(|| opened))
    }

    /// The namespace's cookie, which no other namespace has before the next boot (`SO_NETNS_COOKIE`, Linux
    /// 5.14).
    ///
    /// # Errors
    ///
    /// If the kernel is older.
    pub fn cookie(&self) -> Result<u64> {
        let doing = || "cannot read the cookie of a network namespace";
        failpoint::hit("ask for a cookie").context(doing)?;
        self.peek_cookie().context(doing)
    }

    /// The same for a caller that can do without it; no failpoint, because a failure has no effect.
    pub(super) fn peek_cookie(&self) -> io::Result<u64> {
        cookie_of(self.netlink.as_fd())
    }
}

/// The cookie of a socket's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the socket is open, and the pointers are to a number of the given length and to that length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
