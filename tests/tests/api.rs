//! The HTTP API: its description, its errors, and what users without privileges may do.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    process::Output,
    thread,
};

use portmap_tests::{
    cache, not_run,
    sandbox::{DAEMON_FLAGS, Netns, Sandbox, binary},
    wait,
};
use serde_json::{Value, json};

/// The description that the daemon serves.
const DESCRIPTION: &str = include_str!("../../docs/openapi.json");
const ROUTES: &str = include_str!("../../portmap-user/src/daemon/http/routes.rs");
/// A user, and a group, without privileges.
const UNPRIVILEGED: &str = "65534";

/// A response of the daemon: status, head in lower case, body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Asserts that it is an error with this code, as RFC 9457 has it.
    fn expect_problem(&self, status: u16, code: &str) {
        let Self { head, body, .. } = self;
        assert_eq!(self.status, status, "{body}");
        assert!(head.contains("content-type: application/problem+json\r\n"), "{head}");
        let problem = self.json();
        assert_eq!((&problem["status"], &problem["code"]), (&json!(status), &json!(code)), "{body}");
        assert_eq!(problem["type"], format!("urn:portmap:problem:{code}"), "{body}");
        assert!(problem["title"].is_string() && problem["detail"] == problem["message"], "{body}");
        let described: Value = serde_json::from_str(DESCRIPTION).expect("JSON");
        let codes = &described["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
        assert!(codes.as_array().expect("a list").contains(&problem["code"]), "{code} is not described");
    }
}

/// Sends a request to one of the daemon's sockets.
fn ask(sandbox: &Sandbox, socket: &str, request: &str, head: &str, body: &str) -> Answer {
    let path = sandbox.path("/run/portmap").join(socket);
    let mut stream = UnixStream::connect(path).expect("connected");
    let length = body.len();
    let text = format!(
        "{request} HTTP/1.1\r\nHost: portmap\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n{body}"
    );
    stream.write_all(text.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: format!("{}\r\n", head.to_lowercase()), body: body.to_owned() }
}

const ALL: &str = "portmapd.sock";
const READERS: &str = "readonly.sock";

#[test]
fn api_description_names_every_route() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let served = ask(&sandbox, ALL, "GET /v1/openapi.json", "", "").json();
    let described: Value = serde_json::from_str(DESCRIPTION).expect("JSON");
    assert_eq!(served, described);
    let paths = described["paths"].as_object().expect("an object");
    // In the code, up to the tests.
    let in_code: BTreeSet<&str> =
        ROUTES.split(".route(\"").skip(1).map(|rest| rest.split('"').next().expect("a path")).collect();
    assert_eq!(paths.keys().map(String::as_str).collect::<BTreeSet<_>>(), in_code);
    for (path, item) in paths {
        let answer = ask(&sandbox, ALL, &format!("PUT {}", path.replace("{name}", "web")), "", "");
        answer.expect_problem(405, "method_not_allowed");
        let methods =
            ["get", "post", "patch", "delete"].into_iter().filter(|method| item.get(method).is_some());
        let expected: BTreeSet<String> = methods
            .flat_map(|method| if method == "get" { vec!["get", "head"] } else { vec![method] })
            .map(str::to_owned)
            .collect();
        let allow = answer.head.lines().find_map(|line| line.strip_prefix("allow: "));
        let allowed: BTreeSet<String> =
            allow.expect("an Allow header").split(',').map(|method| method.trim().to_owned()).collect();
        assert_eq!(allowed, expected, "{path}");
        let by_readers = ask(&sandbox, READERS, &format!("PUT {}", path.replace("{name}", "web")), "", "");
        by_readers.expect_problem(403, "read_only");
    }
}

