//! A client of the daemon for one short-lived process: it blocks, and has nothing to start.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use portmap::{
    api::{AddRequest, Changed, Container},
    error::{Error, Kind},
    paths::StateDir,
};
use serde::de::DeserializeOwned;

use crate::error::{CniError, Code, Result};

/// Time in which a running daemon answers a question, however busy it is.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Time in which it executes a command. Runtimes give up after two minutes and more.
const DONE_WITHIN: Duration = Duration::from_secs(100);
/// Time in which a daemon that is being restarted listens again.
const RESTARTED_WITHIN: Duration = Duration::from_secs(10);
/// Delay between attempts to connect.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// Longest answer in bytes.
const LONGEST_ANSWER: u64 = 64 << 20;
/// Path of all containers.
const CONTAINERS: &str = "/v1/containers";

/// The daemon with one state directory.
#[derive(Debug)]
pub(crate) struct Daemon {
    socket: PathBuf,
    /// Time for which attempts to connect continue.
    patience: Duration,
}

impl Daemon {
    /// The daemon with this state directory, which may be restarting.
    pub(crate) fn restarting(state_dir: &Path) -> Self {
        Self { socket: StateDir::new(state_dir).socket(), patience: RESTARTED_WITHIN }
    }

    /// The daemon with this state directory, if it is running now.
    pub(crate) fn running(state_dir: &Path) -> Self {
        Self { patience: Duration::ZERO, ..Self::restarting(state_dir) }
    }

    /// One container; `None` if it does not exist. Its name must be valid.
    pub(crate) fn container(&self, name: &str) -> Result<Option<Container>> {
        match self.exchange("GET", &path_of(name), None, ANSWER_WITHIN) {
            Ok(body) => decode(&body).map(Some),
            Err(error) if error.code == Code::Daemon(Kind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All containers.
    pub(crate) fn containers(&self) -> Result<Vec<Container>> {
        decode(&self.exchange("GET", CONTAINERS, None, ANSWER_WITHIN)?)
    }

    /// Adds a container. Returns it with the daemon's warnings.
    pub(crate) fn add(&self, request: &AddRequest) -> Result<Changed> {
        let body = serde_json::to_vec(request).map_err(|error| {
            CniError::config(format!("cannot encode the request for {:?}: {error}", request.name))
        })?;
        decode(&self.exchange("POST", CONTAINERS, Some(&body), DONE_WITHIN)?)
    }

    /// Removes a container. Returns whether it existed.
    pub(crate) fn delete(&self, name: &str) -> Result<bool> {
        match self.exchange("DELETE", &path_of(name), None, DONE_WITHIN) {
            Ok(_) => Ok(true),
            Err(error) if error.code == Code::Daemon(Kind::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Fails unless the daemon and what it depends on work.
    pub(crate) fn check_health(&self) -> Result<()> {
        self.exchange("GET", "/healthz", None, ANSWER_WITHIN).map(drop)
    }

    /// Sends a request, and returns the body of its answer. A response to HTTP/1.0 ends with the connection and is
    /// never in chunks.
    fn exchange(&self, method: &str, path: &str, body: Option<&[u8]>, within: Duration) -> Result<Vec<u8>> {
        let body = body.unwrap_or_default();
        let mut stream = self.connect()?;
        let mut answer = Vec::new();
        let mut talk = || {
            stream.set_read_timeout(Some(within))?;
            stream.set_write_timeout(Some(within))?;
            let head = format!(
                "{method} {path} HTTP/1.0\r\nHost: portmap\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n",
                body.len()
            );
            // In one write: a daemon that refuses the head may close the connection before it has read a body.
            stream.write_all(&[head.as_bytes(), body].concat())?;
            (&stream).take(LONGEST_ANSWER).read_to_end(&mut answer)
        };
        talk().map_err(|error| self.broken_off(&error, within))?;
        let (status, body) = split(&answer).ok_or_else(|| {
            let socket = self.socket.display();
            CniError::new(Code::TryAgain, format!("the daemon at {socket} closed the connection: try again"))
        })?;
        if status == 200 {
            return Ok(body.to_vec());
        }
        Err(serde_json::from_slice::<Error>(body).map_or_else(
            |_other| CniError::from(Error::failure(format!("the daemon answers with HTTP status {status}"))),
            CniError::from,
        ))
    }

    fn connect(&self) -> Result<UnixStream> {
        let start = Instant::now();
        loop {
            let error = match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let socket = self.socket.display();
            if error.kind() == ErrorKind::PermissionDenied {
                let message =
                    format!("this user may not use the socket {socket}: run the container runtime as root");
                return Err(CniError::from(Error::new(Kind::NotPermitted, message)));
            }
            if start.elapsed() >= self.patience {
                return Err(CniError::new(
                    Code::TryAgain,
                    format!(
                        "no daemon responds at {socket} ({error}): start portmapd, or set the network's key \
                         stateDir to its --state-dir"
                    ),
                ));
            }
            thread::sleep(RETRY_DELAY);
        }
    }

    fn broken_off(&self, error: &std::io::Error, within: Duration) -> CniError {
        let socket = self.socket.display();
        let message = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
                "the daemon at {socket} has not answered for {} s: it is stopped or hangs (see its log)",
                within.as_secs()
            ),
            _ => format!("the daemon at {socket} closed the connection ({error}): try again"),
        };
        CniError::new(Code::TryAgain, message)
    }
}

/// The path of a container. The characters of valid names need no encoding.
fn path_of(name: &str) -> String {
    format!("{CONTAINERS}/{name}")
}

/// The status and the body of a response; `None` if it is not complete.
fn split(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]);
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let mut length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: Option<usize> = length.next().and_then(|(_, length)| length.trim().parse().ok());
    length.is_none_or(|length| length == body.len()).then_some((status, body))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("cannot decode the daemon's response, is it another version? {error}");
        CniError::from(Error::failure(message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_complete_or_nothing() {
        let whole = b"HTTP/1.0 404 Not Found\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(split(whole), Some((404, &b"abc"[..])));
        for length in 0..whole.len() {
            assert_eq!(split(&whole[..length]), None, "{length}");
        }
        assert_eq!(split(b"HTTP/1.1 200 OK\r\n\r\nok\n"), Some((200, &b"ok\n"[..])));
        assert_eq!(split(b"garbage\r\n\r\n"), None);
    }
}
