//! docs/inspect.md: each of its commands runs, prints what the page shows, and agrees with `portmap stats`.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
};

use portmap_tests::{
    sandbox::{HOST, Netns, OUTSIDE, Sandbox},
    wait,
};
use serde_json::Value;

use super::page::{self, Example, Page, examples, with_outputs};

const WEB: Netns<'_> = Netns::Container("web");
/// Bytes of the transfers by TCP. Each is one packet, see the page.
const SENT: usize = 700;
const RECEIVED: usize = 500;

/// Sends a known number of packets, and leaves a connection open.
fn traffic(sandbox: &Sandbox) -> [TcpStream; 2] {
    let web = sandbox.inside(WEB, || UdpSocket::bind(("0.0.0.0", 31001))).expect("the port is free");
    let outside =
        sandbox.inside(Netns::Outside, || UdpSocket::bind(("0.0.0.0", 9))).expect("the port is free");
    for _ in 0..100 {
        web.send_to(&[1; 1000], (OUTSIDE, 9)).expect("sent");
    }
    for _ in 0..50 {
        outside.send_to(&[2; 200], (HOST, 31001)).expect("sent");
    }
    let forger = sandbox.inside(WEB, || UdpSocket::bind(("0.0.0.0", 9000))).expect("no bind guard");
    for _ in 0..7 {
        forger.send_to(b"forged", (OUTSIDE, 9)).expect("sent");
    }
    let listener = sandbox.inside(WEB, || TcpListener::bind(("0.0.0.0", 31000))).expect("the port is free");
    let client = sandbox.inside(Netns::Outside, || TcpStream::connect((HOST, 31000))).expect("connected");
    let server = listener.accept().expect("a connection").0;
    for (mut from, mut to, bytes) in [(&server, &client, SENT), (&client, &server, RECEIVED)] {
        from.write_all(&vec![3; bytes]).expect("sent");
        to.read_exact(&mut vec![0; bytes]).expect("received");
    }
    [client, server]
}

/// The sum over paths of one direction.
fn sum(stats: &Value, direction: &str, unit: &str) -> u64 {
    let paths = stats["traffic"].as_object().expect("an object").iter();
    let counts = paths.filter(|(path, _)| path.starts_with(direction)).map(|(_, count)| &count[unit]);
    counts.map(|count| count.as_u64().expect("a number")).sum()
}

#[test]
fn inspect_page_agrees_with_stats() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "echo 1 > /proc/sys/net/ipv6/conf/uplink/disable_ipv6");
    let _daemon = sandbox.daemon();
    let limits = ["--egress-rate", "100mbit", "--ingress-rate", "100mbit"];
    sandbox.ok(&[&["add", "web", "--ports", "31000-31009"][..], &limits].concat());
    let connection = traffic(&sandbox);
    // Acknowledgements may be on their way: two equal readings with all outputs in between.
    let page = Page::open("inspect.md");
    let examples = examples(&page.text);
    assert!(examples.len() > 10, "the page has {} commands", examples.len());
    let (stats, outputs) = wait::for_value("packets to stop", || {
        let before = sandbox.counters();
        let run = |example: &Example| {
            let program = portmap_tests::sandbox::binary("portmap");
            let directory = program.parent().expect("a directory").display().to_string();
            let command = format!("PATH=$PATH:{directory}\n{}", example.command);
            (example.command.clone(), sandbox.sh(Netns::Host, &command))
        };
        let outputs: BTreeMap<String, String> = examples.iter().map(run).collect();
        (sandbox.counters() == before).then(|| (before["containers"][0].clone(), outputs))
    });
    if page::is_written() {
        page.write(&with_outputs(&page.text, &outputs));
    } else {
        for Example { command, output } in &examples {
            // The fields that `ss` prints depend on the socket, and units of times on the machine.
            let lines =
                if command.contains("ss -N") || command.contains("portmap flows") { 1 } else { usize::MAX };
            let form = |output: &str| page::form(output).into_iter().take(lines).collect::<Vec<_>>();
            assert_eq!(form(&outputs[command]), form(output), "{command}");
        }
    }

    let of = |part: &str| {
        let found = outputs.iter().find(|(command, _)| command.contains(part));
        found.map_or_else(|| panic!("the page has no {part}"), |(_, output)| output.as_str())
    };
    let [rx, tx] =
        ["rx_", "tx_"].map(|direction| ["packets", "bytes"].map(|unit| sum(&stats, direction, unit)));
    let forged = stats["drops"]["tx"]["source_port"].as_u64().expect("a number");
    assert_eq!(forged, 7);
    // The statistics in the form of a Mesos agent.
    let monitor = sandbox.sh(
        Netns::Host,
        "curl -sf --unix-socket /run/portmap/portmapd.sock http://portmap/monitor/statistics",
    );
    let monitor: Value = serde_json::from_str(&monitor).expect("JSON");
    for (key, expected) in [
        ("net_rx_packets", rx[0]),
        ("net_rx_bytes", rx[1]),
        ("net_tx_packets", tx[0]),
        ("net_tx_bytes", tx[1]),
        ("net_tx_dropped", forged),
    ] {
        assert_eq!(monitor[0]["statistics"][key], expected, "{key}: {monitor}");
    }
    // bpftool: the same maps, so the same numbers.
    let outside = |direction: &str| {
        let count = &stats["traffic"][format!("{direction}_outside")];
        format!("{{\"packets\":{},\"bytes\":{}}}", count["packets"], count["bytes"])
    };
    assert_eq!(of(".tx_outside]").trim(), outside("tx"));
    assert_eq!(of(".rx_outside]").trim(), outside("rx"));
    assert_eq!(of("pm_drops").trim(), format!("{{\"source_port\":{forged}}}"));
    // tc: the class sees what the container sends, before the programs drop any of it, and what it receives.
    // A forged packet has 42 bytes of headers.
    let (sent, sent_bytes) = (tx[0] + forged, tx[1] + forged * (42 + 6));
    let shown = |packets: u64, bytes: u64| format!("Sent {bytes} bytes {packets} pkt");
    let class = of("tc -n web -s class");
    assert!(class.contains(&shown(sent, sent_bytes)), "{}: {class}", shown(sent, sent_bytes));
    let class = of("tc -s class show dev pm1");
    assert!(class.contains(&shown(rx[0], rx[1])), "{}: {class}", shown(rx[0], rx[1]));
    for (direction, packets, bytes) in [("egress", sent, sent_bytes), ("ingress", rx[0], rx[1])] {
        let root = &stats[direction][0];
        assert_eq!(
            (root["packets"].as_u64(), root["bytes"].as_u64()),
            (Some(packets), Some(bytes)),
            "{root}"
        );
    }
    // ip: the host veth receives what the container sends.
    let link: Vec<u64> = of("ip -s link show")
        .lines()
        .filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()))
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
        .collect();
    assert_eq!(link.first(), Some(&sent), "received by the host veth: {}", of("ip -s link show"));
    // ss: the same sockets as those of `portmap flows`.
    let flow = &sandbox.json(&["flows", "web"])["flows"][0];
    assert_eq!(
        (flow["bytes_sent"].as_u64(), flow["bytes_received"].as_u64()),
        (Some(700), Some(500)),
        "{flow}"
    );
    let socket = of("ss -N web -tniO");
    for expected in [format!("bytes_sent:{SENT}"), format!("bytes_received:{RECEIVED}")] {
        assert!(socket.contains(&expected), "{expected}: {socket}");
    }
    drop(connection);
}
