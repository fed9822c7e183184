//! Other programs of a host do what they are known to do, while connections of containers are open. Each step must
//! leave these connections alive, new ones possible, the neighbour's own things in place, and `doctor` content.
//! docs/coexistence.md names the sources.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
};

use portmap::{
    kernel::{
        netlink::Netlink,
        programs::{self, AttachMode, AttachPoint},
    },
    paths::Pins,
};
use portmap_common::names::PROG_UPLINK_EGRESS;
use portmap_tests::{
    daemon::Daemon,
    sandbox::{DAEMON_FLAGS, HOST, HOST6, Netns, OUTSIDE, Sandbox},
    service::{Service, Transport, ask},
    wait,
};

use crate::{A, findings};

const B: Netns<'_> = Netns::Container("b");
/// The host's service, which containers reach by `lo`.
const HOST_PORT: u16 = 9000;

/// A connection, with both ends.
struct Live {
    name: String,
    ends: [TcpStream; 2],
}

impl Live {
    fn open(
        sandbox: &Sandbox,
        from: Netns<'_>,
        to: Netns<'_>,
        address: impl Into<IpAddr>,
        port: u16,
    ) -> Self {
        let address = SocketAddr::new(address.into(), port);
        let any = SocketAddr::new(
            if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() },
            port,
        );
        let listener = sandbox.inside(to, || TcpListener::bind(any)).expect("the port is free");
        let client = sandbox.inside(from, || TcpStream::connect(address)).expect("connected");
        let (server, _) = listener.accept().expect("a connection");
        for end in [&client, &server] {
            end.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
        }
        Self { name: format!("{from:?} to {to:?} at {address}"), ends: [client, server] }
    }

    /// Sends something in both directions.
    fn check(&self, step: &str) {
        let [client, server] = &self.ends;
        for (mut from, mut to) in [(client, server), (server, client)] {
            let (sent, mut received) = (*b"still there", [0; 11]);
            let passed = from.write_all(&sent).and_then(|()| to.read_exact(&mut received));
            passed.unwrap_or_else(|error| panic!("{step}: {}: {error}", self.name));
            assert_eq!(received, sent);
        }
    }
}

/// A host with two containers, services, and open connections.
struct World {
    live: Vec<Live>,
    _services: Vec<Service>,
    daemon: Daemon,
    sandbox: Sandbox,
}

/// What a neighbour does, and a look at its own things afterwards: its output must stay the same.
struct Step {
    name: &'static str,
    does: &'static str,
    keeps: &'static str,
}

const fn step(name: &'static str, does: &'static str, keeps: &'static str) -> Step {
    Step { name, does, keeps }
}

impl World {
    fn new(flags: &[&str]) -> Self {
        let sandbox = Sandbox::new();
        sandbox.sh(Netns::Outside, "ip route add 172.17.0.0/16 via 10.0.0.1");
        let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat());
        sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
        sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
        let services = vec![
            Service::start(&sandbox, A, Transport::Tcp, 31000, "a"),
            Service::start(&sandbox, B, Transport::Udp, 31010, "b"),
            Service::start(&sandbox, Netns::Host, Transport::Tcp, HOST_PORT, "host"),
            Service::start(&sandbox, Netns::Outside, Transport::Tcp, 7000, "outside"),
        ];
        let live = vec![
            Live::open(&sandbox, Netns::Outside, A, HOST, 31001),
            Live::open(&sandbox, A, Netns::Outside, OUTSIDE, 7001),
            Live::open(&sandbox, B, A, HOST, 31002),
            Live::open(&sandbox, Netns::Host, A, Ipv4Addr::LOCALHOST, 31003),
            Live::open(&sandbox, A, Netns::Host, HOST, 9001),
            Live::open(&sandbox, A, Netns::Host, Ipv4Addr::LOCALHOST, 9002),
            Live::open(&sandbox, Netns::Outside, A, HOST6, 31004),
            Live::open(&sandbox, A, Netns::Host, HOST6, 9003),
        ];
        Self { live, _services: services, daemon, sandbox }
    }

    /// Checks new connections, and those that are open.
    fn check(&self, step: &str) {
        let sandbox = &self.sandbox;
        for (netns, transport, to, expected) in [
            (Netns::Outside, Transport::Tcp, SocketAddr::from((HOST, 31000)), "a"),
            (Netns::Outside, Transport::Udp, (HOST, 31010).into(), "b"),
            (Netns::Outside, Transport::Tcp, (HOST6, 31000).into(), "a"),
            (B, Transport::Tcp, (HOST, 31000).into(), "a"),
            (Netns::Host, Transport::Tcp, (Ipv4Addr::LOCALHOST, 31000).into(), "a"),
            (A, Transport::Tcp, (OUTSIDE, 7000).into(), "outside"),
            (A, Transport::Tcp, (HOST, HOST_PORT).into(), "host"),
            (A, Transport::Tcp, (Ipv4Addr::LOCALHOST, HOST_PORT).into(), "host"),
            (B, Transport::Tcp, (HOST6, HOST_PORT).into(), "host"),
        ] {
            let answer = ask(sandbox, netns, transport, to);
            let answer = answer.unwrap_or_else(|error| panic!("{step}: {netns:?} to {to}: {error}"));
            assert_eq!(answer.from, expected, "{step}: {netns:?} to {to}");
        }
        for live in &self.live {
            live.check(step);
        }
    }

    /// Runs the steps of neighbours one after the other.
    fn run(&self, steps: &[Step]) {
        for Step { name, does, keeps } in steps {
            self.sandbox.sh(Netns::Host, does);
            let before = self.sandbox.sh(Netns::Host, keeps);
            wait::until(&format!("{name}: doctor"), || self.sandbox.portmap(&["doctor"]).status.success());
            self.check(name);
            assert_eq!(self.sandbox.sh(Netns::Host, keeps), before, "{name}: its own things");
        }
    }
}

