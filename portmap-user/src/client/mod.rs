//! Client of the daemon's HTTP API on its Unix socket.

mod error;
mod patience;

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

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

pub use self::error::CallError;
use self::error::Result;
use crate::{
    api::{
        AddRequest, Capacity, Changed, Container, ContainerStats, DropCount, DropStreamItem, EventStreamItem,
        ExplainRequest, Explanation, Finding, Flows, FlowsRequest, Stats, UpdateRequest,
        monitor::MonitoredContainer,
    },
    error::{Context as _, Error, Kind},
    paths::StateDir,
};

/// Delay between attempts to connect while the socket's backlog is full.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// A client of one daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    /// For users who may not use the other one.
    readonly: PathBuf,
    /// Whether the last connection is to that one.
    is_reader: AtomicBool,
    runtime: Runtime,
}

impl Client {
    /// A client of the daemon with this state directory. It connects with each request.
    pub fn new(state_dir: &StateDir) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        Ok(Self {
            socket: state_dir.socket(),
            readonly: state_dir.readonly_socket(),
            is_reader: AtomicBool::new(false),
            runtime: runtime.context(|| "cannot start the async runtime")?,
        })
    }

    /// Adds a container.
    pub fn add(&self, request: &AddRequest) -> Result<Changed> {
        self.call(Method::POST, "/v1/containers", Some(request))
    }

    /// Changes a container's ports, traffic properties and labels.
    pub fn update(&self, name: &str, request: &UpdateRequest) -> Result<Changed> {
        self.call(Method::PATCH, &container(name), Some(request))
    }

    /// Repairs drift as far as possible, and returns the findings afterwards.
    pub fn repair(&self) -> Result<Vec<Finding>> {
        self.call(Method::POST, "/v1/repair", NOTHING)
    }

    /// Removes a container.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.call(Method::DELETE, &container(name), NOTHING)
    }

    /// Returns all containers.
    pub fn list(&self) -> Result<Vec<Container>> {
        self.get_immediate("/v1/containers")
    }

    /// Returns one container.
    pub fn show(&self, name: &str) -> Result<Container> {
        self.get_immediate(&container(name))
    }

    /// Returns the counters of all containers and the host.
    pub fn stats(&self) -> Result<Stats> {
        self.call(Method::GET, "/v1/stats", NOTHING)
    }

    /// Returns the statistics of all containers in service, in the form of a Mesos agent.
    pub fn monitor(&self) -> Result<Vec<MonitoredContainer>> {
        self.call(Method::GET, "/monitor/statistics", NOTHING)
    }

    /// Returns the counters of one container.
    pub fn container_stats(&self, name: &str) -> Result<ContainerStats> {
        self.call(Method::GET, &format!("{}/stats", container(name)), NOTHING)
    }

    /// Returns the open connections of one container, by peer and service.
    pub fn flows(&self, name: &str, request: FlowsRequest) -> Result<Flows> {
        self.call(Method::GET, &flows(name, request), NOTHING)
    }

    /// The same within `limit`, without notices.
    pub fn flows_within(&self, name: &str, request: FlowsRequest, limit: Duration) -> Result<Flows> {
        self.get_within(&flows(name, request), limit)
    }

    /// Returns the counters of all containers and the host within `limit`. Prints no notices, for a view that
    /// has the terminal.
    pub fn stats_within(&self, limit: Duration) -> Result<Stats> {
        self.get_within("/v1/stats", limit)
    }

    /// The same for all containers.
    pub fn list_within(&self, limit: Duration) -> Result<Vec<Container>> {
        self.get_within("/v1/containers", limit)
    }

    /// Returns counts of dropped packets; with a name, those from or to that container.
    pub fn drops(&self, name: Option<&str>) -> Result<Vec<DropCount>> {
        self.call(Method::GET, &of_name("/v1/drops", name), NOTHING)
    }

    /// Calls `on_item` for each item of the stream of drops, until it returns false or `end` completes. An
    /// error if the daemon closes the stream. `on_open` is called once the stream is open, so no later drop
    /// is missed.
    pub fn follow_drops(
        &self,
        name: Option<&str>,
        end: impl Future<Output = ()>,
        on_open: impl FnOnce() -> Result<bool, Error>,
        on_item: impl FnMut(&DropStreamItem) -> Result<bool, Error>,
    ) -> Result<()> {
        self.follow(&of_name("/v1/drops/events", name), end, on_open, on_item)
    }

    /// Calls `on_item` for each event; with a name, for those of that container and of none. Ends as
    /// [`Self::follow_drops`] does.
    pub fn follow_events(
        &self,
        name: Option<&str>,
        end: impl Future<Output = ()>,
        on_item: impl FnMut(&EventStreamItem) -> Result<bool, Error>,
    ) -> Result<()> {
        self.follow(&of_name("/v1/events", name), end, || Ok(true), on_item)
    }

    fn follow<T: DeserializeOwned>(
        &self,
        path: &str,
        end: impl Future<Output = ()>,
        on_open: impl FnOnce() -> Result<bool, Error>,
        on_item: impl FnMut(&T) -> Result<bool, Error>,
    ) -> Result<()> {
        self.runtime.block_on(async {
            let opened = async {
                self.check_alive().await?;
                self.open(Method::GET, path, NOTHING).await
            };
            let (response, _sender) = patience::to_the_end(&self.used().display(), opened).await?;
            if !on_open()? {
                return Ok(());
            }
            tokio::select! {
                () = end => Ok(()),
                read = self.read_lines(response.into_body(), on_item) => read,
            }
        })
    }

    /// Calls `on_item` for each line of a response, until it returns false.
    async fn read_lines<T: DeserializeOwned>(
        &self,
        mut body: Incoming,
        mut on_item: impl FnMut(&T) -> Result<bool, Error>,
    ) -> Result<()> {
        let mut buffer = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend(data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if !on_item(&serde_json::from_slice(&line).context(cannot_decode)?)? {
                    return Ok(());
                }
            }
        }
        let socket = self.used().display();
        Err(CallError::Unreachable(format!("the daemon at {socket} closed the connection")))
    }

    /// Returns what containers can still get.
    pub fn capacity(&self) -> Result<Capacity> {
        self.call(Method::GET, "/v1/capacity", NOTHING)
    }

    /// Returns the verdicts on a packet at each hook.
    pub fn explain(&self, request: &ExplainRequest) -> Result<Explanation> {
        self.call(Method::POST, "/v1/explain", Some(request))
    }

    /// Returns the findings of the daemon's checks.
    pub fn doctor(&self) -> Result<Vec<Finding>> {
        self.call(Method::GET, "/v1/doctor", NOTHING)
    }

    /// Has the daemon remove everything and exit. Returns whether there was anything to remove.
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
            patience::to_the_end(&self.used().display(), self.exchange(method, path, body)).await
        })
    }

    /// Requests something that the daemon answers without blocking.
    fn get_immediate<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.exchange(Method::GET, path, NOTHING);
        self.runtime.block_on(patience::at_once(&self.used().display(), answer))
    }

    fn get_within<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T> {
        let answer = self.exchange(Method::GET, path, NOTHING);
        self.runtime.block_on(async { time::timeout(limit, answer).await }).unwrap_or_else(|_elapsed| {
            let socket = self.used().display();
            Err(CallError::Unreachable(format!("the daemon at {socket} has not answered for {limit:?}")))
        })
    }

    /// Fails if the daemon is stopped or hangs. Any response will do, because an earlier version does not
    /// have the endpoint.
    async fn check_alive(&self) -> Result<()> {
        let answer = async {
            let mut sender = self.connect().await?;
            let request = request(Method::GET, "/v1/alive", Vec::new())?;
            sender.send_request(request).await.context(|| self.broken_off())?;
            Ok(())
        };
        patience::at_once(&self.used().display(), answer).await
    }

    /// Connects, and returns a sender of requests.
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => time::sleep(RETRY_DELAY).await,
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    // Without a read-only socket, the error about the other one tells what to do.
                    match UnixStream::connect(&self.readonly).await {
                        Ok(stream) => {
                            self.is_reader.store(true, Ordering::Relaxed);
                            break stream;
                        }
                        Err(full) if full.kind() == ErrorKind::WouldBlock => time::sleep(RETRY_DELAY).await,
                        Err(_none) => return Err(self.unreachable(&error)),
                    }
                }
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
        Ok(serde_json::from_slice(&body).context(cannot_decode)?)
    }

    /// Sends a request, and returns the response unless it is an error. The sender keeps the connection open.
    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Response<Incoming>, SendRequest<Full<Bytes>>)> {
        let broken_off = || self.broken_off();
        let mut sender = self.connect().await?;
        let body = match body {
            Some(body) => serde_json::to_vec(body).context(|| "cannot encode the request")?,
            None => Vec::new(),
        };
        let response = sender.send_request(request(method, path, body)?).await.context(broken_off)?;
        if response.status() == StatusCode::OK {
            return Ok((response, sender));
        }
        let body = response.into_body().collect().await.context(broken_off)?.to_bytes();
        Err(serde_json::from_slice::<Error>(&body).context(cannot_decode)?.into())
    }

    /// The socket of the last connection.
    fn used(&self) -> &Path {
        if self.is_reader.load(Ordering::Relaxed) { &self.readonly } else { &self.socket }
    }

    fn broken_off(&self) -> String {
        let hint = if self.is_reader.load(Ordering::Relaxed) {
            " (it does so when all connections of this user are busy)"
        } else {
            ""
        };
        format!("the daemon at {} closed the connection{hint}", self.used().display())
    }

    fn unreachable(&self, error: &std::io::Error) -> CallError {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::PermissionDenied => Error::new(
                Kind::NotPermitted,
                format!(
                    "this user may not use the socket {socket}: run as root, or as a member of the group of the \
                     daemon's --socket-group"
                ),
            )
            .into(),
            _ => CallError::Unreachable(format!(
                "no daemon responds at {socket} ({error}): start portmapd, or pass its --state-dir"
            )),
        }
    }
}

