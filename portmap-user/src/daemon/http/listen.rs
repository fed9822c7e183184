//! Accepts connections within limits on their number, on the size of a request's head, and on time. At the
//! limit, a new connection evicts the one that has been idle for longest, so a client cannot lock out others
//! with idle connections. A new connection of an address or a reader whose own connections are all busy is
//! closed, because all others would wait with it.

use std::{
    future,
    io::{self, ErrorKind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::Router;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Notify,
    task,
    time::{self, Instant},
};
use tracing::warn;

use super::connection::{Connection, Peer, TimedWrites};
use crate::daemon::shutdown::Shutdown;

/// Pause before the next attempt when a connection cannot be accepted, such as for lack of file descriptors.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Shortest time between two log lines about that.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The limits on the connections of one socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Concurrent connections.
    pub(super) connections: usize,
    /// Concurrent connections from one address, or of one user of the read-only socket.
    pub(super) per_address: usize,
    /// Bytes of a request's head.
    pub(super) head_bytes: usize,
    /// Time from the last response, or from the start of the connection, to the end of the next request's
    /// head.
    pub(super) idle_timeout: Duration,
    /// Time in which the client must read a part of a pending response.
    pub(super) write_timeout: Duration,
    /// Age at which the daemon closes the connection. A request in progress then has the same time again.
    pub(super) max_age: Option<Duration>,
}

/// Most header lines of a request.
const MAX_HEADERS: usize = 64;

/// The connections of one socket.
#[derive(Debug)]
pub(super) struct Gate {
    limits: Limits,
    open: Mutex<Vec<Arc<Connection>>>,
    /// Notified when a connection has ended.
    ended: Notify,
    /// A logical clock, which orders the connections by their last response.
    clock: AtomicU64,
}

/// Why a connection cannot be admitted now.
#[derive(Debug)]
enum Full {
    /// This one must be closed first: of those that count, it has been idle for longest.
    Evict(Arc<Connection>),
    /// The peer has as many connections as it may have, and all are busy.
    OfPeer,
    /// There are as many connections as there may be, and all are busy.
    OfAll,
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, open: Mutex::default(), ended: Notify::new(), clock: AtomicU64::new(0) })
    }

    /// Admits a connection as soon as the limits allow it; `None` if its peer is at its own limit and all its
    /// connections are busy.
    async fn admit(&self, peer: Peer) -> Option<Arc<Connection>> {
        loop {
            match self.try_admit(peer) {
                Ok(connection) => return Some(connection),
                Err(Full::OfPeer) => return None,
                Err(Full::Evict(victim)) => {
                    victim.close.notify_one();
                    self.ended.notified().await;
                }
                Err(Full::OfAll) => self.ended.notified().await,
            }
        }
    }

    /// Admits a connection within the limits.
    fn try_admit(&self, peer: Peer) -> Result<Arc<Connection>, Full> {
        let mut open = self.open();
        let is_of_peer = |connection: &Connection| match peer {
            Peer::Address(_) | Peer::Reader(_) => connection.peer == peer,
            // Every client of the Unix socket acts for the operator.
            Peer::Process { .. } => false,
        };
        let of_peer = open.iter().filter(|connection| is_of_peer(connection)).count();
        let must_be_of_peer = of_peer >= self.limits.per_address;
        if open.len() >= self.limits.connections || must_be_of_peer {
            let idle = open
                .iter()
                .filter(|connection| connection.is_idle() && (!must_be_of_peer || is_of_peer(connection)));
            let last_response =
                |connection: &&Arc<Connection>| connection.last_response.load(Ordering::Relaxed);
            return Err(match idle.min_by_key(last_response) {
                Some(victim) => Full::Evict(victim.clone()),
                None if must_be_of_peer => Full::OfPeer,
                None => Full::OfAll,
            });
        }
        let connection = Arc::new(Connection::new(peer, self.tick()));
        open.push(connection.clone());
        Ok(connection)
    }

    fn remove(&self, connection: &Arc<Connection>) {
        self.open().retain(|other| !Arc::ptr_eq(other, connection));
        self.ended.notify_one();
    }

    /// Waits until all connections have ended.
    pub(super) async fn drained(&self) {
        while !self.open().is_empty() {
            self.ended.notified().await;
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    // A poisoned lock is taken, because every change of the list is a single step.
    fn open(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listening socket.
pub(super) trait Listener {
    /// The stream of an accepted connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection.
    async fn next(&self) -> io::Result<(Self::Stream, Peer)>;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> io::Result<(Self::Stream, Peer)> {
        let (stream, address) = self.accept().await?;
        Ok((stream, Peer::Address(address.ip().to_canonical())))
    }
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> io::Result<(Self::Stream, Peer)> {
        let (stream, _) = self.accept().await?;
        let peer = stream.peer_cred()?;
        // The kernel reports pid 0 for a process in a pid namespace that is invisible from here.
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
        Ok((stream, Peer::Process { uid: peer.uid(), pid }))
    }
}

/// The read-only socket.
pub(super) struct Readers(pub(super) UnixListener);

impl Listener for Readers {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> io::Result<(Self::Stream, Peer)> {
        let (stream, _) = self.0.accept().await?;
        let user = stream.peer_cred()?.uid();
        Ok((stream, Peer::Reader(user)))
    }
}

/// Accepts and serves connections until shutdown begins.
pub(super) async fn accept(listener: impl Listener, gate: Arc<Gate>, router: Router, shutdown: Shutdown) {
    let mut last_logged: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            () = shutdown.begun() => return,
            accepted = listener.next() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // These errors concern a single connection, which its client has closed already.
                if !matches!(
                    error.kind(),
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
                ) {
                    if last_logged.is_none_or(|last| last.elapsed() > LOG_INTERVAL) {
                        last_logged = Some(Instant::now());
                        warn!("cannot accept connections: {error}; retrying");
                    }
                    time::sleep(RETRY_INTERVAL).await;
                }
                continue;
            }
        };
        let connection = tokio::select! {
            () = shutdown.begun() => return,
            connection = gate.admit(peer) => connection,
        };
        // Dropping the stream closes it.
        let Some(connection) = connection else { continue };
        let (gate, router, shutdown) = (gate.clone(), router.clone(), shutdown.clone());
        task::spawn(async move {
            // Dropping the permit removes the connection even if serving it panics.
            let _permit = Permit { gate: gate.clone(), connection: connection.clone() };
            serve(stream, &gate, connection, router, &shutdown).await;
        });
    }
}

