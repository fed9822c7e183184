//! The routes: all of them on the Unix socket, questions on the read-only one, health and metrics on TCP.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{any, delete, get, post},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task, time,
};

use super::{
    connection::{Connection, Peer},
    health::Health,
    refusal::{
        JsonBody, Name, accepts_json, no_such_method, no_such_path, not_by_tcp, read_only, to_an_address,
    },
};
use tracing::warn;

use crate::{
    api::{
        AddRequest, Capacity, Changed, Container, ContainerStats, DropCount, ExplainRequest, Explanation,
        Finding, Flows, FlowsRequest, Requester, Stats, UpdateRequest, monitor::MonitoredContainer,
    },
    daemon::{
        Daemon,
        container::owner,
        events::on_behalf_of,
        observe::{drop_stream::Broadcaster, metrics::encode::Format},
        shutdown::Shutdown,
    },
    error::{Context as _, Error, Kind, Result},
    failpoint,
    model::Process,
};

/// Time limit of a request on TCP or on the read-only socket.
const READER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most concurrent streams of drops, and as many of events.
const MAX_STREAMS: usize = 64;
/// Most concurrent operations for clients on TCP, and as many on the read-only socket.
const MAX_READER_OPERATIONS: usize = 2;
/// The description of the API.
const DESCRIPTION: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json"));

/// The state that all handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) daemon: Arc<Daemon>,
    pub(super) shutdown: Shutdown,
    /// Broadcasts samples of drops to the streams.
    drop_stream: Arc<Broadcaster>,
    health: Arc<Health>,
    /// Limits concurrent operations, because each one needs files and a thread of its own.
    operations: Arc<Semaphore>,
    /// Limits concurrent operations for clients on TCP.
    tcp_operations: Arc<Semaphore>,
    /// Limits concurrent operations for clients on the read-only socket.
    reader_operations: Arc<Semaphore>,
    /// Limits concurrent streams of drops.
    drop_streams: Arc<Semaphore>,
    /// Limits concurrent streams of events.
    event_streams: Arc<Semaphore>,
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

/// The routes of the TCP listener.
pub(super) fn by_tcp(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_by_tcp))
        .route("/monitor/statistics", get(monitor_by_tcp))
        .route("/monitor/statistics.json", get(monitor_by_tcp))
        .fallback(not_by_tcp)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(to_an_address))
        .with_state(shared)
}

/// The routes of the read-only socket. None of them changes anything, enters a namespace that it does not have
/// to, or waits for a command; none can take what a client on the other socket needs.
pub(super) fn by_readers(shared: Shared) -> Router {
    Router::new()
        .route("/v1/alive", get(async || Json(true)))
        .route("/v1/openapi.json", get(description))
        .route("/v1/containers", get(list_for_reader))
        .route("/v1/containers/{name}", get(show_for_reader))
        .route("/v1/containers/{name}/stats", get(container_stats_for_reader))
        .route("/v1/stats", get(stats_for_reader))
        .route("/v1/containers/{name}/flows", any(read_only))
        .route("/v1/capacity", get(capacity_for_reader))
        .route("/v1/drops", get(drops_for_reader))
        .route("/v1/drops/events", any(read_only))
        .route("/v1/events", any(read_only))
        .route("/v1/doctor", any(read_only))
        .route("/v1/explain", any(read_only))
        .route("/v1/repair", any(read_only))
        .route("/v1/teardown", any(read_only))
        .route("/monitor/statistics", get(monitor_for_reader))
        .route("/monitor/statistics.json", get(monitor_for_reader))
        .layer(middleware::from_fn(accepts_json))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_for_reader))
        .fallback(no_such_path)
        .method_not_allowed_fallback(read_only)
        .with_state(shared)
}

