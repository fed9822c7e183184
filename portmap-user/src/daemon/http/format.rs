//! The format of `/metrics`, as the client accepts it.

use axum::{
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};

use crate::daemon::observe::metrics::encode::Format;

/// The format of metrics that a client accepts.
pub(super) fn format_for(headers: &HeaderMap) -> Format {
    Format::negotiate(headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok()))
}

pub(super) fn in_format(format: Format, text: String) -> Response {
    ([(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")], text).into_response()
}
