//! Mutual exclusion within a network namespace by an abstract Unix socket, which belongs to the network
//! namespace, whereas a lock file belongs to a mount namespace.

use std::os::{
    fd::{AsRawFd as _, OwnedFd},
    linux::net::SocketAddrExt as _,
    unix::net::{SocketAddr, UnixListener},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials,
    },
    unistd::geteuid,
};

use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
};

/// The socket's name.
const NAME: &str = "portmap";

/// Result of an attempt to take the lock.
#[derive(Debug)]
pub enum Attempt {
    /// This process holds the lock, as long as the listener exists.
    Taken(UnixListener),
    /// Another process of the same user holds it, with this pid if it is visible in this pid namespace.
    Held(Option<i32>),
    /// Another user has a socket of that name. Any user may, so that is no lock.
    Foreign,
}

/// Tries to take the lock of the calling thread's network namespace.
pub fn take() -> Result<Attempt> {
    let doing = || format!("cannot listen on the abstract socket @{NAME}");
    failpoint::hit("take a network namespace's socket").context(doing)?;
    let address = SocketAddr::from_abstract_name(NAME).context(doing)?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Attempt::Taken(listener)),
        Err(error) if error.raw_os_error() == Some(Errno::EADDRINUSE as i32) => {
            Ok(holder().unwrap_or(Attempt::Foreign))
        }
        Err(error) => Err(error).context(doing),
    }
}

/// Returns the holder; `None` if that cannot be determined, because it does not accept connections, or has
/// just ended.
fn holder() -> Option<Attempt> {
    let kind = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, kind, None).ok()?;
    connect(client.as_raw_fd(), &UnixAddr::new_abstract(NAME.as_bytes()).ok()?).ok()?;
    // The listener's credentials when it called listen().
    let peer = getsockopt(&client, PeerCredentials).ok()?;
    let is_ours = peer.uid() == geteuid().as_raw();
    is_ours.then(|| Attempt::Held(Some(peer.pid()).filter(|pid| *pid > 0)))
}
