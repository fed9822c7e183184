//! `portmap drops`: counts, live samples, and the mark that tracers show.

use std::{
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Stdio},
    sync::mpsc::Receiver,
};

use portmap::{kernel::test_run, paths::Pins};
use portmap_common::{marks::DROP_MARK, names, reason::Reason, slot::veth_ifindex};
use portmap_tests::{
    daemon::Daemon,
    frames::{Frame, TCP},
    lines,
    packet_socket::PacketSocket,
    sandbox::{HOST, HOST_MAC, Netns, OUTSIDE, OUTSIDE_MAC, Sandbox},
    wait,
};
use serde_json::{Value, json};

/// Starts a daemon with containers `a` (31000-31009) and `b` (31010-31019). Without IPv6 they send no
/// packets by themselves.
fn world() -> (Sandbox, Daemon) {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "echo 1 > /proc/sys/net/ipv6/conf/uplink/disable_ipv6");
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
    (sandbox, daemon)
}

/// Sends a frame from a container and waits until the drop is counted under `reason`.
fn drop_one(sandbox: &Sandbox, name: &str, frame: &Frame, reason: &str) {
    let socket = sandbox.inside(Netns::Container(name), || PacketSocket::open("eth0"));
    let before = sandbox.dropped(name, reason);
    socket.send(&frame.bytes());
    wait::until(reason, || sandbox.dropped(name, reason) == before + 1);
}

/// Returns a frame from a port of the host.
fn stolen() -> Frame {
    Frame { from_mac: HOST_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, 22), (OUTSIDE, 8080)) }
}

fn arp() -> Frame {
    Frame { ether_type: 0x0806, ..stolen() }
}

/// A running `portmap drops --follow`, and its output lines.
struct FollowCommand {
    process: Child,
    lines: Receiver<String>,
}

impl FollowCommand {
    /// Starts it and waits until it is subscribed.
    fn start(sandbox: &Sandbox, arguments: &[&str]) -> Self {
        let mut all = vec!["drops", "--follow"];
        all.extend(arguments);
        let mut process = sandbox
            .portmap_command(&all)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let lines = lines::of(process.stdout.take().expect("piped"));
        let follower = Self { process, lines };
        if !all.contains(&"json") {
            let head = follower.line();
            assert!(head.starts_with("TIME") && head.ends_with("PACKET"), "{head}");
        }
        follower
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(wait::LIMIT).expect("a line")
    }

    /// Waits for its exit. Returns the exit code and standard error.
    fn end(self) -> (Option<i32>, String) {
        let output = self.process.wait_with_output().expect("it ends");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    }
}

/// Starts a subscription with JSON output, which prints no line once it is subscribed; packets are dropped
/// until one is reported. Returns the first sample.
fn follow_json(sandbox: &Sandbox, arguments: &[&str]) -> (FollowCommand, Value) {
    let mut all = vec!["-o", "json"];
    all.extend(arguments);
    let follower = FollowCommand::start(sandbox, &all);
    let line = wait::for_value("the first sample", || {
        drop_one(sandbox, "a", &stolen(), "source_port");
        follower.lines.try_recv().ok()
    });
    (follower, serde_json::from_str(&line).expect("JSON"))
}

#[test]
fn drops_are_empty_at_first() {
    let (sandbox, _daemon) = world();
    // Unsolicited packets of the containers' own stacks would be dropped, too.
    let drops = sandbox.json(&["drops", "outside"]);
    assert_eq!(drops, json!([]));
    assert_eq!(sandbox.ok(&["drops", "outside"]), "no packets were dropped\n");
}

