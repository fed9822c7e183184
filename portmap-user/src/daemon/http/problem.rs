//! The body of every error response: `application/problem+json` (RFC 9457).
//!
//! `kind` and `message` are members of their own, because clients of earlier versions read them.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::error::{Error, Kind};

/// The media type of error responses.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// What a client can tell apart without reading the text. A code never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// The code of the error's kind.
    OfKind,
    NoSuchEndpoint,
    MethodNotAllowed,
    NotAcceptable,
    WrongHost,
    ReadOnly,
    UnsupportedMediaType,
    BodyTimeout,
    BodyTooLong,
    InvalidRequest,
}

impl Code {
    /// The code's name and its title.
    const fn describe(self, kind: Kind) -> (&'static str, &'static str) {
        match self {
            Self::NoSuchEndpoint => ("no_such_endpoint", "There is no such endpoint"),
            Self::MethodNotAllowed => ("method_not_allowed", "The endpoint does not have this method"),
            Self::NotAcceptable => {
                ("not_acceptable", "The endpoint has no response of an accepted media type")
            }
            Self::WrongHost => ("wrong_host", "The Host header is not an address of this host"),
            Self::ReadOnly => ("read_only", "The socket only answers questions"),
            Self::UnsupportedMediaType => ("unsupported_media_type", "The request's body is not JSON"),
            Self::BodyTimeout => ("body_timeout", "The request's body arrives too slowly"),
            Self::BodyTooLong => ("body_too_long", "The request's body is too long"),
            Self::InvalidRequest => ("invalid_request", "The request cannot be decoded"),
            Self::OfKind => match kind {
                Kind::Failure => ("failure", "The operation failed"),
                Kind::Usage => ("usage", "The request is not valid"),
                Kind::NotFound => ("not_found", "There is no such container"),
                Kind::Conflict => ("conflict", "The request conflicts with the present state"),
                Kind::Unreachable => ("unreachable", "The daemon does not respond"),
                Kind::NotPermitted => ("not_permitted", "The caller lacks permission"),
                Kind::Unhealthy => ("unhealthy", "A part of the daemon does not work"),
            },
        }
    }
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    kind: Kind,
    message: &'a str,
}

/// An error response.
pub(super) fn response(status: StatusCode, code: Code, error: &Error) -> Response {
    let (name, title) = code.describe(error.kind);
    let problem = Problem {
        r#type: format!("urn:portmap:problem:{name}"),
        title,
        status: status.as_u16(),
        detail: &error.message,
        code: name,
        kind: error.kind,
        message: &error.message,
    };
    (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], Json(problem)).into_response()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response(status, Code::OfKind, &self)
    }
}

#[cfg(test)]
mod tests {
    use axum::body;

    use super::*;

    #[tokio::test]
    async fn problem_has_the_members_of_the_standard_and_of_earlier_versions() {
        let response = Error::no_container("web").into_response();
        assert_eq!(
            (response.status(), &response.headers()[header::CONTENT_TYPE]),
            (StatusCode::NOT_FOUND, &MEDIA_TYPE.parse().expect("a value"))
        );
        let body = body::to_bytes(response.into_body(), 1 << 16).await.expect("a body");
        let text = "no container is called \\\"web\\\": `portmap list` shows those that exist";
        let expected = format!(
            concat!(
                r#"{{"type":"urn:portmap:problem:not_found","title":"There is no such container","status":404,"#,
                r#""detail":"{text}","code":"not_found","kind":"not_found","message":"{text}"}}"#
            ),
            text = text
        );
        assert_eq!(String::from_utf8_lossy(&body), expected);
        let read: Error = serde_json::from_slice(&body).expect("an error, for clients");
        assert_eq!(read, Error::no_container("web"));
    }
}