fn request(method: Method, path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>, Error> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "portmap")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .context(|| format!("cannot request {path}"))
}

/// No body, of any serialisable type.
const NOTHING: Option<&()> = None;

fn cannot_decode() -> &'static str {
    "cannot decode the daemon's response, is it another version?"
}

/// The path of a container.
fn container(name: &str) -> String {
    format!("/v1/containers/{}", encoded(name))
}

/// The path of a container's flows.
fn flows(name: &str, FlowsRequest { limit, by_peer }: FlowsRequest) -> String {
    format!("{}/flows?limit={limit}&by_peer={by_peer}", container(name))
}

/// The path of drops or events, optionally those of one container.
fn of_name(path: &str, name: Option<&str>) -> String {
    name.map_or_else(|| path.to_owned(), |name| format!("{path}?name={}", encoded(name)))
}

/// A name, percent-encoded as one segment of a path, so that no name leads to another endpoint.
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
    fn client_path_encodes_names() {
        assert_eq!(container("web-1.a"), "/v1/containers/web-1.a");
        assert_eq!(container("../stats"), "/v1/containers/..%2Fstats");
        assert_eq!(container(".."), "/v1/containers/%2E%2E");
        assert_eq!(container("a b?"), "/v1/containers/a%20b%3F");
        assert_eq!(of_name("/v1/drops", Some("a&b")), "/v1/drops?name=a%26b");
    }

    #[test]
    fn client_without_daemon_is_unreachable() {
        let directory = tempfile::tempdir().expect("a directory");
        let client = Client::new(&StateDir::new(directory.path())).expect("a client");
        let error = client.list().expect_err("no daemon");
        assert!(matches!(error, CallError::Unreachable(_)), "{error}");
    }
}