#[test]
fn drops_are_listed_by_container_direction_and_reason() {
    let (sandbox, _daemon) = world();
    drop_one(&sandbox, "a", &stolen(), "source_port");
    drop_one(&sandbox, "a", &stolen().protocol(TCP), "source_port");
    drop_one(&sandbox, "a", &arp(), "arp");
    drop_one(&sandbox, "b", &arp(), "arp");
    let socket = sandbox.inside(Netns::Outside, || PacketSocket::open("eth0"));
    let claimed = Frame { from_mac: OUTSIDE_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, 5), (HOST, 31000)) };
    socket.send(&claimed.bytes());
    wait::until("the drop", || sandbox.json(&["drops", "outside"]) != json!([]));
    let count = |name, direction, reason: Reason, packets| {
        json!({
            "name": name, "direction": direction, "reason": reason.name(), "packets": packets,
            "text": reason.text(),
        })
    };
    let of_a = [count("a", "tx", Reason::Arp, 1), count("a", "tx", Reason::SourcePort, 2)];
    let of_b = [count("b", "tx", Reason::Arp, 1)];
    let of_outside = [count("outside", "rx", Reason::SourceAddress, 1)];
    assert_eq!(sandbox.json(&["drops"]), json!([of_a[0], of_a[1], of_b[0], of_outside[0]]));
    assert_eq!(sandbox.json(&["drops", "a"]), json!(of_a));
    assert_eq!(sandbox.json(&["drops", "outside"]), json!(of_outside));
    assert_eq!(
        sandbox.ok(&["drops", "a"]),
        "\
NAME  DIRECTION  REASON       PACKETS  WHY
a     tx         arp                1  The frame is ARP, which only the host handles.
a     tx         source_port        2  The source port is not owned by the sending container.
"
    );
}

#[test]
fn drops_refuses_unknown_names_and_queries() {
    let (sandbox, daemon) = world();
    for arguments in [&["drops", "absent"][..], &["drops", "absent", "--follow"], &["drops", "../stats"]] {
        let errors = sandbox.fails(arguments, 3);
        assert!(errors.contains(&format!("{:?}", arguments[1])), "{errors}");
    }
    for path in ["/v1/drops?nmae=a", "/v1/drops/events?nmae=a"] {
        let mut stream = UnixStream::connect(sandbox.path("/run/portmap/portmapd.sock")).expect("connected");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: portmap\r\nConnection: close\r\n\r\n").expect("sent");
        let answer = std::io::read_to_string(stream).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("nmae"), "{answer}");
    }
    daemon.stop();
    for arguments in [&["drops"][..], &["drops", "--follow"]] {
        let errors = sandbox.fails(arguments, 5);
        assert!(errors.contains("no daemon responds"), "{errors}");
    }
}

#[test]
fn drop_stream_shows_drops_live() {
    let (sandbox, _daemon) = world();
    // A drop before the first subscription.
    drop_one(&sandbox, "a", &arp(), "arp");
    let all = FollowCommand::start(&sandbox, &[]);
    let of_b = FollowCommand::start(&sandbox, &["b"]);
    drop_one(&sandbox, "a", &stolen(), "source_port");
    drop_one(&sandbox, "b", &arp(), "arp");
    let line = all.line();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        words[1..],
        ["a", "source_port", "udp", "49", "0", "10.0.0.1:22", ">", "10.0.0.2:8080"],
        "{line}"
    );
    for line in [all.line(), of_b.line()] {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1..], ["b", "arp", "0x0806", "49", "0", "-"], "{line}");
    }
    // A subscription that ends affects neither the others nor later ones.
    for mut left in [of_b, all] {
        drop_one(&sandbox, "b", &stolen(), "source_port");
        assert!(left.line().contains("source_port"));
        left.process.kill().expect("killed");
        left.process.wait().expect("ended");
    }
    let again = FollowCommand::start(&sandbox, &["outside"]);
    drop_one(&sandbox, "b", &stolen(), "source_port");
    let socket = sandbox.inside(Netns::Outside, || PacketSocket::open("eth0"));
    let claimed = Frame { from_mac: OUTSIDE_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, 5), (HOST, 31000)) };
    socket.send(&claimed.bytes());
    let line = again.line();
    assert!(line.contains("outside") && line.ends_with("10.0.0.1:5 > 10.0.0.1:31000"), "{line}");
}

#[test]
fn drop_stream_json_has_local_time() {
    let (sandbox, _daemon) = world();
    let now = || sandbox.sh(Netns::Host, "date +%Y-%m-%dT%H:%M:%S").trim().to_owned();
    let before = now();
    let (_follower, mut sample) = follow_json(&sandbox, &["a"]);
    let time = sample["time"].take();
    let time = time.as_str().expect("a time");
    let zone = sandbox.sh(Netns::Host, "date +%:z");
    assert!(time.ends_with(zone.trim()) && time.len() == before.len() + ".000+00:00".len(), "{time}");
    assert!(before.as_str() <= time && time[..before.len()] <= *now(), "{before} {time}");
    assert_eq!(
        sample,
        json!({
            "time": null, "name": "a", "reason": "source_port", "source": "10.0.0.1", "source_port": 22,
            "destination": "10.0.0.2", "destination_port": 8080, "protocol": "udp", "length": 49,
            "suppressed": 0,
        })
    );
}

