//! `portmap top` in a real terminal, with real traffic.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use portmap_tests::{
    daemon::Daemon,
    sandbox::{DAEMON_FLAGS, HOST, Netns, OUTSIDE, Sandbox},
    terminal::Terminal,
};

use super::page::{self, Page};

const WEB: Netns<'_> = Netns::Container("web");
const API: Netns<'_> = Netns::Container("api");
const BATCH: Netns<'_> = Netns::Container("batch");

/// Three containers, of which one is limited and one has few ephemeral ports. Without IPv6 they send no packets by
/// themselves.
fn world() -> (Sandbox, Daemon) {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "echo 1 > /proc/sys/net/ipv6/conf/uplink/disable_ipv6");
    let details = ["--network-enable-socket-statistics-details"];
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &details].concat());
    sandbox.ok(&["add", "web", "--ports", "31000-31009", "--egress-rate", "20mbit"]);
    sandbox.ok(&["add", "api", "--ports", "31010-31019", "--ephemeral-ports-per-container", "16"]);
    sandbox.ok(&["add", "batch"]);
    (sandbox, daemon)
}

fn command(sandbox: &Sandbox, arguments: &[&str]) -> Command {
    let mut command = sandbox.portmap_command(&[&["top", "--interval", "500ms"], arguments].concat());
    command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
    command
}

fn top(sandbox: &Sandbox, arguments: &[&str]) -> Terminal {
    Terminal::start(&command(sandbox, arguments), 24, 80)
}

/// Runs `work` while `web` sends a client outside as much as it may, `batch` sends from a port of the host, `api`
/// uses 15 of its 16 ephemeral ports, and the host receives packets.
fn under_traffic<T>(sandbox: &Sandbox, work: impl FnOnce() -> T) -> T {
    let ends = AtomicBool::new(false);
    let listener = sandbox.inside(WEB, || TcpListener::bind(("0.0.0.0", 31000))).expect("the port is free");
    let client = sandbox.inside(Netns::Outside, || TcpStream::connect((HOST, 31000))).expect("connected");
    let server = listener.accept().expect("a connection").0;
    // Neither end waits for the other for ever.
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a time");
        stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a time");
    }
    let forger = sandbox.inside(BATCH, || UdpSocket::bind(("0.0.0.0", 9000))).expect("no bind guard");
    let port = || UdpSocket::bind(("0.0.0.0", 0));
    let block = || (0..15).map(|_| port()).collect::<Result<Vec<_>, _>>();
    let _ports = sandbox.inside(API, block).expect("free ports");
    let pinger = sandbox.inside(Netns::Outside, || UdpSocket::bind(("0.0.0.0", 0))).expect("a port");
    let _host = sandbox.inside(Netns::Host, || UdpSocket::bind(("0.0.0.0", 9001))).expect("the port is free");
    thread::scope(|scope| {
        let ends = &ends;
        let _end = End(ends);
        scope.spawn(move || {
            let mut server = &server;
            while !ends.load(Ordering::Relaxed) {
                let _ = server.write(&[7; 16_384]);
            }
        });
        scope.spawn(move || {
            let mut client = &client;
            while !ends.load(Ordering::Relaxed) {
                let _ = client.read(&mut [0; 16_384]);
            }
        });
        scope.spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let _ = forger.send_to(b"forged", (OUTSIDE, 9));
                let _ = pinger.send_to(b"hello", (HOST, 9001));
                thread::sleep(Duration::from_millis(10));
            }
        });
        work()
    })
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The line of a container; empty if it has none.
fn row<'a>(screen: &'a str, name: &str) -> &'a str {
    screen.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_default()
}

/// What the line of a container has below a title: up to the title's end, or, of the last column, from its begin.
fn cell<'a>(screen: &'a str, name: &str, title: &str) -> &'a str {
    let titles = screen.lines().find(|line| line.starts_with("NAME ")).unwrap_or_default();
    let Some(begin) = titles.find(title) else { return "" };
    let bounds = if title == "WHY" {
        (begin, usize::MAX)
    } else {
        (titles[..begin].trim_end().len(), begin + title.len())
    };
    let line = row(screen, name);
    let part = line.get(bounds.0..bounds.1.min(line.len())).unwrap_or_default();
    part.trim()
}

