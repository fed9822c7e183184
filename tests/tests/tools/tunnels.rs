//! Tunnels that containers create by themselves, through their own UDP ports.

use std::net::Ipv4Addr;

use portmap_tests::sandbox::{HOST, Netns, OUTSIDE};

use crate::{A, A_PORT, World, background::Background};

/// The network inside the tunnel.
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 77, 1), Ipv4Addr::new(192, 168, 77, 2)];
const INNER_PORT: u16 = 80;

#[test]
fn tunnel_streams_arrive_whole() {
    let world = World::new();
    let sandbox = &world.sandbox;
    // The kernel creates no tunnel to an address of its own, hence none to another container.
    let ends = [(A, OUTSIDE, INNER[0]), (Netns::Outside, HOST, INNER[1])];
    for (netns, peer, inner) in ends {
        // A container sends from its own ports only. A tunnel uses any source port unless it is
        // configured.
        let ports = format!("dstport {A_PORT} srcport {A_PORT} {}", A_PORT + 1);
        let tunnel = format!(
            "ip link add tunnel type vxlan id 7 remote {peer} {ports} && ip address add {inner}/24 dev tunnel && \
             ip link set tunnel mtu 1400 up"
        );
        sandbox.sh(netns, &tunnel);
        sandbox.sh(Netns::Host, &format!("mkdir /run/{inner}; head -c 3M /dev/urandom > /run/{inner}/file"));
        let command = format!("python3 -m http.server --directory /run/{inner} {INNER_PORT}");
        Background::server(sandbox, netns, INNER_PORT, &command);
    }
    for (netns, inner) in [(A, INNER[1]), (Netns::Outside, INNER[0])] {
        let url = format!("http://{inner}:{INNER_PORT}/file");
        sandbox.sh(netns, &format!("curl -sS --max-time 60 {url} | cmp - /run/{inner}/file"));
    }
    assert_eq!(world.drops("a").get("malformed"), None, "{:?}", world.drops("a"));
}