#[test]
fn drop_stream_counts_suppressed_packets() {
    let (sandbox, _daemon) = world();
    let (follower, _first) = follow_json(&sandbox, &["a"]);
    let socket = sandbox.inside(Netns::Container("a"), || PacketSocket::open("eth0"));
    // More drops than the sampling limit, then single ones until sampling resumes.
    for _ in 0..200 {
        socket.send(&stolen().bytes());
    }
    let (mut shown, mut suppressed) = (1, 0);
    wait::until("a sample after those that were left out", || {
        drop_one(&sandbox, "a", &stolen(), "source_port");
        for line in follower.lines.try_iter() {
            let sample: Value = serde_json::from_str(&line).expect("JSON");
            shown += 1;
            suppressed += sample["suppressed"].as_u64().expect("a number");
        }
        suppressed > 0
    });
    let dropped = sandbox.dropped("a", "source_port");
    assert!(shown + suppressed <= dropped, "{shown} shown, {suppressed} suppressed, {dropped} dropped");
    assert!(shown + suppressed > 200, "{shown} shown, {suppressed} suppressed, {dropped} dropped");
}

#[test]
fn drop_stream_ends_with_the_daemon() {
    let (sandbox, daemon) = world();
    let stopped = FollowCommand::start(&sandbox, &[]);
    let also_stopped = FollowCommand::start(&sandbox, &["a"]);
    daemon.stop();
    let daemon = sandbox.daemon();
    let torn_down = FollowCommand::start(&sandbox, &[]);
    sandbox.ok(&["teardown"]);
    daemon.wait();
    let daemon = sandbox.daemon();
    let killed = FollowCommand::start(&sandbox, &[]);
    daemon.kill();
    for follower in [stopped, also_stopped, torn_down, killed] {
        let (code, errors) = follower.end();
        assert_eq!(code, Some(5), "{errors}");
        assert!(
            errors.contains("portmapd.sock closed the connection") && errors.lines().count() == 1,
            "{errors}"
        );
    }
}

#[test]
fn drop_stream_ends_with_its_reader() {
    let (sandbox, _daemon) = world();
    for output in ["table", "json"] {
        // No packet is dropped, hence no output: the client must detect the closed pipe by itself.
        let script = "\"$0\" -o \"$1\" drops outside --follow | true";
        let mut command = sandbox.command(Netns::Host, "timeout");
        let portmap = portmap_tests::sandbox::binary("portmap");
        let status =
            command.args(["600", "sh", "-c", script]).arg(portmap).arg(output).status().expect("a shell");
        assert!(status.success());
    }
}

#[test]
fn drop_reasons_match_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/drops.md");
    let text = fs::read_to_string(path).expect("documentation");
    let documented: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("| number |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let reasons: Vec<String> = Reason::ALL
        .iter()
        .map(|reason| format!("| {} | `{}` | {} |", *reason as u8, reason.name(), reason.text()))
        .collect();
    assert_eq!(documented, reasons);
}

#[test]
fn drop_mark_carries_the_reason() {
    const SHOT: i32 = 2;
    let (sandbox, _daemon) = world();
    let pins = Pins::new(sandbox.path("/sys/fs/bpf/portmap"));
    let other_mac = Frame { from_mac: OUTSIDE_MAC, ..stolen() };
    for (frame, reason) in
        [(stolen(), Reason::SourcePort), (arp(), Reason::Arp), (other_mac, Reason::SourceMac)]
    {
        let bytes = frame.bytes();
        let run = sandbox
            .inside(Netns::Host, || {
                test_run::run(&pins, names::PROG_VETH_INGRESS, &bytes, veth_ifindex(1), 0)
            })
            .expect("the kernel runs it");
        assert_eq!((run.code, run.mark()), (SHOT, DROP_MARK | reason as u32), "{}", reason.name());
        assert_eq!(sandbox.dropped("a", reason.name()), 1, "{}", reason.name());
    }
}