#[test]
fn api_errors_are_problems_with_stable_codes() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "web", "--ports", "31000"]);
    let json = "Content-Type: application/json\r\n";
    for (request, head, body, status, code) in [
        ("GET /v1/containers/none", "", "", 404, "not_found"),
        ("GET /v1/nothing", "", "", 404, "no_such_endpoint"),
        ("GET /", "", "", 404, "no_such_endpoint"),
        ("GET /v1/containers/%FF", "", "", 400, "invalid_request"),
        ("GET /v1/drops?what=ever", "", "", 400, "usage"),
        ("GET /v1/stats", "Accept: text/html, image/*\r\n", "", 406, "not_acceptable"),
        ("POST /v1/containers", "Content-Type: text/plain\r\n", "{}", 415, "unsupported_media_type"),
        ("POST /v1/containers", json, "{", 400, "invalid_request"),
        ("POST /v1/containers", json, r#"{"name":"web"}"#, 409, "conflict"),
        ("POST /v1/containers", json, r#"{"name":"-"}"#, 400, "usage"),
        ("PATCH /v1/containers/web", json, r#"{"colour":"red"}"#, 400, "invalid_request"),
    ] {
        ask(&sandbox, ALL, request, head, body).expect_problem(status, code);
    }
    let answer = ask(&sandbox, ALL, "GET /v1/stats", "Accept: text/html, application/json;q=0.1\r\n", "");
    assert_eq!(answer.status, 200);
}

/// Forwards connections to a port of the host's loopback to the daemon's socket, because schemathesis speaks TCP.
/// Every thread ends with its connection; the listener lives as long as the test.
fn forward(sandbox: &Sandbox) -> u16 {
    let listener = sandbox.inside(Netns::Host, || TcpListener::bind("127.0.0.1:0")).expect("a port");
    let (port, socket) = (listener.local_addr().expect("an address").port(), sandbox.path("/run/portmap"));
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(daemon) = UnixStream::connect(socket.join(ALL)) else { return };
            let (mut from_client, mut to_daemon) =
                (client.try_clone().expect("a descriptor"), daemon.try_clone().expect("a descriptor"));
            thread::spawn(move || {
                let _ = io::copy(&mut from_client, &mut to_daemon);
                let _ = to_daemon.shutdown(Shutdown::Write);
            });
            thread::spawn(move || {
                let (mut client, mut daemon) = (client, daemon);
                let _ = io::copy(&mut daemon, &mut client);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    port
}

/// Schemathesis sends what the description allows and what it forbids. Every response must be one that it
/// describes: status, media type, schema.
#[test]
fn api_responses_match_the_description() {
    let program = cache::file("schemathesis/bin/st").filter(|file| file.exists());
    let Some(program) = program else {
        not_run("schemathesis is missing: run `cargo xtask setup run`");
        return;
    };
    let sandbox = Sandbox::new();
    let flags = ["--ephemeral-ports-per-container", "16"];
    let _daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &flags].concat());
    sandbox.ok(&["add", "web", "--ports", "31000", "--egress-rate", "100mbit"]);
    let mut command = sandbox.command(Netns::Host, "timeout");
    command.arg("60").arg(program).arg("run");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json"));
    command.args(["--url", &format!("http://127.0.0.1:{}", forward(&sandbox))]);
    // The first ends the daemon, the streams end with the client only.
    command.args(["--exclude-path", "/v1/teardown"]);
    command.args(["--exclude-path", "/v1/drops/events", "--exclude-path", "/v1/events"]);
    // What a request means is beyond a schema: a port that is not managed, both a pid and a path.
    command.args(["--exclude-checks", "positive_data_acceptance"]);
    command.args(["--phases", "coverage,fuzzing", "--max-examples", "10", "--seed", "1"]);
    command.args(["--generation-database", "none", "--request-timeout", "20", "--no-color"]);
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(sandbox.json(&["list"]).as_array().map(Vec::is_empty), Some(false), "the daemon lives");
    sandbox.ok(&["doctor"]);
}

/// A user of the host without privileges, in a group.
struct User<'a> {
    sandbox: &'a Sandbox,
    group: &'a str,
}

impl User<'_> {
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = self.sandbox.command(Netns::Host, "setpriv");
        command.args(["--reuid", UNPRIVILEGED, "--regid", self.group, "--clear-groups", program]);
        command.args(arguments).output().expect("setpriv is part of util-linux")
    }

    /// Runs `portmap`, of which the user has a copy; returns exit code, output and errors.
    fn portmap(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let copy = self.sandbox.path("/run/portmap-of-the-user");
        if !copy.exists() {
            fs::copy(binary("portmap"), &copy).expect("copied");
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("permissions");
        }
        let output = self.run("/run/portmap-of-the-user", arguments);
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

#[test]
fn readers_ask_and_change_nothing() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "web", "--ports", "31000"]);
    let user = User { sandbox: &sandbox, group: UNPRIVILEGED };
    for arguments in
        [&["list"][..], &["show", "web"], &["stats"], &["stats", "web"], &["drops"], &["drops", "web"]]
    {
        // Background packets may be counted meanwhile.
        wait::until("the output of root", || {
            let (code, output, errors) = user.portmap(arguments);
            assert_eq!((code, errors.as_str()), (Some(0), ""), "{arguments:?}: {output}");
            output == sandbox.ok(arguments)
        });
    }
    let before = sandbox.inventory();
    for arguments in [
        &["add", "mine"][..],
        &["del", "web"],
        &["update", "web", "--ports", "31001"],
        &["doctor"],
        &["doctor", "--repair"],
        &["explain", "--from", "web", "--to", "10.0.0.2:80"],
        &["drops", "--follow"],
        &["events"],
        &["teardown"],
    ] {
        let (code, output, errors) = user.portmap(arguments);
        assert_eq!(code, Some(6), "{arguments:?}: {output}{errors}");
        // `doctor` reports it as a finding.
        let said = output + &errors;
        assert!(
            said.contains("this user may not") && said.contains("--socket-group"),
            "{arguments:?}: {said}"
        );
    }
    sandbox.expect_inventory(&before, "after the attempts of a user");
    // A user who holds all connections that there are does not keep root out, nor another user.
    let socket = sandbox.path("/run/portmap").join(READERS);
    let held: Vec<_> = (0..300).map_while(|_| UnixStream::connect(&socket).ok()).collect();
    assert_eq!(user.portmap(&["list"]).0, Some(0), "idle connections make room");
    sandbox.ok(&["list"]);
    drop(held);
    // What the daemon removes at its end, and a user whose daemon has no such socket.
    daemon.stop();
    assert!(!socket.exists());
    let closed = [&DAEMON_FLAGS[..], &["--readonly-socket", "none"]].concat();
    // As if left by a daemon that was killed.
    fs::write(&socket, "").expect("written");
    let daemon = sandbox.daemon_with(&closed);
    assert!(!socket.exists());
    let (code, _, errors) = user.portmap(&["list"]);
    assert!(code == Some(6) && errors.contains("may not use the socket"), "{errors}");
    daemon.stop();
    sandbox.sh(Netns::Host, "rm /run/portmap-of-the-user");
}

