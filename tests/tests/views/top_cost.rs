//! What `portmap top` costs on a host with many containers.

use std::{
    thread,
    time::{Duration, Instant},
};

use portmap_tests::{sandbox::Sandbox, terminal::Terminal};

/// What the view costs on a host with 1,000 containers: CPU time per second of the view and of the daemon. Prints
/// numbers for `docs/top.md`.
#[test]
#[ignore = "a measurement of a minute, for the documentation"]
fn top_costs_with_1000_containers() {
    let sandbox = Sandbox::new();
    let flags = [
        "--ephemeral-ports=1024-32767",
        "--ephemeral-ports-per-container=16",
        "--listen=none",
        "--network-enable-socket-statistics-details",
    ];
    let daemon = sandbox.daemon_with(&flags);
    let rate = ["--egress-rate", "10mbit"];
    for number in 0..1000 {
        sandbox.ok(&[&["add", &format!("c{number}")], &rate[..]].concat());
    }
    // With the default interval.
    let mut command = sandbox.portmap_command(&["top"]);
    command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8");
    let mut terminal = Terminal::start(&command, 24, 80);
    terminal.wait_for("top  1000 containers  2.");
    let pids = [("top", terminal.pid()), ("daemon", daemon.pid())];
    let cpu_time = || pids.map(|(_, pid)| cpu_seconds(pid));
    for work in ["waiting", "scrolling"] {
        let (before, start) = (cpu_time(), Instant::now());
        while start.elapsed() < Duration::from_secs(20) {
            // As a key that is held down.
            if work == "scrolling" {
                terminal.keys("j");
            }
            thread::sleep(Duration::from_millis(33));
        }
        let (after, seconds) = (cpu_time(), start.elapsed().as_secs_f64());
        for (index, (name, _)) in pids.into_iter().enumerate() {
            let share = (after[index] - before[index]) / seconds * 100.0;
            println!("{work}: {name} uses {share:.1} % of a CPU");
        }
    }
    println!("{}", terminal.text());
    terminal.keys("q");
    assert!(terminal.expect_restored().success());
}

/// CPU time that a process has used, in seconds.
fn cpu_seconds(pid: u32) -> f64 {
    // Of all its threads, in nanoseconds.
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let used = tasks.map(|task| {
        let text =
            std::fs::read_to_string(task.expect("a thread").path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|time| time.parse::<f64>().ok()).unwrap_or_default()
    });
    used.sum::<f64>() / 1e9
}
