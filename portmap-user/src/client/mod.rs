//! The command line's end of the Unix socket.

mod patience;

use std::{io::ErrorKind, path::PathBuf, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixStream,
    runtime::{Builder, Runtime},
    time,
};

use crate::{
    api::{
        AddRequest, Changed, Container, ContainerStats, DropCount, DropNews, ExplainRequest, Explanation,
        Finding, Stats, UpdateRequest,
    },
    error::{Context as _, Error, Kind, Result},
    paths::StateDir,
};

/// How long until a socket is tried again whose daemon has not taken those who wait there.
const FULL: Duration = Duration::from_millis(50);

/// A way to ask a daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client of the daemon with this state directory.
    pub fn new(state_dir: &StateDir) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        Ok(Self { socket: state_dir.socket(), runtime: runtime.context(|| "cannot start".to_owned())? })
    }

    /// Adds a container.
    pub fn add(&self, request: &AddRequest) -> Result<Changed> {
        self.call(Method::POST, "/v1/containers", Some(request))
    }

    /// Changes a container's static ports, and what is asked for its traffic.
    pub fn update(&self, name: &str, request: &UpdateRequest) -> Result<Changed> {
        self.call(Method::PATCH, &container(name), Some(request))
    }

    /// Repairs what can be repaired, and says how things are then.
    pub fn repair(&self) -> Result<Vec<Finding>> {
        self.call(Method::POST, "/v1/repair", NOTHING)
    }

    /// Removes a container.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.call(Method::DELETE, &container(name), NOTHING)
    }

    /// All containers.
    pub fn list(&self) -> Result<Vec<Container>> {
        self.call_quickly("/v1/containers")
    }

    /// One container.
    pub fn show(&self, name: &str) -> Result<Container> {
        self.call_quickly(&container(name))
    }

    /// Traffic of everybody.
    pub fn stats(&self) -> Result<Stats> {
        self.call(Method::GET, "/v1/stats", NOTHING)
    }

    /// Traffic of one container.
    pub fn container_stats(&self, name: &str) -> Result<ContainerStats> {
        self.call(Method::GET, &format!("{}/stats", container(name)), NOTHING)
    }

    /// What was dropped; with a name, only what that container has to do with.
    pub fn drops(&self, name: Option<&str>) -> Result<Vec<DropCount>> {
        self.call(Method::GET, &drops("/v1/drops", name), NOTHING)
    }

    /// Tells `heed` of drops as they happen, until that returns false, `end` is over or the daemon goes. The latter is
    /// an error. `begin` is called when no drop goes unnoticed any more.
    pub fn follow_drops(
        &self,
        name: Option<&str>,
        end: impl Future<Output = ()>,
        begin: impl FnOnce() -> Result<bool>,
        heed: impl FnMut(&DropNews) -> Result<bool>,
    ) -> Result<()> {
        let path = drops("/v1/drops/events", name);
        self.runtime.block_on(async {
            let opened = async {
                self.check_alive().await?;
                self.open(Method::GET, &path, NOTHING).await
            };
            let (response, _sender) = patience::to_the_end(&self.socket.display(), opened).await?;
            if !begin()? {
                return Ok(());
            }
            tokio::select! {
                () = end => Ok(()),
                told = self.tell(response.into_body(), heed) => told,
            }
        })
    }

    /// Hands a stream of lines over one by one.
    async fn tell<T: DeserializeOwned>(
        &self,
        mut body: Incoming,
        mut heed: impl FnMut(&T) -> Result<bool>,
    ) -> Result<()> {
        let mut waiting = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            waiting.extend(data);
            while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = waiting.drain(..=end).collect();
                if !heed(&serde_json::from_slice(&line).context(misunderstanding)?)? {
                    return Ok(());
                }
            }
        }
        Err(Error::new(Kind::Unreachable, format!("the daemon at {} has gone", self.socket.display())))
    }

    /// What would become of a packet.
    pub fn explain(&self, request: &ExplainRequest) -> Result<Explanation> {
        self.call(Method::POST, "/v1/explain", Some(request))
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
        self.runtime.block_on(async {
            self.check_alive().await?;
            patience::to_the_end(&self.socket.display(), self.exchange(method, path, body)).await
        })
    }

    /// Asks for something that the daemon has at hand.
    fn call_quickly<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.exchange(Method::GET, path, NOTHING);
        self.runtime.block_on(patience::at_once(&self.socket.display(), answer))
    }

    /// Gives up on a daemon that is stopped, or hangs. What it says does not matter: an earlier version does not know
    /// the question.
    async fn check_alive(&self) -> Result<()> {
        let answer = async {
            let mut sender = self.connect().await?;
            let request = request(Method::GET, "/v1/alive", Vec::new())?;
            sender.send_request(request).await.context(|| self.broken_off()).map(drop)
        };
        patience::at_once(&self.socket.display(), answer).await
    }

    /// A connection on which requests can be sent.
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => time::sleep(FULL).await,
                Err(error) => return Err(self.unreachable(&error)),
            }
        };
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.context(|| self.broken_off())?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let (response, _sender) = self.open(method, path, body).await?;
        let body = response.into_body().collect().await.context(|| self.broken_off())?.to_bytes();
        serde_json::from_slice(&body).context(misunderstanding)
    }

    /// Asks, and returns the answer's head if it is no error. What is returned with it keeps the connection open.
    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Response<Incoming>, SendRequest<Full<Bytes>>)> {
        let talking = || self.broken_off();
        let mut sender = self.connect().await?;
        let body = match body {
            Some(body) => serde_json::to_vec(body).context(|| "cannot write the request".to_owned())?,
            None => Vec::new(),
        };
        let response = sender.send_request(request(method, path, body)?).await.context(talking)?;
        if response.status() == StatusCode::OK {
            return Ok((response, sender));
        }
        let body = response.into_body().collect().await.context(talking)?.to_bytes();
        Err(serde_json::from_slice::<Error>(&body).context(misunderstanding)?)
    }

    fn broken_off(&self) -> String {
        format!("the daemon at {} broke off", self.socket.display())
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

fn request(method: Method, path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "portmap")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .context(|| format!("cannot ask for {path}"))
}

/// No body; the type is any that can be written.
const NOTHING: Option<&()> = None;

fn misunderstanding() -> String {
    "the daemon's answer makes no sense; is it of another version?".to_owned()
}

/// The path of a container.
fn container(name: &str) -> String {
    format!("/v1/containers/{}", encoded(name))
}

/// The path of drops, perhaps those of one container.
fn drops(path: &str, name: Option<&str>) -> String {
    name.map_or_else(|| path.to_owned(), |name| format!("{path}?name={}", encoded(name)))
}

/// A name as a part of a path. What no name can have is written in a form that finds nothing rather than elsewhere.
fn encoded(name: &str) -> String {
    use std::fmt::Write as _;

    let mut path = String::new();
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
        assert_eq!(drops("/v1/drops", Some("a&b")), "/v1/drops?name=a%26b");
    }

    #[test]
    fn a_daemon_that_is_not_there_is_unreachable() {
        let directory = tempfile::tempdir().expect("a directory");
        let client = Client::new(&StateDir::new(directory.path())).expect("a client");
        assert_eq!(client.list().expect_err("nobody answers").kind, Kind::Unreachable);
    }
}
