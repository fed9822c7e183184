//! Output, errors and exit codes of the daemon and the command line.

use std::{io::Write as _, os::unix::net::UnixStream, process::Stdio};

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, Netns, Sandbox, binary},
    service::{Service, Transport},
    wait,
};
use serde_json::json;

/// Returns [`DAEMON_FLAGS`] with overrides.
fn flags<'a>(changed: &[&'a str]) -> Vec<&'a str> {
    // The last occurrence of a flag wins.
    DAEMON_FLAGS.iter().chain(changed).copied().collect()
}

#[test]
fn add_show_and_list_print_the_container() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let added = sandbox.json(&["add", "web", "--ports", "31500,31000-31004"]);
    let inode = sandbox.namespace(Netns::Container("web")).id().expect("a namespace").inode;
    let expected = json!({
        "name": "web", "slot": 1, "netns": "/run/netns/web", "netns_inode": inode, "pid": null, "host_veth": "pm1",
        "interface": "eth0", "mac": "02:00:00:00:01:01", "mtu": 1500, "ip": "10.0.0.1",
        "ip6": "2001:db8:0:1::1",
        "ports": [[31000, 31004], [31500, 31500]], "automatic_ports": [], "ephemeral_ports": [61440, 62463],
        "draining_ports": [], "egress": null, "ingress": null, "loopback": "shared", "labels": {}, "state": "ready",
    });
    let mut with_warnings = expected.clone();
    with_warnings["warnings"] = json!([]);
    assert_eq!(added, with_warnings);
    assert_eq!(sandbox.json(&["show", "web"]), expected);
    assert_eq!(sandbox.json(&["list"]), json!([expected]));
    assert_eq!(
        sandbox.ok(&["show", "web"]),
        "\
name               web
slot               1
state              ready
address            10.0.0.1
IPv6 address       2001:db8:0:1::1
ports              31000-31004,31500
ephemeral ports    61440-62463
network namespace  /run/netns/web
host veth          pm1
interface          eth0
sends at most      -
receives at most   -
loopback           shared
labels             -
"
    );
    sandbox.ok(&["del", "web"]);
    assert_eq!(sandbox.json(&["list"]), json!([]));
}

#[test]
fn labels_are_kept_shown_and_changed() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let labels = ["--label", "framework_id=f-1", "--label", "executor_name=Task 1", "--label", "source="];
    let added = sandbox.json(&[&["add", "a"][..], &labels[..4]].concat());
    assert_eq!(added["labels"], json!({"framework_id": "f-1", "executor_name": "Task 1"}));
    daemon.kill();
    let _daemon = sandbox.daemon();
    let shown = sandbox.ok(&["show", "a"]);
    let expected = "\
labels             executor_name=Task 1
                   framework_id=f-1
";
    assert!(shown.ends_with(expected), "{shown}");
    let changed = sandbox.json(&["update", "a", "--label", "framework_id=", "--label", "team=x"]);
    assert_eq!(changed["labels"], json!({"executor_name": "Task 1", "team": "x"}));
    let many: Vec<String> = (0..15).map(|number| format!("--label=k{number}=v")).collect();
    let many = [&["update", "a"][..], &many.iter().map(String::as_str).collect::<Vec<_>>()].concat();
    let errors = sandbox.fails(&many, 2);
    assert!(errors.contains("17 labels: expected at most 16"), "{errors}");
    // The failed update holds nothing.
    assert_eq!(sandbox.json(&["update", "a", "--label", "team=y"])["labels"]["team"], "y");
    let errors = sandbox.fails(&[&["add", "b"][..], &labels[4..]].concat(), 2);
    assert!(errors.contains("the label source has no value"), "{errors}");
    let printed = sandbox.ok(&["run", "--name=c", "--label=team=z", "--", "sleep", "0"]);
    assert_eq!(printed, "");
}

