//! Accepting connections within bounds: on their number, on what they send before they ask, and on their time. A
//! connection more than there is room for takes the place of the one that has been waiting for longest, so nobody can
//! keep others out by connections that ask nothing.

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

use super::connection::{Connection, Patient, Peer};
use crate::daemon::shutdown::Shutdown;

/// How long nobody is accepted when there are no files or no memory for it.
const BREATH: Duration = Duration::from_millis(100);
/// How often that is told.
const TELL: Duration = Duration::from_mins(1);

/// What connections of one socket may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections at a time.
    pub(super) connections: usize,
    /// Those of one address.
    pub(super) of_one: usize,
    /// Bytes of a request's head.
    pub(super) head: usize,
    /// Time from the last answer, or the beginning, to the end of the next request's head.
    pub(super) quiet: Duration,
    /// Time in which something of an answer must be read.
    pub(super) unread: Duration,
    /// Time after which a connection ends when its request has been answered, and as much again for that.
    pub(super) life: Option<Duration>,
}

/// Most header lines of a request.
const HEADERS: usize = 64;

/// The connections of one socket.
#[derive(Debug)]
pub(super) struct Gate {
    bounds: Bounds,
    open: Mutex<Vec<Arc<Connection>>>,
    /// Tells that a connection has ended.
    ended: Notify,
    clock: AtomicU64,
}

impl Gate {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, open: Mutex::default(), ended: Notify::new(), clock: AtomicU64::new(0) })
    }

    /// Lets a connection in, as soon as there is room for it.
    async fn admit(&self, peer: Peer) -> Arc<Connection> {
        loop {
            match self.try_admit(peer) {
                Ok(connection) => return connection,
                Err(victim) => {
                    if let Some(victim) = victim {
                        victim.close.notify_one();
                    }
                    self.ended.notified().await;
                }
            }
        }
    }

    /// Lets a connection in, or names the one that must go first; none if all are in the middle of something.
    fn try_admit(&self, peer: Peer) -> Result<Arc<Connection>, Option<Arc<Connection>>> {
        let mut open = self.open();
        let is_of_peer = |connection: &Connection| match peer {
            Peer::Address(_) => connection.peer == peer,
            // All who may use the socket are the operator.
            Peer::Process(_) => false,
        };
        let of_peer = open.iter().filter(|connection| is_of_peer(connection)).count();
        let must_be_of_peer = of_peer >= self.bounds.of_one;
        if open.len() >= self.bounds.connections || must_be_of_peer {
            let waiting = open
                .iter()
                .filter(|connection| connection.is_waiting() && (!must_be_of_peer || is_of_peer(connection)));
            return Err(waiting.min_by_key(|connection| connection.last.load(Ordering::Relaxed)).cloned());
        }
        let connection = Arc::new(Connection::new(peer, self.tick()));
        open.push(connection.clone());
        Ok(connection)
    }

    fn leave(&self, connection: &Arc<Connection>) {
        self.open().retain(|other| !Arc::ptr_eq(other, connection));
        self.ended.notify_one();
    }

    /// Waits until no connection is left.
    pub(super) async fn empty(&self) {
        while !self.open().is_empty() {
            self.ended.notified().await;
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    // A panic while it is held leaves no half-done change.
    fn open(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that accepts.
pub(super) trait Listener {
    /// What it accepts.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection.
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
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        // In a namespace of processes that this one does not see, its number is 0.
        let pid = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
        Ok((stream, Peer::Process(pid)))
    }
}

/// Accepts and serves connections until the daemon is about to end.
pub(super) async fn accept(listener: impl Listener, gate: Arc<Gate>, router: Router, shutdown: Shutdown) {
    let mut told: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            () = shutdown.begun() => return,
            accepted = listener.next() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Of one connection, which has gone already.
                if !matches!(
                    error.kind(),
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
                ) {
                    if told.is_none_or(|told| told.elapsed() > TELL) {
                        told = Some(Instant::now());
                        warn!("cannot accept connections: {error}: trying again");
                    }
                    time::sleep(BREATH).await;
                }
                continue;
            }
        };
        let connection = tokio::select! {
            () = shutdown.begun() => return,
            connection = gate.admit(peer) => connection,
        };
        let (gate, router, shutdown) = (gate.clone(), router.clone(), shutdown.clone());
        task::spawn(async move {
            // Also when serving panics.
            let _place = Place { gate: gate.clone(), connection: connection.clone() };
            serve(stream, &gate, connection, router, &shutdown).await;
        });
    }
}

