//! The daemon's sockets under abusive clients, and its shutdown while something hangs.

use std::{
    io::{BufRead as _, BufReader, Error, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    time::Duration,
};

use nix::fcntl::{FcntlArg, fcntl};
use portmap_tests::{
    daemon::Daemon,
    faults::Fault,
    sandbox::{DAEMON_FLAGS, Netns, Sandbox, binary},
    wait,
};
use serde_json::{Value, json};

/// More connections than the TCP listener accepts, and than a process may have descriptors by default.
const MANY: usize = 1100;
/// Descriptors of a daemon with all TCP connections in use, and some for its background work.
const MORE_FILES: usize = 64 + 64;
/// Timeout of a test for an answer on an emulated machine.
const PATIENCE: Duration = Duration::from_mins(1);
fn listening(sandbox: &Sandbox) -> Daemon {
    sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--listen", "127.0.0.1:5051"]].concat())
}

fn connect(sandbox: &Sandbox) -> TcpStream {
    let stream = sandbox.inside(Netns::Host, || TcpStream::connect("127.0.0.1:5051")).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// Sends a request over TCP; returns the response even if the connection is reset after it.
fn ask(sandbox: &Sandbox, request: &str) -> String {
    let mut stream = connect(sandbox);
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).expect("text")
}

fn get(sandbox: &Sandbox, path: &str, host: &str) -> String {
    ask(sandbox, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

/// Asserts the status of a response, and an error as JSON.
fn expect_refusal(answer: &str, status: u16, kind: &str, part: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert_eq!(body["kind"], kind, "{answer}");
    assert!(body["message"].as_str().is_some_and(|message| message.contains(part)), "{answer}");
}

#[test]
fn tcp_serves_monitoring_only() {
    let sandbox = Sandbox::new();
    let daemon = listening(&sandbox);
    sandbox.ok(&["add", "secret"]);
    let local = "127.0.0.1:5051";
    assert!(get(&sandbox, "/healthz", local).ends_with("\r\n\r\nok\n"));
    for host in ["localhost:5051", "[::1]", "10.0.0.1"] {
        assert!(get(&sandbox, "/metrics", host).contains("container=\"secret\""), "{host}");
    }
    for path in
        ["/v1/containers", "/v1/stats", "/v1/doctor", "/v1/drops/events", "/v1/alive", "/", "/nothing"]
    {
        let answer = get(&sandbox, path, local);
        assert!(!answer.contains("secret"), "{answer}");
        expect_refusal(&answer, 404, "not_found", path);
    }
    for request in ["POST /v1/teardown", "DELETE /v1/containers/secret"] {
        let answer =
            ask(&sandbox, &format!("{request} HTTP/1.1\r\nHost: {local}\r\nConnection: close\r\n\r\n"));
        expect_refusal(&answer, 404, "not_found", "TCP has");
    }
    let answer =
        ask(&sandbox, &format!("POST /metrics HTTP/1.1\r\nHost: {local}\r\nConnection: close\r\n\r\n"));
    expect_refusal(&answer, 405, "usage", "no method POST");
    // The Host header of a browser, for a web page whose name resolves to this host's address.
    for host in ["rebound.example:5051", "127.0.0.1.rebound.example", ""] {
        expect_refusal(&get(&sandbox, "/metrics", host), 421, "not_permitted", "expected an address");
    }
    expect_refusal(
        &get(&sandbox, "http://rebound.example/metrics", local),
        421,
        "not_permitted",
        "expected an address",
    );
    assert_eq!(sandbox.json(&["list"]).as_array().map(Vec::len), Some(1));
    assert!(!daemon.log().contains("any client that reaches this address"), "{}", daemon.log());
    daemon.stop();
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--listen", "0.0.0.0:5051"]].concat());
    assert!(
        daemon.log().contains("any client that reaches this address can read /metrics"),
        "{}",
        daemon.log()
    );
}

#[test]
fn connections_idle_do_not_block_clients() {
    let sandbox = Sandbox::new();
    let daemon = listening(&sandbox);
    let before = daemon.open_files();
    let half = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ";
    let mut held = Vec::new();
    for number in 0..MANY {
        // Connections that have been idle for long are closed meanwhile; the client may not know it
        // yet.
        let mut stream = connect(&sandbox);
        if number % 2 == 0 {
            let _ = stream.write_all(half.as_bytes());
        }
        held.push(stream);
    }
    assert!(get(&sandbox, "/healthz", "127.0.0.1").ends_with("ok\n"));
    for arguments in [&["list"][..], &["add", "a", "--ports", "31000"], &["doctor"], &["del", "a"]] {
        sandbox.ok(arguments);
    }
    let files = daemon.open_files();
    assert!(files <= before + MORE_FILES, "{files} files, {before} before");
    // They are closed once they have been idle for long, whether or not the client closes them.
    wait::until("quiet connections to be closed", || daemon.open_files() <= before + 4);
    drop(held);
    // The Unix socket accepts more connections.
    let socket = sandbox.path("/run/portmap/portmapd.sock");
    let held: Vec<_> = (0..MANY).map_while(|_| UnixStream::connect(&socket).ok()).collect();
    sandbox.ok(&["list"]);
    sandbox.ok(&["add", "a"]);
    drop(held);
}

/// A client whose connections are all busy, because it asks and does not read, does not keep others waiting until
/// the daemon gives up on it.
#[test]
fn connections_busy_do_not_block_other_addresses() {
    let sandbox = Sandbox::new();
    let _daemon = listening(&sandbox);
    let requests = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".repeat(10_000);
    let busy: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = connect(&sandbox);
            stream.set_nonblocking(true).expect("a socket");
            // As much as fits. The daemon has refused most of them.
            let _ = stream.write(requests.as_bytes());
            stream
        })
        .collect();
    let other = "curl -sf --interface 127.0.0.7 http://127.0.0.1:5051/healthz";
    assert_eq!(sandbox.sh(Netns::Host, other), "ok\n");
    // Reads what has arrived, to the end if the daemon has closed the connection.
    let is_open = |mut stream: &TcpStream| loop {
        match stream.read(&mut [0; 1 << 12]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    };
    // If the others had waited, they would have waited until the daemon had given up on these.
    assert!(busy.iter().take(8).all(is_open), "others are served while the connections are busy");
}

#[test]
fn requests_are_bounded() {
    let sandbox = Sandbox::new();
    let daemon = listening(&sandbox);
    let before = daemon.resident();
    let line = format!("X: {}\r\n", "x".repeat(4000));
    let mut held = Vec::new();
    for _ in 0..MANY / 4 {
        let mut stream = connect(&sandbox);
        // The daemon refuses it, and may close the connection before the whole request has been
        // sent.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n");
        let _ = (0..100).try_for_each(|_| stream.write_all(line.as_bytes()));
        held.push(stream);
    }
    let grown = daemon.resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    drop(held);
    let many = ask(&sandbox, &format!("GET /healthz HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(1000)));
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");
    let by_socket = |head: &str, body: &[u8]| {
        let mut stream = UnixStream::connect(sandbox.path("/run/portmap/portmapd.sock")).expect("connected");
        let _ = write!(
            stream,
            "POST /v1/containers HTTP/1.1\r\nHost: portmap\r\nConnection: close\r\n{head}\r\n"
        );
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).expect("text")
    };
    let json = "Content-Type: application/json\r\n";
    let long = vec![b' '; 2 << 20];
    let answer = by_socket(&format!("{json}Content-Length: {}\r\n", long.len()), &long);
    expect_refusal(&answer, 413, "usage", "longer than 1048576 bytes");
    expect_refusal(&by_socket("Content-Length: 2\r\n", b"{}"), 415, "usage", "Content-Type");
    // The longest valid name, and the error about a longer one.
    let body = json!({ "name": "x".repeat(100_000) }).to_string();
    let answer = by_socket(&format!("{json}Content-Length: {}\r\n", body.len()), body.as_bytes());
    expect_refusal(&answer, 400, "usage", "cannot be a container's name");
    assert!(answer.len() < 1000, "{answer}");
}

#[test]
fn connections_of_slow_readers_are_closed() {
    let sandbox = Sandbox::new();
    let daemon = listening(&sandbox);
    // More responses than all buffers hold.
    let mut stream = connect(&sandbox);
    stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket");
    let request = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let sent = (0..1_000_000).take_while(|_| stream.write_all(request.as_bytes()).is_ok()).count();
    assert!(sent < 1_000_000, "the daemon reads without end");
    // While it is open, there is no room for another.
    let is_full = |error: &Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    wait::until("the connection to be closed", || stream.write(b"G").is_err_and(|error| !is_full(&error)));
    daemon.stop();
}

#[test]
fn health_checks_what_commands_need() {
    let sandbox = Sandbox::new();
    let daemon = listening(&sandbox);
    sandbox.arm_fault(Fault::Fail, 1);
    let answer = get(&sandbox, "/healthz", "127.0.0.1");
    expect_refusal(&answer, 503, "unhealthy", "the kernel does not respond");
    assert!(sandbox.fault_fired().is_some());
    assert!(get(&sandbox, "/healthz", "127.0.0.1").ends_with("ok\n"));
    sandbox.arm_fault(Fault::Hang, 1);
    for _ in 0..3 {
        expect_refusal(&get(&sandbox, "/healthz", "127.0.0.1"), 503, "unhealthy", "the kernel's netlink");
    }
    assert!(sandbox.fault_fired().is_some());
    // A hanging query is no operation, so shutdown does not wait for it.
    daemon.stop();
}

#[test]
fn shutdown_is_bounded_and_names_what_hangs() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    sandbox.arm_fault(Fault::Hang, 3);
    let mut add = sandbox.portmap_command(&["add", "b"]).stderr(Stdio::piped()).spawn().expect("it runs");
    wait::until("the command to hang", || {
        std::fs::read_to_string(sandbox.path("/run/faults")).is_ok_and(|order| order.starts_with("at "))
    });
    // It does not block other commands.
    assert_eq!(sandbox.json(&["show", "a"])["state"], "ready");
    let log = daemon.log.clone();
    assert_eq!(daemon.signal_and_wait("TERM"), Some(1));
    let log = std::fs::read_to_string(log).expect("a log");
    assert!(log.contains("shutdown requested by SIGTERM") && log.contains("add \"b\" (for "), "{log}");
    assert!(!add.wait().expect("it ends").success());
    assert!(sandbox.fault_fired().is_some());
    // The next daemon rolls the interrupted operation back.
    let _daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["list"]).as_array().map(Vec::len), Some(1));
    sandbox.ok(&["add", "b"]);
}