#[test]
fn ephemeral_bind_yields_own_port() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ephemeral-ports-per-container", "16"]);
    sandbox.ok(&["add", "b", "--ephemeral-ports-per-container", "32"]);
    for (name, first, last) in [("a", 61440, 61455), ("b", 61472, 61503)] {
        let ports = sandbox.inside(Netns::Container(name), || {
            let bind = || std::net::UdpSocket::bind("0.0.0.0:0");
            let sockets: Vec<_> = (0..16).map(|_| bind().expect("a port is free")).collect();
            sockets.iter().map(|socket| socket.local_addr().expect("bound").port()).collect::<Vec<_>>()
        });
        assert!(ports.iter().all(|port| (first..=last).contains(port)), "{name}: {ports:?}");
    }
}

#[test]
fn errors_are_one_line_with_an_exit_code() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    sandbox.sh(Netns::Host, "ip netns add taken");
    for (arguments, code, expected) in [
        (&["show", "absent"][..], 3, "\"absent\""),
        (&["del", "absent"], 3, "\"absent\""),
        (&["stats", "absent"], 3, "\"absent\""),
        (&["exec", "absent", "--", "true"], 3, "\"absent\""),
        (&["show", "../stats"], 3, "../stats"),
        (&["add", "a"], 4, "already called \"a\""),
        (&["add", "b", "--ports", "31009-31010"], 4, "31009 are owned by container \"a\""),
        (&["add", "b", "--ports", "30999-31010"], 2, "does not manage the ports 30999"),
        (&["add", "b", "--ephemeral-ports-per-container", "8"], 2, "at least 16"),
        (&["add", "b", "--ephemeral-ports-per-container", "1000"], 2, "power of two"),
        (&["add", "b", "--ephemeral-ports-per-container", "8192"], 4, "no aligned block of 8192"),
        (&["add", "../b"], 2, "\"../b\" cannot be a container's name"),
        (&["add", "b", "--netns", "/run/netns/nowhere"], 2, "/run/netns/nowhere does not exist"),
        (&["add", "b", "--netns", "/etc/passwd"], 2, "/etc/passwd is not a network namespace"),
        (&["add", "b", "--netns", "/proc/self/ns/mnt"], 2, "/proc/self/ns/mnt"),
        (&["add", "b", "--pid", "1"], 2, "the host's own network namespace"),
        (&["add", "b", "--pid", "4000000"], 2, "/proc/4000000/ns/net does not exist"),
        (&["add", "taken"], 4, "/run/netns/taken exists already"),
        (&["add", "host"], 2, "\"host\" cannot be a container's name"),
        (&["add", "outside"], 2, "\"outside\" cannot be a container's name"),
    ] {
        let errors = sandbox.fails(arguments, code);
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
    // Errors of clap have more than one line.
    for arguments in
        [&["add", "b", "--ports", "31000-"][..], &["add"], &["frobnicate"], &["add", "b", "--egress", "1"]]
    {
        assert_eq!(sandbox.portmap(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let errors = String::from_utf8(sandbox.portmap(&["add", "b", "--ports", "31000-"]).stderr).expect("text");
    assert!(errors.contains("\"31000-\" in the port list"), "{errors}");
    // Nothing is left behind: a valid request gets the first free slot and block.
    assert_eq!(sandbox.json(&["list"]).as_array().map(Vec::len), Some(1));
    let container = sandbox.json(&["add", "b", "--ports", "31010"]);
    assert_eq!((&container["slot"], &container["ephemeral_ports"]), (&json!(2), &json!([62464, 63487])));
    sandbox.sh(Netns::Host, "test \"$(ls /run/netns | sort | tr '\\n' ' ')\" = 'a b outside taken '");
}

#[test]
fn ephemeral_ports_are_exhausted_and_released() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    for name in ["a", "b", "c", "d"] {
        sandbox.ok(&["add", name]);
    }
    let errors = sandbox.fails(&["add", "e"], 4);
    assert!(errors.contains("4096 of 4096 ports are in use"), "{errors}");
    sandbox.ok(&["del", "b"]);
    assert_eq!(sandbox.json(&["add", "e"])["ephemeral_ports"], json!([62464, 63487]));
}

#[test]
fn run_returns_the_exit_code_and_cleans_up() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + 15)] {
        let output = sandbox.portmap(&["run", "--ports", "31000", "--", "sh", "-c", script]);
        assert_eq!(output.status.code(), Some(code), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(sandbox.portmap(&["run", "--", "no-such-command"]).status.code(), Some(127));
    assert_eq!(sandbox.portmap(&["run", "--", "/etc/passwd"]).status.code(), Some(126));
    let inside = sandbox.ok(&["run", "--name", "job", "--", "sh", "-c", "ip -br address show eth0"]);
    assert!(inside.contains("10.0.0.1/24"), "{inside}");
    assert_eq!(sandbox.json(&["list"]), json!([]));
    assert_eq!(sandbox.sh(Netns::Host, "ls /run/netns"), "outside\n");
}

#[test]
fn run_terminates_its_command() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    // The child of nsenter is portmap itself.
    let mut run = sandbox
        .portmap_command(&[
            "run",
            "--name",
            "job",
            "--",
            "sh",
            "-c",
            "trap 'exit 9' TERM; touch /run/started; while :; do sleep 0.05; done",
        ])
        .stderr(Stdio::null())
        .spawn()
        .expect("the command runs");
    wait::until("the command to run", || sandbox.path("/run/started").exists());
    sandbox.sh(Netns::Host, "pkill -TERM -x portmap");
    assert_eq!(run.wait().expect("it ends").code(), Some(9));
    assert_eq!(sandbox.json(&["list"]), json!([]));
}

