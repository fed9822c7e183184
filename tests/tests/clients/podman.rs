//! podman 4.3 with CNI.

use std::process::Command;

use portmap_tests::sandbox::{HOST, Netns, Sandbox};
use serde_json::{Value, json};

use super::engine::{DIRECTORY, Engine, printed, succeed};

/// The part of podman's configuration that a user needs, and what a machine without some privileges needs besides.
const CONTAINERS_CONF: &str = r#"
[network]
network_backend = "cni"
default_network = "portmap"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
"#;

/// podman in a sandbox.
struct Podman<'a>(Engine<'a>);

impl<'a> Podman<'a> {
    fn new(sandbox: &'a Sandbox) -> Self {
        let podman = Self(Engine::new(sandbox));
        podman.0.write("containers.conf", CONTAINERS_CONF);
        podman
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.0.sandbox.command(Netns::Host, "podman");
        command.env("CONTAINERS_CONF", format!("{DIRECTORY}/containers.conf"));
        for (option, name) in [("--root", "root"), ("--runroot", "runroot"), ("--tmpdir", "tmp")] {
            command.args([option, &format!("{DIRECTORY}/{name}")]);
        }
        command.args(["--storage-driver", "vfs"]).args(arguments);
        command
    }

    fn ok(&self, arguments: &[&str]) -> String {
        succeed(&mut self.command(arguments))
    }

    /// Starts a container with a web server on a port. `options` are those of `podman run`.
    fn run(&self, name: &str, port: u16, options: &[&str]) -> String {
        succeed(&mut self.run_command(name, port, options))
    }

    fn run_command(&self, name: &str, port: u16, options: &[&str]) -> Command {
        let (parent, publish) = (format!("/{}", self.0.cgroup), format!("{port}:{port}"));
        let (rootfs, port) = (format!("{DIRECTORY}/rootfs"), port.to_string());
        let mut command =
            self.command(&["run", "-d", "--name", name, "--cgroup-parent", &parent, "-p", &publish]);
        command.args(options).args(["--rootfs", &rootfs, "httpd", "-f", "-p", &port, "-h"]);
        command.arg(format!("/www/{name}"));
        command
    }

    /// What the daemon says about a container.
    fn shown(&self, id: &str) -> Value {
        self.0.sandbox.json(&["show", id])
    }
}

#[test]
fn podman_container_serves_the_outside() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let podman = Podman::new(&sandbox);
    let id = podman.run("web", 31000, &["--network", "portmap"]);
    podman.0.expect_page(31000, "web");
    let shown = podman.shown(&id);
    assert_eq!(shown["labels"], json!({ "cni.network": "portmap", "name": "web" }));
    assert_eq!(shown["ports"], json!([[31000, 31000]]));
    let inspected = podman.ok(&["inspect", "web"]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    let network = &inspected[0]["NetworkSettings"]["Networks"]["portmap"];
    assert_eq!(network["IPAddress"], HOST.to_string());
    assert_eq!(network["MacAddress"], "02:00:00:00:01:01");
    // The same port for another container, and what cannot be published.
    for (name, options, part) in [
        ("api", &["-p", "31010:80"][..], "host port 31010 cannot lead to container port 80"),
        ("api", &["-p", "127.0.0.1:31011:31011"], "cannot be published on 127.0.0.1 only"),
    ] {
        let output = podman.run_command(name, 31001, options).output().expect("it runs");
        let text = printed(&output);
        assert!(!output.status.success() && text.contains(part), "{text}");
        podman.ok(&["rm", "-f", name]);
    }
    assert_eq!(podman.0.containers(), [id]);
    assert!(sandbox.portmap(&["doctor"]).status.success(), "conmon's sockets are no problem");
    podman.ok(&["rm", "-f", "-t", "0", "web"]);
    podman.0.expect_none();
}

#[test]
fn podman_container_survives_what_users_do() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let podman = Podman::new(&sandbox);
    let id = podman.run("web", 31000, &[]);
    podman.0.expect_page(31000, "web");
    let block = podman.shown(&id)["ephemeral_ports"].clone();
    // In a new namespace.
    podman.ok(&["restart", "-t", "0", "web"]);
    podman.0.expect_page(31000, "web");
    assert_eq!(podman.shown(&id)["ephemeral_ports"], block);
    // In the same namespace, while conmon holds the port.
    podman.ok(&["network", "reload", "web"]);
    podman.0.expect_page(31000, "web");
    assert_eq!(podman.shown(&id)["ports"], json!([[31000, 31000]]));
    // Another daemon.
    daemon.kill();
    podman.0.expect_page(31000, "web");
    let _daemon = sandbox.daemon();
    podman.ok(&["network", "reload", "web"]);
    podman.0.expect_page(31000, "web");
    // The server is killed; podman's cleanup removes the container from the network.
    let pid = podman.ok(&["inspect", "--format", "{{.State.Pid}}", "web"]);
    sandbox.sh(Netns::Host, &format!("kill -KILL {pid}"));
    podman.0.expect_none();
    podman.ok(&["start", "web"]);
    podman.0.expect_page(31000, "web");
    assert_eq!(podman.shown(&id)["ephemeral_ports"], block);
    // Two at a time.
    let other = podman.run("api", 31001, &[]);
    podman.0.expect_page(31001, "api");
    podman.0.expect_page(31000, "web");
    let mut both = vec![id, other];
    both.sort();
    assert_eq!(podman.0.containers(), both);
    podman.ok(&["rm", "-f", "-t", "0", "web", "api"]);
    podman.0.expect_none();
}
