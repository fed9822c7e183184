//! Observers that query the daemon continuously while a test runs; every query must be answered.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{sandbox::Sandbox, wait};

/// Queries: method, path and body. "No such container" is a valid answer.
const QUERIES: [(&str, &str, &str); 9] = [
    (
        "POST",
        "/v1/explain",
        r#"{"from":"outside","destination":"10.0.0.1","destination_port":31000,"protocol":"udp"}"#,
    ),
    ("GET", "/v1/doctor", ""),
    (
        "POST",
        "/v1/explain",
        r#"{"from":"a","destination":"10.0.0.1","destination_port":31008,"protocol":"udp"}"#,
    ),
    ("GET", "/v1/stats", ""),
    (
        "POST",
        "/v1/explain",
        r#"{"from":"host","destination":"10.0.0.1","destination_port":31000,"protocol":"tcp"}"#,
    ),
    ("GET", "/v1/drops", ""),
    ("GET", "/v1/containers", ""),
    ("GET", "/v1/containers/a", ""),
    ("GET", "/metrics", ""),
];

/// Pause after each answer, so that observers leave CPU time for what they observe.
const PAUSE: Duration = Duration::from_millis(5);

/// Number of answers to each query.
#[derive(Debug, Default)]
pub struct Answers([AtomicU64; QUERIES.len()]);

impl Answers {
    /// Waits until every query has been answered. A daemon must be running.
    pub fn expect_all(&self) {
        for (count, (_, path, body)) in self.0.iter().zip(QUERIES) {
            let what = format!("an answer to {path} {body}");
            wait::until(&what, || count.load(Ordering::Relaxed) > 0);
        }
    }
}

/// Runs `work` while two observers query the daemon of the sandbox. A missing daemon, or one that is killed
/// before it answers, is not an error.
///
/// # Panics
///
/// Panics if a running daemon does not answer. The whole sandbox is killed in that case, so that nothing
/// else waits for the daemon, and the query is printed to standard error.
pub fn observed<T>(sandbox: &Sandbox, work: impl FnOnce(&Answers) -> T) -> T {
    let (ends, hangs, answers) = (AtomicBool::new(false), AtomicBool::new(false), Answers::default());
    let socket = sandbox.path("/run/portmap/portmapd.sock");
    let first_process = Pid::from_raw(sandbox.init().try_into().expect("a process"));
    let result = thread::scope(|scope| {
        // A guard, because the scope waits for its threads even if `work` panics.
        let _end = End(&ends);
        for first in [0, QUERIES.len() / 2] {
            let (ends, hangs, answers) = (&ends, &hangs, &answers);
            let socket: PathBuf = socket.clone();
            scope.spawn(move || {
                for number in (0..QUERIES.len()).cycle().skip(first) {
                    if ends.load(Ordering::Relaxed) {
                        break;
                    }
                    match ask(&socket, number) {
                        Ok(true) => _ = answers.0[number].fetch_add(1, Ordering::Relaxed),
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                            let (method, path, body) = QUERIES[number];
                            eprintln!(
                                "the daemon hangs: no answer to {method} {path} {body} within {:?}",
                                wait::LIMIT
                            );
                            hangs.store(true, Ordering::Relaxed);
                            let _ = kill(first_process, Signal::SIGKILL);
                            break;
                        }
                        // No daemon, or one that has just been killed; or the container is being added or
                        // removed.
                        Ok(false) | Err(_) => {}
                    }
                    thread::sleep(PAUSE);
                }
            });
        }
        work(&answers)
    });
    assert!(!hangs.load(Ordering::Relaxed), "the daemon hangs");
    result
}

/// Sends one query and waits for the whole response. Returns whether the response is a valid answer.
fn ask(socket: &Path, number: usize) -> io::Result<bool> {
    let (method, path, body) = QUERIES[number];
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(wait::LIMIT))?;
    stream.set_write_timeout(Some(wait::LIMIT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 ") {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let is_about_container = path.ends_with("/a") || body.contains(r#""from":"a""#);
    let there_is_none = ["HTTP/1.1 404 ", "HTTP/1.1 409 "].iter().any(|status| answer.starts_with(status));
    Ok(answer.starts_with("HTTP/1.1 200 ") || (is_about_container && there_is_none))
}

/// Sets a flag when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
