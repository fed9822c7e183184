//! The routes for clients that may only ask: the read-only socket, and the TCP listener.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, header},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{any, get},
};

use super::{
    format::{encoded, format_for, in_format, in_json},
    operation::{Shared, run_for_reader},
    refusal::{Name, accepts_json, no_such_method, no_such_path, not_by_tcp, read_only, to_an_address},
    streams::{Whose, WhoseQuery},
};
use crate::{
    api::{Capacity, Container, ContainerStats, DropCount},
    daemon::Daemon,
    error::{Error, Result},
};

/// The description of the API.
const DESCRIPTION: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json"));

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

pub(super) async fn description() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DESCRIPTION).into_response()
}

async fn list_for_reader(State(shared): State<Shared>) -> Result<Json<Vec<Container>>> {
    run_for_reader(&shared, &shared.reader_operations, "list", |daemon| Ok(daemon.list())).await
}

async fn show_for_reader(State(shared): State<Shared>, Name(name): Name) -> Result<Json<Container>> {
    let what = format!("show {name:?}");
    run_for_reader(&shared, &shared.reader_operations, what, move |daemon| daemon.peek(&name)).await
}

async fn stats_for_reader(State(shared): State<Shared>) -> Result<Response> {
    let stats = |daemon: &Arc<Daemon>| encoded(&daemon.stats()?);
    let text = run_for_reader(&shared, &shared.reader_operations, "stats", stats).await;
    text.map(|Json(text)| in_json(text))
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

async fn monitor_for_reader(State(shared): State<Shared>) -> Result<Response> {
    let monitor = |daemon: &Arc<Daemon>| encoded(&daemon.monitor()?);
    let text = run_for_reader(&shared, &shared.reader_operations, "monitor", monitor).await;
    text.map(|Json(text)| in_json(text))
}

async fn metrics_for_reader(State(shared): State<Shared>, headers: HeaderMap) -> Result<Response> {
    let format = format_for(&headers);
    let metrics = move |daemon: &Arc<Daemon>| daemon.metrics(format);
    let text = run_for_reader(&shared, &shared.reader_operations, "metrics", metrics).await;
    text.map(|Json(text)| in_format(format, text))
}

pub(super) async fn healthz(State(shared): State<Shared>) -> Result<&'static str> {
    shared.health.check(&shared.daemon).await.map(|()| "ok\n")
}

/// Few requests for metrics run at a time on TCP, because these clients must not delay commands.
async fn metrics_by_tcp(State(shared): State<Shared>, headers: HeaderMap) -> Result<Response> {
    let format = format_for(&headers);
    let metrics = move |daemon: &Arc<Daemon>| daemon.metrics(format);
    let response = run_for_reader(&shared, &shared.tcp_operations, "metrics (by TCP)", metrics).await;
    response.map(|Json(text)| in_format(format, text))
}

async fn monitor_by_tcp(State(shared): State<Shared>) -> Result<Response> {
    let monitor = |daemon: &Arc<Daemon>| encoded(&daemon.monitor()?);
    let text = run_for_reader(&shared, &shared.tcp_operations, "monitor (by TCP)", monitor).await;
    text.map(|Json(text)| in_json(text))
}
