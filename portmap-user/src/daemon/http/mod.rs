//! The HTTP interface: all endpoints on the Unix socket, questions on the read-only one, health and metrics on
//! TCP.

mod connection;
mod format;
mod health;
mod listen;
mod operation;
mod problem;
mod readers;
mod refusal;
mod routes;
mod socket;
mod streams;

use std::{net::TcpListener, os::unix::ffi::OsStrExt as _, path::PathBuf, sync::Arc, time::Duration};

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::getegid,
};
use tokio::{task, time};
use tracing::{info, warn};

use self::{
    listen::{Gate, Limits, Readers, accept},
    operation::Shared,
    socket::{Access, Socket},
};
use super::{
    Daemon,
    reconcile::{drains, events, takeover},
    shutdown::Shutdown,
};
use crate::{
    error::{Context as _, Error, Result},
    settings::{Readers as MayRead, Settings},
};

/// Grace period at shutdown for clients that are slow to read a response.
const GRACE: Duration = Duration::from_secs(1);
/// Longest path of a Unix socket in bytes, without the terminating zero.
const LONGEST_SOCKET: usize = 107;
/// A limit on open files below which the daemon warns.
const FEW_FILES: u64 = 256;

/// The listening sockets, as far as they can be checked and bound before the daemon changes the host.
#[derive(Debug)]
pub struct Listeners {
    tcp: Option<TcpListener>,
    socket: PathBuf,
    access: Access,
    /// The read-only socket, if there is one.
    /// The read-only socket, and who may connect; `None`: it does not exist.
    readonly: (PathBuf, Option<Access>),
    /// Limit on the open files of this process.
    files: u64,
}

/// Binds the address of `--listen`, and checks the path of the Unix socket. Accepts no connection yet.
pub fn bind(settings: &Settings) -> Result<Listeners> {
    let socket = settings.state_dir.socket();
    let length = socket.as_os_str().as_bytes().len();
    if length > LONGEST_SOCKET {
        return Err(Error::usage(format!(
            "the path {} is too long for a socket, {length} bytes: expected at most {LONGEST_SOCKET}; name a \
             shorter --state-dir",
            socket.display()
        )));
    }
    let files = raise_limit_of_files();
    let tcp = match settings.listen {
        Some(address) => {
            let binding = || {
                format!(
                    "cannot listen on {address} (--listen): expected a free address of this host, or `none`"
                )
            };
            let tcp = TcpListener::bind(address).context(binding)?;
            tcp.set_nonblocking(true).context(binding)?;
            if !address.ip().is_loopback() {
                warn!(
                    "--listen {address}: any client that reaches this address can read /metrics and \
                     /monitor/statistics, with the names, limits and traffic of all containers"
                );
            }
            Some(tcp)
        }
        None => None,
    };
    // The daemon's own group, and not that of the directory.
    let group = settings.socket_group.unwrap_or_else(|| getegid().as_raw());
    let access = Access { mode: 0o660, group };
    let readonly = match settings.readers {
        MayRead::Everyone => Some(Access { mode: 0o666, group }),
        MayRead::Group => Some(access),
        MayRead::None => None,
    };
    let readonly = (settings.state_dir.readonly_socket(), readonly);
    Ok(Listeners { tcp, socket, access, readonly, files })
}

/// Raises the limit on open files of this process to its maximum, and returns the limit.
fn raise_limit_of_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return FEW_FILES };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        warn!("the limit on open files is {soft} and cannot be raised to {hard}");
        return soft;
    }
    if hard < FEW_FILES {
        warn!("the limit on open files is {hard}, so few connections and operations can run at a time");
    }
    hard
}

/// A share of the open files, as a number of connections or operations. The daemon keeps most of them for its
/// own work: netlink, namespaces, maps, state.
fn part(files: u64, divisor: u64, least: usize, most: usize) -> usize {
    usize::try_from(files / divisor).unwrap_or(most).clamp(least, most)
}

