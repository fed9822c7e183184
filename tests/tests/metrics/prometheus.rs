//! A real Prometheus scrapes the daemon.

use std::{
    fs,
    process::{Child, Stdio},
};

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::Value;

use crate::{
    A,
    tools::{program, read},
};

/// A running Prometheus; it is killed on drop.
struct Prometheus<'a> {
    sandbox: &'a Sandbox,
    process: Child,
    _data: tempfile::TempDir,
}

impl<'a> Prometheus<'a> {
    /// Starts it on the sandbox's host, with the configuration in `contrib`, and a shorter interval.
    fn start(sandbox: &'a Sandbox) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let configuration = read("contrib/prometheus/scrape.yml").replace(": 15s", ": 1s");
        for (name, text) in
            [("scrape.yml", configuration), ("alerts.yml", read("contrib/prometheus/alerts.yml"))]
        {
            fs::write(data.path().join(name), text).expect("written");
        }
        let flag = |name: &str, path: &str| format!("--{name}={}", data.path().join(path).display());
        let process = sandbox
            .command(Netns::Host, program("prometheus"))
            .args([flag("config.file", "scrape.yml"), flag("storage.tsdb.path", "data")])
            .args(["--web.listen-address=127.0.0.1:9090", "--log.level=warn"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(data.path().join("log")).expect("a log"))
            .spawn()
            .expect("nsenter is part of util-linux");
        Self { sandbox, process, _data: data }
    }

    /// Returns the answer of its HTTP API, once there is one.
    fn get(&self, path: &str) -> Value {
        wait::for_value("Prometheus to answer", || {
            let curl = format!("curl -sg 'http://127.0.0.1:9090/api/v1/{path}' || true");
            let answer: Value = serde_json::from_str(&self.sandbox.sh(Netns::Host, &curl)).ok()?;
            (answer["status"] == "success").then(|| answer["data"].clone())
        })
    }

    /// Returns the value of an expression with one result, if there is one.
    fn query(&self, expression: &str) -> Option<f64> {
        let data = self.get(&format!("query?query={}", expression.replace(' ', "%20")));
        data["result"][0]["value"][1].as_str()?.parse().ok()
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        // The child of `nsenter` is Prometheus itself; `nsenter` ends with it.
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        for pid in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
            let _ = std::process::Command::new("kill").args(["-KILL", pid]).status();
        }
        let _ = self.process.wait();
    }
}

#[test]
fn prometheus_scrapes_the_daemon_and_evaluates_the_rules() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--listen", "127.0.0.1:5051"]].concat());
    sandbox.ok(&["add", "a", "--ports", "31000-31009", "--egress-rate", "100mbit"]);
    let services = Service::both(&sandbox, A, 31000, "a");
    for _ in 0..3 {
        ask(&sandbox, Netns::Outside, Transport::Udp, (HOST, 31000)).expect("an answer");
    }
    drop(services);
    let prometheus = Prometheus::start(&sandbox);
    wait::until("a scrape", || prometheus.query("up{job=\"portmap\"}") == Some(1.0));
    for (peer, direction, path) in
        [("outside", "receive", "rx_outside"), ("outside", "transmit", "tx_outside")]
    {
        let expression =
            format!("portmap_container_{direction}_packets_total{{container=\"a\",peer=\"{peer}\"}}");
        wait::until("Prometheus to have the counters of `stats`", || {
            let stats = sandbox.json(&["stats", "a"])["traffic"][path]["packets"].as_f64();
            assert!(stats >= Some(3.0), "{path}: {stats:?}");
            prometheus.query(&expression) == stats
        });
    }
    let limit = "portmap_container_limit_bytes_per_second{container=\"a\",direction=\"egress\"}";
    assert_eq!(prometheus.query(limit), Some(12_500_000.0));
    assert_eq!(prometheus.query("sum(portmap_static_ports)"), Some(1001.0));
    let slowest = "histogram_quantile(1,portmap_operation_duration_seconds_bucket{operation=\"add\"})";
    assert!(prometheus.query(slowest) > Some(0.0), "the duration of `add`");
    // The description that Prometheus keeps of each metric.
    let metadata = prometheus.get("targets/metadata?metric=portmap_container_receive_bytes");
    assert_eq!(metadata[0]["type"], "counter", "scraped as OpenMetrics: {metadata}");
    wait::until("the rules to be evaluated", || {
        let groups = prometheus.get("rules")["groups"].clone();
        let rules: Vec<Value> = groups
            .as_array()
            .expect("groups")
            .iter()
            .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default())
            .collect();
        assert!(rules.iter().all(|rule| rule["health"] != "err"), "{groups}");
        !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok")
    });
    sandbox.ok(&["del", "a"]);
    let gone = "portmap_container_info{container=\"a\"}";
    wait::until("the series of a deleted container to end", || prometheus.query(gone).is_none());
}
