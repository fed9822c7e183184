//! The daemon's HTTP interface: everything on the Unix socket, reading only on TCP.

use std::{fs, io::ErrorKind, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::{Notify, RwLock, watch},
    task, time,
};
use tracing::info;

use super::{Daemon, followers::Feed, metrics, watch::watch_host};
use crate::{
    api::{
        AddRequest, Container, ContainerStats, DropCount, ExplainRequest, Explanation, Finding, Stats,
        UpdateRequest,
    },
    error::{Context as _, Error, Result},
    fault,
};

/// How long whoever does not read the end of an answer can hold up the daemon's end.
const GRACE: Duration = Duration::from_secs(1);

/// What every handler has at hand.
#[derive(Clone)]
struct Shared {
    daemon: Arc<Daemon>,
    /// Samples of drops for those who follow them.
    feed: Arc<Feed>,
    end: Arc<Notify>,
    /// Whether the daemon is about to end.
    ending: watch::Receiver<bool>,
    /// Read by every operation as long as it runs.
    busy: Arc<RwLock<()>>,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self)).into_response()
    }
}

/// Serves until SIGTERM, SIGINT or a teardown. `ready` is called when requests are answered.
pub async fn serve(daemon: Daemon, ready: impl FnOnce()) -> Result<()> {
    let socket = daemon.settings.state_dir.socket();
    let listen = daemon.settings.listen;
    let daemon = Arc::new(daemon);
    let (set_ending, ending) = watch::channel(false);
    let shared = Shared {
        daemon: daemon.clone(),
        feed: Arc::new(Feed::default()),
        end: Arc::new(Notify::new()),
        ending: ending.clone(),
        busy: Arc::new(RwLock::new(())),
    };
    let binding = || format!("cannot listen on {}", socket.display());
    match fs::remove_file(&socket) {
        // Left by a daemon that was killed: the lock says that none is there.
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(binding),
        _ => {}
    }
    let unix = UnixListener::bind(&socket).context(binding)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o660)).context(binding)?;
    let tcp = match listen {
        Some(address) => Some(
            TcpListener::bind(address).await.context(|| format!("cannot listen on {address} (--listen)"))?,
        ),
        None => None,
    };
    let mut terminate = signal(SignalKind::terminate()).context(|| "cannot wait for signals".to_owned())?;
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "cannot wait for signals".to_owned())?;
    if let Some(tcp) = tcp {
        let reader = reading().with_state(shared.clone());
        task::spawn(async move { axum::serve(tcp, reader).await });
    }
    let (end, busy) = (shared.end.clone(), shared.busy.clone());
    task::spawn(watch_host(daemon.clone(), busy.clone()));
    let server =
        axum::serve(unix, reading().merge(writing()).with_state(shared)).with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = end.notified() => {}
            }
            set_ending.send_replace(true);
        });
    ready();
    tokio::select! {
        result = async { server.await } => result.context(|| "cannot serve".to_owned())?,
        () = outlasted(ending, busy) => info!("somebody does not read the end of an answer, and is left behind"),
    }
    info!("stopping; the datapath stays as it is");
    let _ = fs::remove_file(&socket);
    daemon.leave()
}

/// Waits until the daemon is to end, no operation runs any more, and everybody could have read its answer.
async fn outlasted(mut ending: watch::Receiver<bool>, busy: Arc<RwLock<()>>) {
    // It fails when the other end is gone, with the server.
    let _ = ending.wait_for(|ending| *ending).await;
    let _idle = busy.write().await;
    time::sleep(GRACE).await;
}

fn reading() -> Router<Shared> {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(metrics))
        .route("/v1/containers", get(list))
        .route("/v1/containers/{name}", get(show))
        .route("/v1/containers/{name}/stats", get(container_stats))
        .route("/v1/stats", get(stats))
        .route("/v1/drops", get(drops))
        .route("/v1/drops/events", get(follow_drops))
        .route("/v1/doctor", get(doctor))
        .fallback(async || Error::usage("there is nothing at this path"))
}

fn writing() -> Router<Shared> {
    Router::new()
        .route("/v1/containers", post(add))
        .route("/v1/containers/{name}", axum::routing::delete(delete).patch(update))
        .route("/v1/explain", post(explain))
        .route("/v1/repair", post(repair))
        .route("/v1/teardown", post(teardown))
}

