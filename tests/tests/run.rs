//! `portmap run` forwards signals to the command, and leaves no container behind when a process is killed.

use std::{
    fs,
    process::{Child, Stdio},
};

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, Netns, Sandbox, binary},
    wait,
};
use serde_json::json;

/// Starts `portmap run` with a script, and waits until the script creates `/run/started`.
///
/// No signal is ignored, whatever the tests were started by: a shell cannot trap a signal that it inherits as
/// ignored, and a background job of a script ignores SIGINT and SIGQUIT.
fn run(sandbox: &Sandbox, script: &str) -> Child {
    let _ = fs::remove_file(sandbox.path("/run/started"));
    let child = sandbox
        .command(Netns::Host, "env")
        .args(["--default-signal=INT,QUIT,HUP,USR1,USR2,TERM", binary("portmap").to_str().expect("a path")])
        .args(["run", "--name", "job", "--", "sh", "-c", script])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    wait::until("the command to run", || sandbox.path("/run/started").exists());
    child
}

/// Sends a signal to the process of `portmap run` alone.
fn signal(sandbox: &Sandbox, signal: &str) {
    sandbox.sh(Netns::Host, &format!("pkill -{signal} -x portmap"));
}

fn nothing_is_left(sandbox: &Sandbox) -> bool {
    sandbox.json(&["list"]) == json!([]) && sandbox.sh(Netns::Host, "ls /run/netns") == "outside\n"
}

#[test]
fn run_forwards_signals() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let names = ["INT", "QUIT", "HUP", "USR1", "USR2"];
    let traps = names.map(|name| format!("trap 'echo {name} >> /run/seen' {name}; ")).concat();
    // The script starts no program while it receives signals, because dash loses those that arrive
    // while it waits for a program to start (`onsig`, `vforked`).
    let script =
        format!("{traps}sleep 600 & trap \"kill $!; exit 9\" TERM; : > /run/started; while :; do wait; done");
    let mut child = run(&sandbox, &script);
    for (count, name) in names.iter().enumerate() {
        signal(&sandbox, name);
        let seen = || fs::read_to_string(sandbox.path("/run/seen")).unwrap_or_default();
        wait::until(&format!("the script to see {name}"), || seen().lines().last() == Some(name));
        assert!(seen().lines().eq(names[..=count].iter().copied()), "after {name}: {}", seen());
    }
    signal(&sandbox, "TERM");
    assert_eq!(child.wait().expect("it ends").code(), Some(9));
    assert!(nothing_is_left(&sandbox));
    // Without traps they terminate the command, as the exit code shows.
    for (name, number) in [("INT", 2), ("HUP", 1), ("USR1", 10)] {
        let mut child = run(&sandbox, "touch /run/started; exec sleep 600");
        signal(&sandbox, name);
        assert_eq!(child.wait().expect("it ends").code(), Some(128 + number), "{name}");
        assert!(nothing_is_left(&sandbox), "{name}");
    }
}

#[test]
fn run_waits_although_sigchld_is_ignored() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    for script in ["exit 5", "sleep 0.5; exit 5"] {
        let output = sandbox
            .command(Netns::Host, "timeout")
            .args(["60", "env", "--ignore-signal=CHLD", binary("portmap").to_str().expect("a path")])
            .args(["run", "--name", "job", "--", "sh", "-c", script])
            .output()
            .expect("env is part of coreutils");
        assert_eq!(output.status.code(), Some(5), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(nothing_is_left(&sandbox), "{script}");
    }
}

#[test]
fn run_overtaken_by_teardown_leaves_no_container() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let child = run(&sandbox, ": > /run/started; while [ ! -e /run/end ]; do sleep 0.05; done; exit 7");
    sandbox.ok(&["teardown"]);
    drop(daemon);
    sandbox.sh(Netns::Host, "touch /run/end");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.as_ref()), (Some(7), ""));
    assert_eq!(sandbox.sh(Netns::Host, "ls /run/netns"), "outside\n");
}

#[test]
fn run_killed_leaves_no_container() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let script = "echo $$ > /run/pid; touch /run/started; exec sleep 600";
    // A zombie has no command line.
    let is_gone = || {
        let pid = fs::read_to_string(sandbox.path("/run/pid")).expect("a file");
        let command = fs::read(sandbox.path(format!("/proc/{}/cmdline", pid.trim())));
        command.unwrap_or_default().is_empty()
    };
    let kill = |mut child: Child| {
        signal(&sandbox, "KILL");
        child.wait().expect("it ends");
        wait::until("the command to be killed, too", is_gone);
    };
    kill(run(&sandbox, script));
    wait::until("the container to be removed", || nothing_is_left(&sandbox));
    // A daemon that starts meanwhile knows the owner from the record.
    let child = run(&sandbox, script);
    daemon.stop();
    let daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["show", "job"])["state"], "ready", "its process lives");
    kill(child);
    wait::until("the container to be removed", || nothing_is_left(&sandbox));
    // It is killed while no daemon runs.
    let child = run(&sandbox, script);
    daemon.kill();
    kill(child);
    let _daemon = sandbox.daemon();
    wait::until("the container to be removed", || nothing_is_left(&sandbox));
}

#[test]
fn run_without_daemon_is_cleaned_up_by_the_next() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let child = run(&sandbox, "touch /run/started; while ! test -e /run/go; do sleep 0.05; done; exit 7");
    daemon.stop();
    sandbox.sh(Netns::Host, "touch /run/go");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(7));
    let errors = String::from_utf8(output.stderr).expect("text");
    assert!(errors.contains("container \"job\" is not removed") && errors.lines().count() == 1, "{errors}");
    assert!(errors.contains("`portmap del job`"), "{errors}");
    let _daemon = sandbox.daemon_with(&DAEMON_FLAGS);
    wait::until("the container to be removed", || nothing_is_left(&sandbox));
}

#[test]
fn run_keeps_a_container_of_the_same_name() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let mut child = run(&sandbox, "touch /run/started; while ! test -e /run/go; do sleep 0.05; done");
    sandbox.ok(&["del", "job"]);
    sandbox.ok(&["add", "job"]);
    signal(&sandbox, "KILL");
    child.wait().expect("it ends");
    // Its exit means that the cleanup is complete.
    sandbox.ok(&["run", "--name", "other", "--", "true"]);
    assert_eq!(sandbox.json(&["show", "job"])["state"], "ready");
}