/// Without the counters of rules, which packets change.
const RULESET: &str = "nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'";

/// Firewalls, and programs that write rules for containers of their own.
const FIREWALLS: [Step; 7] = [
    step(
        "Docker starts",
        "ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up; \
         echo 1 > /proc/sys/net/ipv4/ip_forward; iptables -P FORWARD DROP; iptables -N DOCKER-USER; \
         iptables -I FORWARD -j DOCKER-USER; iptables -A DOCKER-USER -j RETURN; \
         iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        RULESET,
    ),
    step(
        "Docker and libvirt flush and remove their chains",
        "iptables -F DOCKER-USER; iptables -D FORWARD -j DOCKER-USER; iptables -X DOCKER-USER; \
         iptables -t nat -F; iptables -F",
        RULESET,
    ),
    step(
        "ufw drops what comes in, except on lo",
        "iptables -P INPUT DROP; iptables -A INPUT -i lo -j ACCEPT; ip6tables -P INPUT DROP; \
         ip6tables -A INPUT -i lo -j ACCEPT; ip6tables -A INPUT -p ipv6-icmp -j ACCEPT; \
         nft add rule ip filter INPUT ct state established,related accept",
        RULESET,
    ),
    step(
        "firewalld loads a strict reverse path filter and drops invalid packets",
        "nft -f - <<END
table inet firewalld {
    chain prerouting {
        type filter hook prerouting priority 10
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto { ipv4, ipv6 } fib saddr . mark . iif oif missing drop
    }
    chain input {
        type filter hook input priority 10
        ct state { established, related } accept
        iifname lo accept
        ct state invalid drop
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        reject
    }
}
END",
        RULESET,
    ),
    step(
        "firewalld reloads",
        "nft 'delete table inet firewalld; add table inet firewalld; \
         add chain inet firewalld input { type filter hook input priority 10; policy drop; }; \
         add rule inet firewalld input ct state { established, related } accept; \
         add rule inet firewalld input iifname lo accept; \
         add rule inet firewalld input icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept'",
        RULESET,
    ),
    step(
        "kube-proxy and kubelet write their chains",
        "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; nft -f - <<END
table ip kube {
    chain firewall {
        type filter hook input priority 0
        ip saddr != 127.0.0.0/8 ip daddr 127.0.0.0/8 ct status & (dnat | seen-reply) == 0 drop
        ct state invalid drop
    }
    chain nodeports {
        type nat hook prerouting priority -100
        tcp dport 30080 dnat to 172.17.0.2:8080
    }
    chain postrouting {
        type nat hook postrouting priority 100
        meta mark & 0x4000 != 0x4000 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
    }
}
END",
        RULESET,
    ),
    step("an administrator flushes conntrack", "conntrack -F", RULESET),
];

#[test]
fn neighbour_firewalls_and_nat_are_no_obstacle() {
    let world = World::new(&[]);
    world.check("before");
    world.run(&FIREWALLS);
}

/// The addresses of the uplink, without the link-local one of the kernel, the routes and the rules.
const ADDRESSES: &str = "ip -o address show dev uplink scope global; ip route; ip -6 route; ip rule";