#[test]
fn signals_have_their_usual_meaning() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    for signal in ["HUP", "USR1", "USR2"] {
        daemon.signal(signal);
        wait::until("the signal to be logged", || daemon.log().contains(&format!("SIG{signal} is ignored")));
        sandbox.ok(&["list"]);
    }
    assert_eq!(daemon.signal_and_wait("QUIT"), Some(0));
    assert_eq!(sandbox.daemon().signal_and_wait("INT"), Some(0));
    assert!(!sandbox.path("/run/portmap/portmapd.sock").exists());
}

#[test]
fn log_without_a_reader_does_not_block() {
    let sandbox = Sandbox::new();
    for has_reader in [false, true] {
        let mut daemon = sandbox.command(Netns::Host, binary("portmapd"));
        daemon.args(DAEMON_FLAGS).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut daemon = daemon.spawn().expect("nsenter is part of util-linux");
        let mut line = String::new();
        let _ = BufReader::new(daemon.stdout.take().expect("piped")).read_line(&mut line);
        assert_eq!(line, "ready\n");
        let reader = daemon.stderr.take().filter(|_| has_reader);
        if let Some(reader) = &reader {
            // The smallest pipe buffer; a few lines fill it.
            fcntl(reader, FcntlArg::F_SETPIPE_SZ(4096)).expect("a pipe");
        }
        for _ in 0..30 {
            sandbox.fails(&["del", "absent"], 3);
        }
        sandbox.ok(&["add", "a", "--ports", "31000"]);
        sandbox.ok(&["del", "a"]);
        let children = format!("/proc/{0}/task/{0}/children", daemon.id());
        let pid = std::fs::read_to_string(children).expect("it runs");
        assert!(Command::new("kill").args(["-TERM", pid.trim()]).status().expect("kill").success());
        assert!(daemon.wait().expect("it ends").success(), "with a reader: {has_reader}");
    }
}

