//! Restarts, and namespaces that end without DEL.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use portmap_tests::{
    daemon::Daemon,
    sandbox::{DAEMON_FLAGS, HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::{Value, json};

use super::calls::{Attachment, finish, make_netns};

/// A daemon that quarantines blocks of ephemeral ports for long, with a container `c1` in the namespace `n1`.
fn quarantining() -> (Sandbox, Daemon, Attachment) {
    let sandbox = Sandbox::new();
    let flags: Vec<_> = DAEMON_FLAGS.map(|flag| if flag == "0" { "1hrs" } else { flag }).to_vec();
    let daemon = sandbox.daemon_with(&flags);
    make_netns(&sandbox, "n1");
    let web = Attachment::new("c1", "n1", &[31000]);
    web.add(&sandbox);
    (sandbox, daemon, web)
}

fn block(sandbox: &Sandbox, name: &str) -> Value {
    sandbox.json(&["show", name])["ephemeral_ports"].clone()
}

#[test]
fn restart_keeps_the_ephemeral_ports() {
    let (sandbox, _daemon, web) = quarantining();
    let before = block(&sandbox, "c1");
    // `podman network reload`: in the living namespace. The pool has four blocks.
    for _ in 0..5 {
        web.delete(&sandbox);
        web.add(&sandbox);
        assert_eq!(block(&sandbox, "c1"), before);
    }
    let _service = Service::start(&sandbox, Netns::Container("n1"), Transport::Tcp, 31000, "web");
    assert_eq!(ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer").from, "web");
    // `podman restart`: in a new namespace. A late DEL for the old one changes nothing.
    make_netns(&sandbox, "n2");
    web.delete(&sandbox);
    let again = Attachment { netns: "/run/netns/n2".to_owned(), ..web.clone() };
    again.add(&sandbox);
    web.delete(&sandbox);
    assert_eq!(block(&sandbox, "c1"), before);
    assert_eq!(sandbox.json(&["show", "c1"])["netns"], "/run/netns/n2");
}

#[test]
fn add_replaces_a_container_without_its_namespace() {
    let (sandbox, _daemon, web) = quarantining();
    let before = block(&sandbox, "c1");
    // An earlier attempt of the runtime failed after this plugin: the same namespace.
    web.add(&sandbox);
    // Another namespace is at the path, while a process lives in the old one.
    let mut process = sandbox.command(Netns::Container("n1"), "sleep").arg("600").spawn().expect("it runs");
    sandbox.sh(Netns::Host, "ip netns del n1; ip netns add n1");
    web.add(&sandbox);
    assert_eq!(block(&sandbox, "c1"), before);
    process.kill().expect("it runs");
    process.wait().expect("it ends");
    // The old namespace lives at its path: this is another container.
    make_netns(&sandbox, "n2");
    let other = Attachment { netns: "/run/netns/n2".to_owned(), ..web.clone() };
    let text = other.refused(&sandbox, 104);
    assert!(text.contains("a container is already called \"c1\""), "{text}");
    other.delete(&sandbox);
    assert_eq!(sandbox.json(&["show", "c1"])["netns"], "/run/netns/n1");
    // A request that cannot succeed leaves the present container alone.
    make_netns(&sandbox, "n3");
    Attachment::new("c3", "n3", &[31003]).add(&sandbox);
    let taking = Attachment::new("c1", "n1", &[31003]);
    taking.refused(&sandbox, 104);
    assert_eq!(sandbox.json(&["show", "c1"])["ports"], json!([[31000, 31000]]));
}

#[test]
fn namespace_of_a_process_is_released_without_del() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    // `ctr run --cni`: a path below /proc, and no DEL for a task in the background.
    let mut process = sandbox
        .command(Netns::Host, "unshare")
        .args(["--net", "sh", "-c", "echo $$; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut line = String::new();
    BufReader::new(process.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
    let pid = line.trim().to_owned();
    let mut task = Attachment::new("default-t1", "", &[31000]);
    task.netns = format!("/proc/{pid}/ns/net");
    let result = task.add(&sandbox);
    assert_eq!(result["interfaces"][0]["sandbox"], task.netns.as_str());
    sandbox.sh(Netns::Host, &format!("kill -KILL {pid}"));
    process.wait().expect("it ends");
    wait::until("the daemon to release the container", || sandbox.json(&["list"]) == json!([]));
    task.netns.clear();
    task.delete(&sandbox);
}

#[test]
fn daemon_may_restart_between_commands() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    make_netns(&sandbox, "n1");
    let web = Attachment::new("c1", "n1", &[31000]);
    let result = web.add(&sandbox);
    daemon.kill();
    let service = Service::start(&sandbox, Netns::Container("n1"), Transport::Tcp, 31000, "web");
    assert_eq!(ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer").from, "web");
    let error = web.call(&sandbox, "STATUS").expect_err("no daemon");
    assert!(
        error["code"] == 50 && error["msg"].as_str().is_some_and(|text| text.contains("start portmapd")),
        "{error}"
    );
    // CHECK and ADD wait a moment for a daemon that is being restarted.
    let check = web.clone().with(|config| config["prevResult"] = result.clone()).start(&sandbox, "CHECK");
    let daemon = sandbox.daemon();
    assert_eq!(finish(check), Ok(Value::Null));
    daemon.stop();
    // DEL succeeds without a daemon, and the namespace ends with the container.
    web.delete(&sandbox);
    drop(service);
    sandbox.sh(Netns::Host, "ip netns del n1");
    let _daemon = sandbox.daemon();
    wait::until("the next daemon to release it", || sandbox.json(&["list"]) == json!([]));
}
