//! `portmap run`: signals reach the command, and whatever is killed, no container stays.

use std::{
    fs,
    process::{Child, Stdio},
};

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, Place, Sandbox, binary},
    wait,
};
use serde_json::json;

/// Starts `portmap run` with a script, and waits until the script makes `/run/started`.
fn run(sandbox: &Sandbox, script: &str) -> Child {
    let _ = fs::remove_file(sandbox.path("/run/started"));
    let child = sandbox
        .portmap_command(&["run", "--name", "job", "--", "sh", "-c", script])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    wait::until("the command to run", || sandbox.path("/run/started").exists());
    child
}

/// Sends a signal to the process of `portmap run` alone.
fn signal(sandbox: &Sandbox, signal: &str) {
    sandbox.sh(Place::Host, &format!("pkill -{signal} -x portmap"));
}

fn nothing_is_left(sandbox: &Sandbox) -> bool {
    sandbox.json(&["list"]) == json!([]) && sandbox.sh(Place::Host, "ls /run/netns") == "outside\n"
}

#[test]
fn signals_are_passed_on_to_the_command() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let names = ["INT", "QUIT", "HUP", "USR1", "USR2"];
    let traps = names.map(|name| format!("trap 'echo {name} >> /run/seen' {name}; ")).concat();
    // It starts nothing any more when it is sent signals: dash forgets those that come until it has noticed that a program has
    // begun to run (`onsig`, `vforked`).
    let script =
        format!("{traps}sleep 600 & trap \"kill $!; exit 9\" TERM; : > /run/started; while :; do wait; done");
    let mut child = run(&sandbox, &script);
    for (count, name) in names.iter().enumerate() {
        signal(&sandbox, name);
        wait::until("the signal to be seen", || {
            let seen = fs::read_to_string(sandbox.path("/run/seen")).unwrap_or_default();
            seen.lines().eq(names[..=count].iter().copied())
        });
    }
    signal(&sandbox, "TERM");
    assert_eq!(child.wait().expect("it ends").code(), Some(9));
    assert!(nothing_is_left(&sandbox));
    // Without traps they end the command, and the exit code says which.
    for (name, number) in [("INT", 2), ("HUP", 1), ("USR1", 10)] {
        let mut child = run(&sandbox, "touch /run/started; exec sleep 600");
        signal(&sandbox, name);
        assert_eq!(child.wait().expect("it ends").code(), Some(128 + number), "{name}");
        assert!(nothing_is_left(&sandbox), "{name}");
    }
}

#[test]
fn a_command_is_waited_for_by_who_ignores_its_children() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    for script in ["exit 5", "sleep 0.5; exit 5"] {
        let output = sandbox
            .command(Place::Host, "timeout")
            .args(["60", "env", "--ignore-signal=CHLD", binary("portmap").to_str().expect("a path")])
            .args(["run", "--name", "job", "--", "sh", "-c", script])
            .output()
            .expect("env is part of coreutils");
        assert_eq!(output.status.code(), Some(5), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(nothing_is_left(&sandbox), "{script}");
    }
}

#[test]
fn a_command_that_a_teardown_outruns_leaves_no_container() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let child = run(&sandbox, ": > /run/started; while [ ! -e /run/end ]; do sleep 0.05; done; exit 7");
    sandbox.ok(&["teardown"]);
    drop(daemon);
    sandbox.sh(Place::Host, "touch /run/end");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.as_ref()), (Some(7), ""));
    assert_eq!(sandbox.sh(Place::Host, "ls /run/netns"), "outside\n");
}

#[test]
fn what_is_killed_leaves_no_container() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let script = "echo $$ > /run/pid; touch /run/started; exec sleep 600";
    // What has ended and that nobody waits for has no command line.
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
    // A daemon that starts meanwhile knows whose it is.
    let child = run(&sandbox, script);
    daemon.stop();
    let daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["show", "job"])["state"], "ready", "its process lives");
    kill(child);
    wait::until("the container to be removed", || nothing_is_left(&sandbox));
    // There is no daemon when it is killed.
    let child = run(&sandbox, script);
    daemon.kill();
    kill(child);
    let _daemon = sandbox.daemon();
    wait::until("the container to be removed", || nothing_is_left(&sandbox));
}

#[test]
fn a_daemon_that_has_gone_is_told_of_and_makes_up_for_it() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let child = run(&sandbox, "touch /run/started; while ! test -e /run/go; do sleep 0.05; done; exit 7");
    daemon.stop();
    sandbox.sh(Place::Host, "touch /run/go");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(7));
    let errors = String::from_utf8(output.stderr).expect("text");
    assert!(errors.contains("container \"job\" is not removed") && errors.lines().count() == 1, "{errors}");
    assert!(errors.contains("`portmap del job`"), "{errors}");
    let _daemon = sandbox.daemon_with(&DAEMON_FLAGS);
    wait::until("the container to be removed", || nothing_is_left(&sandbox));
}

#[test]
fn a_container_of_the_same_name_is_somebody_elses() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let mut child = run(&sandbox, "touch /run/started; while ! test -e /run/go; do sleep 0.05; done");
    sandbox.ok(&["del", "job"]);
    sandbox.ok(&["add", "job"]);
    signal(&sandbox, "KILL");
    child.wait().expect("it ends");
    // Whatever is done because of its end has been done when this has.
    sandbox.ok(&["run", "--name", "other", "--", "true"]);
    assert_eq!(sandbox.json(&["show", "job"])["state"], "ready");
}
