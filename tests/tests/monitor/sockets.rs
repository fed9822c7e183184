//! TCP sockets, round-trip times, protocol counters, and the use of ephemeral ports.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    ops::ControlFlow,
    time::{Duration, Instant},
};

use portmap::{
    kernel::tcp_sockets::{self, Query},
    model::TcpState,
};
use portmap_tests::{
    sandbox::{HOST, Netns, OUTSIDE, Sandbox},
    wait,
};
use serde_json::Value;

use super::{A, ALL, get, statistics, world};

/// Connections from outside to a service of container `a`: the service's ends and the clients'.
fn connections(sandbox: &Sandbox, count: usize) -> (TcpListener, Vec<TcpStream>, Vec<TcpStream>) {
    let listener = sandbox.inside(A, || TcpListener::bind(("0.0.0.0", 31000))).expect("a port");
    let connect = || TcpStream::connect((HOST, 31000)).expect("a connection");
    let clients = sandbox.inside(Netns::Outside, || (0..count).map(|_| connect()).collect());
    let accepted = (0..count).map(|_| listener.accept().expect("a connection").0).collect();
    (listener, accepted, clients)
}

#[test]
fn monitor_counts_tcp_sockets_and_those_in_time_wait() {
    let (sandbox, _daemon) = world(&ALL, &[]);
    let counts = || {
        let found = statistics(&sandbox);
        ["net_tcp_active_connections", "net_tcp_time_wait_connections"].map(|key| found[key].as_f64())
    };
    wait::until("a reading without sockets", || counts() == [Some(0.0), Some(0.0)]);
    let (listener, accepted, clients) = connections(&sandbox, 3);
    // The listening socket counts, too.
    wait::until("a reading with them", || counts() == [Some(4.0), Some(0.0)]);
    // The end that closes first waits.
    drop(accepted);
    drop(clients);
    wait::until("connections in TIME_WAIT", || counts() == [Some(1.0), Some(3.0)]);
    drop(listener);
    wait::until("no other socket", || counts() == [Some(0.0), Some(3.0)]);
}

#[test]
fn monitor_reports_the_round_trip_times_of_connections() {
    let (sandbox, _daemon) = world(&ALL, &[]);
    let percentiles = || {
        let found = statistics(&sandbox);
        ["p50", "p90", "p95", "p99"].map(|name| found[format!("net_tcp_rtt_microsecs_{name}")].as_f64())
    };
    assert_eq!(percentiles(), [None; 4], "there is no connection");
    let (_listener, mut accepted, mut clients) = connections(&sandbox, 1);
    clients[0].write_all(b"request").expect("sent");
    accepted[0].read_exact(&mut [0; 7]).expect("received");
    let measured = || {
        sandbox.inside(A, || {
            let (mut found, mut query) = (None, Query::ALL);
            query.states = &[TcpState::Established];
            let deadline = Instant::now() + Duration::from_mins(1);
            let ended = tcp_sockets::visit(query, deadline, |socket| {
                found = socket.info.map(|info| f64::from(info.rtt));
                ControlFlow::Continue(())
            });
            ended.expect("an answer");
            found
        })
    };
    // All percentiles of one connection are its round-trip time.
    wait::until("the time that the kernel has measured", || {
        let measured = measured();
        measured.is_some_and(|rtt| rtt > 0.0) && percentiles() == [measured; 4]
    });
}