/// A number as the screen shows it.
fn number(text: &str) -> f64 {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let factor = match unit {
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        _ => 1.0,
    };
    number.parse::<f64>().unwrap_or(-1.0) * factor
}

/// Whether the screen shows the traffic: `web` delayed by its limit with a queue, drops of `batch` and their reason,
/// and `api` short of ports.
fn is_under_traffic(screen: &str) -> bool {
    let value = |name, title| number(cell(screen, name, title));
    let limit = cell(screen, "web", "LIMIT");
    let used = limit.strip_prefix("tx ").and_then(|text| text.strip_suffix("%!")).map_or(-1.0, number);
    (15e6..25e6).contains(&value("web", "TX"))
        && (15e6..25e6).contains(&value("web", "UPLINK"))
        && (80.0..120.0).contains(&used)
        && value("web", "QUEUE") > 0.0
        && cell(screen, "web", "RTT").ends_with('s')
        && value("batch", "DROPS") > 10.0
        && cell(screen, "batch", "WHY") == "tx:source_port"
        && cell(screen, "api", "PORTS") == "94%!"
}

/// One daemon, because it is the same traffic: the table, its keys, one container, and the pages' screens.
#[test]
fn top_shows_traffic_drops_and_limits() {
    let (sandbox, _daemon) = world();
    let mut terminal = top(&sandbox, &[]);
    let [table, wide, detail] = under_traffic(&sandbox, || {
        // After some readings, so that there is a history.
        thread::sleep(Duration::from_secs(if page::is_written() { 6 } else { 0 }));
        let screen = terminal.wait("the traffic", is_under_traffic);
        assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
        assert!(screen.starts_with("portmap top  3 containers"), "{screen}");
        let first = |screen: &str| screen.lines().nth(5).unwrap_or_default().to_owned();
        assert!(first(&screen).starts_with("web "), "the one that sends most is the first: {screen}");
        // Passed to the host: a hundred packets per second, apart from the traffic of this test.
        let host = terminal.wait("packets of the host", |screen| {
            let line = screen.lines().find(|line| line.starts_with("host")).unwrap_or_default();
            line.split_whitespace().nth(1).is_some_and(|rate| number(rate) > 10.0)
        });
        assert!(host.contains("pkt/s by uplink"), "{host}");
        terminal.keys("n");
        let screen = terminal.wait("the order by name", |screen| first(screen).starts_with("api "));
        assert!(screen.contains("by name"), "{screen}");
        terminal.keys("d");
        let screen = terminal.wait("the order by drops", |screen| first(screen).starts_with("batch "));
        assert!(screen.contains("by drops"), "{screen}");
        terminal.keys("p");
        terminal.wait("the order by ports", |screen| {
            let summary = "now    1 with drops  1 slowed by limits  1 short of ports";
            first(screen).starts_with("api ") && screen.contains(summary)
        });
        terminal.keys("m");
        terminal.wait("the order by round-trip times", |screen| first(screen).starts_with("web "));
        terminal.keys("/we\r");
        let screen = terminal.wait_for("1 of 3 containers");
        assert_eq!((row(&screen, "batch"), row(&screen, "api")), ("", ""), "{screen}");
        // One container: paths, its limit, and the client.
        terminal.keys("\r");
        let detail = terminal.wait("the flow to the client", |screen| screen.contains("in   10.0.0.2"));
        for expected in ["ports 31000-31009", "tx_outside", "20 Mbit/s", "LIMIT", "31000", "p50"] {
            assert!(detail.contains(expected), "{expected}: {detail}");
        }
        terminal.keys("q");
        terminal.wait_for("1 of 3 containers");
        terminal.keys("\x1b");
        terminal.wait_for("top  3 containers");
        terminal.keys("t");
        let table = terminal.wait("the traffic, by sent bytes", |screen| {
            is_under_traffic(screen) && screen.contains("by sent")
        });
        // A wider terminal shows all columns.
        terminal.resize(12, 118);
        let wide = terminal.wait("all columns", |screen| {
            screen.contains("PKT/S")
                && screen.contains("RX AND TX")
                && cell(screen, "api", "PORTS") == "15/16!"
        });
        assert!(wide.lines().nth(11).is_some_and(|line| line.starts_with("q quit")), "{wide}");
        terminal.resize(24, 80);
        terminal.wait("the traffic on 80 columns", is_under_traffic);
        terminal.keys(" ");
        terminal.wait_for("PAUSED");
        [table, wide, detail]
    });
    // Still the rates of the traffic, which has ended.
    thread::sleep(Duration::from_millis(1200));
    assert!(is_under_traffic(&terminal.text()), "{}", terminal.text());
    terminal.keys(" ");
    terminal.wait("no traffic", |screen| cell(screen, "web", "TX") == "0");
    terminal.keys("q");
    assert!(terminal.expect_restored().success());
    let page = Page::open("top.md");
    let mut blocks = page.text.split("```");
    if page::is_written() {
        let mut parts: Vec<String> = page.text.split("```").map(str::to_owned).collect();
        for (number, screen) in [(1, &table), (3, &wide), (5, &detail)] {
            parts[number] = format!("\n{screen}\n");
        }
        page.write(&parts.join("```"));
    } else {
        // The words of the page are those of the screen.
        let titles = |screen: &str| {
            let line = screen.lines().find(|line| line.starts_with("NAME") || line.starts_with("PATH"));
            line.unwrap_or_default().to_owned()
        };
        for screen in [&table, &wide, &detail] {
            blocks.next();
            let shown = blocks.next().expect("the page has three blocks");
            assert_eq!(titles(shown), titles(screen));
        }
    }
}