#[test]
fn exec_runs_in_the_container() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a"]);
    let inside = sandbox.ok(&["exec", "a", "--", "readlink", "/proc/self/ns/net"]);
    assert_eq!(inside, sandbox.sh(Netns::Container("a"), "readlink /proc/self/ns/net"));
    assert_ne!(inside, sandbox.sh(Netns::Host, "readlink /proc/self/ns/net"));
    assert_eq!(sandbox.portmap(&["exec", "a", "--", "sh", "-c", "exit 5"]).status.code(), Some(5));
    for (command, code) in [("no-such-command", 127), ("/etc/passwd", 126)] {
        assert!(sandbox.fails(&["exec", "a", "--", command], code).contains(command));
    }
    for arguments in [&["exec", "a", "true"][..], &["exec", "a"], &["run", "true"], &["run"]] {
        let errors = sandbox.fails(arguments, 2);
        assert!(errors.contains("the command must follow `--`: portmap "), "{arguments:?}: {errors}");
    }
}

#[test]
fn daemon_absent_gives_exit_code_5() {
    let sandbox = Sandbox::new();
    for arguments in [
        &["list"][..],
        &["add", "a"],
        &["del", "a"],
        &["run", "--", "true"],
        &["--state-dir", "/nowhere", "list"],
    ] {
        let errors = sandbox.fails(arguments, 5);
        assert!(errors.contains("no daemon responds"), "{errors}");
    }
    let output = sandbox.portmap(&["doctor"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).contains("no daemon responds"));
}