#[test]
fn monitor_counts_retransmissions_and_other_protocol_events() {
    let (sandbox, _daemon) = world(&ALL, &[]);
    let counter = |group: &str, name: &str| {
        statistics(&sandbox)["net_snmp_statistics"][group][name].as_i64().unwrap_or_default()
    };
    let (_listener, mut accepted, _clients) = connections(&sandbox, 1);
    assert_eq!(counter("tcp_stats", "RetransSegs"), 0);
    assert_eq!(counter("tcp_stats", "PassiveOpens"), 1);
    assert_eq!(counter("tcp_stats", "CurrEstab"), 1);
    assert_eq!(counter("tcp_stats", "MaxConn"), -1, "it is signed");
    // Acknowledgements do not come back.
    sandbox.sh(Netns::Outside, &format!("ip route add blackhole {HOST}/32"));
    accepted[0].write_all(b"unacknowledged").expect("sent");
    wait::until("a retransmission", || counter("tcp_stats", "RetransSegs") > 0);
    sandbox.sh(Netns::Outside, &format!("ip route del blackhole {HOST}/32"));
    // The kernel's own counters, once nothing moves.
    let of_kernel = || {
        let text = sandbox.sh(A, "cat /proc/net/snmp");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let names: Vec<String> = lines.next().expect("names").split(' ').map(str::to_owned).collect();
        let values =
            lines.next().expect("values").split(' ').map(|value| value.parse::<i64>().expect("a number"));
        names.into_iter().zip(values).collect::<Vec<_>>()
    };
    wait::until("the same counters as in /proc/net/snmp", || {
        let found = statistics(&sandbox)["net_snmp_statistics"]["tcp_stats"].take();
        of_kernel().iter().all(|(name, value)| found[name].as_i64() == Some(*value))
    });
    // A datagram to a closed port.
    let client = super::udp(&sandbox, Netns::Outside, 9000);
    client.send_to(b"closed", (HOST, 31001)).expect("sent");
    wait::until("a datagram without a socket", || counter("udp_stats", "NoPorts") == 1);
    assert_eq!(counter("icmp_stats", "OutDestUnreachs"), 1);
    assert!(counter("ip_stats", "InReceives") > 0 && counter("ip_stats", "OutRequests") > 0);
}

/// Exhausts a block of 16 ports by connections to one server.
#[test]
fn ports_in_use_and_exhaustion_are_counted() {
    let (sandbox, _daemon) = world(&[], &["--ephemeral-ports-per-container", "16"]);
    let ports = || sandbox.json(&["stats", "a"])["ephemeral_ports"].take();
    let is = |found: &Value, in_use: u64, peak: u64| found["in_use"] == in_use && found["peak"] == peak;
    wait::until("a reading", || is(&ports(), 0, 0));
    let server = sandbox.inside(Netns::Outside, || TcpListener::bind((OUTSIDE, 9000))).expect("a port");
    let connect = || sandbox.inside(A, || TcpStream::connect((OUTSIDE, 9000)));
    let mut clients: Vec<TcpStream> = (0..10).map(|_| connect().expect("a connection")).collect();
    wait::until("the ports of the connections", || is(&ports(), 10, 10));
    assert_eq!((&ports()["total"], &ports()["exhausted"]), (&16.into(), &0.into()));
    // A datagram socket takes a port, too. Its number is chosen here, because the kernel may choose one
    // that a connection has, and a port counts once.
    let first = sandbox.json(&["show", "a"])["ephemeral_ports"][0].as_u64().expect("a block");
    let mut block = (0..16).map(|index| u16::try_from(first).expect("a port") + index);
    let taken = |port: &u16| clients.iter().any(|c| c.local_addr().expect("an address").port() == *port);
    let datagrams = super::udp(&sandbox, A, block.find(|port| !taken(port)).expect("six are free"));
    wait::until("the port of the datagram socket", || is(&ports(), 11, 11));
    drop(datagrams);
    clients.extend((10..16).map(|_| connect().expect("a connection")));
    assert_eq!(connect().expect_err("no port is left").kind(), ErrorKind::AddrNotAvailable);
    wait::until("exhaustion", || {
        let found = ports();
        is(&found, 16, 16) && found["exhausted"].as_u64().is_some_and(|readings| readings > 0)
    });
    let metrics = get(&sandbox, "/metrics");
    for line in [
        "portmap_container_ephemeral_ports_used{container=\"a\"} 16\n",
        "portmap_container_ephemeral_ports_owned{container=\"a\"} 16\n",
        "portmap_container_ephemeral_ports_used_peak{container=\"a\"} 16\n",
        "portmap_collector_missing_containers 0\n",
        "portmap_collector_overdue_readings_total 0\n",
    ] {
        assert!(metrics.contains(line), "{line} {metrics}");
    }
    let exhausted = "portmap_container_ephemeral_ports_exhausted_readings_total{container=\"a\"} ";
    assert!(metrics.contains(exhausted) && !metrics.contains(&format!("{exhausted}0\n")), "{metrics}");
    // The server closes first, so no port of the container waits.
    for _ in 0..16 {
        drop(server.accept().expect("a connection"));
    }
    for client in &mut clients {
        let end = client.read(&mut [0; 1]).expect("the end of the stream");
        assert_eq!(end, 0);
    }
    drop(clients);
    wait::until("all ports to be free again", || is(&ports(), 0, 16));
}