/// Every way out restores the terminal, and a daemon that is gone for a while is none.
#[test]
fn top_restores_the_terminal_on_every_way_out() {
    let (sandbox, daemon) = world();
    for keys in ["q", "\x03"] {
        let mut terminal = top(&sandbox, &[]);
        terminal.wait_for("web ");
        terminal.keys(keys);
        assert!(terminal.expect_restored().success(), "{keys:?}");
    }
    for signal in ["TERM", "INT", "HUP"] {
        let mut terminal = top(&sandbox, &[]);
        terminal.wait_for("web ");
        let pid = terminal.pid().to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        assert!(sent.expect("kill is part of procps").success());
        let status = terminal.expect_restored();
        assert!(status.success(), "{signal}: {status} {:?}", status.signal());
    }
    let mut terminal = top(&sandbox, &[]);
    terminal.wait_for("web ");
    daemon.kill();
    let screen = terminal.wait_for("no data: no daemon responds");
    assert!(!row(&screen, "web").is_empty(), "the last counters stay: {screen}");
    let _daemon = sandbox.daemon();
    terminal.wait("data", |screen| !screen.contains("no data"));
    terminal.keys("?");
    terminal.wait_for("Sort by");
    terminal.keys("\x03");
    assert!(terminal.expect_restored().success());
}

/// As with Ctrl-Z in a shell: the shell gets its terminal back, and `fg` continues the view.
#[test]
fn top_is_suspended_and_continued_by_a_shell() {
    let (sandbox, _daemon) = world();
    let view = command(&sandbox, &[]);
    let words = std::iter::once(view.get_program()).chain(view.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().expect("text"))).collect();
    let mut shell = Command::new("bash");
    shell.args(["--norc", "--noprofile", "-i"]).env("PS1", "shell: ").env("TERM", "xterm-256color");
    for (name, value) in view.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let terminal = Terminal::start(&shell, 24, 80);
    terminal.wait_for("shell:");
    terminal.keys(&format!("clear; {}\r", words.join(" ")));
    let shows_view = |screen: &str| !row(screen, "web").is_empty() && screen.contains("q quit");
    terminal.wait("the view", shows_view);
    let pid = terminal.pid().to_string();
    // By its key, and by a signal of another process.
    for by_key in [true, false] {
        if by_key {
            terminal.keys("\x1a");
        } else {
            let sent = Command::new("kill").args(["-TSTP", &pid]).status();
            assert!(sent.expect("kill is part of procps").success());
        }
        terminal.wait("the shell's screen", |screen| {
            screen.contains("Stopped") && !screen.contains("q quit") && !terminal.is_taken()
        });
        terminal.keys("clear; echo still $((40 + 2))\r");
        terminal.wait("the shell to have the keys", |screen| screen.contains("still 42"));
        // The window may change meanwhile.
        let (rows, columns) = if by_key { (12, 118) } else { (24, 80) };
        terminal.resize(rows, columns);
        terminal.keys("fg\r");
        let screen = terminal.wait("the view again", |screen| shows_view(screen) && terminal.is_taken());
        assert!(!screen.contains("still") && !screen.contains("shell:"), "{screen}");
        assert_eq!(screen.contains("RX AND TX"), columns > 80, "{screen}");
        // It has the keys again.
        terminal.keys("?");
        terminal.wait_for("Escape back");
        terminal.keys("q");
        terminal.wait("the table", shows_view);
    }
    terminal.keys("q");
    terminal.wait("the shell", |screen| screen.contains("shell:") && !terminal.is_taken());
}