/// The place that a connection has.
struct Place {
    gate: Arc<Gate>,
    connection: Arc<Connection>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.leave(&self.connection);
    }
}

/// Serves one connection to its end. What goes wrong on it is the other end's business.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    gate: &Arc<Gate>,
    connection: Arc<Connection>,
    router: Router,
    shutdown: &Shutdown,
) {
    let bounds = gate.bounds;
    let io = TokioIo::new(Patient::new(stream, connection.clone(), bounds.unread));
    let router = TowerToHyperService::new(router);
    let service = service_fn({
        let (connection, gate) = (connection.clone(), gate.clone());
        move |mut request: Request<Incoming>| {
            connection.begin();
            request.extensions_mut().insert(connection.clone());
            let answer = hyper::service::Service::call(&router, request);
            let (connection, gate) = (connection.clone(), gate.clone());
            async move {
                let answer = answer.await;
                connection.last.store(gate.tick(), Ordering::Relaxed);
                connection.answered();
                answer
            }
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(bounds.quiet)
        .max_buf_size(bounds.head)
        .max_headers(HEADERS);
    let served = http.serve_connection(io, service);
    tokio::pin!(served);
    let life = async {
        match bounds.life {
            Some(life) => time::sleep(life).await,
            None => future::pending().await,
        }
    };
    tokio::select! {
        _ = served.as_mut() => return,
        () = connection.close.notified() => return,
        () = shutdown.begun() => {}
        () = life => {}
    }
    // What is being answered is answered to its end.
    served.as_mut().graceful_shutdown();
    tokio::select! {
        _ = served.as_mut() => {}
        () = async {
            match bounds.life {
                Some(life) => time::sleep(life).await,
                None => future::pending().await,
            }
        } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Arc<Gate> {
        Gate::new(Bounds {
            connections: 3,
            of_one: 2,
            head: 8192,
            quiet: Duration::from_secs(1),
            unread: Duration::from_secs(1),
            life: None,
        })
    }

    fn peer(last: u8) -> Peer {
        Peer::Address([127, 0, 0, last].into())
    }

    #[test]
    fn who_has_been_waiting_for_longest_goes_first() {
        let gate = gate();
        let first = gate.try_admit(peer(1)).expect("there is room");
        let second = gate.try_admit(peer(2)).expect("there is room");
        let third = gate.try_admit(peer(3)).expect("there is room");
        let victim = |peer| gate.try_admit(peer).expect_err("there is no room");
        assert!(victim(peer(4)).is_some_and(|victim| Arc::ptr_eq(&victim, &first)));
        first.begin();
        assert!(victim(peer(4)).is_some_and(|victim| Arc::ptr_eq(&victim, &second)));
        first.last.store(gate.tick(), Ordering::Relaxed);
        first.answered();
        assert!(victim(peer(4)).is_some_and(|victim| Arc::ptr_eq(&victim, &second)));
        for connection in [&first, &second, &third] {
            connection.begin();
        }
        assert!(victim(peer(4)).is_none(), "all are in the middle of something");
        gate.leave(&second);
        gate.try_admit(peer(4)).expect("there is room again");
    }

    #[test]
    fn one_address_does_not_have_all_places() {
        let gate = gate();
        let other = gate.try_admit(peer(2)).expect("there is room");
        let own = gate.try_admit(peer(1)).expect("there is room");
        own.begin();
        let waiting = gate.try_admit(peer(1)).expect("there is room");
        let victim = gate.try_admit(peer(1)).expect_err("it has two").expect("one of them waits");
        assert!(Arc::ptr_eq(&victim, &waiting) && !Arc::ptr_eq(&victim, &other));
    }
}
