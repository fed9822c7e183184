//! Questions that are asked all the time while something else happens: each has an answer, whatever happens.

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

/// What is asked: method, path and body. The answer may be that there is no such container.
const QUESTIONS: [(&str, &str, &str); 9] = [
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

/// How long an observer rests after an answer, so that what it looks at has the CPUs.
const REST: Duration = Duration::from_millis(5);

/// How often each question was answered, in the order in which they are asked.
#[derive(Debug, Default)]
pub struct Answers([AtomicU64; QUESTIONS.len()]);

impl Answers {
    /// Waits until every question has been answered; somebody must be there to do so.
    pub fn expect_all(&self) {
        for (count, (_, path, body)) in self.0.iter().zip(QUESTIONS) {
            let what = format!("an answer to {path} {body}");
            wait::until(&what, || count.load(Ordering::Relaxed) > 0);
        }
    }
}

/// Does `work` while two observers ask whatever daemon is in the sandbox. That none is there, or that it is killed before it
/// has answered, is all right.
///
/// # Panics
///
/// If a daemon is there and does not answer. It ends with all that is in its sandbox, so that nothing else waits for it, and
/// standard error says which question it was.
pub fn observed<T>(sandbox: &Sandbox, work: impl FnOnce(&Answers) -> T) -> T {
    let (ends, hangs, answers) = (AtomicBool::new(false), AtomicBool::new(false), Answers::default());
    let socket = sandbox.path("/run/portmap/portmapd.sock");
    let first_process = Pid::from_raw(sandbox.init().try_into().expect("a process"));
    let result = thread::scope(|scope| {
        // Also when the work panics: the scope waits for its threads.
        let _end = End(&ends);
        for first in [0, QUESTIONS.len() / 2] {
            let (ends, hangs, answers) = (&ends, &hangs, &answers);
            let socket: PathBuf = socket.clone();
            scope.spawn(move || {
                for number in (0..QUESTIONS.len()).cycle().skip(first) {
                    if ends.load(Ordering::Relaxed) {
                        break;
                    }
                    match ask(&socket, number) {
                        Ok(true) => _ = answers.0[number].fetch_add(1, Ordering::Relaxed),
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                            let (method, path, body) = QUESTIONS[number];
                            eprintln!(
                                "the daemon hangs: no answer to {method} {path} {body} in {:?}",
                                wait::LIMIT
                            );
                            hangs.store(true, Ordering::Relaxed);
                            let _ = kill(first_process, Signal::SIGKILL);
                            break;
                        }
                        // Nobody is there, or not any more; or what is asked about comes or goes just now.
                        Ok(false) | Err(_) => {}
                    }
                    thread::sleep(REST);
                }
            });
        }
        work(&answers)
    });
    assert!(!hangs.load(Ordering::Relaxed), "the daemon hangs");
    result
}

/// Asks one question, and waits for the whole answer. Returns whether it is one.
fn ask(socket: &Path, number: usize) -> io::Result<bool> {
    let (method, path, body) = QUESTIONS[number];
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
