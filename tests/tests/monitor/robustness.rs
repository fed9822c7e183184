//! Containers that end, and many requests: no answer fails, and no container is kept.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use portmap_tests::{
    sandbox::{HOST, Netns, Sandbox},
    wait,
};

use super::{A, ALL, get, monitor, number, statistics, udp, world};

/// The names of the containers with a complete reading.
fn complete(sandbox: &Sandbox) -> Vec<String> {
    let has_all = |statistics: &serde_json::Value| {
        !statistics["net_snmp_statistics"].is_null() && !statistics["net_tcp_active_connections"].is_null()
    };
    let all = monitor(sandbox).into_iter().filter(|container| has_all(&container["statistics"]));
    all.map(|container| container["container_id"].as_str().expect("a name").to_owned()).collect()
}

/// A container whose namespace ends while it is read neither fails the answer for the others nor stays.
#[test]
fn monitor_survives_containers_that_end() {
    let (sandbox, _daemon) = world(&ALL, &[]);
    sandbox.ok(&["add", "b"]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let found = complete(&sandbox);
                    assert!(found.contains(&"a".to_owned()) && found.contains(&"b".to_owned()), "{found:?}");
                }
            });
        }
        for number in 0..10 {
            let name = format!("c{number}");
            sandbox.sh(Netns::Host, &format!("ip netns add {name}"));
            sandbox.ok(&["add", &name, "--netns", &format!("/run/netns/{name}")]);
            // Its last reference: the kernel deletes the veth pair, unless the collector kept the namespace.
            sandbox.sh(Netns::Host, &format!("ip netns del {name}"));
            wait::until("the container to be removed", || {
                sandbox.json(&["list"]).as_array().expect("a list").iter().all(|found| found["name"] != *name)
            });
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(complete(&sandbox), ["a", "b"]);
}

/// A namespace that takes the place of a container's is not read as the container's.
#[test]
fn monitor_reads_no_other_namespace() {
    let (sandbox, _daemon) = world(&ALL, &["--ephemeral-ports-per-container", "16"]);
    wait::until("a reading", || complete(&sandbox) == ["a"]);
    sandbox.sh(Netns::Host, "mkdir -p /run/kept && touch /run/kept/a");
    sandbox.sh(Netns::Host, "mount --bind /run/netns/a /run/kept/a && umount /run/netns/a");
    sandbox.sh(Netns::Host, "unshare --net=/run/netns/a true");
    wait::until("the container to be incomplete", || complete(&sandbox).is_empty());
    assert_eq!(monitor(&sandbox).len(), 1, "its counters are in the maps");
    sandbox.sh(
        Netns::Host,
        "umount /run/netns/a && mount --bind /run/kept/a /run/netns/a && umount /run/kept/a",
    );
    wait::until("the container to be complete again", || complete(&sandbox) == ["a"]);
}

/// Requests use a reading of the last 50 ms again, so however many there are, they cause at most 20 readings a
/// second.
#[test]
fn monitor_requests_cause_a_bounded_number_of_readings() {
    let (sandbox, _daemon) = world(&ALL, &[]);
    let rounds = || {
        let metrics = get(&sandbox, "/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix("portmap_collector_rounds_total "));
        line.expect("the metric").parse::<u32>().expect("a number")
    };
    let (start, before) = (Instant::now(), rounds());
    let requests = "for i in $(seq 100); do
                        curl -sf --unix-socket /run/portmap/portmapd.sock http://portmap/monitor/statistics -o /dev/null
                    done";
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| sandbox.sh(Netns::Host, requests));
        }
    });
    let (found, took) = (rounds() - before, start.elapsed());
    let most = took.div_duration_f64(Duration::from_millis(50));
    // The one at the beginning.
    assert!(f64::from(found) <= most + 1.0, "{found} readings in {took:?} for 400 requests");
}