/// Managers of interfaces, addresses and settings.
const MANAGERS: [Step; 11] = [
    step(
        "systemd-networkd restarts, removes foreign routes and rules, and configures its own again",
        "ip route del default; ip -6 route del default; ip rule add from 10.9.9.9 table 100; \
         ip rule del from 10.9.9.9; ip address del 10.0.0.1/24 dev uplink; ip address add 10.0.0.1/24 dev uplink; \
         ip route add default via 10.0.0.2 proto static; \
         ip -6 route add default via 2001:db8:0:1::2 proto static",
        ADDRESSES,
    ),
    step(
        "NetworkManager takes the card down and up, and adds addresses and routes again",
        "ip link set uplink down; ip link set uplink up; ip address replace 10.0.0.1/24 dev uplink; \
         ip address replace 2001:db8:0:1::1/64 dev uplink nodad; \
         ip route replace default via 10.0.0.2 proto static metric 100; \
         ip -6 route replace default via 2001:db8:0:1::2 proto static",
        ADDRESSES,
    ),
    step(
        "NetworkManager removes all qdiscs and filters of the card",
        "for where in ingress egress; do tc filter del dev uplink $where 2>/dev/null || true; done; \
         tc qdisc del dev uplink clsact 2>/dev/null || true; \
         tc qdisc del dev uplink root 2>/dev/null || true",
        "true",
    ),
    step(
        "an administrator replaces the root qdisc",
        "tc qdisc replace dev uplink root handle 7: pfifo limit 999",
        "tc qdisc show dev uplink root",
    ),
    step(
        "systemd-networkd sets a root qdisc of its own",
        "tc qdisc replace dev uplink root handle 8: tbf rate 10gbit burst 1mb latency 50ms",
        "tc qdisc show dev uplink root",
    ),
    step(
        "ethtool switches offloads off and on",
        "ethtool -K uplink gro off gso off tso off tx off; ethtool -K uplink tx on gso on tso on gro on",
        "ethtool -k uplink | grep -e segmentation -e receive",
    ),
    step(
        "tuned and sysctl --system write their profiles",
        "cd /proc/sys/net; echo 8080,9090 > ipv4/ip_local_reserved_ports; echo 1 > ipv4/conf/all/rp_filter; \
         echo 1 > ipv4/conf/default/rp_filter; echo 0 > ipv4/conf/lo/accept_local; \
         echo 0 > ipv4/conf/lo/route_localnet; \
         echo 1 > ipv4/tcp_mtu_probing; echo 65535 > core/somaxconn",
        "cd /proc/sys/net; cat ipv4/conf/all/rp_filter ipv4/conf/default/rp_filter ipv4/tcp_mtu_probing \
         core/somaxconn; \
         grep -o 8080,9090 ipv4/ip_local_reserved_ports",
    ),
    step(
        "systemd-udevd gives host veths MAC addresses of its own",
        "ip link set pm1 address 02:aa:bb:cc:dd:01; ip link set pm2 address 02:aa:bb:cc:dd:02",
        "true",
    ),
    step(
        "NetworkManager takes host veths for cards without an address",
        "for veth in pm1 pm2; do ip link set $veth down; ip link set $veth up txqueuelen 500; done; \
         ip address add 169.254.7.7/16 dev pm1",
        "ip -o address show dev pm1",
    ),
    step(
        "systemd-sysctl writes the settings of all interfaces",
        "cd /proc/sys/net; for file in ipv4/conf/*/rp_filter; do echo 1 > $file; done; \
         for file in ipv4/conf/*/send_redirects ipv4/conf/*/accept_redirects; do echo 0 > $file; done; \
         for file in ipv4/conf/*/arp_ignore; do echo 1 > $file; done; \
         for file in ipv4/conf/*/arp_announce; do echo 2 > $file; done",
        "cd /proc/sys/net/ipv4/conf; grep -H . */rp_filter */arp_ignore */arp_announce",
    ),
    step(
        "Docker sees its bridge and its sysctls go",
        "ip link add br-1 type bridge; ip link set br-1 up; ip link del br-1; echo 0 > /proc/sys/net/ipv4/ip_forward",
        "cat /proc/sys/net/ipv4/ip_forward",
    ),
];

#[test]
fn neighbour_managers_of_the_host_are_followed() {
    let world = World::new(&[]);
    world.run(&MANAGERS);
    world.sandbox.sh(Netns::Host, "echo > /proc/sys/net/ipv4/ip_local_reserved_ports");
}

