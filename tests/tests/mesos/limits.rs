//! Rate limits: small ones, by CPUs, and switched on and off by the flags of the next daemon.

use std::time::{Duration, Instant};

use portmap_tests::{
    background::Background,
    sandbox::{Netns, Sandbox},
};
use serde_json::json;

use crate::{A, A_PORTS, INVALID_PORT, VALID_PORT, add_a, daemon};

/// A small limit in bytes per second, and the bytes that are sent.
const RATE: u64 = 2000;
const SIZE: u64 = 20_480;

/// A second less than the size takes at the rate, because the burst and the last frame are not waited for.
const SHORTEST: Duration = Duration::from_secs(SIZE / RATE - 1);

/// Sends [`SIZE`] bytes, in frames and not in larger segments, of which the last would pass at once.
fn send(sandbox: &Sandbox, from: Netns<'_>, to: (&str, u16)) -> Duration {
    // By its routes, the container's own address is at its loopback device.
    sandbox.sh(from, "ip link set lo gso_max_segs 1");
    let (address, port) = to;
    let start = Instant::now();
    sandbox.sh(from, &format!("head -c {SIZE} /dev/zero | nc -N {address} {port}"));
    start.elapsed()
}

/// The rate of a class as `tc` shows it.
fn class(sandbox: &Sandbox, netns: Netns<'_>, device: &str) -> Option<String> {
    let shown = sandbox.sh(netns, &format!("tc class show dev {device} classid 1:1"));
    Some(shown.split_once(" rate ")?.1.split_once(' ')?.0.to_owned())
}

#[test]
fn limit_of_2000_bytes_holds_for_sending() {
    let sandbox = Sandbox::new();
    let _daemon =
        daemon(&sandbox, &["--egress_rate_limit_per_container=2000B", "--minimum_egress_rate_limit=0B"]);
    add_a(&sandbox);
    assert_eq!(class(&sandbox, A, "eth0").as_deref(), Some("16Kbit"));
    let server = format!("nc -l 10.0.0.1 {INVALID_PORT} | wc -c");
    let server = Background::server(&sandbox, Netns::Host, INVALID_PORT, &format!("sh -c '{server}'"));
    let took = send(&sandbox, A, ("10.0.0.1", INVALID_PORT));
    assert!(took >= SHORTEST, "{took:?}");
    portmap_tests::wait::until("all of it", || server.count(&SIZE.to_string()) == 1);
    assert_eq!(sandbox.dropped("a", "rate"), 0);
}

#[test]
fn limit_of_2000_bytes_holds_for_receiving() {
    let sandbox = Sandbox::new();
    let _daemon =
        daemon(&sandbox, &["--ingress_rate_limit_per_container=2000B", "--minimum_ingress_rate_limit=0B"]);
    add_a(&sandbox);
    assert_eq!(class(&sandbox, Netns::Host, "pm1").as_deref(), Some("16Kbit"));
    let server = format!("nc -l 127.0.0.1 {VALID_PORT} | wc -c");
    let server = Background::server(&sandbox, A, VALID_PORT, &format!("sh -c '{server}'"));
    let took = send(&sandbox, Netns::Host, ("127.0.0.1", VALID_PORT));
    assert!(took >= SHORTEST, "{took:?}");
    portmap_tests::wait::until("all of it", || server.count(&SIZE.to_string()) == 1);
}

#[test]
fn limit_scales_with_cpus() {
    let sandbox = Sandbox::new();
    let bounds = |direction: &str, minimum: &str, maximum: &str| {
        [
            format!("--minimum_{direction}_rate_limit={minimum}"),
            format!("--maximum_{direction}_rate_limit={maximum}"),
        ]
    };
    let resources = |cpus: u32| {
        format!("--resources=cpus:{cpus};mem:1024;ephemeral_ports:[30001-30999];ports:[31000-32000]")
    };
    let auto = |direction: &str, cpus: u32, speed: &str| {
        [format!("--{direction}_rate_per_cpu=auto"), format!("--network_link_speed={speed}"), resources(cpus)]
    };
    let add = |cpus: &str| sandbox.json(&["add", "a", "--ports", A_PORTS, "--cpus", cpus]);
    for direction in ["egress", "ingress"] {
        let per_cpu = vec![format!("--{direction}_rate_per_cpu=1000B")];
        // 10,000 bytes per second, divided among the agent's ten CPUs and not among the host's.
        for flags in [per_cpu, auto(direction, 10, "10000B").to_vec()] {
            let flags = [flags, bounds(direction, "2000B", "4000B").to_vec()].concat();
            let daemon = daemon(&sandbox, &flags.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(add("1")[direction]["rate"], 2000, "{flags:?}");
            let (netns, device) = if direction == "egress" { (A, "eth0") } else { (Netns::Host, "pm1") };
            assert_eq!(class(&sandbox, netns, device).as_deref(), Some("16Kbit"), "{flags:?}");
            for (cpus, rate, shown) in [("3.1", 3000, "24Kbit"), ("5", 4000, "32Kbit")] {
                assert_eq!(sandbox.json(&["update", "a", "--cpus", cpus])[direction]["rate"], rate);
                assert_eq!(class(&sandbox, netns, device).as_deref(), Some(shown), "{flags:?}");
            }
            sandbox.ok(&["del", "a"]);
            daemon.stop();
        }
    }
    // Beyond 32 bits: a link of 100 Gbit/s and 64 CPUs.
    let flags = auto("egress", 64, "100gbit");
    let _daemon = daemon(&sandbox, &flags.each_ref().map(String::as_str));
    assert_eq!(add("30")["egress"]["rate"], 5_859_375_000_u64);
    assert_eq!(class(&sandbox, A, "eth0").as_deref(), Some("46875Mbit"));
}

#[test]
fn limit_of_existing_containers_follows_the_flags() {
    let sandbox = Sandbox::new();
    let off = ["--minimum_egress_rate_limit=0B", "--minimum_ingress_rate_limit=0B"];
    let on = ["--egress_rate_limit_per_container=1000B", "--ingress_rate_limit_per_container=1000B"];
    let on = [&off[..], &on[..]].concat();
    let existing =
        |set: bool| format!("--{}ingress_isolate_existing_containers", if set { "" } else { "no-" });
    let (kept, changed) = (existing(false), existing(true));
    for (flags, existing, egress, ingress) in [
        (&off[..], &kept, json!(null), json!(null)),
        (&on, &kept, json!(1000), json!(null)),
        (&on, &changed, json!(1000), json!(1000)),
        (&off, &changed, json!(null), json!(null)),
    ] {
        let daemon = daemon(&sandbox, &[flags, &[existing]].concat());
        if sandbox.json(&["list"]) == json!([]) {
            add_a(&sandbox);
        }
        let container = sandbox.json(&["update", "a", "--cpus", "1"]);
        let rate = |direction: &str| container[direction].get("rate").cloned().unwrap_or_default();
        assert_eq!((rate("egress"), rate("ingress")), (egress.clone(), ingress.clone()), "{flags:?}");
        for (rate, netns, device) in [(egress, A, "eth0"), (ingress, Netns::Host, "pm1")] {
            let shown = class(&sandbox, netns, device);
            // Unlike there, a lifted limit leaves the class at a rate that no link has.
            let is_right = match &rate {
                json if json == 1000 => shown.as_deref() == Some("8Kbit"),
                _ => shown.as_ref().is_none_or(|shown| shown.ends_with("Gbit")),
            };
            assert!(is_right, "{flags:?}: {device} has {shown:?}");
        }
        sandbox.ok(&["doctor"]);
        daemon.stop();
    }
}
