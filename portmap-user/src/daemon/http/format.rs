//! The format of `/metrics`, as the client accepts it, and large responses in JSON.

use axum::{
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};

use serde::Serialize;

use crate::{
    daemon::observe::metrics::encode::Format,
    error::{Context as _, Result},
};

/// The format of metrics that a client accepts.
pub(super) fn format_for(headers: &HeaderMap) -> Format {
    Format::negotiate(headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok()))
}

/// A large response, encoded on the thread of its operation instead of the one that serves all connections.
pub(super) fn encoded<T: Serialize>(response: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(response).context(|| "cannot write the response as JSON".to_owned())
}

pub(super) fn in_json(text: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

pub(super) fn in_format(format: Format, text: String) -> Response {
    ([(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")], text).into_response()
}