/// Sizes that it is given while it runs, and names and labels that are long, wide, or meant to control a terminal.
#[test]
fn top_survives_small_windows_and_hostile_names() {
    let (sandbox, _daemon) = world();
    let long = "x".repeat(128);
    sandbox.ok(&["add", &long, "--label", "team=日本語 \u{1f600}"]);
    for arguments in [["add", "a\x1b[2J", "--label", "k=v"], ["add", "a", "--label", "k=\x1b[2J"]] {
        let output = sandbox.portmap(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(!errors.contains('\x1b'), "{errors:?}");
    }
    let mut terminal = top(&sandbox, &["--no-color"]);
    let is_short = |line: &str| line.starts_with("xxxxxxxxxx") && line.contains("x~ ");
    terminal.wait("the long name, shortened", |screen| screen.lines().any(is_short));
    for (rows, columns) in [(24, 39), (7, 80), (3, 10)] {
        terminal.resize(rows, columns);
        terminal.wait("a remark on the size", |screen| screen.contains("too small"));
    }
    terminal.resize(8, 40);
    let screen = terminal.wait("the least size", |screen| screen.contains("DROPS"));
    assert!(screen.contains("PORTS") && screen.contains("LIMIT"), "{screen}");
    terminal.resize(24, 240);
    terminal.wait("more of the name", |screen| screen.contains(&long[..70]));
    // The labels of one container.
    terminal.keys("/xx\r\r");
    terminal.wait("the label", |screen| screen.contains("label team=日本語 \u{1f600}"));
    terminal.keys("\x03");
    assert!(terminal.expect_restored().success());
}

#[test]
fn top_colours_can_be_disabled() {
    let (sandbox, _daemon) = world();
    let shows_colour = |command: &Command| {
        let mut terminal = Terminal::start(command, 24, 80);
        terminal.wait_for("web ");
        let drawn = terminal.formatted();
        terminal.keys("q");
        terminal.expect_restored();
        // Foreground colours.
        drawn.contains("\x1b[3") || drawn.contains(";3") || drawn.contains("\x1b[38")
    };
    assert!(shows_colour(&command(&sandbox, &[])));
    assert!(!shows_colour(&command(&sandbox, &["--no-color"])));
    let mut without = command(&sandbox, &[]);
    without.env("NO_COLOR", "1");
    assert!(!shows_colour(&without));
}

#[test]
fn top_refuses_what_it_cannot_show() {
    let sandbox = Sandbox::new();
    // Neither a terminal nor a daemon.
    for (arguments, expected) in [
        (&["top"][..], "needs a terminal"),
        (&["top", "--interval", "1ms"], "--interval 1ms"),
        (&["top", "-o", "json"], "portmap stats -o json"),
    ] {
        let output = sandbox.portmap_command(arguments).stdin(Stdio::null()).output().expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
    for (terminal_type, expected, code) in
        [("dumb", "cannot move the cursor", 2), ("xterm", "no daemon responds", 5)]
    {
        let mut command = command(&sandbox, &[]);
        command.env("TERM", terminal_type);
        let mut terminal = Terminal::start(&command, 24, 80);
        terminal.wait_for(expected);
        assert_eq!(terminal.expect_restored().code(), Some(code), "{terminal_type}");
    }
}