/// The permit of an admitted connection, which removes it from the gate.
struct Permit {
    gate: Arc<Gate>,
    connection: Arc<Connection>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.remove(&self.connection);
    }
}

/// Serves one connection to its end. Errors are ignored, because they affect only its client.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    gate: &Arc<Gate>,
    connection: Arc<Connection>,
    router: Router,
    shutdown: &Shutdown,
) {
    let limits = gate.limits;
    let io = TokioIo::new(TimedWrites::new(stream, connection.clone(), limits.write_timeout));
    let router = TowerToHyperService::new(router);
    let service = service_fn({
        let (connection, gate) = (connection.clone(), gate.clone());
        move |mut request: Request<Incoming>| {
            connection.begin_request();
            request.extensions_mut().insert(connection.clone());
            let response = hyper::service::Service::call(&router, request);
            let (connection, gate) = (connection.clone(), gate.clone());
            async move {
                let response = response.await;
                connection.last_response.store(gate.tick(), Ordering::Relaxed);
                connection.end_request();
                response
            }
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout)
        .max_buf_size(limits.head_bytes)
        .max_headers(MAX_HEADERS);
    let served = http.serve_connection(io, service);
    tokio::pin!(served);
    let max_age = || async {
        match limits.max_age {
            Some(age) => time::sleep(age).await,
            None => future::pending().await,
        }
    };
    tokio::select! {
        _ = served.as_mut() => return,
        () = connection.close.notified() => return,
        () = shutdown.begun() => {}
        () = max_age() => {}
    }
    // A request in progress still gets its response.
    served.as_mut().graceful_shutdown();
    tokio::select! {
        _ = served.as_mut() => {}
        () = max_age() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Arc<Gate> {
        Gate::new(Limits {
            connections: 3,
            per_address: 2,
            head_bytes: 8192,
            idle_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(1),
            max_age: None,
        })
    }

    fn peer(last: u8) -> Peer {
        Peer::Address([127, 0, 0, last].into())
    }

    #[test]
    fn connections_at_the_limit_evict_the_longest_idle_one() {
        let gate = gate();
        let first = gate.try_admit(peer(1)).expect("below the limit");
        let second = gate.try_admit(peer(2)).expect("below the limit");
        let third = gate.try_admit(peer(3)).expect("below the limit");
        let refusal = |peer| gate.try_admit(peer).expect_err("at the limit");
        let evicts = |one| matches!(refusal(peer(4)), Full::Evict(victim) if Arc::ptr_eq(&victim, one));
        assert!(evicts(&first));
        first.begin_request();
        assert!(evicts(&second));
        first.last_response.store(gate.tick(), Ordering::Relaxed);
        first.end_request();
        assert!(evicts(&second));
        for connection in [&first, &second, &third] {
            connection.begin_request();
        }
        assert!(matches!(refusal(peer(4)), Full::OfAll), "none is idle");
        gate.remove(&second);
        gate.try_admit(peer(4)).expect("below the limit again");
    }

    #[test]
    fn connections_of_one_address_are_limited() {
        let gate = gate();
        let other = gate.try_admit(peer(2)).expect("below the limit");
        let own = gate.try_admit(peer(1)).expect("below the limit");
        own.begin_request();
        let idle = gate.try_admit(peer(1)).expect("below the limit");
        let refusal = |peer| gate.try_admit(peer).expect_err("it has two");
        assert!(matches!(refusal(peer(1)), Full::Evict(victim) if Arc::ptr_eq(&victim, &idle)));
        idle.begin_request();
        assert!(matches!(refusal(peer(1)), Full::OfPeer), "both are busy, whatever another one is");
        drop(other);
    }
}
