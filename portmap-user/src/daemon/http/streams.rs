//! Streams of lines of JSON: samples of drops, and events.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::header,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    connection::Connection,
    operation::{MAX_STREAMS, Shared, run},
};
use crate::error::{Error, Result};

/// The container whose drops or events are requested.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    pub(super) name: Option<String>,
}

pub(super) type WhoseQuery = std::result::Result<Query<Whose>, QueryRejection>;

/// Streams one line of JSON for each sample of a drop.
pub(super) async fn follow_drops(
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
    Ok(lines(subscription.items(), permit))
}

/// Streams one line of JSON for each event.
pub(super) async fn follow_events(
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
    Ok(lines(subscription.items(), permit))
}

/// A response with one line of JSON for each item. The stream holds `permit` until it ends.
fn lines<T: Serialize>(
    items: impl Stream<Item = T> + Send + 'static,
    permit: OwnedSemaphorePermit,
) -> Response {
    let line = move |item| {
        let _until_the_end = &permit;
        serde_json::to_vec(&item).map(|mut line| {
            line.push(b'\n');
            Bytes::from(line)
        })
    };
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(items.map(line))).into_response()
}
