//! Keys, types and units, and the flags of each group.

use std::net::{TcpListener, TcpStream};

use portmap_tests::{
    sandbox::{HOST, Netns},
    wait,
};
use serde_json::Value;

use super::{A, ALL, get, monitor, statistics, world};

/// A response with every key, of our own making.
const GOLDEN: &str = include_str!("golden.json");

/// Asserts that two values have the same keys and types; of lists, the same elements by `id`.
fn assert_same_shape(path: &str, found: &Value, golden: &Value) {
    match (found, golden) {
        (Value::Object(found), Value::Object(golden)) => {
            let keys = |object: &serde_json::Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
            let (mut one, mut other) = (keys(found), keys(golden));
            one.sort();
            other.sort();
            assert_eq!(one, other, "the keys of {path}");
            for (key, value) in found {
                assert_same_shape(&format!("{path}.{key}"), value, &golden[key]);
            }
        }
        (Value::Array(found), Value::Array(golden)) => {
            let ids = |list: &[Value]| list.iter().map(|entry| entry["id"].clone()).collect::<Vec<_>>();
            assert_eq!(ids(found), ids(golden), "the elements of {path}");
            for (number, (found, golden)) in found.iter().zip(golden).enumerate() {
                assert_same_shape(&format!("{path}[{number}]"), found, golden);
            }
        }
        (Value::Number(found), Value::Number(golden)) => {
            assert_eq!(found.is_f64(), golden.is_f64(), "{path}: {found} {golden}");
        }
        (Value::String(_), Value::String(_)) => {}
        _ => panic!("{path} is {found}, expected the type of {golden}"),
    }
}

#[test]
fn monitor_has_every_key_of_the_golden_file() {
    let limits = ["--egress-rate", "100mbit", "--ingress-rate", "50mbit", "--label", "executor_id=e7"];
    let labels = ["--label", "framework_id=f1", "--label", "executor_name=web", "--label", "source=s"];
    let bursts = ["--egress-ceil-limit", "200mbit", "--egress-burst", "64KB"];
    let ingress = ["--ingress-ceil-limit", "80mbit", "--ingress-burst", "32KB", "--listen", "127.0.0.1:5051"];
    let (sandbox, _daemon) = world(&[&ALL[..], &bursts, &ingress].concat(), &[&limits[..], &labels].concat());
    // Percentiles need a connection.
    let listener = sandbox.inside(A, || TcpListener::bind(("0.0.0.0", 31000))).expect("a port");
    let client = sandbox.inside(Netns::Outside, || TcpStream::connect((HOST, 31000))).expect("a connection");
    let accepted = listener.accept().expect("a connection");
    let golden: Vec<Value> = serde_json::from_str(GOLDEN).expect("JSON");
    wait::until("two samples of the rates", || {
        !statistics(&sandbox)["net_rate_statistics"]["tx_error_rate"].is_null()
    });
    let found = monitor(&sandbox);
    assert_same_shape("", &Value::from(found.clone()), &Value::from(golden));
    let statistics = &found[0]["statistics"];
    let names = ["container_id", "executor_id", "executor_name", "framework_id", "source"];
    assert_eq!(names.map(|name| found[0][name].clone()), ["a", "e7", "web", "f1", "s"]);
    for (key, expected) in [
        ("net_tx_rate_limit", 12_500_000),
        ("net_tx_burst_rate_limit", 25_000_000),
        ("net_tx_burst_size", 65_536),
        ("net_rx_rate_limit", 6_250_000),
        ("net_rx_burst_rate_limit", 10_000_000),
        ("net_rx_burst_size", 32_768),
    ] {
        assert_eq!(statistics[key], expected, "{key}");
    }
    assert_eq!(statistics["net_rate_statistics"]["sampling_window_secs"], 2.0);
    assert_eq!(statistics["net_rate_statistics"]["sampling_interval_secs"], 0.05);
    let block = &sandbox.json(&["show", "a"])["ephemeral_ports"];
    let ports = &statistics["net_ephemeral_ports"];
    assert_eq!((&ports["begin"], &ports["end"]), (&block[0], &block[1]));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time");
    let age = now.as_secs_f64() - statistics["timestamp"].as_f64().expect("a time");
    assert!((0.0..600.0).contains(&age), "{age}");
    // The other addresses of the same.
    let keys = |text: String| serde_json::from_str::<Value>(&text).expect("JSON");
    for found in [
        get(&sandbox, "/monitor/statistics.json"),
        sandbox.sh(Netns::Host, "curl -sf http://127.0.0.1:5051/monitor/statistics"),
        sandbox.sh(Netns::Host, "curl -sf http://127.0.0.1:5051/monitor/statistics.json"),
    ] {
        assert_eq!(keys(found)[0]["container_id"], "a");
    }
    drop((client, accepted));
}

/// Without a flag its keys are left out, without a limit those of limits.
#[test]
fn monitor_groups_depend_on_their_flags() {
    let (sandbox, _daemon) = world(&["--network-enable-snmp-statistics"], &["--egress-rate", "100mbit"]);
    wait::until("a reading of the container", || !statistics(&sandbox)["net_snmp_statistics"].is_null());
    let found = statistics(&sandbox);
    let keys: Vec<&str> = found.as_object().expect("an object").keys().map(String::as_str).collect();
    let expected = [
        "net_ephemeral_ports",
        "net_rx_bytes",
        "net_rx_dropped",
        "net_rx_errors",
        "net_rx_packets",
        "net_snmp_statistics",
        "net_traffic_control_statistics",
        "net_tx_bytes",
        "net_tx_dropped",
        "net_tx_errors",
        "net_tx_packets",
        "net_tx_rate_limit",
        "timestamp",
    ];
    assert_eq!(keys, expected);
    let qdiscs = found["net_traffic_control_statistics"].as_array().expect("a list");
    assert_eq!(qdiscs.iter().map(|qdisc| &qdisc["id"]).collect::<Vec<_>>(), ["bw_limit", "bloat_reduction"]);
}

/// Limits, the block of ports and the time follow what they describe.
#[test]
fn monitor_settings_follow_updates() {
    let bursts = ["--egress-ceil-limit", "200mbit", "--ingress-ceil-limit", "80mbit"];
    let (sandbox, _daemon) = world(&bursts, &["--egress-rate", "100mbit", "--ingress-rate", "50mbit"]);
    let before = statistics(&sandbox);
    let labels = ["--label", "source=s", "--ephemeral-ports-per-container", "16"];
    sandbox
        .ok(&[&["update", "a", "--egress-rate", "90mbit", "--ingress-rate", "40mbit"][..], &labels].concat());
    let found = monitor(&sandbox).remove(0);
    assert_eq!(found["source"], "s");
    let after = &found["statistics"];
    assert_eq!([&after["net_tx_rate_limit"], &after["net_rx_rate_limit"]], [11_250_000, 5_000_000]);
    let shown = sandbox.json(&["show", "a"]);
    for (direction, key) in [("egress", "tx"), ("ingress", "rx")] {
        assert_eq!(after[format!("net_{key}_burst_rate_limit")], shown[direction]["ceil"], "{shown}");
        assert_eq!(after[format!("net_{key}_burst_size")], shown[direction]["burst"], "{shown}");
    }
    let (block, ports) = (&shown["ephemeral_ports"], &after["net_ephemeral_ports"]);
    assert_eq!((&ports["begin"], &ports["end"]), (&block[0], &block[1]));
    assert_ne!(*ports, before["net_ephemeral_ports"]);
    let time = |statistics: &Value| statistics["timestamp"].as_f64().expect("a time");
    assert!(time(after) > time(&before), "{before} {after}");
}