/// The routes of the Unix socket.
pub(super) fn by_socket(shared: Shared) -> Router {
    Router::new()
        .route("/v1/alive", get(async || Json(true)))
        .route("/v1/openapi.json", get(description))
        .route("/v1/containers", get(list).post(add))
        .route("/v1/containers/{name}", get(show).merge(delete(remove)).patch(update))
        .route("/v1/containers/{name}/stats", get(container_stats))
        .route("/v1/containers/{name}/flows", get(flows))
        .route("/v1/stats", get(stats))
        .route("/v1/capacity", get(capacity))
        .route("/v1/drops", get(drops))
        .route("/v1/drops/events", get(follow_drops))
        .route("/v1/events", get(follow_events))
        .route("/v1/doctor", get(doctor))
        .route("/v1/explain", post(explain))
        .route("/v1/repair", post(repair))
        .route("/v1/teardown", post(teardown))
        .route("/monitor/statistics", get(monitor))
        .route("/monitor/statistics.json", get(monitor))
        .layer(middleware::from_fn(accepts_json))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(shared)
}

// Requests that only read are excluded from failpoints, because tests poll them all the time (`failpoint`).

/// Runs an operation of the daemon on a thread that may block. It completes even if its client disconnects.
async fn run<T: Serialize + Send + 'static>(
    shared: &Shared,
    what: impl Into<String>,
    operation: impl FnOnce(&Arc<Daemon>) -> Result<T> + Send + 'static,
) -> Result<Json<T>> {
    let permit = shared.operations.clone().acquire_owned().await;
    run_with(shared, what.into(), permit.ok(), operation).await
}

/// Runs an operation that may change something, and that events and the log ascribe to its client.
async fn run_change<T: Serialize + Send + 'static>(
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
async fn run_with<T: Serialize + Send + 'static>(
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
async fn run_for_reader<T: Serialize + Send + 'static>(
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

async fn description() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DESCRIPTION).into_response()
}

async fn list_for_reader(State(shared): State<Shared>) -> Result<Json<Vec<Container>>> {
    run_for_reader(&shared, &shared.reader_operations, "list", |daemon| Ok(daemon.list())).await
}

async fn show_for_reader(State(shared): State<Shared>, Name(name): Name) -> Result<Json<Container>> {
    let what = format!("show {name:?}");
    run_for_reader(&shared, &shared.reader_operations, what, move |daemon| daemon.peek(&name)).await
}

async fn stats_for_reader(State(shared): State<Shared>) -> Result<Json<Stats>> {
    run_for_reader(&shared, &shared.reader_operations, "stats", |daemon| daemon.stats()).await
}

async fn container_stats_for_reader(
    State(shared): State<Shared>,
    Name(name): Name,
) -> Result<Json<ContainerStats>> {
    let what = format!("stats {name:?}");
    run_for_reader(&shared, &shared.reader_operations, what, move |daemon| daemon.peek_stats(&name)).await
}

async fn drops_for_reader(State(shared): State<Shared>, whose: WhoseQuery) -> Result<Json<Vec<DropCount>>> {
    let Query(Whose { name }) = whose.map_err(|rejection| Error::usage(rejection.body_text()))?;
    let drops = move |daemon: &Arc<Daemon>| daemon.drops(name.as_deref());
    run_for_reader(&shared, &shared.reader_operations, "drops", drops).await
}

async fn capacity_for_reader(State(shared): State<Shared>) -> Result<Json<Capacity>> {
    run_for_reader(&shared, &shared.reader_operations, "capacity", |daemon| daemon.capacity()).await
}

async fn monitor_for_reader(State(shared): State<Shared>) -> Result<Json<Vec<MonitoredContainer>>> {
    run_for_reader(&shared, &shared.reader_operations, "monitor", |daemon| daemon.monitor()).await
}

async fn metrics_for_reader(State(shared): State<Shared>, headers: HeaderMap) -> Result<Response> {
    let format = format_for(&headers);
    let metrics = move |daemon: &Arc<Daemon>| daemon.metrics(format);
    let text = run_for_reader(&shared, &shared.reader_operations, "metrics", metrics).await;
    text.map(|Json(text)| in_format(format, text))
}

