//! The state that all handlers share, and how they run operations of the daemon.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::Json;
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task, time,
};

use super::{
    connection::{Connection, Peer},
    health::Health,
};
use crate::{
    api::Requester,
    daemon::{
        Daemon, container::owner, events::on_behalf_of, observe::drop_stream::Broadcaster, shutdown::Shutdown,
    },
    error::{Context as _, Error, Kind, Result},
    failpoint,
    model::Process,
};

/// Time limit of a request on TCP or on the read-only socket.
const READER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most concurrent streams of drops, and as many of events.
pub(super) const MAX_STREAMS: usize = 64;
/// Most concurrent operations for clients on TCP, and as many on the read-only socket.
const MAX_READER_OPERATIONS: usize = 2;
/// The state that all handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) daemon: Arc<Daemon>,
    pub(super) shutdown: Shutdown,
    /// Broadcasts samples of drops to the streams.
    pub(super) drop_stream: Arc<Broadcaster>,
    pub(super) health: Arc<Health>,
    /// Limits concurrent operations, because each one needs files and a thread of its own.
    pub(super) operations: Arc<Semaphore>,
    /// Limits concurrent operations for clients on TCP.
    pub(super) tcp_operations: Arc<Semaphore>,
    /// Limits concurrent operations for clients on the read-only socket.
    pub(super) reader_operations: Arc<Semaphore>,
    /// Limits concurrent streams of drops.
    pub(super) drop_streams: Arc<Semaphore>,
    /// Limits concurrent streams of events.
    pub(super) event_streams: Arc<Semaphore>,
    /// Number of the last request that may change something.
    requests: Arc<AtomicU64>,
}

impl Shared {
    /// The state at the start; `operations` is the limit on concurrent operations.
    pub(super) fn new(daemon: Arc<Daemon>, shutdown: Shutdown, operations: usize) -> Self {
        Self {
            daemon,
            shutdown,
            drop_stream: Arc::default(),
            health: Arc::default(),
            operations: Arc::new(Semaphore::new(operations)),
            tcp_operations: Arc::new(Semaphore::new(MAX_READER_OPERATIONS)),
            reader_operations: Arc::new(Semaphore::new(MAX_READER_OPERATIONS)),
            drop_streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            event_streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            requests: Arc::default(),
        }
    }

    /// Removes a container when the process that owns it ends.
    pub(super) fn watch_owner(&self, name: String, owner: Process) {
        let daemon = self.daemon.clone();
        owner::watch(&self.shutdown, name, owner, move |name, owner| daemon.delete_owned(name, owner));
    }
}

// Requests that only read are excluded from failpoints, because tests poll them all the time (`failpoint`).

/// Runs an operation of the daemon on a thread that may block. It completes even if its client disconnects.
pub(super) async fn run<T: Serialize + Send + 'static>(
    shared: &Shared,
    what: impl Into<String>,
    operation: impl FnOnce(&Arc<Daemon>) -> Result<T> + Send + 'static,
) -> Result<Json<T>> {
    let permit = shared.operations.clone().acquire_owned().await;
    run_with(shared, what.into(), permit.ok(), operation).await
}

/// Runs an operation that may change something, and that events and the log ascribe to its client.
pub(super) async fn run_change<T: Serialize + Send + 'static>(
    shared: &Shared,
    connection: &Connection,
    what: impl Into<String>,
    operation: impl FnOnce(&Arc<Daemon>) -> Result<T> + Send + 'static,
) -> Result<Json<T>> {
    let requester = match connection.peer {
        Peer::Process { uid, pid } => {
            let id = shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
            Some(Requester { id, uid, pid })
        }
        Peer::Address(_) | Peer::Reader(_) => None,
    };
    run(shared, what, move |daemon| on_behalf_of(requester, || operation(daemon))).await
}

/// Runs an operation and holds this permit, if there is one, until it ends.
pub(super) async fn run_with<T: Serialize + Send + 'static>(
    shared: &Shared,
    what: String,
    permit: Option<OwnedSemaphorePermit>,
    operation: impl FnOnce(&Arc<Daemon>) -> Result<T> + Send + 'static,
) -> Result<Json<T>> {
    let (daemon, measurement) = (shared.daemon.clone(), shared.daemon.meter.begin(&what));
    let running = shared.shutdown.operation(what);
    let result = task::spawn_blocking(move || {
        let _until_done = (permit, running);
        measurement.end(operation(&daemon))
    });
    result.await.context(|| "the operation failed unexpectedly".to_owned())?.map(Json)
}

/// Runs a question of a client that must not delay commands: few at a time, and for a limited time.
pub(super) async fn run_for_reader<T: Serialize + Send + 'static>(
    shared: &Shared,
    permits: &Arc<Semaphore>,
    what: impl Into<String>,
    question: impl FnOnce(&Arc<Daemon>) -> Result<T> + Send + 'static,
) -> Result<Json<T>> {
    let response = async {
        let permit = permits.clone().acquire_owned().await.ok();
        run_with(shared, what.into(), permit, |daemon| failpoint::suppressed(|| question(daemon))).await
    };
    time::timeout(READER_TIMEOUT, response).await.unwrap_or_else(|_elapsed| {
        let message = format!("no response after {READER_TIMEOUT:?}: /healthz names the part that hangs");
        Err(Error::new(Kind::Unhealthy, message))
    })
}
