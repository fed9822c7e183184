//! One process in a network namespace, whatever file systems it sees: an abstract Unix socket belongs to the network namespace,
//! and files to a mount namespace.

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
    fault,
    kernel::error::{Context as _, Result},
};

/// The socket's name.
const NAME: &str = "portmap";

/// How an attempt to be that process ended.
#[derive(Debug)]
pub enum Attempt {
    /// This is the process, as long as the listener exists.
    Taken(UnixListener),
    /// Another one of the same user is, with this number unless that is not seen from here.
    Held(Option<i32>),
    /// Another user has a socket of that name. Anybody may, so that says nothing.
    Foreign,
}

/// Tries to be the process of the calling thread's network namespace.
pub fn take() -> Result<Attempt> {
    let doing = || format!("cannot listen on the abstract socket @{NAME}");
    fault::step("take a network namespace's socket").context(doing)?;
    let address = SocketAddr::from_abstract_name(NAME).context(doing)?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Attempt::Taken(listener)),
        Err(error) if error.raw_os_error() == Some(Errno::EADDRINUSE as i32) => {
            Ok(holder().unwrap_or(Attempt::Foreign))
        }
        Err(error) => Err(error).context(doing),
    }
}

/// Who listens. None if that cannot be found out: whoever it is keeps others waiting, or has ended just now.
fn holder() -> Option<Attempt> {
    let kind = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, kind, None).ok()?;
    connect(client.as_raw_fd(), &UnixAddr::new_abstract(NAME.as_bytes()).ok()?).ok()?;
    // Those of the listener when it began to listen.
    let peer = getsockopt(&client, PeerCredentials).ok()?;
    let is_ours = peer.uid() == geteuid().as_raw();
    is_ours.then(|| Attempt::Held(Some(peer.pid()).filter(|pid| *pid > 0)))
}