/// Opens a pinned map as an ordinary user would: for reading, then for writing; prints what the kernel says.
const OPEN_PIN: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
path = ctypes.create_string_buffer(sys.argv[1].encode())
class Pin(ctypes.Structure):
    _fields_ = [("path", ctypes.c_uint64), ("fd", ctypes.c_uint32), ("flags", ctypes.c_uint32)]
class Element(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("fd", "key", "value", "flags")]
def bpf(command, argument):
    result = libc.syscall(321, command, ctypes.byref(argument), ctypes.sizeof(argument))
    return result if result >= 0 else os.strerror(ctypes.get_errno())
print("write:", bpf(7, Pin(ctypes.addressof(path), 0, 0)))
fd = bpf(7, Pin(ctypes.addressof(path), 0, 8))
if isinstance(fd, str):
    sys.exit("read: " + fd)
key, value = ctypes.c_uint32(31000), ctypes.c_uint64(0)
element = Element(fd, ctypes.addressof(key), ctypes.addressof(value), 0)
bpf(1, element)
print("slot:", value.value >> 32 & 0xffff)
print("update:", bpf(2, element))
"#;

#[test]
fn group_has_full_access_and_reads_maps() {
    let sandbox = Sandbox::new();
    let pins = ["--bpffs-dir", "/run/bpf/portmap"];
    sandbox.sh(Netns::Host, "mkdir -p /run/bpf; mount -t bpf -o mode=0755 bpf /run/bpf");
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--socket-group", "4711"], &pins].concat());
    let member = User { sandbox: &sandbox, group: "4711" };
    let (code, _, errors) = member.portmap(&["add", "web", "--ports", "31000"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(member.portmap(&["doctor"]).0, Some(0));
    let stranger = User { sandbox: &sandbox, group: UNPRIVILEGED };
    assert_eq!(stranger.portmap(&["del", "web"]).0, Some(6));
    let map = "/run/bpf/portmap/v6/maps/pm_ports";
    let opened = |user: &User<'_>| {
        let output = user.run("/usr/bin/python3", &["-c", OPEN_PIN, map]);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let answer = opened(&member);
    assert!(
        answer.contains("write: Permission denied\nslot: 1\nupdate: Operation not permitted"),
        "{answer}"
    );
    assert!(opened(&stranger).contains("read: Permission denied"));
    daemon.stop();
    // Without the flag, only root.
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &pins].concat());
    assert!(opened(&member).contains("read: Permission denied"));
    assert_eq!(member.portmap(&["del", "web"]).0, Some(6));
    daemon.stop();
    let (code, log) = sandbox.refused_daemon(&[&DAEMON_FLAGS[..], &["--socket-group", "no-such"]].concat());
    assert!(code == 2 && log.contains("there is no such group"), "{log}");
    sandbox.ok(&["teardown", "--bpffs-dir", "/run/bpf/portmap"]);
    sandbox.sh(Netns::Host, "umount /run/bpf; rm -r /run/bpf /run/portmap-of-the-user");
}
