//! VLAN tags, and the protocols that only the host may speak: ARP and neighbour discovery.

use portmap_tests::{
    packet_socket::PacketSocket,
    sandbox::{HOST, Netns, OUTSIDE},
    service::send_from,
    wait,
};

use crate::{A, A_PORT, B, B_PORT, HOST_PORT, World, background::Background, scapy::Frames};

const TAGS: &str = r#"
for version, source, host in ("4", IP(src=OUTSIDE), IP(dst=HOST)), ("6", IPv6(src=OUTSIDE6), IPv6(dst=HOST6)):
    ip = source / UDP(sport=5555, dport=31000) / Raw(b"hello")
    ip.dst = host.dst
    def tagged(*tags):
        packet = ip
        for tag in reversed(tags):
            packet = tag / packet
        return out(packet)
    name(f"priority/{version}", tagged(Dot1Q(prio=5, vlan=0)))
    name(f"vlan 5/{version}", tagged(Dot1Q(vlan=5)))
    name(f"two tags/{version}", tagged(Dot1Q(vlan=0), Dot1Q(vlan=5)))
    name(f"two tags of priority/{version}", tagged(Dot1Q(vlan=0), Dot1Q(vlan=0)))
    name(f"service tag/{version}", tagged(Dot1AD(vlan=5)))
    ip = source / UDP(sport=31000, dport=8080) / Raw(b"hello")
    ip.dst, ip.src = ip.src, host.dst
    for what, tag in ("priority", Dot1Q(prio=5, vlan=0)), ("vlan", Dot1Q(vlan=5)), ("service", Dot1AD(vlan=0)):
        name(f"own {what}/{version}", own(tag / ip))
"#;

#[test]
fn priority_tag_from_outside_is_accepted() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let frames = Frames::of(sandbox, TAGS);
    let receiver = world.receiver(A, A_PORT);
    let witness = world.receiver(Netns::Outside, HOST_PORT);
    let outside = sandbox.inside(Netns::Outside, || PacketSocket::open("eth0"));
    let a = sandbox.inside(A, || PacketSocket::open("eth0"));
    let mut buffer = [0; 16];
    for version in [4, 6] {
        for what in ["vlan 5", "two tags", "two tags of priority", "service tag"] {
            let before = world.left_to_host("vlan");
            outside.send(frames.get(&format!("{what}/{version}")));
            wait::until(what, || world.left_to_host("vlan") == before + 1);
        }
        for what in ["own priority", "own vlan", "own service"] {
            world.expect_drop(&a, what, frames.get(&format!("{what}/{version}")), "vlan");
        }
        assert!(receiver.recv(&mut buffer).is_err() && witness.recv(&mut buffer).is_err());
        outside.send(frames.get(&format!("priority/{version}")));
        let length = wait::for_value("the tag of priority", || receiver.recv(&mut buffer).ok());
        assert_eq!(buffer[..length], *b"hello");
    }
}

/// Contains a foreign address, 10.0.0.77 or `2001:db8:0:1::77`, which distinguishes it from the host's own
/// in a capture.
const CLAIMS: &str = r#"
mac = "02:00:00:00:01:01"
claimed, claimed6 = "10.0.0.77", "2001:db8:0:1::77"
broadcast, group = "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"
arp = ARP(op=2, hwsrc=mac, psrc=claimed, hwdst=OUTSIDE_MAC, pdst=OUTSIDE)
name("arp/answer", own(arp))
name("arp/request", Ether(src=mac, dst=broadcast) / ARP(hwsrc=mac, psrc=claimed, pdst=OUTSIDE))
ip = IPv6(src=HOST6, dst=OUTSIDE6, hlim=255)
lla = ICMPv6NDOptSrcLLAddr(lladdr=mac)
messages = {
    "solicitation": ICMPv6ND_NS(tgt=claimed6) / lla,
    "advertisement": ICMPv6ND_NA(tgt=claimed6, R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=mac),
    "router's advertisement": ICMPv6ND_RA() / ICMPv6NDOptPrefixInfo(prefix=claimed6, prefixlen=64),
    "router solicitation": ICMPv6ND_RS() / lla,
    "redirect": ICMPv6ND_Redirect(tgt=claimed6, dst=FAR6),
}
for what, message in messages.items():
    name(f"neighbour/{what}", own(ip / message))
    name(f"neighbour/{what} behind options", own(ip / IPv6ExtHdrHopByHop() / message))
    multicast = IPv6(src=HOST6, dst="ff02::1", hlim=255)
    name(f"destination/{what} to all", Ether(src=mac, dst=group) / multicast / message)
    local = IPv6(src="fe80::77", dst="ff02::1", hlim=255)
    name(f"destination/{what} from fe80::77 to all", Ether(src=mac, dst=group) / local / message)
    name(f"source_address/{what} from fe80::77", own(IPv6(src="fe80::77", dst=OUTSIDE6, hlim=255) / message))
"#;

#[test]
fn neighbour_discovery_is_the_hosts_alone() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let frames = Frames::of(sandbox, CLAIMS);
    let captures =
        [Netns::Outside, B].map(|netns| Background::capture(sandbox, netns, "arp or icmp6 or udp"));
    let a = sandbox.inside(A, || PacketSocket::open("eth0"));
    for (name, frame) in frames.iter() {
        let reason = name.split('/').next().expect("a reason");
        world.expect_drop(&a, name, frame, reason);
    }
    // The last frame is captured, and none of the earlier ones.
    send_from(sandbox, A, A_PORT, (OUTSIDE, HOST_PORT));
    send_from(sandbox, A, A_PORT, (HOST, B_PORT));
    for capture in &captures {
        wait::until("the last packet", || capture.count("UDP, length 1") > 0);
        for claimed in ["10.0.0.77", "::77", "router advertisement", "redirect"] {
            assert_eq!(capture.count(claimed), 0, "{:?}", capture.lines());
        }
    }
}