#[test]
fn permission_of_root_is_required() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let unprivileged = |program: &str, arguments: &[&str]| {
        let path = binary(program);
        // Only root may be able to read the build directory.
        sandbox.sh(Netns::Host, &format!("cp {} /run/{program}-copy", path.display()));
        let output = sandbox
            .command(Netns::Host, "setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", &format!("/run/{program}-copy")])
            .args(arguments)
            .output()
            .expect("setpriv");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, errors) = unprivileged("portmap", &["del", "web"]);
    assert_eq!(code, Some(6), "{errors}");
    assert!(
        errors.contains("this user may not do that: run as root")
            && errors.contains("the request was DELETE /v1/containers/web")
            && errors.lines().count() == 1,
        "{errors}"
    );
    let (code, errors) = unprivileged("portmapd", &flags(&["--state-dir", "/run/other"]));
    assert_eq!(code, Some(6), "{errors}");
    assert!(errors.contains("run it as root") && errors.lines().count() == 1, "{errors}");
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let sandbox = Sandbox::new();
    for (changed, code, expected) in [
        (&["--ports", "31000-"][..], 2, "\"31000-\""),
        (&["--ports", "55000-55010"], 2, "the ports 55000-55010"),
        (&["--ephemeral-ports", "59000-62000"], 2, "59000-60000"),
        (&["--ephemeral_ports", "1000-2047"], 2, "well-known"),
        (
            &["--uplink", "nowhere"],
            2,
            "no interface is selected by --uplink \"nowhere\"; the host has these: uplink;",
        ),
        (
            &["--uplink", "eth*", "--uplink=b?"],
            2,
            "by --uplink \"eth*\", \"b?\"; the host has these: uplink; name one",
        ),
        (&["--uplink", "a/b"], 2, "--uplink \"a/b\": expected the name of an interface"),
        (&["--uplink", "lo"], 2, "the uplink lo is the loopback device"),
        (&["--listen", "127.0.0.1:31000"], 2, "the daemon's own port"),
        (&["--lo_name=uplink"], 2, "--lo-name \"uplink\" is not the loopback interface: expected \"lo\""),
        (&["--isolation=cgroups/mem,network/port_mapping"], 2, "unsupported isolator \"cgroups/mem\""),
        (&["--bpffs-dir", "/run/bpf"], 1, "/run/bpf is not in a bpffs"),
        (&["--listen", "192.0.2.99:5051"], 1, "192.0.2.99:5051"),
    ] {
        let (seen, log) = sandbox.refused_daemon(&flags(changed));
        assert_eq!(seen, code, "{changed:?}: {log}");
        assert!(log.lines().last().is_some_and(|line| line.contains(expected)), "{changed:?}: {log}");
    }
    sandbox.sh(Netns::Host, "ip route del default; ip -6 route del default");
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("no default route, but these interfaces: uplink;"), "{log}");
    assert!(log.contains("name the uplink with --uplink"), "{log}");
    sandbox.sh(Netns::Host, "ip address flush dev uplink");
    let (code, log) = sandbox.refused_daemon(&flags(&["--uplink", "uplink"]));
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("uplink has no IPv4 address"), "{log}");
    sandbox.sh(Netns::Host, "while umount /sys/fs/bpf 2>/dev/null; do :; done");
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("mount -t bpf bpf /sys/fs/bpf"), "{log}");
}

#[test]
fn state_dir_belongs_to_one_daemon() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("another portmapd"), "{log}");
}

#[test]
fn host_listener_is_named_with_its_process() {
    let sandbox = Sandbox::new();
    let _service = Service::start(&sandbox, Netns::Host, Transport::Tcp, 31007, "host");
    // Inside the sandbox's pid namespace, so that the daemon can find the process's name.
    let mut inside = sandbox
        .command(Netns::Host, "sh")
        .args([
            "-c",
            "exec python3 -c 'import socket,time; s=socket.socket(); \
            s.bind((\"\",31008)); s.listen(); time.sleep(600)'",
        ])
        .spawn()
        .expect("a shell");
    wait::until("the socket", || sandbox.sh(Netns::Host, "cat /proc/net/tcp").contains(":7920 "));
    let daemon = sandbox.daemon();
    wait::until("the start to name them", || {
        let (log, python) =
            (daemon.log(), |line: &str| line.contains("python3 (pid ") && line.contains("TCP port 31008"));
        log.contains("an unknown process uses TCP port 31007") && log.lines().any(python)
    });
    let doctor = sandbox.ok(&["doctor"]);
    assert!(doctor.contains("TCP port 31008"), "{doctor}");
    let error = sandbox.fails(&["add", "a", "--ports", "31008"], 4);
    assert!(error.contains("TCP port 31008 by python3 (pid "), "{error}");
    inside.kill().expect("killed");
    inside.wait().expect("ended");
}

