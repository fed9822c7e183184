//! `/metrics` and `portmap capacity`: the same numbers as `portmap stats`, formats, documentation, and the rules and
//! the dashboard in `contrib`.

mod alerts;
mod capacity;
mod exposition;
mod prometheus;
mod tools;

use std::net::UdpSocket;

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, Netns, OUTSIDE, Sandbox},
    service::{Service, Transport, ask},
    wait,
};

const A: Netns<'_> = Netns::Container("a");

/// Returns the metrics in the classic format.
fn scrape(sandbox: &Sandbox) -> String {
    sandbox.sh(Netns::Host, "curl -sf --unix-socket /run/portmap/portmapd.sock http://portmap/metrics")
}

/// Returns the value of a metric, given its name and labels as they are printed.
fn value(text: &str, metric: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("a number"))
}

#[test]
fn metrics_agree_with_stats() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let limits = ["--egress-rate", "100mbit", "--ingress-rate", "50mbit"];
    sandbox.ok(&[&["add", "a", "--ports", "31000-31009"][..], &limits].concat());
    sandbox.ok(&["add", "b"]);
    let service = Service::both(&sandbox, A, 31000, "a");
    for from in [Netns::Outside, Netns::Host, Netns::Container("b")] {
        ask(&sandbox, from, Transport::Udp, (HOST, 31000)).expect("an answer");
    }
    // A port of another owner.
    let socket = sandbox.inside(A, || UdpSocket::bind((HOST, 32000))).expect("no bind guard");
    socket.send_to(b"forged", (OUTSIDE, 9)).expect("sent");
    drop(service);
    // If two snapshots agree, so does one between them.
    let (stats, text) = wait::for_value("nothing to be sent any more", || {
        let before = sandbox.counters();
        let text = scrape(&sandbox);
        (sandbox.counters() == before).then_some((before, text))
    });
    let a = &stats["containers"][0];
    for (path, flow, peer) in [
        ("rx_outside", "receive", "outside"),
        ("rx_host", "receive", "host"),
        ("rx_container", "receive", "container"),
        ("tx_outside", "transmit", "outside"),
        ("tx_host", "transmit", "host"),
        ("tx_container", "transmit", "container"),
    ] {
        for unit in ["packets", "bytes"] {
            let metric = format!("portmap_container_{flow}_{unit}_total{{container=\"a\",peer=\"{peer}\"}}");
            let expected = a["traffic"][path][unit].as_u64().expect("a number");
            assert!(expected > 0, "{path}");
            assert_eq!(value(&text, &metric), Some(expected), "{metric}");
        }
    }
    let dropped = "container=\"a\",direction=\"transmit\",reason=\"source_port\"";
    let dropped = format!("portmap_container_dropped_packets_total{{{dropped}}}");
    assert_eq!(value(&text, &dropped), Some(1));
    let none = dropped.replace("source_port", "source_address");
    assert_eq!(value(&text, &none), Some(0), "a rate needs the value before the first packet");
    for (direction, rate) in [("egress", 12_500_000), ("ingress", 6_250_000)] {
        let labels = format!("container=\"a\",direction=\"{direction}\"");
        let limit = format!("portmap_container_limit_bytes_per_second{{{labels}}}");
        assert_eq!(value(&text, &limit), Some(rate));
        for (index, qdisc) in ["bw_limit", "bloat_reduction"].into_iter().enumerate() {
            let sent = format!("portmap_container_qdisc_sent_packets_total{{{labels},qdisc=\"{qdisc}\"}}");
            assert_eq!(value(&text, &sent), a[direction][index]["packets"].as_u64(), "{sent}");
        }
    }
    assert!(!text.contains("portmap_container_limit_bytes_per_second{container=\"b\""));
}

#[test]
fn metrics_report_missing_parts() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--egress-rate", "100mbit"]);
    let in_place = || {
        let labels = "container=\"a\",direction=\"egress\"";
        value(&scrape(&sandbox), &format!("portmap_container_limit_queue_in_place{{{labels}}}"))
    };
    // A reading of the container may have begun before the change.
    wait::until("the qdisc", || in_place() == Some(1));
    sandbox.sh(A, "tc qdisc del dev eth0 root");
    wait::until("the missing qdisc", || in_place() == Some(0));
    sandbox.ok(&["update", "a"]);
    wait::until("the qdisc again", || in_place() == Some(1));
    let leaf = sandbox.json(&["show", "a"])["egress"]["leaf"].clone();
    let has = value(&scrape(&sandbox), "portmap_kernel_feature{feature=\"fq_codel\"}");
    assert_eq!(has, Some(u64::from(leaf == "fq_codel")));
}

#[test]
fn metrics_contain_chosen_labels() {
    let sandbox = Sandbox::new();
    let chosen = ["--metrics-label", "example.com/team", "--metrics-label", "job"];
    let _daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &chosen].concat());
    let labels = ["--label", "example.com/team=a \"b\" \\", "--label", "secret=x"];
    sandbox.ok(&[&["add", "a"][..], &labels].concat());
    sandbox.ok(&["add", "b"]);
    let text = scrape(&sandbox);
    let team = "label_example_com_team=\"a \\\"b\\\" \\\\\"";
    let info = format!("portmap_container_info{{container=\"a\",device=\"pm1\",{team}}}");
    assert_eq!(value(&text, &info), Some(1), "{text}");
    assert_eq!(value(&text, "portmap_container_info{container=\"b\",device=\"pm2\"}"), Some(1), "{text}");
    sandbox.ok(&["update", "b", "--label", "job=x"]);
    let info = "portmap_container_info{container=\"b\",device=\"pm2\",label_job=\"x\"}";
    assert_eq!(value(&scrape(&sandbox), info), Some(1));
}