async fn healthz(State(shared): State<Shared>) -> Result<&'static str> {
    shared.health.check(&shared.daemon).await.map(|()| "ok\n")
}

// These two take no permit, so they do not wait for operations that hang: they read only the daemon's memory.
// Exception: `show` of a container that is not checked yet takes it over first, under that container's lock.

async fn list(State(shared): State<Shared>) -> Result<Json<Vec<Container>>> {
    run_with(&shared, "list".to_owned(), None, |daemon| Ok(daemon.list())).await
}

async fn show(State(shared): State<Shared>, Name(name): Name) -> Result<Json<Container>> {
    run_with(&shared, format!("show {name:?}"), None, move |daemon| {
        failpoint::suppressed(|| daemon.show(&name))
    })
    .await
}

async fn add(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
    JsonBody(mut request): JsonBody<AddRequest>,
) -> Result<Json<Changed>> {
    if request.remove_with_client {
        if let Peer::Process { pid: Some(pid), .. } = connection.peer {
            request.owner = Some(owner::find(pid)?);
        } else {
            let name = &request.name;
            warn!(
                "container {name:?} remains if its `portmap run` is killed, because that runs in another pid \
                 namespace"
            );
        }
    }
    let owners = shared.clone();
    run_change(&shared, &connection, format!("add {:?}", request.name), move |daemon| {
        let (name, owner) = (request.name.clone(), request.owner);
        let added = daemon.add(&request)?;
        if let Some(owner) = owner {
            owners.watch_owner(name, owner);
        }
        Ok(added)
    })
    .await
}

async fn remove(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
    Name(name): Name,
) -> Result<Json<()>> {
    run_change(&shared, &connection, format!("del {name:?}"), move |daemon| daemon.delete(&name)).await
}

async fn update(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
    Name(name): Name,
    JsonBody(request): JsonBody<UpdateRequest>,
) -> Result<Json<Changed>> {
    let what = format!("update {name:?}");
    run_change(&shared, &connection, what, move |daemon| daemon.update(&name, &request)).await
}

async fn stats(State(shared): State<Shared>) -> Result<Json<Stats>> {
    run(&shared, "stats", |daemon| failpoint::suppressed(|| daemon.stats())).await
}

async fn container_stats(State(shared): State<Shared>, Name(name): Name) -> Result<Json<ContainerStats>> {
    run(&shared, format!("stats {name:?}"), move |daemon| {
        failpoint::suppressed(|| daemon.container_stats(&name))
    })
    .await
}

type FlowsQuery = std::result::Result<Query<FlowsRequest>, QueryRejection>;

async fn flows(State(shared): State<Shared>, Name(name): Name, request: FlowsQuery) -> Result<Json<Flows>> {
    let Query(request) = request.map_err(|rejection| Error::usage(rejection.body_text()))?;
    run(&shared, format!("flows {name:?}"), move |daemon| {
        failpoint::suppressed(|| daemon.flows(&name, request))
    })
    .await
}

async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Result<Response> {
    let format = format_for(&headers);
    run(&shared, "metrics", move |daemon| failpoint::suppressed(|| daemon.metrics(format)))
        .await
        .map(|Json(text)| in_format(format, text))
}

/// Few requests for metrics run at a time on TCP, because these clients must not delay commands.
async fn metrics_by_tcp(State(shared): State<Shared>, headers: HeaderMap) -> Result<Response> {
    let format = format_for(&headers);
    let metrics = move |daemon: &Arc<Daemon>| daemon.metrics(format);
    let response = run_for_reader(&shared, &shared.tcp_operations, "metrics (by TCP)", metrics).await;
    response.map(|Json(text)| in_format(format, text))
}

