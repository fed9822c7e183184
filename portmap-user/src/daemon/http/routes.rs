//! The routes. Everything is on the Unix socket; TCP has health and metrics.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::header,
    middleware,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task, time,
};

use super::{
    connection::{Connection, Peer},
    health::Health,
    refusal::{Given, no_such_method, no_such_path, not_by_tcp, to_an_address},
};
use tracing::warn;

use crate::{
    api::{
        AddRequest, Changed, Container, ContainerStats, DropCount, ExplainRequest, Explanation, Finding,
        Stats, UpdateRequest,
    },
    daemon::{
        Daemon,
        container::owner,
        observe::{drop_stream::Broadcaster, metrics},
        shutdown::Shutdown,
    },
    error::{Context as _, Error, Kind, Result},
    failpoint,
    model::Process,
};

/// How long a client on TCP waits for metrics.
const METRICS_TIME: Duration = Duration::from_secs(10);
/// Most clients that follow drops at a time.
const FOLLOWERS: usize = 64;
/// Operations by TCP at a time.
const BY_TCP: usize = 2;

/// What every handler needs.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) daemon: Arc<Daemon>,
    pub(super) shutdown: Shutdown,
    /// Broadcasts samples of drops to the clients that follow them.
    drop_stream: Arc<Broadcaster>,
    health: Arc<Health>,
    /// Places for operations, each of which has files and a thread of its own.
    places: Arc<Semaphore>,
    /// Those of clients on TCP.
    tcp_places: Arc<Semaphore>,
    followers: Arc<Semaphore>,
}

impl Shared {
    /// What handlers have, with so many operations at a time.
    pub(super) fn new(daemon: Arc<Daemon>, shutdown: Shutdown, operations: usize) -> Self {
        Self {
            daemon,
            shutdown,
            drop_stream: Arc::default(),
            health: Arc::default(),
            places: Arc::new(Semaphore::new(operations)),
            tcp_places: Arc::new(Semaphore::new(BY_TCP)),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
        }
    }

    /// Removes a container when the process that owns it ends.
    pub(super) fn watch_owner(&self, name: String, owner: Process) {
        let daemon = self.daemon.clone();
        owner::watch(&self.shutdown, name, owner, move |name, owner| daemon.delete_owned(name, owner));
    }
}

/// What is served on TCP.
pub(super) fn by_tcp(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_by_tcp))
        .fallback(not_by_tcp)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(to_an_address))
        .with_state(shared)
}

/// What is served on the Unix socket.
pub(super) fn by_socket(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/v1/alive", get(async || Json(true)))
        .route("/v1/containers", get(list).post(add))
        .route("/v1/containers/{name}", get(show).merge(delete(remove)).patch(update))
        .route("/v1/containers/{name}/stats", get(container_stats))
        .route("/v1/stats", get(stats))
        .route("/v1/drops", get(drops))
        .route("/v1/drops/events", get(follow_drops))
        .route("/v1/doctor", get(doctor))
        .route("/v1/explain", post(explain))
        .route("/v1/repair", post(repair))
        .route("/v1/teardown", post(teardown))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(shared)
}

// Requests that only read are excluded from failpoints, because tests poll them all the time (`failpoint`).

/// Runs an operation of the daemon on a thread that may block. It goes on if its client disconnects.
async fn run<T: Serialize + Send + 'static>(
    shared: &Shared,
    what: impl Into<String>,
    operation: impl FnOnce(&Arc<Daemon>) -> Result<T> + Send + 'static,
) -> Result<Json<T>> {
    let place = shared.places.clone().acquire_owned().await;
    run_in(shared, what.into(), place.ok(), operation).await
}

/// The same with a place of its own.
async fn run_in<T: Serialize + Send + 'static>(
    shared: &Shared,
    what: String,
    place: Option<OwnedSemaphorePermit>,
    operation: impl FnOnce(&Arc<Daemon>) -> Result<T> + Send + 'static,
) -> Result<Json<T>> {
    let (daemon, running) = (shared.daemon.clone(), shared.shutdown.operation(what));
    let result = task::spawn_blocking(move || {
        let _until_done = (place, running);
        operation(&daemon)
    });
    result.await.context(|| "the operation failed unexpectedly".to_owned())?.map(Json)
}

async fn healthz(State(shared): State<Shared>) -> Result<&'static str> {
    shared.health.ask(&shared.daemon).await.map(|()| "ok\n")
}

