//! Routers between the uplink and a distant host, one with a small MTU, and tools that probe the path.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    thread,
};

use portmap_tests::{
    sandbox::{Netns, OUTSIDE, OUTSIDE6, Sandbox},
    service::{Service, Transport},
};

use crate::{A, A_PORT, B, HOST_PORT, SHARED, World};

/// Two hops behind the outside peer, over a link with an MTU of 1300. ICMP errors are not rate-limited.
const ROUTERS: &str = r"
for name in middle beyond; do
    ip netns add $name
    ip -n $name link set lo up
done
for name in outside middle beyond; do
    ip netns exec $name sh -c '
        for setting in ipv4/conf/all/forwarding ipv6/conf/all/forwarding; do echo 1 > /proc/sys/net/$setting; done
        for setting in ipv4/icmp_ratelimit ipv6/icmp/ratelimit; do echo 0 > /proc/sys/net/$setting; done
        for scope in all default; do echo 0 > /proc/sys/net/ipv6/conf/$scope/accept_dad; done'
done
ip -n outside link add small mtu 1300 type veth peer name small mtu 1300 netns middle
ip -n middle link add large type veth peer name eth0 netns beyond
ip -n outside address add 198.51.100.1/24 dev small
ip -n outside address add 2001:db8:a::1/64 dev small nodad
ip -n middle address add 198.51.100.2/24 dev small
ip -n middle address add 2001:db8:a::2/64 dev small nodad
ip -n middle address add 203.0.113.1/24 dev large
ip -n middle address add 2001:db8:b::1/64 dev large nodad
ip -n beyond address add 203.0.113.2/24 dev eth0
ip -n beyond address add 2001:db8:b::2/64 dev eth0 nodad
ip -n outside link set small up
ip -n middle link set small up
ip -n middle link set large up
ip -n beyond link set eth0 up
ip -n outside route add 203.0.113.0/24 via 198.51.100.2
ip -n outside route add 2001:db8:b::/64 via 2001:db8:a::2
ip -n middle route add default via 198.51.100.1
ip -n middle route add default via 2001:db8:a::1
ip -n beyond route add default via 203.0.113.1
ip -n beyond route add default via 2001:db8:b::1
";
const BEYOND: Netns<'_> = Netns::Container("beyond");
/// The hops to the far end, which is the last one.
const HOPS: [[IpAddr; 3]; 2] = [
    [
        IpAddr::V4(OUTSIDE),
        IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2)),
    ],
    [
        IpAddr::V6(OUTSIDE6),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 2)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 2)),
    ],
];

#[test]
fn traceroute_works_by_every_method() {
    let world = World::with(ROUTERS);
    let sandbox = &world.sandbox;
    let _service = Service::start(sandbox, BEYOND, Transport::Tcp, HOST_PORT, "beyond");
    for hops in HOPS {
        let target = hops[2];
        for netns in [A, Netns::Host] {
            // UDP, which ends with the target's error; echo; TCP to an open port.
            for method in ["", "-I", "-T -p 8080"] {
                let command = format!("traceroute -n -q 1 -w 20 -m 5 {method} {target}");
                let text = sandbox.sh(netns, &command);
                for (number, hop) in hops.into_iter().enumerate() {
                    let line = text.lines().nth(number + 1).unwrap_or_default();
                    assert!(
                        line.split_whitespace().nth(1) == Some(&hop.to_string()),
                        "{netns:?}: {command}: {text}"
                    );
                }
            }
            let text = sandbox.sh(netns, &format!("tracepath -n -m 8 {target}"));
            for expected in ["pmtu 1500", "pmtu 1300", "Resume: pmtu 1300 hops 3", &hops[1].to_string()] {
                assert!(text.contains(expected), "{netns:?}: {expected}: {text}");
            }
        }
    }
}

/// Returns the path MTU that a namespace has learned for an address.
fn learned_mtu(sandbox: &Sandbox, netns: Netns<'_>, to: IpAddr) -> Option<u32> {
    let route = sandbox.sh(netns, &format!("ip -o route get {to}"));
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1)?.parse().ok()
}

/// Sends a long stream through a connection and checks that all of it arrives.
fn stream(mut sender: TcpStream, mut receiver: TcpStream, what: &str) {
    let bytes: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let sent = bytes.clone();
    let sending = thread::spawn(move || sender.write_all(&sent).expect("sent"));
    let mut arrived = Vec::new();
    receiver.read_to_end(&mut arrived).expect("received");
    sending.join().expect("sent");
    assert!(arrived == bytes, "{what}: {} bytes of {}", arrived.len(), bytes.len());
}

#[test]
fn path_mtu_discovery_affects_its_own_stream_only() {
    let world = World::with(ROUTERS);
    let sandbox = &world.sandbox;
    let listen = |netns, port| {
        sandbox.inside(netns, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).expect("the port is free")
    };
    let connect = |netns, to: (IpAddr, u16)| {
        sandbox.inside(netns, || TcpStream::connect(to)).unwrap_or_else(|error| panic!("{to:?}: {error}"))
    };
    let beyond = listen(BEYOND, HOST_PORT);
    let servers = [(A, A_PORT), (Netns::Host, HOST_PORT)].map(|(netns, port)| (port, listen(netns, port)));
    for (hops, shared) in HOPS.into_iter().zip(SHARED) {
        let target = hops[2];
        // A client in one container and a server in the other each learn the path MTU on their own;
        // the host does not.
        for (netns, strangers) in [(B, &[A, Netns::Host][..]), (A, &[Netns::Host]), (Netns::Host, &[])] {
            let what = format!("{netns:?} and {target}");
            assert_eq!(learned_mtu(sandbox, netns, target), None, "{what}");
            let (sender, receiver) = if netns == B {
                let sender = connect(netns, (target, HOST_PORT));
                (sender, beyond.accept().expect("a connection").0)
            } else {
                let (port, server) = &servers[usize::from(netns == Netns::Host)];
                let receiver = connect(BEYOND, (shared, *port));
                (server.accept().expect("a connection").0, receiver)
            };
            stream(sender, receiver, &what);
            assert_eq!(learned_mtu(sandbox, netns, target), Some(1300), "{what}");
            for stranger in strangers {
                assert_eq!(learned_mtu(sandbox, *stranger, target), None, "{stranger:?} and {target}");
            }
        }
    }
}
