//! TCP sockets, round-trip times, protocol counters, and the use of ephemeral ports.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    ops::ControlFlow,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
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
    let (_listener, mut accepted, mut clients) = connections(&sandbox, 100);
    let measured = || {
        sandbox.inside(A, || {
            let (mut found, mut query) = (Vec::new(), Query::ALL);
            query.states = &[TcpState::Established];
            let deadline = Instant::now() + Duration::from_mins(1);
            let ended = tcp_sockets::visit(query, deadline, |socket| {
                found.extend(socket.info.map(|info| info.rtt));
                ControlFlow::Continue(())
            });
            ended.expect("an answer");
            found.sort_unstable();
            found
        })
    };
    let are_measured = || {
        let measured = measured();
        let expected = [50, 90, 95, 99].map(|index| measured.get(index).copied().map(f64::from));
        measured.first().is_some_and(|lowest| *lowest > 0) && percentiles() == expected
    };
    wait::until("the times that the kernel has measured", are_measured);
    let before = percentiles();
    // The acknowledgements of three connections take longer: at this rate 66 ms each.
    sandbox.sh(Netns::Outside, "tc qdisc add dev eth0 root tbf rate 8kbit burst 100 limit 100000");
    wait::until("a higher round-trip time of a few connections", || {
        for (accepted, client) in accepted.iter_mut().zip(&mut clients).take(3) {
            accepted.write_all(b"response").expect("sent");
            client.read_exact(&mut [0; 8]).expect("received");
        }
        percentiles()[3].is_some_and(|rtt| rtt > before[3].unwrap_or_default() + 10_000.0)
    });
    assert!(percentiles()[0] <= before[3], "the others have not moved: {before:?} {:?}", percentiles());
    sandbox.sh(Netns::Outside, "tc qdisc del dev eth0 root");
    wait::until("the times that the kernel has measured, again", are_measured);
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
    // A datagram to a closed port.
    let client = super::udp(&sandbox, Netns::Outside, 9000);
    client.send_to(b"closed", (HOST, 31001)).expect("sent");
    wait::until("a datagram without a socket", || counter("udp_stats", "NoPorts") == 1);
    assert_eq!(counter("icmp_stats", "OutDestUnreachs"), 1);
}

/// Each group follows the container's own traffic, and every counter is the kernel's.
#[test]
fn monitor_protocol_counters_are_those_of_the_kernel() {
    let (sandbox, _daemon) = world(&ALL, &[]);
    let groups = || statistics(&sandbox)["net_snmp_statistics"].take();
    let before = wait::for_value("a reading", || Some(groups()).filter(|groups| !groups.is_null()));
    // Datagrams, one of them larger than a frame; ping in both directions; connections that are opened, refused
    // and reset.
    let (inside, outside) = (super::udp(&sandbox, A, 31000), super::udp(&sandbox, Netns::Outside, 9000));
    let mut buffer = vec![0; 5000];
    for size in [100, 4000] {
        outside.send_to(&buffer[..size], (HOST, 31000)).expect("sent");
        assert_eq!(inside.recv(&mut buffer).expect("received"), size);
        inside.send_to(&buffer[..size], (OUTSIDE, 9000)).expect("sent");
        assert_eq!(outside.recv(&mut buffer).expect("received"), size);
    }
    sandbox.sh(A, &format!("ping -c 1 {OUTSIDE}"));
    let (listener, accepted, clients) = connections(&sandbox, 1);
    let server = sandbox.inside(Netns::Outside, || TcpListener::bind((OUTSIDE, 9001))).expect("a port");
    let connect = |port| sandbox.inside(A, || TcpStream::connect((OUTSIDE, port)));
    let client = connect(9001).expect("a connection");
    assert_eq!(connect(9002).expect_err("nothing listens").kind(), ErrorKind::ConnectionRefused);
    // Unread data makes the kernel reset a connection that is closed.
    (&clients[0]).write_all(b"unread").expect("sent");
    wait::until("the data to arrive", || accepted[0].peek(&mut [0; 6]).is_ok_and(|read| read == 6));
    drop((accepted, clients, listener, client, server));
    let moved = [
        (
            "ip_stats",
            &["InReceives", "InDelivers", "OutRequests", "ReasmReqds", "ReasmOKs", "FragOKs", "FragCreates"]
                [..],
        ),
        ("icmp_stats", &["InMsgs", "InEchoReps", "OutMsgs", "OutEchos"]),
        (
            "tcp_stats",
            &["ActiveOpens", "PassiveOpens", "AttemptFails", "EstabResets", "InSegs", "OutSegs", "OutRsts"],
        ),
        ("udp_stats", &["InDatagrams", "OutDatagrams"]),
    ];
    let kernel = || {
        let text = sandbox.sh(A, "cat /proc/net/snmp");
        let lines: Vec<(&str, Vec<&str>)> = text
            .lines()
            .filter_map(|line| {
                line.split_once(':').map(|(group, rest)| (group, rest.split_whitespace().collect()))
            })
            .collect();
        let pairs = lines.chunks(2).flat_map(|pair| {
            let group = format!("{}_stats", pair[0].0.to_lowercase());
            let values = pair[1].1.iter().map(|value| value.parse::<i64>().expect("a number"));
            let names = pair[0].1.iter().map(|name| (*name).to_owned());
            names.zip(values).map(move |(name, value)| (group.clone(), name, value)).collect::<Vec<_>>()
        });
        pairs.collect::<Vec<_>>()
    };
    wait::until("the same counters as in /proc/net/snmp, once nothing moves", || {
        let (kernel, found) = (kernel(), groups());
        let count = |group: &str| found[group].as_object().map_or(0, serde_json::Map::len);
        let are_equal = found.as_object().into_iter().flatten().all(|(group, counters)| {
            counters.as_object().into_iter().flatten().all(|(name, value)| {
                kernel.iter().any(|(g, n, v)| g == group && n == name && value.as_i64() == Some(*v))
            })
        });
        let counts = ["ip_stats", "icmp_stats", "tcp_stats", "udp_stats"].map(count);
        let has_moved = moved.iter().all(|(group, names)| {
            names.iter().all(|name| found[group][name].as_i64() > before[group][name].as_i64())
        });
        are_equal && counts == [19, 27, 15, 8] && has_moved
    });
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

/// A socket that is only bound uses its port, in a container without any other, as far as the kernel lists it.
#[test]
fn ports_of_sockets_that_are_only_bound_are_in_use() {
    let (sandbox, _daemon) = world(&[], &["--ephemeral-ports-per-container", "16"]);
    let first = sandbox.json(&["show", "a"])["ephemeral_ports"][0].as_u64().expect("a block");
    let address = SockaddrIn::new(0, 0, 0, 0, u16::try_from(first).expect("a port"));
    let bound = sandbox.inside(A, || {
        let bound = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
        bind(bound.as_raw_fd(), &address).map(|()| bound)
    });
    let bound = bound.expect("the port is free");
    let mut listed = 0;
    let ended = sandbox.inside(A, || {
        tcp_sockets::visit(Query::ALL, Instant::now() + Duration::from_mins(1), |_| {
            listed += 1;
            ControlFlow::Continue(())
        })
    });
    ended.expect("an answer");
    let in_use = || sandbox.json(&["stats", "a"])["ephemeral_ports"]["in_use"].as_u64();
    // Kernels before 6.8 list none.
    wait::until("the port of the socket", || in_use() == Some(listed));
    drop(bound);
    wait::until("the port to be free", || in_use() == Some(0));
}
