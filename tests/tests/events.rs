//! `portmap events`: which changes it reports, in which order, and for which request.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
};

use portmap_tests::{
    events::Events,
    sandbox::{DAEMON_FLAGS, Netns, Sandbox, binary},
    wait,
};
use serde_json::{Value, json};

#[test]
fn events_report_each_change_with_its_request() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let events = Events::follow(&sandbox, &[]);
    let of_b = Events::follow(&sandbox, &["b"]);
    sandbox.ok(&["add", "a", "--ports", "31000-31001", "--egress-rate", "1000KB", "--label", "team=shop"]);
    let added = events.expect("added", "a");
    let container = json!({
        "name": "a", "slot": 1, "state": "ready", "ports": [[31000, 31001]], "ephemeral_ports": [61440, 62463],
        "egress_rate": 1_024_000, "ingress_rate": null, "labels": {"team": "shop"},
    });
    assert_eq!(added["container"], container);
    assert!(added["request"]["uid"] == 0 && added["request"]["pid"].is_u64(), "{added}");
    sandbox.ok(&["update", "a", "--ports", "31002"]);
    let updated = events.expect("updated", "a");
    assert_eq!(updated["container"]["ports"], json!([[31002, 31002]]));
    assert_eq!(updated["seq"].as_u64(), added["seq"].as_u64().map(|seq| seq + 1));
    assert_ne!(updated["request"]["id"], added["request"]["id"]);
    // One change, one event, however many steps it has.
    sandbox.ok(&["update", "a", "--ephemeral-ports-per-container", "2048"]);
    let block = events.expect("updated", "a");
    assert_eq!(block["container"]["ephemeral_ports"], json!([61440, 63487]));
    assert_eq!(block["seq"].as_u64(), updated["seq"].as_u64().map(|seq| seq + 1));
    sandbox.ok(&["update", "a", "--ephemeral-ports-per-container", "1024"]);
    let block = events.expect("updated", "a");
    assert_eq!(block["container"]["ephemeral_ports"], json!([61440, 62463]));
    sandbox.fails(&["add", "b", "--ports", "31002"], 4);
    for stream in [&events, &of_b] {
        let failed = stream.expect("failed", "b");
        let text = failed["text"].as_str().expect("a text");
        assert!(text.contains("31002") && text.contains("\"a\""), "{text}");
    }
    // The log names the request, too.
    let id = &updated["request"]["id"];
    let line = wait::for_value("the line of the log", || {
        let log = daemon.log();
        log.lines().find(|line| line.contains("\"a\": updated")).map(str::to_owned)
    });
    assert!(line.contains(&format!("request{{id={id} uid=0 pid=")), "{line}");
    sandbox.ok(&["del", "a"]);
    events.expect("removed", "a");
    // A namespace that ends: no request.
    sandbox.ok(&["add", "c"]);
    events.expect("added", "c");
    sandbox.sh(Netns::Host, "ip netns del c");
    let removed = events.expect("removed", "c");
    assert_eq!(removed["request"], Value::Null);
    // Another address on the same network would go with the first one.
    sandbox.sh(
        Netns::Host,
        "ip address del 10.0.0.1/24 dev uplink; ip address add 10.0.0.99/24 dev uplink; \
         ip route replace default via 10.0.0.2",
    );
    let changed = events.next();
    assert_eq!(changed["event"], "host_changed", "{changed}");
    assert_eq!(of_b.next()["event"], "host_changed", "no container's");
    daemon.stop();
    events.wait_for("\"stopping\"");
}

/// Asks for the stream of events. Returns the connection after the first bytes of the response, with those.
fn stream(sandbox: &Sandbox) -> (UnixStream, String) {
    let path = sandbox.path("/run/portmap").join("portmapd.sock");
    let mut stream = UnixStream::connect(path).expect("connected");
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: portmap\r\n\r\n").expect("sent");
    let mut begin = [0; 1024];
    let length = stream.read(&mut begin).expect("a response");
    (stream, String::from_utf8_lossy(&begin[..length]).into_owned())
}

#[test]
fn events_streams_are_limited() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let open: Vec<_> = (0..64).map(|_| stream(&sandbox)).collect();
    assert!(open.iter().all(|(_, begin)| begin.starts_with("HTTP/1.1 200")), "{open:?}");
    let error = sandbox.fails(&["events"], 4);
    assert!(error.contains("64 clients follow events"), "{error}");
    drop(open);
    // The daemon notices the end of a client by its connection.
    wait::until("room for another stream", || stream(&sandbox).1.starts_with("HTTP/1.1 200"));
}

/// Under systemd a line has the priority of its level in front, and no time.
#[test]
fn log_has_priorities_for_journald() {
    let sandbox = Sandbox::new();
    let daemon = binary("portmapd");
    let script = format!(
        "exec 2> /run/log; export JOURNAL_STREAM=$(stat -Lc %d:%i /dev/fd/2); exec {} --uplink absent {}",
        daemon.display(),
        DAEMON_FLAGS.join(" ")
    );
    let mut command = sandbox.command(Netns::Host, "sh");
    let status = command.args(["-c", &script]).status().expect("a shell");
    assert!(!status.success());
    let log = sandbox.sh(Netns::Host, "cat /run/log; rm /run/log");
    assert!(log.lines().any(|line| line.starts_with("<3>") && line.contains("\"absent\"")), "{log}");
    assert!(log.lines().all(|line| line.starts_with('<') && !line.contains("ERROR")), "{log}");
}
