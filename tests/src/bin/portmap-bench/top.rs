//! The cost of `portmap top`: CPU time of the view and of the daemon.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use portmap_tests::{sandbox::Sandbox, terminal::Terminal};

use crate::{machine::Machine, text::table};

const FLAGS: [&str; 4] = [
    "--ephemeral-ports=1024-32767",
    "--ephemeral-ports-per-container=16",
    "--listen=none",
    "--network-enable-socket-statistics-details",
];

/// Measures the CPU time of `portmap top` and of the daemon. Writes no file.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Number of containers, each with a limit.
    #[arg(long, default_value_t = 1000)]
    containers: u16,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// Runs the view on a terminal of 80 columns with its default interval, left alone and with a key held down.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon_with(&FLAGS);
    for number in 0..arguments.containers {
        sandbox.ok(&["add", &format!("c{number}"), "--egress-rate", "10mbit"]);
    }
    let mut command = sandbox.portmap_command(&["top"]);
    command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8");
    let mut terminal = Terminal::start(&command, 24, 80);
    terminal.wait_for(&format!("top  {} containers  2.", arguments.containers));
    let pids = [terminal.pid(), daemon.pid()];
    let mut rows = table(&["`portmap top`", "view, % of a CPU", "daemon, % of a CPU"]);
    for (title, keys) in [("left alone", ""), ("a key held down", "j")] {
        let (before, start) = (pids.map(cpu_seconds), Instant::now());
        while start.elapsed() < Duration::from_secs(arguments.seconds) {
            terminal.keys(keys);
            thread::sleep(Duration::from_millis(33));
        }
        let (after, seconds) = (pids.map(cpu_seconds), start.elapsed().as_secs_f64());
        let mut row = vec![title.to_owned()];
        for (before, after) in before.into_iter().zip(after) {
            row.push(format!("{:.1}", (after? - before?) / seconds * 100.0));
        }
        rows.add_row(row);
    }
    terminal.keys("q");
    ensure!(terminal.expect_restored().success(), "the view failed");
    let Machine { cpu, cpus, kernel, .. } = Machine::read()?;
    println!("{cpu}, {cpus} CPUs, Linux {kernel}\n\n{rows}");
    Ok(())
}

/// CPU time of a process and all its threads, in seconds.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let directory = format!("/proc/{pid}/task");
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))? {
        // A thread may have ended.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|time| time.parse::<f64>().ok()).unwrap_or_default();
    }
    Ok(nanoseconds / 1e9)
}