#[test]
fn neighbour_filters_of_the_uplink_stay() {
    let world = World::new(&[]);
    // As Cilium and Calico attach theirs on kernels without TCX; portmap's filter comes before.
    let filters = "tc qdisc add dev uplink clsact 2>/dev/null || true; \
        for where in ingress egress; do \
            tc filter add dev uplink $where pref 49000 protocol all u32 match u32 0 0 flowid 1:1; \
        done";
    let look = "for where in ingress egress; do tc filter show dev uplink $where pref 49000; done";
    world.run(&[step("filters of others", filters, look)]);
    // They outlive portmap.
    let before = world.sandbox.sh(Netns::Host, look);
    assert!(before.contains("u32"), "{before}");
    world.sandbox.ok(&["teardown"]);
    assert_eq!(world.sandbox.sh(Netns::Host, look), before);
    world.daemon.wait();
    world.sandbox.sh(Netns::Host, "tc qdisc del dev uplink clsact");
}

#[test]
fn neighbour_ingress_qdisc_is_no_obstacle_or_named() {
    let sandbox = Sandbox::new();
    // Of traffic shaping of what arrives. It has the place of a clsact qdisc, but no egress side.
    sandbox.sh(Netns::Host, "tc qdisc add dev uplink ingress");
    let look = || sandbox.sh(Netns::Host, "tc qdisc show dev uplink ingress");
    let before = look();
    assert!(before.contains("qdisc ingress"), "{before}");
    if AttachMode::detect() == AttachMode::Tcx {
        let _daemon = sandbox.daemon();
        sandbox.ok(&["add", "a", "--ports", "31000"]);
        let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
        assert_eq!(
            ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer").from,
            "a"
        );
        sandbox.ok(&["doctor"]);
    } else {
        let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
        assert!(code == 4 && log.contains("uplink has an ingress qdisc"), "{code}: {log}");
    }
    assert_eq!(look(), before);
}

#[test]
fn neighbour_program_in_front_is_named_and_overtaken() {
    let world = World::new(&[]);
    // At a container's interface, where an agent for policies may take it for one of a pod: portmap's is a filter.
    let filter = "tc filter add dev pm1 ingress pref 1 protocol all u32 match u32 0 0 flowid 1:1";
    world.sandbox.sh(Netns::Host, filter);
    let found = findings(&world.sandbox, "container a").remove(0);
    assert!(found.starts_with("problem the u32 filter with preference 1 runs before pm_veth_in"), "{found}");
    let question = ["explain", "--from", "a", "--to", "10.0.0.2:7000"];
    let text = world.sandbox.ok(&question);
    assert!(
        text.contains("note: the u32 filter with preference 1 runs before pm_veth_in at pm1, ingress"),
        "{text}"
    );
    world.sandbox.sh(Netns::Host, "tc filter del dev pm1 ingress pref 1");
    world.check("a filter at a container's interface is gone");
    assert!(!world.sandbox.ok(&question).contains("note: "));
    if AttachMode::detect() == AttachMode::Clsact {
        // doctor's advice is covered by `uplink_programs_run_before_foreign_ones`.
        return;
    }
    let pins = Pins::new(world.sandbox.path("/sys/fs/bpf/portmap"));
    let at = |interface: &str, name| AttachPoint {
        interface: interface.to_owned(),
        ingress: true,
        program: PROG_UPLINK_EGRESS,
        attach_mode: AttachMode::Tcx,
        link: pins.link(name),
    };
    let (uplink, veth) = (at("uplink", "foreign"), at("pm1", "foreign-1"));
    let sandbox = &world.sandbox;
    let inside = |work: &(dyn Fn(&Netlink) -> portmap::kernel::error::Result<()> + Sync)| {
        sandbox.inside(Netns::Host, || work(&Netlink::open()?)).expect("it works");
    };
    // A link at a container's interface runs before the filter, too.
    inside(&|netlink| programs::attach(netlink, &pins, &veth));
    let text = sandbox.ok(&question);
    assert!(text.contains(&format!("note: {PROG_UPLINK_EGRESS} (id ")), "{text}");
    assert!(findings(sandbox, "container a")[0].contains("detach it from pm1"));
    inside(&|netlink| programs::detach(netlink, &veth));
    // At the uplink, the daemon moves its own to the front without being asked.
    inside(&|netlink| programs::attach(netlink, &pins, &uplink));
    let is_first =
        || !sandbox.ok(&["explain", "--from", "outside", "--to", "10.0.0.1:31000"]).contains("note: ");
    wait::until("portmap's program to be the first", is_first);
    assert!(
        sandbox
            .inside(Netns::Host, || programs::is_attached(&Netlink::open()?, &pins, &uplink))
            .expect("an answer")
    );
    inside(&|netlink| programs::detach(netlink, &uplink));
    world.check("a program in front");
}
