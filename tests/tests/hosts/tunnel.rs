//! An interface without Ethernet headers leads to containers and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portmap_tests::{sandbox::Netns, tunnel::Tunnel};

use super::{A, HOST_PORT, PORT, expect, world};

#[test]
fn tunnel_device_leads_to_containers_and_back() {
    let (sandbox, _daemon, _services) = world("");
    let _tunnel = Tunnel::new(&sandbox, [Netns::Host, Netns::Outside]);
    let set_up = |own: u8| {
        format!(
            "set -e; ip link set tunnel up; ip address add 10.8.0.{own}/24 dev tunnel; \
             ip address add fd08::{own}/64 dev tunnel nodad"
        )
    };
    sandbox.sh(Netns::Host, &set_up(1));
    sandbox.sh(Netns::Outside, &set_up(2));
    let own: [IpAddr; 2] =
        [Ipv4Addr::new(10, 8, 0, 1).into(), Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 1).into()];
    let peers: [IpAddr; 2] =
        [Ipv4Addr::new(10, 8, 0, 2).into(), Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 2).into()];
    for (own, peer) in own.into_iter().zip(peers) {
        assert_eq!(expect(&sandbox, Netns::Outside, (own, HOST_PORT), "host"), peer);
        super::wait_for(&sandbox, Netns::Outside, (own, PORT), "a");
        assert_eq!(expect(&sandbox, Netns::Outside, (own, PORT), "a"), peer);
        assert_eq!(expect(&sandbox, Netns::Host, (peer, HOST_PORT), "outside"), own);
        assert_eq!(expect(&sandbox, A, (peer, HOST_PORT), "outside"), own, "the host's source address");
    }
    // Limits hold there, too: packets to a container pass its qdisc.
    sandbox.ok(&["update", "a", "--ingress-rate", "10MB"]);
    assert_eq!(expect(&sandbox, Netns::Outside, (own[0], PORT), "a"), peers[0]);
    sandbox.ok(&["doctor"]);
}