// These two read the daemon's memory only, and do not wait for operations that hang.

async fn list(State(shared): State<Shared>) -> Result<Json<Vec<Container>>> {
    run_in(&shared, "list".to_owned(), None, |daemon| Ok(daemon.list())).await
}

async fn show(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Json<Container>> {
    run_in(&shared, format!("show {name:?}"), None, move |daemon| {
        failpoint::suppressed(|| daemon.show(&name))
    })
    .await
}

async fn add(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
    Given(mut request): Given<AddRequest>,
) -> Result<Json<Changed>> {
    if request.remove_with_client {
        if let Peer::Process(Some(pid)) = connection.peer {
            request.owner = Some(owner::find(pid)?);
        } else {
            let name = &request.name;
            warn!(
                "container {name:?} stays if its `portmap run` is killed: that is in another pid namespace"
            );
        }
    }
    let owners = shared.clone();
    run(&shared, format!("add {:?}", request.name), move |daemon| {
        let (name, owner) = (request.name.clone(), request.owner);
        let added = daemon.add(&request)?;
        if let Some(owner) = owner {
            owners.watch_owner(name, owner);
        }
        Ok(added)
    })
    .await
}

async fn remove(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Json<()>> {
    run(&shared, format!("del {name:?}"), move |daemon| daemon.delete(&name)).await
}

async fn update(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    Given(request): Given<UpdateRequest>,
) -> Result<Json<Changed>> {
    run(&shared, format!("update {name:?}"), move |daemon| daemon.update(&name, &request)).await
}

async fn stats(State(shared): State<Shared>) -> Result<Json<Stats>> {
    run(&shared, "stats", |daemon| failpoint::suppressed(|| daemon.stats())).await
}

async fn container_stats(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<ContainerStats>> {
    run(&shared, format!("stats {name:?}"), move |daemon| {
        failpoint::suppressed(|| daemon.container_stats(&name))
    })
    .await
}

async fn metrics(State(shared): State<Shared>) -> Result<Response> {
    run(&shared, "metrics", |daemon| failpoint::suppressed(|| daemon.metrics()))
        .await
        .map(|Json(text)| in_open_metrics(text))
}

/// On TCP few requests run at a time, because clients there must not keep commands from their work.
async fn metrics_by_tcp(State(shared): State<Shared>) -> Result<Response> {
    let answer = async {
        let place = shared.tcp_places.clone().acquire_owned().await.ok();
        run_in(&shared, "metrics (by TCP)".to_owned(), place, |daemon| {
            failpoint::suppressed(|| daemon.metrics())
        })
        .await
    };
    let Ok(answer) = time::timeout(METRICS_TIME, answer).await else {
        let message = format!("there are no metrics after {METRICS_TIME:?}: /healthz says what hangs");
        return Err(Error::new(Kind::Unhealthy, message));
    };
    answer.map(|Json(text)| in_open_metrics(text))
}

fn in_open_metrics(text: String) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
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

/// A stream of one line of JSON for each drop.
async fn follow_drops(
    State(shared): State<Shared>,
    Extension(connection): Extension<Arc<Connection>>,
    whose: WhoseQuery,
) -> Result<Response> {
    let Query(Whose { name }) = whose.map_err(|rejection| Error::usage(rejection.body_text()))?;
    let place = shared.followers.clone().try_acquire_owned().map_err(|_full| {
        Error::conflict(format!("{FOLLOWERS} clients follow drops already: end one of them"))
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
    connection.follow();
    let lines = Body::from_stream(subscription.lines(place));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

async fn doctor(State(shared): State<Shared>) -> Result<Json<Vec<Finding>>> {
    run(&shared, "doctor", |daemon| failpoint::suppressed(|| daemon.doctor())).await
}

async fn repair(State(shared): State<Shared>) -> Result<Json<Vec<Finding>>> {
    run(&shared, "doctor --repair", |daemon| daemon.repair()).await
}

async fn explain(
    State(shared): State<Shared>,
    Given(request): Given<ExplainRequest>,
) -> Result<Json<Explanation>> {
    run(&shared, "explain", move |daemon| failpoint::suppressed(|| daemon.explain(&request))).await
}

/// Removes everything and ends the daemon.
async fn teardown(State(shared): State<Shared>) -> Result<Json<bool>> {
    let removed = run(&shared, "teardown", |daemon| daemon.teardown()).await?;
    shared.shutdown.begin();
    Ok(removed)
}
