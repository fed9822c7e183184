//! The daemon's HTTP interface: all of it on the Unix socket, what monitoring reads on TCP.

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
use super::{Daemon, end::End, owner, takeover::check_all, watch::watch_host};
use crate::{
    error::{Context as _, Error, Result},
    settings::Settings,
};

/// How long whoever does not read the end of an answer can hold up the daemon's end.
const GRACE: Duration = Duration::from_secs(1);
/// Longest path of a Unix socket, without the zero at its end.
const LONGEST_SOCKET: usize = 107;
/// What the log says if more than that many files cannot be had.
const FEW_FILES: u64 = 256;

/// Where requests will come in: what can be found out, and taken, before anything of the host is touched.
#[derive(Debug)]
pub struct Listeners {
    tcp: Option<TcpListener>,
    socket: PathBuf,
    /// Files that this process may have open.
    files: u64,
}

/// Takes the address of `--listen`, and checks that the Unix socket can be made. Nobody is answered yet.
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
                    "--listen {address}: whoever reaches this address reads /metrics, with the names, limits and \
                     traffic of all containers"
                );
            }
            Some(tcp)
        }
        None => None,
    };
    Ok(Listeners { tcp, socket, files })
}

/// Has this process open as many files as it is allowed to, and returns how many that is.
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

/// A part of the files, as a number of something. Whatever connections there are, most of the files are left for the
/// daemon's own work: netlink, namespaces, maps, state.
fn part(files: u64, divisor: u64, least: usize, most: usize) -> usize {
    usize::try_from(files / divisor).unwrap_or(most).clamp(least, most)
}

/// Serves until a signal or a teardown. `ready` is called when requests are answered.
pub async fn serve(daemon: Daemon, listeners: Listeners, end: &End, ready: impl FnOnce()) -> Result<()> {
    let Listeners { tcp, socket, files } = listeners;
    let daemon = Arc::new(daemon);
    let (mut socket, unix) = Socket::bind(socket)?;
    let shared = Shared::new(daemon.clone(), end.clone(), part(files, 32, 4, 64));
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
        task::spawn(accept(tcp, by_tcp, routes::by_tcp(shared.clone()), end.clone()));
    }
    task::spawn(watch_host(daemon.clone(), end.clone()));
    task::spawn(check_all(daemon.clone(), end.clone()));
    owner::watch_all(&daemon, end);
    let serve_by_socket =
        |unix| task::spawn(accept(unix, by_socket.clone(), routes::by_socket(shared.clone()), end.clone()));
    let mut serving = serve_by_socket(unix);
    if !end.has_begun() {
        ready();
    }
    loop {
        tokio::select! {
            () = end.begun() => break,
            again = socket.bind_again() => {
                // Nobody can come in by the one that has no name.
                serving.abort();
                serving = serve_by_socket(again);
            }
        }
    }
    let _ = serving.await;
    tokio::select! {
        () = by_socket.empty() => end.idle().await,
        () = outlasted(end) => info!("somebody does not read the end of an answer, and is left behind"),
    }
    info!("stopping; the datapath stays as it is");
    socket.remove();
    daemon.leave()
}

/// Waits until no operation runs any more, and everybody could have read its answer.
async fn outlasted(end: &End) {
    end.idle().await;
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
