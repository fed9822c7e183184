//! `ping`, in every direction.

use std::{collections::BTreeMap, net::IpAddr, thread};

use portmap_tests::{
    sandbox::{FAR, FAR6, HOST, HOST6, Netns, OUTSIDE, OUTSIDE6, Sandbox},
    wait,
};

use crate::{A, B, LOCAL, World, background::Background};

/// The tcpdump filter for echo replies.
const REPLIES: &str = "icmp[icmptype] == icmp-echoreply or icmp6[icmp6type] == icmp6-echoreply";
/// The tcpdump filter for echo requests and replies.
const ECHO: &str = "icmp or (icmp6 and (ip6[40] == 128 or ip6[40] == 129))";

/// Pings an address three times and checks that each request gets exactly one unmodified reply.
fn ping(sandbox: &Sandbox, netns: Netns<'_>, to: impl Into<IpAddr>, options: &str) {
    let to = to.into();
    let command = format!("ping -n -c 3 -i 0.2 -W 30 {options} {to}");
    let text = sandbox.sh(netns, &command);
    let what = format!("{netns:?}: {command}: {text}");
    assert!(text.contains("3 packets transmitted, 3 received, 0% packet loss"), "{what}");
    for trouble in ["DUP", "duplicates", "errors", "wrong data"] {
        assert!(!text.contains(trouble), "{what}");
    }
}

#[test]
fn ping_replies_reach_their_sender_only() {
    let world = World::new();
    let sandbox = &world.sandbox;
    for (number, to) in
        [IpAddr::V4(OUTSIDE), OUTSIDE6.into(), FAR.into(), FAR6.into()].into_iter().enumerate()
    {
        let captures = [A, B].map(|netns| Background::capture(sandbox, netns, REPLIES));
        // Until the neighbour is resolved, requests wait behind the hooks for longer than a reply
        // normally takes.
        // The host's identifier cannot be rewritten. If it came into use while a container's request with the same one
        // is on its way, the host would get that reply.
        let id = 4242 + number;
        ping(sandbox, Netns::Host, to, &format!("-e {id}"));
        // Concurrent pings with the same identifier; their payloads differ.
        thread::scope(|scope| {
            for (netns, pattern) in [(A, "aa"), (B, "bb"), (Netns::Host, "cc")] {
                scope.spawn(move || ping(sandbox, netns, to, &format!("-e {id} -p {pattern}")));
            }
        });
        for (capture, own) in captures.iter().zip(["aaaa aaaa", "bbbb bbbb"]) {
            let answers = format!("echo reply, id {id},");
            wait::until("three answers", || capture.count(&answers) >= 3);
            let text = capture.lines().join("\n");
            assert_eq!(capture.count("echo reply"), 3, "{to}: {text}");
            for pattern in ["aaaa aaaa", "bbbb bbbb", "cccc cccc"] {
                assert_eq!(text.contains(pattern), pattern == own, "{to}: {text}");
            }
        }
    }
}

#[test]
fn ping_identifiers_cannot_be_exhausted() {
    const OWN: u16 = 4242;
    let world = World::new();
    let sandbox = &world.sandbox;
    ping(sandbox, Netns::Host, OUTSIDE, "");
    // Predictable steps between identifiers, as many of each as are tried per request.
    for distance in [1, 2, 3, 5, 7, 0x2a6b] {
        let taken = (0..8_u16).map(|number| OWN.wrapping_add(number.wrapping_mul(distance)).to_string());
        let ids = taken.collect::<Vec<_>>().join(" ");
        sandbox.sh(A, &format!("for id in {ids}; do ping -n -c 1 -W 30 -e $id {OUTSIDE} || exit; done"));
    }
    ping(sandbox, B, OUTSIDE, &format!("-e {OWN}"));
    assert_eq!(world.drops("b"), BTreeMap::new());
}

#[test]
fn ping_larger_than_the_mtu_is_answered() {
    let world = World::new();
    for to in [IpAddr::V4(OUTSIDE), OUTSIDE6.into(), FAR.into(), FAR6.into()] {
        for netns in [A, Netns::Host] {
            ping(&world.sandbox, netns, to, "-s 3000 -e 77");
        }
    }
}

#[test]
fn ping_from_outside_is_answered_by_the_host() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let captures = [A, B].map(|netns| Background::capture(sandbox, netns, ECHO));
    for to in [IpAddr::V4(HOST), HOST6.into()] {
        ping(sandbox, Netns::Outside, to, "-e 4242");
        ping(sandbox, Netns::Outside, to, "-s 3000");
    }
    // A container that has used the same identifier receives no requests either.
    ping(sandbox, A, OUTSIDE, "-e 4242 -p aa");
    ping(sandbox, Netns::Outside, HOST, "-e 4242 -p dd");
    ping(sandbox, B, OUTSIDE, "-e 4242 -p bb");
    for (capture, own) in captures.iter().zip(["aaaa aaaa", "bbbb bbbb"]) {
        wait::until("the container's own pings", || capture.count("ICMP") >= 6);
        let text = capture.lines().join("\n");
        assert_eq!(capture.count("ICMP"), 6, "{text}");
        assert!(text.contains(own) && !text.contains("dddd dddd"), "{text}");
    }
}

#[test]
fn ping_to_a_local_address_stays_inside() {
    let world = World::new();
    for to in LOCAL {
        ping(&world.sandbox, A, to, "");
        ping(&world.sandbox, A, to, "-s 3000");
        ping(&world.sandbox, Netns::Host, to, "");
    }
    for path in ["rx_outside", "rx_host", "rx_container", "tx_outside", "tx_host", "tx_container"] {
        assert_eq!(world.packets("a", path), 0, "{path}");
    }
    assert_ne!(world.packets("a", "own"), 0);
    assert_eq!(world.drops("a"), BTreeMap::new());
}
