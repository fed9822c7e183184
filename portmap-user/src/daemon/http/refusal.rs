//! Refused requests.

use std::time::Duration;

use axum::{
    body::{self, Body},
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{HeaderMap, Method, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use tokio::time;

use super::problem::{self, Code};
use crate::{
    api::Object,
    error::{Error, Kind},
};

/// Longest body of a request, in bytes. A list of 65,535 single ports fits.
const MAX_BODY: usize = 1 << 20;
/// Time in which the complete body must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// An error with its HTTP status and code.
#[derive(Debug)]
pub(super) struct Refusal(StatusCode, Code, Error);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        problem::response(self.0, self.1, &self.2)
    }
}

/// Refuses an unknown path.
pub(super) async fn no_such_path(uri: Uri) -> Refusal {
    let message = format!("no such endpoint: {}", shortened(uri.path()));
    Refusal(StatusCode::NOT_FOUND, Code::NoSuchEndpoint, Error::new(Kind::NotFound, message))
}

/// Refuses a path that the TCP listener does not serve.
pub(super) async fn not_by_tcp(uri: Uri) -> Refusal {
    let path = shortened(uri.path());
    let message = format!(
        "no such endpoint: {path}; TCP has /healthz, /metrics and /monitor/statistics, the Unix socket has all \
         endpoints"
    );
    Refusal(StatusCode::NOT_FOUND, Code::NoSuchEndpoint, Error::new(Kind::NotFound, message))
}

/// Refuses a request that the read-only socket does not serve.
pub(super) async fn read_only(method: Method, uri: Uri) -> Refusal {
    let message = format!(
        "this user may not do that: run as root, or as a member of the group of the daemon's --socket-group \
         (the request was {} {})",
        shortened(method.as_str()),
        shortened(uri.path())
    );
    Refusal(StatusCode::FORBIDDEN, Code::ReadOnly, Error::new(Kind::NotPermitted, message))
}

/// Refuses a method that the path does not have.
pub(super) async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} has no method {}", shortened(uri.path()), shortened(method.as_str()));
    Refusal(StatusCode::METHOD_NOT_ALLOWED, Code::MethodNotAllowed, Error::usage(message))
}

/// Refuses requests that accept no JSON.
pub(super) async fn accepts_json(request: Request, next: Next) -> Response {
    if accepts(request.headers()) {
        return next.run(request).await;
    }
    let message = format!(
        "{} responds with JSON, which the request does not accept: expected application/json in its Accept header",
        shortened(request.uri().path())
    );
    Refusal(StatusCode::NOT_ACCEPTABLE, Code::NotAcceptable, Error::usage(message)).into_response()
}

/// Whether the client accepts some form of JSON: streams are `application/x-ndjson`.
fn accepts(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter().peekable();
    if accepted.peek().is_none() {
        return true;
    }
    let ranges = accepted.flat_map(|value| value.to_str().unwrap_or_default().split(','));
    ranges.into_iter().any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let is_json =
            ["*/*", "application/*", "application/json", "application/x-ndjson", problem::MEDIA_TYPE]
                .iter()
                .any(|json| name.eq_ignore_ascii_case(json));
        let is_refused = parts.any(|parameter| {
            let value = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="));
            value.and_then(|weight| weight.parse().ok()) == Some(0.0)
        });
        is_json && !is_refused
    })
}

/// Returns at most the first 200 characters of a text that a client has sent.
fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Refuses requests whose `Host` header contains a name other than `localhost`. A web page can point a name
/// of its own at this address and read the responses through the user's browser (DNS rebinding).
pub(super) async fn to_an_address(request: Request, next: Next) -> Response {
    match is_for_address(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(host) => {
            let message = format!(
                "the Host header {:?} is no address: expected an address of this host, or localhost",
                shortened(&host)
            );
            let error = Error::new(Kind::NotPermitted, message);
            Refusal(StatusCode::MISDIRECTED_REQUEST, Code::WrongHost, error).into_response()
        }
    }
}