/// A container with the name, the namespace and the slot of one that was removed has none of its readings.
#[test]
fn monitor_forgets_a_container_that_was_removed() {
    let add = ["--netns", "/run/netns/kept", "--ports", "31000", "--ingress-rate", "50mbit"];
    let (sandbox, _daemon) = world(&ALL, &[]);
    sandbox.ok(&["del", "a"]);
    sandbox.sh(Netns::Host, "ip netns add kept");
    let inside = Netns::Container("kept");
    let ports = |key: &str| sandbox.json(&["stats", "a"])["ephemeral_ports"][key].as_u64();
    sandbox.ok(&[&["add", "a"][..], &add].concat());
    let slot = sandbox.json(&["show", "a"])["slot"].clone();
    // A port in use, and datagrams that the host veth loses.
    let first = sandbox.json(&["show", "a"])["ephemeral_ports"][0].as_u64().expect("a block");
    let socket = udp(&sandbox, inside, u16::try_from(first).expect("a port"));
    wait::until("the port to be counted", || ports("peak") == Some(1));
    // A rate needs a sample from before the drops.
    let drop_rate = |found: &serde_json::Value| found["net_rate_statistics"]["rx_drop_rate"]["max"].as_u64();
    wait::until("samples", || drop_rate(&statistics(&sandbox)).is_some());
    drop(socket);
    sandbox.sh(inside, "ip link set eth0 mtu 1000");
    let outside = udp(&sandbox, Netns::Outside, 9000);
    for _ in 0..3 {
        outside.send_to(&[0; 1200], (HOST, 31000)).expect("sent");
    }
    wait::until("drops and their rate", || {
        let found = statistics(&sandbox);
        number(&found, "net_rx_dropped") == 3 && drop_rate(&found).is_some_and(|max| max > 0)
    });
    sandbox.ok(&["del", "a"]);
    sandbox.ok(&[&["add", "a"][..], &add].concat());
    assert_eq!(sandbox.json(&["show", "a"])["slot"], slot);
    let found = statistics(&sandbox);
    assert_eq!(number(&found, "net_rx_dropped"), 0, "{found}");
    assert!(drop_rate(&found).is_none_or(|max| max == 0), "{found}");
    let peak = wait::for_value("the use of ports", || ports("peak"));
    assert_eq!(peak, 0);
}

/// The counters of the host veth go on when it is lost, with its reading or for good.
#[test]
fn monitor_drops_of_a_lost_host_veth_remain() {
    let (sandbox, _daemon) = world(&[], &["--ingress-rate", "50mbit"]);
    sandbox.sh(A, "ip link set eth0 mtu 1000");
    let outside = udp(&sandbox, Netns::Outside, 9000);
    for _ in 0..3 {
        outside.send_to(&[0; 1200], (HOST, 31000)).expect("sent");
    }
    let dropped = || number(&statistics(&sandbox), "net_rx_dropped");
    wait::until("the drops to be counted", || dropped() == 3);
    let veth = sandbox.json(&["show", "a"])["host_veth"].as_str().expect("a name").to_owned();
    sandbox.sh(Netns::Host, &format!("ip link del {veth}"));
    let rounds = || {
        let metrics = get(&sandbox, "/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix("portmap_collector_rounds_total "));
        line.expect("the metric").parse::<u32>().expect("a number")
    };
    // Several readings without the interface, or of the one that the daemon makes instead.
    let before = rounds();
    wait::until("readings of a host without that interface", || {
        assert!(dropped() >= 3, "a counter does not decrease");
        rounds() >= before + 3
    });
}

/// A container's root can make any number of classes at its own end of the veth pair.
#[test]
fn monitor_leaves_out_classes_of_a_containers_root() {
    let (sandbox, _daemon) = world(&ALL, &["--egress-rate", "2mbit"]);
    let kinds = || {
        let stats = sandbox.json(&["stats", "a"]);
        let queues = stats["egress"].as_array().cloned().unwrap_or_default();
        queues.iter().map(|queue| queue["kind"].clone()).collect::<Vec<_>>()
    };
    wait::until("a reading", || !kinds().is_empty());
    let before = kinds();
    sandbox.sh(
        A,
        "for n in $(seq 3 1002); do echo class add dev eth0 parent 1: classid 1:$(printf %x $n) htb rate 1mbit; \
         done | tc -batch -",
    );
    assert_eq!(sandbox.sh(A, "tc class show dev eth0").lines().count(), 1001);
    assert_eq!(kinds(), before);
    let metrics = get(&sandbox, "/metrics");
    for line in [
        "portmap_container_limit_bytes_per_second{container=\"a\",direction=\"egress\"} 250000\n",
        "portmap_container_reading_complete{container=\"a\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line} {metrics}");
    }
}
