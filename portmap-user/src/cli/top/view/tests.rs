use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ratatui::{
    Terminal, TerminalOptions, Viewport,
    backend::{CrosstermBackend, TestBackend},
    buffer::Cell,
    style::Color,
};
use serde_json::json;

use super::*;
use crate::{
    api::{ContainerStats, Stats},
    cli::top::{
        action::Action,
        sort::SortKey,
        state::tests::{reading, stats},
    },
    model::{PortUse, QueueStats, RttPercentiles},
};

const PLAIN: Theme = Theme { has_colour: false, is_ascii: true };

/// The screen of an app, line by line, and whether it has colours.
fn screen(app: &mut App, width: u16, height: u16, theme: Theme) -> (Vec<String>, bool) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, app, theme)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let lines = buffer.content.chunks(usize::from(width));
    let text = |line: &[Cell]| line.iter().map(Cell::symbol).collect();
    let has_colour = buffer.content.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
    (lines.map(text).collect(), has_colour)
}

/// Counters of the container with this number after so many seconds: each with traffic of its own, one that loses
/// packets, and one that is out of ports.
fn container(number: u64, second: u64) -> ContainerStats {
    let mut container = stats(&format!("job-{number}"), second * number * 1000, second * number);
    let in_use = if number == 123 { 1024 } else { 7 };
    container.ephemeral_ports = Some(PortUse { in_use, total: 1024, peak: in_use, exhausted: 0 });
    let rtt = u32::try_from(number).expect("small") * 100;
    container.rtt_us = Some(RttPercentiles { p50: rtt, p90: rtt, p95: rtt, p99: rtt });
    container.read_age_ms = Some(3);
    if number == 321 {
        container.drops.tx.extend([("arp".to_owned(), second), ("source_port".to_owned(), 50 * second)]);
    }
    container
}

/// Takes in the counters of so many containers after so many seconds, from the JSON of a response.
fn advance(app: &mut App, count: u64, start: Instant, second: u64) {
    let mut reading = reading(
        start + Duration::from_secs(second),
        (0..count).map(|number| container(number, second)).collect(),
    );
    let json = serde_json::to_string(&reading.stats).expect("JSON");
    reading.stats = serde_json::from_str::<Stats>(&json).expect("the same");
    app.read(Ok(reading));
}

/// An app that has read the counters of so many containers twice.
fn app(count: u64) -> App {
    let (mut app, start) = (App::new(), Instant::now());
    advance(&mut app, count, start, 0);
    advance(&mut app, count, start, 1);
    app
}

#[test]
fn top_shows_1000_containers_on_80_by_24() {
    let mut app = app(1000);
    let lines = |app: &mut App| screen(app, 80, 24, PLAIN).0;
    let first = |app: &mut App| lines(app)[5].split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let shown = lines(&mut app);
    assert!(shown[0].starts_with("portmap top  1000 containers  1.0 s  bit/s  by sent"), "{}", shown[0]);
    assert!(
        shown[3].starts_with("now    1 with drops  0 slowed by limits  1 short of ports"),
        "{}",
        shown[3]
    );
    let titles: Vec<&str> = shown[4].split_whitespace().collect();
    assert_eq!(titles, ["NAME", "RX", "TX", "UPLINK", "LIMIT", "QUEUE", "PORTS", "RTT", "DROPS", "WHY"]);
    assert_eq!(first(&mut app), ["job-999", "7.99M", "7.99k", "7.99M", "-", "0", "1%", "99.9ms", "0"]);
    assert!(shown[22].starts_with("job-982 "), "{}", shown[22]);
    // Who loses packets, and why; who is out of ports; who waits longest for answers.
    app.act(Action::Sort(SortKey::Drops));
    assert_eq!(first(&mut app)[8..], ["51", "tx:source_port"]);
    app.act(Action::Sort(SortKey::Ports));
    let row = first(&mut app);
    assert_eq!((row[0].as_str(), row[6].as_str()), ("job-123", "100%!"));
    app.act(Action::Sort(SortKey::Rtt));
    assert_eq!(first(&mut app)[0], "job-999");
    // The last, and a screen up.
    app.act(Action::Last);
    assert!(lines(&mut app)[22].starts_with("job-0 "), "{:?}", lines(&mut app));
    app.act(Action::Page(-1));
    assert!(lines(&mut app)[5].starts_with("job-18 "), "{:?}", lines(&mut app));
    // A filter.
    for character in "99".chars() {
        app.act(Action::Type(character));
    }
    let shown = lines(&mut app);
    assert!(shown[0].contains("19 of 1000 containers"), "{}", shown[0]);
    assert!(shown[5..23].iter().all(|line| line.contains("99")), "{shown:?}");
}