/// Serves requests until a signal or a teardown. Calls `ready` as soon as it accepts connections.
pub async fn serve(
    daemon: Daemon,
    listeners: Listeners,
    shutdown: &Shutdown,
    ready: impl FnOnce(),
) -> Result<()> {
    let Listeners { tcp, socket, access, readonly, files } = listeners;
    let daemon = Arc::new(daemon);
    let (mut socket, unix) = Socket::bind(socket, access)?;
    let shared = Shared::new(daemon.clone(), shutdown.clone(), part(files, 32, 4, 64));
    let by_socket = Gate::new(Limits {
        connections: part(files, 4, 8, 256),
        per_address: usize::MAX,
        head_bytes: 16 << 10,
        idle_timeout: Duration::from_secs(30),
        write_timeout: Duration::from_mins(1),
        max_age: None,
    });
    let tcp_connections = part(files, 16, 4, 64);
    let for_strangers = Limits {
        connections: tcp_connections,
        per_address: tcp_connections / 2,
        head_bytes: 8 << 10,
        idle_timeout: Duration::from_secs(5),
        write_timeout: Duration::from_secs(10),
        max_age: Some(Duration::from_mins(1)),
    };
    // Few questions of readers run at a time, so more connections of one user would only wait.
    let for_readers = Limits { per_address: (tcp_connections / 8).max(2), ..for_strangers };
    let (by_tcp, by_readers) = (Gate::new(for_strangers), Gate::new(for_readers));
    if let Some(tcp) = tcp {
        let tcp = tokio::net::TcpListener::from_std(tcp).context(|| "cannot serve TCP".to_owned())?;
        task::spawn(accept(tcp, by_tcp, readers::by_tcp(shared.clone()), shutdown.clone()));
    }
    let (watching, reconciling) = (daemon.clone(), daemon.clone());
    let gateways = move || watching.gateways();
    task::spawn(events::watch(shutdown.clone(), gateways, move |events| reconciling.reconcile(events)));
    task::spawn(takeover::take_over_all(daemon.reconciler.clone(), shutdown.clone()));
    task::spawn(drains::watch(daemon.reconciler.clone(), shutdown.clone()));
    for (name, owner) in daemon.owned() {
        shared.watch_owner(name, owner);
    }
    let serve_by_socket = |unix| {
        task::spawn(accept(unix, by_socket.clone(), routes::by_socket(shared.clone()), shutdown.clone()))
    };
    let mut serving = serve_by_socket(unix);
    let readers = match readonly {
        (path, Some(access)) => {
            let (socket, routes) = (Socket::bind(path, access)?, readers::by_readers(shared.clone()));
            Some(task::spawn(serve_readers(socket, by_readers, routes, shutdown.clone())))
        }
        (path, None) => {
            Socket::remove_stale(&path)?;
            None
        }
    };
    if !shutdown.has_begun() {
        ready();
    }
    loop {
        tokio::select! {
            () = shutdown.begun() => break,
            rebound = socket.rebind() => {
                // The old socket has no path any more, so no client can connect to it.
                serving.abort();
                serving = serve_by_socket(rebound);
            }
        }
    }
    let _ = serving.await;
    tokio::select! {
        () = by_socket.drained() => shutdown.idle().await,
        () = grace_period(shutdown) => info!("shutting down with an unfinished client connection"),
    }
    info!("stopping; containers in service stay in service");
    if let Some(readers) = readers {
        let _ = readers.await;
    }
    socket.remove();
    daemon.finish_teardown()
}

/// Serves the read-only socket until shutdown begins. Binds it again if its path is removed.
async fn serve_readers(
    (mut socket, listener): (Socket, tokio::net::UnixListener),
    gate: Arc<Gate>,
    routes: axum::Router,
    shutdown: Shutdown,
) {
    let serve =
        |listener| task::spawn(accept(Readers(listener), gate.clone(), routes.clone(), shutdown.clone()));
    let mut serving = serve(listener);
    loop {
        tokio::select! {
            () = shutdown.begun() => break,
            rebound = socket.rebind() => {
                serving.abort();
                serving = serve(rebound);
            }
        }
    }
    socket.remove();
}

/// Waits until no operation is in flight, and clients have had time to read their responses.
async fn grace_period(shutdown: &Shutdown) {
    shutdown.idle().await;
    time::sleep(GRACE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_limit_leaves_most_files_to_the_daemon() {
        for files in [64, 256, 1024, 4096, 1 << 20] {
            let connections = part(files, 4, 8, 256) + 2 * part(files, 16, 4, 64);
            assert!(u64::try_from(connections).expect("few") <= files / 2, "{files}");
        }
    }
}