#[test]
fn connections_wait_for_file_descriptors() {
    let sandbox = Sandbox::new();
    let daemon = listening(&sandbox);
    let limit = |files: usize| {
        let pid = daemon.pid();
        let script = format!("prlimit --pid {pid} --nofile={files}:");
        let status = Command::new("sh").args(["-c", &script]).status().expect("a shell");
        assert!(status.success(), "prlimit is part of util-linux");
    };
    limit(daemon.open_files());
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut by_tcp = connect(&sandbox);
    let mut by_socket = UnixStream::connect(sandbox.path("/run/portmap/portmapd.sock")).expect("connected");
    by_tcp.write_all(request).expect("sent");
    by_socket.write_all(request).expect("sent");
    let logged = || daemon.log().matches("cannot accept connections: Too many open files").count();
    wait::until("both sockets to have no files", || logged() == 2);
    limit(1024);
    let mut answers = [String::new(), String::new()];
    by_tcp.read_to_string(&mut answers[0]).expect("an answer");
    by_socket.read_to_string(&mut answers[1]).expect("an answer");
    // The error depends on whether the daemon had a descriptor for its own query of the kernel.
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 ")), "{answers:?}");
    assert_eq!(logged(), 2, "not logged again at each attempt");
    sandbox.ok(&["list"]);
    daemon.stop();
}

