//! The command line's end of the Unix socket.

use std::{io::ErrorKind, path::PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixStream,
    runtime::{Builder, Runtime},
};

use crate::{
    api::{AddRequest, Container, ContainerStats, Finding, Stats},
    error::{Context as _, Error, Kind, Result},
    paths::StateDir,
};

/// A way to ask a daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client of the daemon with this state directory.
    pub fn new(state_dir: &StateDir) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build();
        Ok(Self { socket: state_dir.socket(), runtime: runtime.context(|| "cannot start".to_owned())? })
    }

    /// Adds a container.
    pub fn add(&self, request: &AddRequest) -> Result<Container> {
        self.call(Method::POST, "/v1/containers", Some(request))
    }

    /// Removes a container.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.call(Method::DELETE, &container(name), NOTHING)
    }

    /// All containers.
    pub fn list(&self) -> Result<Vec<Container>> {
        self.call(Method::GET, "/v1/containers", NOTHING)
    }

    /// One container.
    pub fn show(&self, name: &str) -> Result<Container> {
        self.call(Method::GET, &container(name), NOTHING)
    }

    /// Traffic of everybody.
    pub fn stats(&self) -> Result<Stats> {
        self.call(Method::GET, "/v1/stats", NOTHING)
    }

    /// Traffic of one container.
    pub fn container_stats(&self, name: &str) -> Result<ContainerStats> {
        self.call(Method::GET, &format!("{}/stats", container(name)), NOTHING)
    }

    /// The daemon's findings.
    pub fn doctor(&self) -> Result<Vec<Finding>> {
        self.call(Method::GET, "/v1/doctor", NOTHING)
    }

    /// Removes everything and ends the daemon.
    pub fn teardown(&self) -> Result<bool> {
        self.call(Method::POST, "/v1/teardown", NOTHING)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        self.runtime.block_on(self.exchange(method, path, body))
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let talking = || format!("the daemon at {} broke off", self.socket.display());
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context(talking)?;
        tokio::spawn(connection);
        let body = match body {
            Some(body) => serde_json::to_vec(body).context(|| "cannot write the request".to_owned())?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "portmap")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .context(|| format!("cannot ask for {path}"))?;
        let response = sender.send_request(request).await.context(talking)?;
        let status = response.status();
        let body = response.into_body().collect().await.context(talking)?.to_bytes();
        let understanding = || "the daemon's answer makes no sense; is it of another version?".to_owned();
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).context(understanding);
        }
        Err(serde_json::from_slice::<Error>(&body).context(understanding)?)
    }

    fn unreachable(&self, error: &std::io::Error) -> Error {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::PermissionDenied => Error::new(
                Kind::NotPermitted,
                format!("the socket {socket} may not be used by this user: run as root"),
            ),
            _ => Error::new(
                Kind::Unreachable,
                format!("no daemon answers at {socket} ({error}): start portmapd, or name its --state-dir"),
            ),
        }
    }
}

/// No body; the type is any that can be written.
const NOTHING: Option<&()> = None;

/// The path of a container. What no name can have is written in a form that finds nothing rather than elsewhere.
fn container(name: &str) -> String {
    use std::fmt::Write as _;

    let mut path = String::from("/v1/containers/");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && name.len() > 2) {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_elsewhere() {
        assert_eq!(container("web-1.a"), "/v1/containers/web-1.a");
        assert_eq!(container("../stats"), "/v1/containers/..%2Fstats");
        assert_eq!(container(".."), "/v1/containers/%2E%2E");
        assert_eq!(container("a b?"), "/v1/containers/a%20b%3F");
    }

    #[test]
    fn a_daemon_that_is_not_there_is_unreachable() {
        let directory = tempfile::tempdir().expect("a directory");
        let client = Client::new(&StateDir::new(directory.path())).expect("a client");
        assert_eq!(client.list().expect_err("nobody answers").kind, Kind::Unreachable);
    }
}
