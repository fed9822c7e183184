//! The formats of `/metrics`, its documentation, and the names that rules and dashboards use.

use std::{collections::BTreeMap, fmt::Write as _};

use portmap_tests::{
    frames::Frame,
    packet_socket::PacketSocket,
    sandbox::{DAEMON_FLAGS, HOST, HOST_MAC, Netns, OUTSIDE_MAC, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::Value;

use crate::{
    A, scrape,
    tools::{file, named_metrics, program, read, succeed, types},
};

/// Metrics that depend on the kernel.
const FQ_CODEL_ONLY: &str = "portmap_container_qdisc_ecn_marks_total";

/// Returns a response with its head.
fn request(sandbox: &Sandbox, accept: &str) -> (String, String) {
    let curl = "curl -sfi --unix-socket /run/portmap/portmapd.sock http://portmap/metrics";
    let response = sandbox.sh(Netns::Host, &format!("{curl} -H 'Accept: {accept}'"));
    let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_ascii_lowercase(), body.to_owned())
}

/// Causes every metric to have a value, and returns them all in the classic format.
fn with_every_metric(sandbox: &Sandbox) -> String {
    sandbox.ok(&[
        "add",
        "a",
        "--ports",
        "31000-31009",
        "--egress-rate",
        "100mbit",
        "--ingress-rate",
        "50mbit",
    ]);
    sandbox.ok(&["add", "b"]);
    sandbox.ok(&["del", "b"]);
    let _services = Service::both(sandbox, A, 31000, "a");
    for from in [Netns::Outside, Netns::Host, A] {
        ask(sandbox, from, Transport::Udp, (HOST, 31000)).expect("an answer");
    }
    // From outside with the host's own address.
    let forged = Frame { from_mac: OUTSIDE_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, 9), (HOST, 31000)) };
    sandbox.inside(Netns::Outside, || PacketSocket::open("eth0")).send(&forged.bytes());
    wait::for_value("the forged packet to be counted, and the namespaces to be read", || {
        let text = scrape(sandbox);
        let is_read = text.contains("portmap_container_ephemeral_ports_used{container=\"a\"}");
        (is_read && text.contains("portmap_host_dropped_packets_total{")).then_some(text)
    })
}

/// The metrics of the tables in `docs/metrics.md`, with their types.
fn documented() -> BTreeMap<String, String> {
    let page = read("docs/metrics.md");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let name = cells.next()?.trim_end_matches('`').to_owned();
        // Other tables list formats and files.
        let is_metric = name.starts_with("portmap_") || name.starts_with("process_");
        is_metric.then_some((name, cells.next()?.to_owned()))
    };
    page.lines().filter_map(row).collect()
}

#[test]
fn metrics_match_the_documentation() {
    let sandbox = Sandbox::new();
    let more = ["--network-link-speed", "1gbit", "--ephemeral-ports-quarantine", "60secs"];
    let _daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &more].concat());
    let text = with_every_metric(&sandbox);
    let found = types(&text);
    let mut documented = documented();
    if !found.contains_key(FQ_CODEL_ONLY) {
        documented.remove(FQ_CODEL_ONLY).expect("it is documented");
    }
    assert_eq!(found, documented, "metrics, and those of docs/metrics.md");
    // Silent if all names, types, units and help texts follow the conventions.
    let lint = succeed(&program("promtool"), &["check", "metrics"], &file("."), &text);
    assert_eq!(lint, "", "{text}");
    // Histograms have no sample of their own name.
    let known = |name: &str| {
        let is_suffix = |rest: &str| ["", "_bucket", "_count", "_sum"].contains(&rest);
        let of = |own: &String| name.strip_prefix(own.as_str()).is_some_and(is_suffix);
        name == FQ_CODEL_ONLY || found.keys().any(of)
    };
    for path in ["contrib/prometheus/alerts.yml", "contrib/grafana/portmap.json"] {
        let named = named_metrics(&read(path));
        assert!(named.len() > 10, "{path}: {named:?}");
        let unknown: Vec<_> = named.iter().filter(|name| !known(name)).collect();
        assert!(unknown.is_empty(), "{path} names metrics that do not exist: {unknown:?}");
    }
    let text = scrape(&sandbox);
    assert!(text.contains("container=\"a\""), "{text}");
    sandbox.ok(&["del", "a"]);
    let text = scrape(&sandbox);
    assert!(!text.contains("container=\"a\""), "series disappear with their container: {text}");
}

#[test]
fn metrics_are_in_the_format_that_the_client_accepts() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--egress-rate", "100mbit"]);
    let (head, classic) = request(&sandbox, "*/*");
    assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(head.contains("\r\nvary: accept"), "{head}");
    let accept = "application/openmetrics-text; version=1.0.0; q=0.9, text/plain; q=0.5";
    let (head, open) = request(&sandbox, accept);
    let expected = "\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.contains(expected), "{head}");
    assert!(open.ends_with("# EOF\n") && !classic.contains("# EOF"), "{open}");
    // The strict parsers of Prometheus' Python library, which refuse what Prometheus itself tolerates.
    let script = "
import sys
from prometheus_client.openmetrics import parser as open_parser
from prometheus_client import parser
text = sys.stdin.read()
parse = open_parser if text.endswith('# EOF\\n') else parser
families = list(parse.text_string_to_metric_families(text))
assert len({f.name for f in families}) == len(families), 'a family is split'
for f in families:
    for s in f.samples: print(s.name, sorted(s.labels.items()))
";
    let samples = [&classic, &open].map(|text| {
        let output = succeed("/usr/bin/python3".as_ref(), &["-c", script], &file("."), text);
        let mut lines: Vec<String> = output.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    });
    assert_eq!(samples[0], samples[1], "both formats have the same samples");
}

#[test]
fn dashboard_expressions_are_valid() {
    let dashboard: Value = serde_json::from_str(&read("contrib/grafana/portmap.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    let mut count = 0;
    for target in targets {
        let expression = target["expr"].as_str().expect("an expression").replace("$__rate_interval", "5m");
        let expression = serde_json::to_string(&expression).expect("JSON");
        writeln!(rules, "  - {{record: \"panel:{count}\", expr: {expression}}}").expect("written");
        count += 1;
    }
    assert!(count > 20, "{count}");
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("rules.yml"), rules).expect("written");
    succeed(&program("promtool"), &["check", "rules", "rules.yml"], directory.path(), "");
}