#[test]
fn http_invalid_requests_are_refused() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let ask = |request: &str, body: &str| {
        let mut stream = UnixStream::connect(sandbox.path("/run/portmap/portmapd.sock")).expect("connected");
        let head = "Host: portmap\r\nConnection: close\r\nContent-Type: application/json\r\n";
        write!(stream, "{request} HTTP/1.1\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len())
            .expect("sent");
        std::io::read_to_string(stream).expect("an answer")
    };
    for (request, body, status, expected) in [
        ("GET /healthz", "", "200", "ok"),
        ("GET /nothing", "", "404", "no such endpoint: /nothing"),
        ("PUT /v1/containers", "{}", "405", "no method PUT"),
        ("POST /v1/containers", "{", "400", "usage"),
        ("POST /v1/containers", "{}", "400", "name"),
        ("POST /v1/containers", "{\"name\":\"a\",\"prots\":[]}", "400", "prots"),
        ("POST /v1/containers", "{\"name\":\"a\",\"ports\":[[5,4]]}", "400", "reversed"),
        ("POST /v1/containers", "{\"name\":\"a\",\"ports\":[[0,4]]}", "400", "port 0"),
        ("POST /v1/containers", "{\"name\":\"a\",\"netns\":\"x\"}", "400", "relative path"),
        ("POST /v1/containers", "{\"name\":\"a\",\"ports\":[[1,70000]]}", "400", "70000"),
        ("GET /v1/containers/absent", "", "404", "absent"),
    ] {
        let answer = ask(request, body);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(expected),
            "{request} {body}: {answer}"
        );
    }
    assert_eq!(sandbox.json(&["list"]), json!([]));
}

#[test]
fn settings_are_read_from_a_file() {
    let sandbox = Sandbox::new();
    let toml =
        "uplink = \"uplink\"\nports = \"31000\"\nephemeral-ports = \"61440-65535\"\nlisten = \"none\"\n";
    sandbox.sh(Netns::Host, &format!("printf '{}' > /run/portmap.toml", toml.replace('\n', "\\n")));
    let _daemon = sandbox.daemon_with(&["--config", "/run/portmap.toml", "--ports", "32000"]);
    sandbox.ok(&["add", "a", "--ports", "32000"]);
    sandbox.fails(&["add", "b", "--ports", "31000"], 2);
}

#[test]
fn completions_are_printed() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(sandbox.ok(&["completions", shell]).contains("portmap"), "{shell}");
        // The reader may close the pipe early, and the device may be full.
        let portmap = binary("portmap");
        let script = format!("{} completions {shell}", portmap.display());
        for (to, expected) in [("| true", "0"), ("> /dev/full", "1")] {
            let script = format!("{script} {to}; echo ${{PIPESTATUS[0]}}");
            let output = sandbox.command(Netns::Host, "bash").args(["-c", &script]).output().expect("bash");
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{shell} {to}");
            let lines = String::from_utf8_lossy(&output.stderr).lines().count();
            assert_eq!(lines, usize::from(expected == "1"), "{output:?}");
        }
    }
}

#[test]
fn resources_unused_parts_are_named() {
    let sandbox = Sandbox::new();
    let resources = ["--resources", "ports:[100-200];ephemeral_ports:[50000-51023];cpus:4;mem:1"];
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &resources].concat());
    let log = daemon.log();
    for (flag, ports) in
        [("--ports 31000-32000", "100-200"), ("--ephemeral-ports 61440-65535", "50000-51023")]
    {
        assert!(
            log.contains(&format!("{flag} overrides these ports in --resources, {ports}")),
            "{flag} {ports}: {log}"
        );
    }
    assert!(log.contains("--resources: ignoring mem"), "{log}");
}
