//! The daemon's HTTP interface: all of it on the Unix socket, health and metrics on TCP.

mod connection;
mod health;
mod listen;
mod refusal;
mod routes;
mod socket;

use std::{net::TcpListener, os::unix::ffi::OsStrExt as _, path::PathBuf, sync::Arc, time::Duration};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{task, time};
use tracing::{info, warn};

use self::{
    listen::{Bounds, Gate, accept},
    routes::Shared,
    socket::Socket,
};
use super::{
    Daemon,
    reconcile::{events, takeover},
    shutdown::Shutdown,
};
use crate::{
    error::{Context as _, Error, Result},
    settings::Settings,
};

/// Grace period at shutdown for clients that are slow to read an answer.
const GRACE: Duration = Duration::from_secs(1);
/// Longest path of a Unix socket, without the zero at its end.
const LONGEST_SOCKET: usize = 107;
/// Fewer open files than this are worth a warning.
const FEW_FILES: u64 = 256;

/// The sockets for requests, as far as they can be checked and taken before the daemon touches the host.
#[derive(Debug)]
pub struct Listeners {
    tcp: Option<TcpListener>,
    socket: PathBuf,
    /// Files that this process may have open.
    files: u64,
}

/// Binds the address of `--listen`, and checks that the Unix socket can be made. No request is answered yet.
pub fn bind(settings: &Settings) -> Result<Listeners> {
    let socket = settings.state_dir.socket();
    let length = socket.as_os_str().as_bytes().len();
    if length > LONGEST_SOCKET {
        return Err(Error::usage(format!(
            "the path {} is too long for a socket, {length} bytes: expected at most {LONGEST_SOCKET}; name a shorter \
             --state-dir",
            socket.display()
        )));
    }
    let files = raise_limit_of_files();
    let tcp = match settings.listen {
        Some(address) => {
            let binding =
                || format!("cannot listen on {address} (--listen; another address, or none, will do)");
            let tcp = TcpListener::bind(address).context(binding)?;
            tcp.set_nonblocking(true).context(binding)?;
            if !address.ip().is_loopback() {
                warn!(
                    "--listen {address}: any client that reaches this address can read /metrics, with the names, limits \
                     and traffic of all containers"
                );
            }
            Some(tcp)
        }
        None => None,
    };
    Ok(Listeners { tcp, socket, files })
}

/// Raises the limit of open files of this process as far as allowed, and returns it.
fn raise_limit_of_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return FEW_FILES };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        warn!("only {soft} files can be open at a time: the limit cannot be raised to {hard}");
        return soft;
    }
    if hard < FEW_FILES {
        warn!(
            "only {hard} files can be open at a time: there will be few connections and operations at a time"
        );
    }
    hard
}

/// A share of the files, as a number of connections or operations. Most of the files are left for the daemon's own work: netlink,
/// namespaces, maps, state.
fn part(files: u64, divisor: u64, least: usize, most: usize) -> usize {
    usize::try_from(files / divisor).unwrap_or(most).clamp(least, most)
}

/// Serves until a signal or a teardown. `ready` is called when requests are answered.
pub async fn serve(
    daemon: Daemon,
    listeners: Listeners,
    shutdown: &Shutdown,
    ready: impl FnOnce(),
) -> Result<()> {
    let Listeners { tcp, socket, files } = listeners;
    let daemon = Arc::new(daemon);
    let (mut socket, unix) = Socket::bind(socket)?;
    let shared = Shared::new(daemon.clone(), shutdown.clone(), part(files, 32, 4, 64));
    let by_socket = Gate::new(Bounds {
        connections: part(files, 4, 8, 256),
        of_one: usize::MAX,
        head: 16 << 10,
        quiet: Duration::from_secs(30),
        unread: Duration::from_mins(1),
        life: None,
    });
    let places = part(files, 16, 4, 64);
    let by_tcp = Gate::new(Bounds {
        connections: places,
        of_one: places / 2,
        head: 8 << 10,
        quiet: Duration::from_secs(5),
        unread: Duration::from_secs(10),
        life: Some(Duration::from_mins(1)),
    });
    if let Some(tcp) = tcp {
        let tcp = tokio::net::TcpListener::from_std(tcp).context(|| "cannot serve TCP".to_owned())?;
        task::spawn(accept(tcp, by_tcp, routes::by_tcp(shared.clone()), shutdown.clone()));
    }
    let reconciling = daemon.clone();
    task::spawn(events::watch(shutdown.clone(), move |events| reconciling.reconcile(events)));
    task::spawn(takeover::take_over_all(daemon.reconciler.clone(), shutdown.clone()));
    for (name, owner) in daemon.owned() {
        shared.watch_owner(name, owner);
    }
    let serve_by_socket = |unix| {
        task::spawn(accept(unix, by_socket.clone(), routes::by_socket(shared.clone()), shutdown.clone()))
    };
    let mut serving = serve_by_socket(unix);
    if !shutdown.has_begun() {
        ready();
    }
    loop {
        tokio::select! {
            () = shutdown.begun() => break,
            again = socket.bind_again() => {
                // No client can connect to the socket that has lost its name.
                serving.abort();
                serving = serve_by_socket(again);
            }
        }
    }
    let _ = serving.await;
    tokio::select! {
        () = by_socket.empty() => shutdown.idle().await,
        () = grace_period(shutdown) => info!("shutting down with an unfinished client connection"),
    }
    info!("stopping; the datapath stays as it is");
    socket.remove();
    daemon.finish_teardown()
}

/// Waits until no operation is in flight, and clients have had time to read their answers.
async fn grace_period(shutdown: &Shutdown) {
    shutdown.idle().await;
    time::sleep(GRACE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_files_are_left_for_the_daemons_own_work() {
        for files in [64, 256, 1024, 4096, 1 << 20] {
            let connections = part(files, 4, 8, 256) + part(files, 16, 4, 64);
            assert!(u64::try_from(connections).expect("few") <= files / 2, "{files}");
        }
    }
}