#[test]
fn top_shows_all_columns_on_160_by_50() {
    let mut app = app(1000);
    app.act(Action::Sort(SortKey::Drops));
    let (lines, _) = screen(&mut app, 160, 50, PLAIN);
    assert!(lines[4].contains("PKT/S") && lines[4].contains("RX AND TX"), "{}", lines[4]);
    assert!(lines[5].contains("7/1024 ") && lines[5].contains("tx:source_port tx:arp"), "{}", lines[5]);
}

/// What a terminal of 80 by 24 characters is sent for each frame.
struct Wire {
    terminal: Terminal<CrosstermBackend<Sink>>,
    sent: Sink,
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<usize>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        *self.0.lock().expect("no panic") += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire {
    fn new() -> Self {
        let sent = Sink::default();
        let viewport = Viewport::Fixed(Rect::new(0, 0, 80, 24));
        let terminal =
            Terminal::with_options(CrosstermBackend::new(sent.clone()), TerminalOptions { viewport });
        Self { terminal: terminal.expect("a terminal"), sent }
    }

    /// Bytes of the next frame.
    fn frame(&mut self, app: &mut App) -> usize {
        *self.sent.0.lock().expect("no panic") = 0;
        self.terminal.draw(|frame| draw(frame, app, PLAIN)).expect("drawn");
        *self.sent.0.lock().expect("no panic")
    }
}

/// A frame of a thousand containers costs the terminal what one of twenty costs.
#[test]
fn top_frames_are_as_small_with_1000_containers() {
    let frames = |count: u64| {
        let (mut app, mut wire, start) = (App::new(), Wire::new(), Instant::now());
        advance(&mut app, count, start, 0);
        advance(&mut app, count, start, 1);
        let whole = wire.frame(&mut app);
        let same = wire.frame(&mut app);
        app.act(Action::Move(1));
        let moved = wire.frame(&mut app);
        (whole, same, moved)
    };
    let (whole, same, moved) = frames(1000);
    let few = frames(20).0;
    assert!(whole < 2 * 80 * 24 && whole < few * 2, "{whole} {few}");
    assert!(same < 50, "nothing has changed: {same}");
    assert!(moved < 4 * 80, "two lines have changed: {moved}");
}

/// A screen that stands still must not look like one that is up to date, even without colours.
#[test]
fn top_says_on_80_columns_that_it_is_paused() {
    let mut app = app(1000);
    for action in [Action::Sort(SortKey::Ports), Action::Invert, Action::Type('9'), Action::Pause] {
        app.act(action);
    }
    let (lines, _) = screen(&mut app, 80, 24, PLAIN);
    assert!(lines[0].starts_with("portmap top  PAUSED  271 of 1000 containers"), "{}", lines[0]);
}

/// An app that shows a container with limits of 1000 bytes per second, whose queues count bytes and waits: `None` is a
/// queue that could not be read. The host drops so many packets that exceed the limit.
fn limited(egress: Option<(u64, u64)>, ingress: (u64, u64), policed: u64) -> App {
    let (mut app, start) = (App::new(), Instant::now());
    let limit = json!({"rate": 1000, "ceil": 1000, "burst": 1, "leaf": "bfifo"});
    let container = json!({
        "name": "job", "slot": 1, "netns": "/run/netns/job", "host_veth": "pm1", "ip": "10.0.0.1", "state": "ready",
        "ports": (0..12).map(|number| [31_000 + 10 * number, 31_005 + 10 * number]).collect::<Vec<_>>(),
        "ephemeral_ports": [61_440, 62_463], "labels": {"k": format!("{}end", "x".repeat(150))},
        "egress": limit, "ingress": limit,
    });
    for second in 0..2 {
        let mut stats = stats("job", 0, 0);
        let queue = |(bytes, overlimits): (u64, u64)| {
            let (bytes, overlimits) = (bytes * second, overlimits * second);
            vec![QueueStats { bytes, overlimits, ..QueueStats::default() }]
        };
        stats.egress = egress.map(queue).unwrap_or_default();
        stats.ingress = queue(ingress);
        stats.drops.tx.insert("rate".to_owned(), policed * second);
        let mut reading = reading(start + Duration::from_secs(second), vec![stats]);
        reading.containers = vec![serde_json::from_value(container.clone()).expect("a container")];
        app.read(Ok(reading));
    }
    app
}

/// Who is slowed down, and by which of its limits.
#[test]
fn top_shows_the_limit_that_slows_a_container_down() {
    for (egress, ingress, policed, expected, slowed) in [
        (Some((600, 0)), (500, 0), 0, "tx 60%", 0),
        (Some((600, 0)), (500, 7), 0, "rx 50%!", 1),
        (Some((600, 3)), (500, 7), 0, "tx 60%!", 1),
        // Root in the container has removed its queue, or replaced it by one that counts all that it sends.
        (None, (0, 0), 9, "tx ?!", 1),
        (Some((6_000_000, 0)), (0, 0), 9, "tx 999%!", 1),
    ] {
        let (lines, _) = screen(&mut limited(egress, ingress, policed), 80, 24, PLAIN);
        let end = lines[4].find("LIMIT").expect("a title") + "LIMIT".len();
        assert_eq!(lines[5][end - 9..end].trim(), expected, "{}", lines[5]);
        assert_eq!(&lines[5][end - 9..=end - 9], " ", "a gap: {}", lines[5]);
        assert!(lines[3].contains(&format!("{slowed} slowed by limits")), "{}", lines[3]);
    }
}

/// Nothing scrolls to the right, so long lists and labels have more lines.
#[test]
fn top_shows_all_of_one_container_on_80_columns() {
    let mut app = limited(None, (0, 0), 9);
    app.act(Action::Open);
    let flow = json!({
        "protocol": "tcp", "peer": "203.0.113.254", "peer_name": "web", "direction": "out", "port": 54321,
        "connections": 10, "bytes_sent": 817_272_920_111_u64, "bytes_received": 2_817_272_920_111_u64,
        "rtt_us": 13_100, "retransmits": 4242,
    });
    let others = json!({"connections": 0, "bytes_sent": 0, "bytes_received": 0});
    let flows =
        json!({"name": "job", "flows": [flow], "others": others, "unconnected_udp": 0, "is_complete": true});
    app.read_flows(Ok(serde_json::from_value(flows).expect("flows")));
    let shown = |app: &mut App| screen(app, 80, 60, PLAIN).0.join("\n");
    let lines = shown(&mut app);
    for expected in
        ["31110-31115", "ephemeral 61440-62463", "xend", "817G", "2.82T", "4242", "portmap doctor"]
    {
        assert!(lines.contains(expected), "{expected}: {lines}");
    }
    // Reading flows needs root, reading counters does not.
    app.read_flows(Err("run as root".to_owned()));
    let lines = shown(&mut app);
    assert!(lines.contains("no flows: run as root"), "{lines}");
}

/// The prompt of the filter is seen, and the error again afterwards.
#[test]
fn top_shows_the_filter_while_there_is_no_daemon() {
    let mut app = app(3);
    app.read(Err("no daemon".to_owned()));
    for action in [Action::Filter, Action::Type('x')] {
        app.act(action);
    }
    let last = |app: &mut App| screen(app, 80, 24, PLAIN).0[23].clone();
    assert!(last(&mut app).starts_with("filter: x_"), "{}", last(&mut app));
    app.act(Action::Accept);
    assert!(last(&mut app).starts_with("no data: no daemon"), "{}", last(&mut app));
}

/// No size of a window may stop the view, and one that is too small is told so.
#[test]
fn top_fits_every_size() {
    for (width, height) in [(1, 1), (20, 5), (39, 24), (40, 8), (79, 24), (300, 90), (80, 3), (80, 7)] {
        let mut app = app(3);
        for action in [
            Action::Move(1),
            Action::Filter,
            Action::Back,
            Action::Help,
            Action::Back,
            Action::Open,
            Action::Last,
        ] {
            app.act(action);
            let (lines, _) = screen(&mut app, width, height, Theme { has_colour: true, is_ascii: false });
            let is_small = width < 40 || height < 8;
            let says_so = lines.concat().contains("too small");
            assert!(says_so == is_small || width * height < 10, "{width}x{height} {action:?}: {lines:#?}");
        }
    }
}

#[test]
fn top_without_colour_has_none_and_says_the_same() {
    let mut app = app(200);
    app.act(Action::Sort(SortKey::Ports));
    app.read(Err("no daemon".to_owned()));
    let (plain, has_colour) = screen(&mut app, 80, 24, PLAIN);
    assert!(!has_colour);
    let (coloured, has_colour) = screen(&mut app, 80, 24, Theme { has_colour: true, ..PLAIN });
    assert!(has_colour);
    assert_eq!(plain, coloured);
    assert!(plain[5].starts_with("job-123 ") && plain[5].contains("100%!"), "{}", plain[5]);
}

/// The daemon refuses such names. Neither a damaged response nor a filter may control the terminal.
#[test]
fn top_names_are_escaped_and_fit() {
    let long = "x".repeat(128);
    let (mut app, start) = (App::new(), Instant::now());
    for second in 0..2 {
        let names = ["a\x1b[2J", "日本語日本語日本語日本語", &long, "b\u{202e}c\u{9b}2J"];
        let containers = names.map(|name| ContainerStats { name: name.to_owned(), ..container(321, second) });
        app.read(Ok(reading(start + Duration::from_secs(second), containers.into())));
    }
    app.act(Action::Sort(SortKey::Name));
    for character in "\x1b\u{9b}".chars() {
        app.act(Action::Type(character));
    }
    let (lines, _) = screen(&mut app, 80, 24, PLAIN);
    assert!(lines[23].contains("filter: \\u{1b}\\u{9b}"), "{}", lines[23]);
    app.act(Action::EraseAll);
    for (width, expected) in [(80, ["a\\u{1b}[2J ", "b\\u{202e}c~ ", "xxxxxxxxxx~ "]), (200, ["a", "b", "x"])]
    {
        let (lines, _) = screen(&mut app, width, 24, PLAIN);
        for (line, start) in lines[5..].iter().zip(expected) {
            assert!(line.starts_with(start), "{width}: {line}");
        }
        assert!(
            lines.iter().flat_map(|line| line.chars()).all(|character| !character.is_control()),
            "{lines:?}"
        );
        // Each row has its columns below their titles; `TestBackend` has two cells for a wide character.
        let end = lines[4].find("DROPS").expect("a title") + "DROPS".len();
        for line in &lines[5..8] {
            assert_eq!(&line[end - 3..end], " 51", "{line}");
        }
    }
    // One of them alone.
    app.act(Action::Open);
    let (lines, _) = screen(&mut app, 80, 24, PLAIN);
    assert!(lines[4].starts_with("a\\u{1b}[2J"), "{}", lines[4]);
}
