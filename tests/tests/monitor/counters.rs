//! Packets, bytes and drops, and the percentiles of their rates.

use std::net::UdpSocket;

use portmap_tests::{
    sandbox::{HOST, Netns, OUTSIDE},
    wait,
};

use super::{A, ALL, number, statistics, udp, world};

/// Bytes of a frame before the payload of a datagram.
const HEADERS: u64 = 14 + 20 + 8;

#[test]
fn monitor_counts_datagrams_to_the_byte() {
    let (sandbox, _daemon) = world(&[], &[]);
    let (inside, outside) = (udp(&sandbox, A, 31000), udp(&sandbox, Netns::Outside, 9000));
    let before = statistics(&sandbox);
    let mut buffer = [0; 2000];
    for _ in 0..5 {
        outside.send_to(&[0; 100], (HOST, 31000)).expect("sent");
        inside.recv(&mut buffer).expect("received");
    }
    for _ in 0..3 {
        inside.send_to(&[0; 1000], (OUTSIDE, 9000)).expect("sent");
        outside.recv(&mut buffer).expect("received");
    }
    let after = statistics(&sandbox);
    let difference = |key| number(&after, key) - number(&before, key);
    assert_eq!(difference("net_rx_packets"), 5);
    assert_eq!(difference("net_rx_bytes"), 5 * (100 + HEADERS));
    assert_eq!(difference("net_tx_packets"), 3);
    assert_eq!(difference("net_tx_bytes"), 3 * (1000 + HEADERS));
    for key in ["net_rx_dropped", "net_tx_dropped", "net_rx_errors", "net_tx_errors"] {
        assert_eq!(difference(key), 0, "{key}");
    }
}

#[test]
fn monitor_counts_traffic_of_host_and_containers_but_not_of_loopback() {
    let (sandbox, _daemon) = world(&[], &[]);
    sandbox.ok(&["add", "b", "--ports", "31010"]);
    let server = udp(&sandbox, A, 31000);
    let before = statistics(&sandbox);
    for (netns, packets) in [(Netns::Host, 1), (Netns::Container("b"), 2), (A, 2)] {
        let client = sandbox.inside(netns, || UdpSocket::bind(("0.0.0.0", 0))).expect("a port");
        client.send_to(&[0; 10], (HOST, 31000)).expect("sent");
        server.recv(&mut [0; 10]).expect("received");
        let after = statistics(&sandbox);
        let received = number(&after, "net_rx_packets") - number(&before, "net_rx_packets");
        assert_eq!(received, packets, "after one from {netns:?}");
        assert_eq!(after["net_tx_packets"], before["net_tx_packets"], "after one from {netns:?}");
    }
}

#[test]
fn monitor_counts_drops_of_each_direction() {
    let (sandbox, _daemon) = world(&[], &["--loopback", "private"]);
    let before = statistics(&sandbox);
    // A port of another owner.
    let forging = udp(&sandbox, A, 32000);
    for _ in 0..4 {
        forging.send_to(b"forged", (OUTSIDE, 9)).expect("sent");
    }
    wait::until("the drops to be counted", || {
        number(&statistics(&sandbox), "net_tx_dropped") == number(&before, "net_tx_dropped") + 4
    });
    assert_eq!(statistics(&sandbox)["net_tx_packets"], before["net_tx_packets"], "dropped ones do not count");
}

/// The host veth loses frames that the container's own interface is too small for.
#[test]
fn monitor_counts_drops_of_the_host_veth() {
    // Only a limit on receiving sends packets through the host veth.
    let (sandbox, _daemon) = world(&[], &["--ingress-rate", "50mbit"]);
    sandbox.sh(A, "ip link set eth0 mtu 1000");
    let before = statistics(&sandbox);
    let outside = udp(&sandbox, Netns::Outside, 9000);
    for _ in 0..3 {
        outside.send_to(&[0; 1200], (HOST, 31000)).expect("sent");
    }
    wait::until("the drops to be counted", || {
        number(&statistics(&sandbox), "net_rx_dropped") == number(&before, "net_rx_dropped") + 3
    });
    // No program dropped any, so these are the kernel's numbers; what the host veth sends the container receives.
    let veth = sandbox.json(&["show", "a"])["host_veth"].as_str().expect("a name").to_owned();
    let text = sandbox.sh(Netns::Host, &format!("ip -s -j link show {veth}"));
    let kernel = &serde_json::from_str::<serde_json::Value>(&text).expect("JSON")[0]["stats64"];
    let found = statistics(&sandbox);
    for (key, direction, counter) in [
        ("net_rx_dropped", "tx", "dropped"),
        ("net_tx_dropped", "rx", "dropped"),
        ("net_rx_errors", "tx", "errors"),
        ("net_tx_errors", "rx", "errors"),
    ] {
        assert_eq!(found[key], kernel[direction][counter], "{key}: {kernel}");
    }
}

#[test]
fn monitor_rates_follow_the_traffic() {
    // With a limit on receiving the host veth drops frames that are too large for the container's interface.
    let (sandbox, _daemon) = world(&ALL, &["--ingress-rate", "50mbit"]);
    sandbox.sh(A, "ip link set eth0 mtu 1100");
    let (inside, outside) = (udp(&sandbox, A, 31000), udp(&sandbox, Netns::Outside, 9000));
    let forging = udp(&sandbox, A, 32000);
    let mut buffer = [0; 2000];
    let found = wait::for_value("rates of all traffic", || {
        for _ in 0..20 {
            outside.send_to(&[0; 1000], (HOST, 31000)).expect("sent");
            inside.recv(&mut buffer).expect("received");
            inside.send_to(&[0; 100], (OUTSIDE, 9000)).expect("sent");
            outside.recv(&mut buffer).expect("received");
            forging.send_to(b"forged", (OUTSIDE, 9)).expect("sent");
            outside.send_to(&[0; 1300], (HOST, 31000)).expect("sent");
        }
        let rates = statistics(&sandbox)["net_rate_statistics"].take();
        let moves = |key: &str| rates[key]["max"].as_u64().is_some_and(|max| max > 0);
        let all = ["rx_rate", "rx_packet_rate", "rx_drop_rate", "tx_rate", "tx_packet_rate", "tx_drop_rate"];
        all.iter().all(|key| moves(key)).then_some(rates)
    });
    for (key, rate) in found.as_object().expect("an object") {
        let Some(samples) = rate.get("samples") else { continue };
        // A window of two seconds has 40 samples of 50 ms.
        assert!((2..=40).contains(&samples.as_u64().expect("a number")), "{key}: {rate}");
        let values =
            ["min", "p50", "p90", "p95", "p99", "p999", "p9999", "max"].map(|name| number(rate, name));
        assert!(values.is_sorted(), "{key}: {rate}");
    }
    let max = |key: &str| number(&found[key], "max");
    // Frames of 1042 bytes come in, of 142 bytes go out; a rate is rounded down.
    assert!(max("rx_rate") >= max("rx_packet_rate") * (1000 + HEADERS), "{found}");
    assert!(max("tx_rate") >= max("tx_packet_rate") * (100 + HEADERS), "{found}");
    // A veth counts no errors.
    for key in ["rx_error_rate", "tx_error_rate"] {
        assert_eq!(max(key), 0, "{key}");
    }
    // Old samples are forgotten.
    wait::until("the rates to be those of an idle container", || {
        let rates = statistics(&sandbox)["net_rate_statistics"].take();
        number(&rates["rx_rate"], "max") == 0 && number(&rates["tx_drop_rate"], "max") == 0
    });
}