/// Runs an operation of the daemon on a thread that may block.
async fn run<T: Serialize + Send + 'static>(
    shared: &Shared,
    operation: impl FnOnce(&Daemon) -> Result<T> + Send + 'static,
) -> Result<Json<T>> {
    let daemon = shared.daemon.clone();
    let _busy = shared.busy.read().await;
    let result = task::spawn_blocking(move || operation(&daemon)).await;
    result.context(|| "the operation failed unexpectedly".to_owned())?.map(Json)
}

/// Runs an operation that changes nothing. Its steps are not counted, because tests ask all the time.
async fn look<T: Serialize + Send + 'static>(
    shared: &Shared,
    question: impl FnOnce(&Daemon) -> Result<T> + Send + 'static,
) -> Result<Json<T>> {
    run(shared, move |daemon| fault::aside(|| question(daemon))).await
}

async fn list(State(shared): State<Shared>) -> Result<Json<Vec<Container>>> {
    look(&shared, |daemon| Ok(daemon.list())).await
}

async fn show(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Json<Container>> {
    look(&shared, move |daemon| daemon.show(&name)).await
}

async fn add(
    State(shared): State<Shared>,
    request: std::result::Result<Json<AddRequest>, JsonRejection>,
) -> Result<Json<Container>> {
    let Json(request) = request.map_err(|rejection| Error::usage(rejection.body_text()))?;
    run(&shared, |daemon| daemon.add(request)).await
}

async fn delete(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Json<()>> {
    run(&shared, move |daemon| daemon.delete(&name)).await
}

async fn update(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    request: std::result::Result<Json<UpdateRequest>, JsonRejection>,
) -> Result<Json<Container>> {
    let Json(request) = request.map_err(|rejection| Error::usage(rejection.body_text()))?;
    run(&shared, move |daemon| daemon.update(&name, request)).await
}

async fn stats(State(shared): State<Shared>) -> Result<Json<Stats>> {
    look(&shared, Daemon::stats).await
}

async fn container_stats(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<ContainerStats>> {
    look(&shared, move |daemon| daemon.container_stats(&name)).await
}

async fn metrics(State(shared): State<Shared>) -> Result<Response> {
    let Json(text) = look(&shared, Daemon::metrics).await?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// Whose drops are asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    name: Option<String>,
}

type WhoseQuery = std::result::Result<Query<Whose>, QueryRejection>;

async fn drops(State(shared): State<Shared>, whose: WhoseQuery) -> Result<Json<Vec<DropCount>>> {
    let Query(Whose { name }) = whose.map_err(|rejection| Error::usage(rejection.body_text()))?;
    look(&shared, move |daemon| daemon.drops(name.as_deref())).await
}

/// One line of JSON for each drop, without end.
async fn follow_drops(State(shared): State<Shared>, whose: WhoseQuery) -> Result<Response> {
    let Query(Whose { name }) = whose.map_err(|rejection| Error::usage(rejection.body_text()))?;
    if let Some(name) = name.clone() {
        let _known = look(&shared, move |daemon| daemon.slot_of(&name)).await?;
    }
    let follower = shared.feed.clone().follow(&shared.daemon, name, shared.ending)?;
    let lines = Body::from_stream(follower.lines());
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

async fn doctor(State(shared): State<Shared>) -> Result<Json<Vec<Finding>>> {
    look(&shared, |daemon| Ok(daemon.doctor())).await
}

async fn repair(State(shared): State<Shared>) -> Result<Json<Vec<Finding>>> {
    run(&shared, Daemon::repair).await
}

async fn explain(
    State(shared): State<Shared>,
    request: std::result::Result<Json<ExplainRequest>, JsonRejection>,
) -> Result<Json<Explanation>> {
    let Json(request) = request.map_err(|rejection| Error::usage(rejection.body_text()))?;
    look(&shared, move |daemon| daemon.explain(&request)).await
}

/// Removes everything and ends the daemon.
async fn teardown(State(shared): State<Shared>) -> Result<Json<bool>> {
    let removed = run(&shared, Daemon::teardown).await?;
    shared.end.notify_one();
    Ok(removed)
}
