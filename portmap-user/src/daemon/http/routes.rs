//! The routes of the Unix socket, which has all of them.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::HeaderMap,
    middleware,
    response::Response,
    routing::{delete, get, post},
};
use tracing::warn;

use super::{
    connection::{Connection, Peer},
    format::{encoded, format_for, in_format, in_json},
    operation::{Shared, run, run_change, run_with},
    readers::{description, healthz},
    refusal::{JsonBody, Name, accepts_json, no_such_method, no_such_path},
    streams::{Whose, WhoseQuery, follow_drops, follow_events},
};
use crate::{
    api::{
        AddRequest, Capacity, Changed, Container, ContainerStats, DropCount, ExplainRequest, Explanation,
        Finding, Flows, FlowsRequest, UpdateRequest,
    },
    daemon::{Daemon, container::owner},
    error::{Error, Result},
    failpoint,
};

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

async fn stats(State(shared): State<Shared>) -> Result<Response> {
    let stats = |daemon: &Arc<Daemon>| failpoint::suppressed(|| encoded(&daemon.stats()?));
    run(&shared, "stats", stats).await.map(|Json(text)| in_json(text))
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

async fn monitor(State(shared): State<Shared>) -> Result<Response> {
    let monitor = |daemon: &Arc<Daemon>| failpoint::suppressed(|| encoded(&daemon.monitor()?));
    run(&shared, "monitor", monitor).await.map(|Json(text)| in_json(text))
}

async fn drops(State(shared): State<Shared>, whose: WhoseQuery) -> Result<Json<Vec<DropCount>>> {
    let Query(Whose { name }) = whose.map_err(|rejection| Error::usage(rejection.body_text()))?;
    run(&shared, "drops", move |daemon| failpoint::suppressed(|| daemon.drops(name.as_deref()))).await
}

async fn capacity(State(shared): State<Shared>) -> Result<Json<Capacity>> {
    run(&shared, "capacity", |daemon| failpoint::suppressed(|| daemon.capacity())).await
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