async fn monitor(State(shared): State<Shared>) -> Result<Json<Vec<MonitoredContainer>>> {
    run(&shared, "monitor", |daemon| failpoint::suppressed(|| daemon.monitor())).await
}

async fn monitor_by_tcp(State(shared): State<Shared>) -> Result<Json<Vec<MonitoredContainer>>> {
    run_for_reader(&shared, &shared.tcp_operations, "monitor (by TCP)", |daemon| daemon.monitor()).await
}

/// The format of metrics that a client accepts.
fn format_for(headers: &HeaderMap) -> Format {
    Format::negotiate(headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok()))
}

fn in_format(format: Format, text: String) -> Response {
    ([(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")], text).into_response()
}

/// The container whose drops are requested.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    name: Option<String>,
}

type WhoseQuery = std::result::Result<Query<Whose>, QueryRejection>;

async fn drops(State(shared): State<Shared>, whose: WhoseQuery) -> Result<Json<Vec<DropCount>>> {
    let Query(Whose { name }) = whose.map_err(|rejection| Error::usage(rejection.body_text()))?;
    run(&shared, "drops", move |daemon| failpoint::suppressed(|| daemon.drops(name.as_deref()))).await
}

/// Streams one line of JSON for each sample of a drop.
async fn follow_drops(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
    whose: WhoseQuery,
) -> Result<Response> {
    let Query(Whose { name }) = whose.map_err(|rejection| Error::usage(rejection.body_text()))?;
    let permit = shared.drop_streams.clone().try_acquire_owned().map_err(|_full| {
        Error::conflict(format!("{MAX_STREAMS} clients follow drops, the maximum: end one of them"))
    })?;
    if let Some(name) = name.clone() {
        let _known = run(&shared, "drops", move |daemon| daemon.check_drops_of(&name)).await?;
    }
    let names = {
        let daemon = shared.daemon.clone();
        Arc::new(move || daemon.names_by_slot())
    };
    let (stream, ending) = (shared.drop_stream.clone(), shared.shutdown.subscribe());
    let subscription = stream.subscribe(shared.daemon.pins(), names, name, ending)?;
    connection.begin_stream();
    let lines = Body::from_stream(subscription.lines(permit));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

async fn capacity(State(shared): State<Shared>) -> Result<Json<Capacity>> {
    run(&shared, "capacity", |daemon| failpoint::suppressed(|| daemon.capacity())).await
}

/// Streams one line of JSON for each event.
async fn follow_events(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
    whose: WhoseQuery,
) -> Result<Response> {
    let Query(Whose { name }) = whose.map_err(|rejection| Error::usage(rejection.body_text()))?;
    let permit = shared.event_streams.clone().try_acquire_owned().map_err(|_full| {
        Error::conflict(format!("{MAX_STREAMS} clients follow events, the maximum: end one of them"))
    })?;
    let subscription = shared.daemon.subscribe(name, shared.shutdown.subscribe());
    connection.begin_stream();
    let lines = Body::from_stream(subscription.lines(permit));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

async fn doctor(State(shared): State<Shared>) -> Result<Json<Vec<Finding>>> {
    run(&shared, "doctor", |daemon| failpoint::suppressed(|| daemon.doctor())).await
}

async fn repair(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
) -> Result<Json<Vec<Finding>>> {
    run_change(&shared, &connection, "doctor --repair", |daemon| daemon.repair()).await
}

async fn explain(
    State(shared): State<Shared>,
    JsonBody(request): JsonBody<ExplainRequest>,
) -> Result<Json<Explanation>> {
    run(&shared, "explain", move |daemon| failpoint::suppressed(|| daemon.explain(&request))).await
}

/// Removes all containers, restores the host, and ends the daemon.
async fn teardown(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
) -> Result<Json<bool>> {
    let removed = run_change(&shared, &connection, "teardown", |daemon| daemon.teardown()).await?;
    shared.shutdown.begin();
    Ok(removed)
}