#[test]
fn shutdown_during_start_is_honoured() {
    let sandbox = Sandbox::new();
    drop(sandbox.daemon());
    sandbox.arm_fault(Fault::Hang, 5);
    let daemon = sandbox.start_daemon(&DAEMON_FLAGS);
    wait::until("the start to hang", || {
        std::fs::read_to_string(sandbox.path("/run/faults")).is_ok_and(|order| order.starts_with("at "))
    });
    let log = daemon.log.clone();
    assert_eq!(daemon.signal_and_wait("TERM"), Some(1));
    let log = std::fs::read_to_string(log).expect("a log");
    assert!(log.contains("the start (for "), "{log}");
    assert!(sandbox.fault_fired().is_some());
    sandbox.daemon().stop();
}

#[test]
fn start_that_cannot_listen_changes_nothing() {
    let sandbox = Sandbox::new();
    let _taken = sandbox.inside(Netns::Host, || std::net::TcpListener::bind("127.0.0.1:5051")).expect("free");
    let deep = format!("/run/{}", "x".repeat(100));
    for (flags, code, expected) in
        [(["--listen", "127.0.0.1:5051"], 1, "127.0.0.1:5051"), (["--state-dir", &deep], 2, "too long")]
    {
        let (status, log) = sandbox.refused_daemon(&[&DAEMON_FLAGS[..], &flags].concat());
        assert_eq!(status, code, "{log}");
        assert!(log.lines().last().is_some_and(|line| line.contains(expected)), "{log}");
        sandbox.sh(Netns::Host, "! test -e /run/portmap && ! test -e /sys/fs/bpf/portmap");
        assert!(!sandbox.path(&deep).exists());
    }
}

#[test]
fn client_times_out_on_a_stopped_daemon() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a"]);
    daemon.pause();
    let commands = [&["list"][..], &["show", "a"], &["add", "b"], &["del", "a"], &["drops", "--follow"]];
    let started: Vec<_> = commands
        .iter()
        .map(|arguments| {
            let mut command = sandbox.portmap_command(arguments);
            command.stderr(Stdio::piped()).spawn().expect("the command runs")
        })
        .collect();
    for (arguments, child) in commands.iter().zip(started) {
        let output = child.wait_with_output().expect("it ends");
        let errors = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(5), "{arguments:?}: {errors}");
        let lines: Vec<_> = errors.lines().collect();
        assert!(
            lines.len() == 2 && lines[0].ends_with("does not respond: waiting"),
            "{arguments:?}: {errors}"
        );
        assert!(lines[1].contains("has not responded for 9 s"), "{arguments:?}: {errors}");
    }
    daemon.resume();
    // The abandoned request has not been executed later.
    assert_eq!(sandbox.json(&["show", "a"])["state"], "ready");
    assert_eq!(sandbox.json(&["list"]).as_array().map(Vec::len), Some(1));
}
