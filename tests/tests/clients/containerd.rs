//! containerd 1.6 by `ctr run --cni`.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
};

use portmap_tests::{
    sandbox::{Netns, Sandbox},
    wait,
};
use serde_json::json;

use super::engine::{DIRECTORY, Engine, printed, succeed};

/// The configuration of a containerd apart from the machine's.
const CONFIG: &str = r#"
version = 2
root = "/run/engine/containerd/root"
state = "/run/engine/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "/run/engine/containerd.sock"
[ttrpc]
address = "/run/engine/containerd.ttrpc.sock"
"#;

/// containerd in a sandbox; it is killed on drop.
struct Containerd<'a> {
    engine: Engine<'a>,
    process: Child,
}

impl<'a> Containerd<'a> {
    fn new(sandbox: &'a Sandbox) -> Self {
        let engine = Engine::new(sandbox);
        engine.write("containerd.toml", CONFIG);
        let log = File::create(sandbox.path(DIRECTORY).join("containerd.log")).expect("a log");
        let mut command = sandbox.command(Netns::Host, "containerd");
        command.args(["--config", &format!("{DIRECTORY}/containerd.toml")]).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().expect("it runs");
        let containerd = Self { engine, process };
        wait::until("containerd to listen", || {
            containerd.ctr(&["version"]).output().is_ok_and(|output| output.status.success())
        });
        containerd
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = self.engine.sandbox.command(Netns::Host, "ctr");
        command.args(["--address", &format!("{DIRECTORY}/containerd.sock")]).args(arguments);
        command
    }

    fn ok(&self, arguments: &[&str]) -> String {
        succeed(&mut self.ctr(arguments))
    }

    /// `ctr run --cni` of a web server. ctr passes no port mappings, so the server listens on the first of the
    /// container's ephemeral ports.
    fn run(&self, name: &str, options: &[&str]) -> Command {
        let mut command = self.ctr(&["run", "--cni", "--cgroup", &format!("/{}/{name}", self.engine.cgroup)]);
        command.args(options).args(["--rootfs", &format!("{DIRECTORY}/rootfs"), name, "/bin/sh", "-c"]);
        command.arg(format!(
            "set -- $(/bin/busybox cat /proc/sys/net/ipv4/ip_local_port_range); exec /bin/httpd -f -p $1 -h /www/{name}"
        ));
        command
    }

    /// Waits until a container of [`Self::run`] serves the outside.
    fn expect_page(&self, name: &str) {
        let id = format!("default-{name}");
        wait::until("the network to have the container", || self.engine.containers().contains(&id));
        let first = self.engine.sandbox.json(&["show", &id])["ephemeral_ports"][0].as_u64();
        self.engine.expect_page(first.and_then(|port| u16::try_from(port).ok()).expect("a port"), name);
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        // `nsenter` waits for it. The sandbox ends what containerd has started.
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let children = fs::read_to_string(children).unwrap_or_default();
        let _ = Command::new("kill").arg("-KILL").args(children.split_whitespace()).status();
        let _ = self.process.wait();
    }
}

#[test]
fn containerd_task_uses_the_network() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let containerd = Containerd::new(&sandbox);
    succeed(&mut containerd.run("one", &["-d"]));
    containerd.expect_page("one");
    let shown = sandbox.json(&["show", "default-one"]);
    assert_eq!(shown["labels"], json!({ "cni.network": "portmap" }));
    let netns = shown["netns"].as_str().expect("a path");
    assert!(netns.starts_with("/proc/") && netns.ends_with("/ns/net"), "{netns}");
    // ctr calls no DEL for a task in the background: the daemon notices its end.
    containerd.ok(&["task", "kill", "-s", "KILL", "one"]);
    containerd.engine.expect_none();
    containerd.ok(&["task", "rm", "one"]);
    containerd.ok(&["container", "rm", "one"]);
    // One in the foreground has DEL at its end.
    let mut task = containerd.run("two", &["--rm"]).stderr(Stdio::piped()).spawn().expect("it runs");
    containerd.expect_page("two");
    containerd.ok(&["task", "kill", "-s", "KILL", "two"]);
    task.wait().expect("it ends");
    containerd.engine.expect_none();
}

#[test]
fn containerd_task_shows_the_error() {
    let sandbox = Sandbox::new();
    let containerd = Containerd::new(&sandbox);
    let output = containerd.run("one", &["-d"]).output().expect("it runs");
    let text = printed(&output);
    assert!(
        !output.status.success() && text.contains("no daemon responds at /run/portmap/portmapd.sock"),
        "{text}"
    );
    // The task waits to be started, in a namespace that nothing has changed.
    let _ = containerd.ctr(&["task", "kill", "-s", "KILL", "one"]).output();
    let _ = containerd.ctr(&["task", "rm", "-f", "one"]).output();
}
