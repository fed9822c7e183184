//! Calls of the plugin, as a runtime makes them.

use std::{
    io::Write as _,
    process::{Child, Command, Stdio},
};

use portmap_tests::sandbox::{Netns, Sandbox, binary};
use serde_json::{Value, json};

/// An attachment of a container to a network.
#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    pub(crate) id: String,
    pub(crate) netns: String,
    pub(crate) interface: String,
    pub(crate) args: String,
    pub(crate) config: Value,
}

/// What the plugin answers: its output, as JSON or null, or its error.
pub(crate) type Answer = Result<Value, Value>;

impl Attachment {
    /// A container in the namespace `/run/netns/NETNS`, which publishes some ports.
    pub(crate) fn new(id: &str, netns: &str, ports: &[u16]) -> Self {
        let mappings: Vec<Value> = ports
            .iter()
            .map(|port| json!({ "hostPort": port, "containerPort": port, "protocol": "tcp" }))
            .collect();
        Self {
            id: id.to_owned(),
            netns: format!("/run/netns/{netns}"),
            interface: "eth0".to_owned(),
            args: String::new(),
            config: json!({
                "cniVersion": "1.1.0", "name": "portmap", "type": "portmap-bpf",
                "runtimeConfig": { "portMappings": mappings },
            }),
        }
    }

    /// The same with another configuration.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// Starts a command of the plugin.
    pub(crate) fn start(&self, sandbox: &Sandbox, command: &str) -> Child {
        let mut plugin: Command = sandbox.command(Netns::Host, binary("portmap-bpf"));
        plugin
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", &self.interface)
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", "/usr/lib/cni")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = plugin.spawn().expect("nsenter runs");
        let input = self.config.to_string();
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads its input");
        child
    }

    /// Executes a command of the plugin.
    pub(crate) fn call(&self, sandbox: &Sandbox, command: &str) -> Answer {
        finish(self.start(sandbox, command))
    }

    /// ADD, which must succeed. Returns the result.
    pub(crate) fn add(&self, sandbox: &Sandbox) -> Value {
        self.call(sandbox, "ADD").unwrap_or_else(|error| panic!("ADD of {}: {error}", self.id))
    }

    /// ADD, which must fail with this code. Returns the error's text.
    pub(crate) fn refused(&self, sandbox: &Sandbox, code: u32) -> String {
        let error = self.call(sandbox, "ADD").expect_err(&self.id);
        assert_eq!(error["code"], code, "{error}");
        error["msg"].as_str().expect("a text").to_owned()
    }

    /// DEL, which always succeeds.
    pub(crate) fn delete(&self, sandbox: &Sandbox) {
        assert_eq!(self.call(sandbox, "DEL"), Ok(Value::Null));
    }

    /// CHECK with the result of ADD.
    pub(crate) fn check(&self, sandbox: &Sandbox, result: &Value) -> Answer {
        self.clone().with(|config| config["prevResult"] = result.clone()).call(sandbox, "CHECK")
    }
}

/// Waits for a call, and returns its answer.
pub(crate) fn finish(child: Child) -> Answer {
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("JSON") };
    if output.status.success() { Ok(json) } else { Err(json) }
}

/// Creates the namespace `/run/netns/NAME`.
pub(crate) fn make_netns(sandbox: &Sandbox, name: &str) {
    sandbox.sh(Netns::Host, &format!("ip netns add {name}"));
}