/// Checks that every name of the host in a request is an address or localhost. The error is the first other
/// name, and empty if the request names no host.
fn is_for_address(uri: &Uri, headers: &HeaderMap) -> Result<(), String> {
    let named = headers.get_all(header::HOST).iter().map(|host| String::from_utf8_lossy(host.as_bytes()));
    let named = named.chain(uri.authority().map(|authority| authority.as_str().into()));
    let mut count = 0;
    for host in named {
        count += 1;
        if !is_address(&host) {
            return Err(host.into_owned());
        }
    }
    if count > 0 { Ok(()) } else { Err(String::new()) }
}

/// Whether a `Host` is an address or localhost, with or without a port.
fn is_address(host: &str) -> bool {
    let has_port = |text: &str| text.parse::<u16>().is_ok();
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else { return false };
        let port = rest.is_empty() || rest.strip_prefix(':').is_some_and(has_port);
        return address.parse::<std::net::Ipv6Addr>().is_ok() && port;
    }
    let (name, port) = host.split_once(':').map_or((host, true), |(name, port)| (name, has_port(port)));
    port && (name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::Ipv4Addr>().is_ok())
}

/// A request's body: JSON, within the limits on size and time.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request<Body>, _state: &S) -> Result<Self, Refusal> {
        let is_json = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.to_str().unwrap_or_default();
            kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
        });
        if !is_json {
            return Err(Refusal(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Code::UnsupportedMediaType,
                Error::usage("the request's Content-Type is not application/json"),
            ));
        }
        let Ok(body) = time::timeout(BODY_TIMEOUT, body::to_bytes(request.into_body(), MAX_BODY)).await
        else {
            let message = format!("the request's body is not complete after {BODY_TIMEOUT:?}");
            return Err(Refusal(StatusCode::REQUEST_TIMEOUT, Code::BodyTimeout, Error::usage(message)));
        };
        let body = body.map_err(|error| {
            if is_too_long(&error) {
                let message = format!("the request's body is longer than {MAX_BODY} bytes");
                Refusal(StatusCode::PAYLOAD_TOO_LARGE, Code::BodyTooLong, Error::usage(message))
            } else {
                Refusal(
                    StatusCode::BAD_REQUEST,
                    Code::InvalidRequest,
                    Error::usage(format!("the request's body is incomplete: {error}")),
                )
            }
        })?;
        serde_json::from_slice(&body).map(|Object(fields)| Self(fields)).map_err(|error| {
            let message = format!("cannot decode the request: {}", shortened(&error.to_string()));
            Refusal(StatusCode::BAD_REQUEST, Code::InvalidRequest, Error::usage(message))
        })
    }
}

/// The name of a container in a path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name)).map_err(|_not_text| {
            let message = format!("the name in {} is not UTF-8", shortened(parts.uri.path()));
            Refusal(StatusCode::BAD_REQUEST, Code::InvalidRequest, Error::usage(message))
        })
    }
}

fn is_too_long(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_header_names_are_distinguished_from_addresses() {
        for host in
            ["127.0.0.1", "10.0.0.1:5051", "localhost", "LocalHost:5051", "[::1]", "[2001:db8::1]:5051"]
        {
            assert!(is_address(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:5051",
            "127.0.0.1.evil.example",
            "localhost:x",
            "[::1",
            "::1",
            "[::1]x",
        ] {
            assert!(!is_address(host), "{host}");
        }
    }

    #[test]
    fn accept_header_selects_json() {
        let with = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().expect("a value"));
            accepts(&headers)
        };
        assert!(accepts(&HeaderMap::new()));
        for accept in ["*/*", "application/json", "text/html, application/*;q=0.5", "Application/X-NDJSON"] {
            assert!(with(accept), "{accept}");
        }
        for accept in ["text/html", "application/json;q=0", "application/json; q=0.000, text/plain", ""] {
            assert!(!with(accept), "{accept}");
        }
    }

    #[test]
    fn refusal_shortens_long_texts() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"ä".repeat(1000)).chars().count(), 201);
    }
}
