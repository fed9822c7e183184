//! `/monitor/statistics` by the flags that switch its groups on.

use portmap_tests::{
    background::Background,
    sandbox::{HOST, Netns, Sandbox},
    wait,
};
use serde_json::{Value, json};

use crate::{A, A_PORTS, INVALID_PORT, daemon};

/// The object of container `a`.
fn container(sandbox: &Sandbox) -> Value {
    let get = "curl -sf --unix-socket /run/portmap/portmapd.sock http://portmap/monitor/statistics";
    let mut all: Value = serde_json::from_str(&sandbox.sh(Netns::Host, get)).expect("JSON");
    all[0].take()
}

#[test]
fn statistics_of_sockets_follow_the_flags() {
    const GROUPS: [(&str, &str); 3] = [
        ("--network_enable_socket_statistics_summary", "/net_tcp_active_connections"),
        ("--network_enable_socket_statistics_details", "/net_tcp_rtt_microsecs_p50"),
        ("--network_enable_snmp_statistics", "/net_snmp_statistics/tcp_stats/RetransSegs"),
    ];
    let sandbox = Sandbox::new();
    let mut connection = None;
    for on in [[true, true, true], [true, false, false], [false, true, true], [false, false, false]] {
        let groups: Vec<_> = GROUPS.into_iter().zip(on).collect();
        let limit = ["--egress_rate_limit_per_container=2000B", "--minimum_egress_rate_limit=0B"];
        let flags = groups.iter().filter(|(_, on)| *on).map(|((flag, _), _)| *flag);
        let daemon = daemon(&sandbox, &limit.into_iter().chain(flags).collect::<Vec<_>>());
        // A connection between the container and the host's address, which outlives the daemons.
        connection.get_or_insert_with(|| {
            sandbox.ok(&["add", "a", "--ports", A_PORTS, "--label", "executor_id=job.1"]);
            let server = format!("nc -l {HOST} {INVALID_PORT}");
            let server = Background::server(&sandbox, Netns::Host, INVALID_PORT, &server);
            let client = format!("sh -c '(echo hello; sleep 1000) | nc {HOST} {INVALID_PORT}'");
            let client = Background::start(&sandbox, A, &client);
            wait::until("the connection", || server.count("hello") == 1);
            (server, client)
        });
        let shown = wait::for_value("the groups that are on", || {
            let shown = container(&sandbox);
            let has = |key: &str| shown["statistics"].pointer(key).is_some();
            groups.iter().all(|((_, key), on)| !on || has(key)).then_some(shown)
        });
        for ((flag, key), on) in groups {
            assert_eq!(shown["statistics"].pointer(key).is_some(), on, "{flag}: {shown}");
        }
        if on[0] {
            let active = shown["statistics"]["net_tcp_active_connections"].as_f64();
            assert!(active.is_some_and(|active| active > 0.0), "{shown}");
        }
        assert_eq!((&shown["container_id"], &shown["executor_id"]), (&json!("a"), &json!("job.1")));
        assert_eq!(shown["statistics"]["net_tx_rate_limit"], 2000);
        // The range that the container has.
        let range = sandbox.sh(A, "cat /proc/sys/net/ipv4/ip_local_port_range");
        let range: Vec<u16> = range.split_whitespace().map(|port| port.parse().expect("a port")).collect();
        assert_eq!(range[1] - range[0] + 1, 16);
        let expected = json!({"begin": range[0], "end": range[1]});
        assert_eq!(shown["statistics"]["net_ephemeral_ports"], expected);
        daemon.stop();
    }
}

#[test]
fn statistics_of_rates_have_every_key() {
    let sandbox = Sandbox::new();
    let _daemon = daemon(
        &sandbox,
        &[
            "--ingress_rate_limit_per_container=2000B",
            "--minimum_ingress_rate_limit=0B",
            "--network_enable_rate_statistics",
            "--network_rate_statistics_window=5secs",
            "--network_rate_statistics_interval=50ms",
        ],
    );
    sandbox.ok(&["add", "a", "--ports", A_PORTS]);
    let rates = wait::for_value("a rate above zero", || {
        sandbox.sh(A, &format!("ping -c1 {HOST} && ping -c1 10.0.0.2"));
        let rates = container(&sandbox)["statistics"]["net_rate_statistics"].take();
        rates["rx_rate"]["max"].as_u64().is_some_and(|max| max > 0).then_some(rates)
    });
    for direction in ["rx", "tx"] {
        for kind in ["rate", "packet_rate", "drop_rate", "error_rate"] {
            let rate = &rates[format!("{direction}_{kind}")];
            assert!(rate["p90"].is_u64(), "{direction}_{kind}: {rates}");
            // As many as fit into the window.
            assert!(rate["samples"].as_u64().is_some_and(|samples| samples <= 100), "{rates}");
        }
    }
    assert_eq!(
        (rates["sampling_window_secs"].as_f64(), rates["sampling_interval_secs"].as_f64()),
        (Some(5.0), Some(0.05))
    );
}
