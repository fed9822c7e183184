//! Hosts as people have them: bridges, second cards, tunnels, virtual addresses, routes of every form, NAT, and
//! connections that are older than a container. A process of the host in the same place is the oracle.

mod changes;
mod connections;
mod tunnel;
mod uplinks;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use portmap_tests::{
    daemon::Daemon,
    sandbox::{FAR, FAR6, HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
    wait,
};

const A: Netns<'_> = Netns::Container("a");
/// A container of another tool, on a bridge of the host.
const BOX: Netns<'_> = Netns::Container("box");
const PORT: u16 = 31000;
const HOST_PORT: u16 = 8080;
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// A bridge `docker0` with a namespace `box`, which reaches the outside by the host.
const BRIDGE: &str = "
ip netns add box
ip link add docker0 type bridge
ip address add 172.17.0.1/16 dev docker0
ip address add fd17::1/64 dev docker0 nodad
ip link set docker0 up
ip link add port type veth peer name eth0 netns box
ip link set port master docker0 up
ip -n box link set lo up
ip -n box address add 172.17.0.2/16 dev eth0
ip -n box address add fd17::2/64 dev eth0 nodad
ip -n box link set eth0 up
ip -n box route add default via 172.17.0.1
echo 1 > /proc/sys/net/ipv4/ip_forward
";

/// Starts a daemon, a container `a` with a service on its port, and services of the host and outside.
fn world(set_up: &str) -> (Sandbox, Daemon, Vec<[Service; 2]>) {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, &format!("set -e\n{set_up}"));
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    let services = [(A, PORT, "a"), (Netns::Host, HOST_PORT, "host"), (Netns::Outside, HOST_PORT, "outside")]
        .map(|(netns, port, name)| Service::both(&sandbox, netns, port, name));
    (sandbox, daemon, services.into())
}

/// Asserts who answers, and returns the client's address as the service saw it.
#[track_caller]
fn expect(sandbox: &Sandbox, from: Netns<'_>, to: (impl Into<IpAddr> + Copy, u16), who: &str) -> IpAddr {
    let mut client = None;
    for transport in TRANSPORTS {
        let to = SocketAddr::from((to.0.into(), to.1));
        let answer = ask(sandbox, from, transport, to);
        let answer = answer.unwrap_or_else(|error| panic!("{transport:?} {from:?} to {to}: {error}"));
        assert_eq!(answer.from, who, "{transport:?} {from:?} to {to}");
        client = Some(answer.client.ip());
    }
    client.expect("two answers")
}

/// Waits until this service answers.
#[track_caller]
fn wait_for(sandbox: &Sandbox, from: Netns<'_>, to: (impl Into<IpAddr>, u16), who: &str) {
    let to = SocketAddr::from(to);
    wait::until(&format!("{who} at {to} for {from:?}"), || {
        ask(sandbox, from, Transport::Tcp, to).is_ok_and(|answer| answer.from == who)
    });
}

#[test]
fn bridge_neighbours_and_containers_reach_each_other() {
    let (sandbox, _daemon, _services) = world(BRIDGE);
    let _box = Service::both(&sandbox, BOX, 80, "box");
    let bridge: [IpAddr; 2] =
        [Ipv4Addr::new(172, 17, 0, 1).into(), Ipv6Addr::new(0xfd17, 0, 0, 0, 0, 0, 0, 1).into()];
    let other: [IpAddr; 2] =
        [Ipv4Addr::new(172, 17, 0, 2).into(), Ipv6Addr::new(0xfd17, 0, 0, 0, 0, 0, 0, 2).into()];
    for address in bridge.into_iter().chain([HOST.into()]) {
        expect(&sandbox, BOX, (address, HOST_PORT), "host");
        expect(&sandbox, BOX, (address, PORT), "a");
        // The container itself and the host reach the container by every address of the host.
        expect(&sandbox, Netns::Host, (address, PORT), "a");
        expect(&sandbox, A, (address, PORT), "a");
        expect(&sandbox, A, (address, HOST_PORT), "host");
    }
    for address in other {
        let seen = expect(&sandbox, Netns::Host, (address, 80), "box");
        assert_eq!(expect(&sandbox, A, (address, 80), "box"), seen, "the container has the host's source");
        let to = SocketAddr::from((address, 80)).to_string();
        let explained = sandbox.json(&["explain", "--from", "a", "--to", &to]);
        assert_eq!(explained["packet"]["source"], seen.to_string(), "{explained}");
    }
    // The bridge ends and comes back.
    sandbox.sh(Netns::Host, "ip link del docker0");
    expect(&sandbox, Netns::Outside, (HOST, PORT), "a");
    sandbox.sh(
        Netns::Host,
        "ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up; \
         ip link set port master docker0",
    );
    wait_for(&sandbox, BOX, (bridge[0], PORT), "a");
    wait_for(&sandbox, A, (other[0], 80), "box");
}

#[test]
fn virtual_address_leads_to_containers() {
    let (sandbox, _daemon, _services) = world("");
    let vip = (Ipv4Addr::new(10, 0, 0, 50), Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x50));
    let vip: [IpAddr; 2] = [vip.0.into(), vip.1.into()];
    for (address, prefix) in vip.into_iter().zip([32, 128]) {
        let change =
            |word| sandbox.sh(Netns::Host, &format!("ip address {word} {address}/{prefix} dev uplink nodad"));
        change("add");
        wait_for(&sandbox, Netns::Outside, (address, PORT), "a");
        expect(&sandbox, Netns::Outside, (address, PORT), "a");
        expect(&sandbox, Netns::Outside, (address, HOST_PORT), "host");
        expect(&sandbox, A, (address, HOST_PORT), "host");
        expect(&sandbox, Netns::Host, (address, PORT), "a");
        sandbox.sh(Netns::Host, &format!("ip address del {address}/{prefix} dev uplink"));
        wait::until("the address has gone", || {
            !sandbox.sh(A, "ip address show dev eth0").contains(&format!("{address}/"))
        });
        expect(&sandbox, Netns::Outside, (HOST, PORT), "a");
    }
}

#[test]
fn damaged_maps_of_addresses_are_named_and_repaired() {
    let second = Ipv4Addr::new(10, 0, 0, 50);
    let (sandbox, _daemon, _services) = world(&format!("ip address add {second}/24 dev uplink\n"));
    expect(&sandbox, Netns::Outside, (second, PORT), "a");
    let zeros = "00 ".repeat(4096);
    for damage in [
        format!("update pinned PATH/pm_addr_filter key hex 00 00 00 00 value hex {zeros}"),
        "delete pinned PATH/pm_addresses4 key 10 0 0 50".to_owned(),
    ] {
        let path = sandbox.sh(Netns::Host, "echo /sys/fs/bpf/portmap/v*/maps");
        let damage = format!("bpftool map {}", damage.replace("PATH", path.trim()));
        // A resync repairs it, too.
        wait::until("doctor to name the damage", || {
            sandbox.sh(Netns::Host, &damage);
            let doctor = sandbox.portmap(&["doctor"]);
            doctor.status.code() == Some(7)
                && String::from_utf8_lossy(&doctor.stdout).contains("pm_addresses6 and pm_addr_filter differ")
        });
        sandbox.ok(&["doctor", "--repair"]);
        expect(&sandbox, Netns::Outside, (second, PORT), "a");
    }
}

/// Without TCX, an ingress qdisc of another tool is where portmap's would be.
#[test]
fn obstacle_at_another_card_stops_no_container() {
    let second = |name: &str| {
        format!(
            "ip link add {name} type veth peer name {name} netns outside; tc qdisc add dev {name} ingress; \
             ip address add 10.9.0.1/24 dev {name}; ip link set {name} up; ip -n outside link set {name} up\n"
        )
    };
    let (sandbox, daemon, _services) = world(&second("card"));
    expect(&sandbox, Netns::Outside, (HOST, PORT), "a");
    // Nor when it comes later: containers still follow the host.
    sandbox.sh(Netns::Host, &second("late").replace("10.9.0", "10.8.0"));
    sandbox.sh(Netns::Host, "ip address add 10.0.0.50/32 dev uplink");
    wait_for(&sandbox, Netns::Outside, (Ipv4Addr::new(10, 0, 0, 50), PORT), "a");
    let doctor = sandbox.portmap(&["doctor"]);
    let has_tcx = String::from_utf8_lossy(&doctor.stdout).contains("pinned TCX links");
    assert_eq!(doctor.status.success(), has_tcx, "doctor names a card without a program");
    assert_eq!(daemon.log().contains("containers are not reached by card"), !has_tcx, "{}", daemon.log());
}

#[test]
fn unreachable_neighbour_is_an_error_as_on_the_host() {
    let (sandbox, _daemon, _services) = world("");
    // No machine has these addresses, so the kernel asks for a neighbour three times, once a second.
    let unused = |last: u16| -> [IpAddr; 2] {
        [Ipv4Addr::new(10, 0, 0, 99).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, last).into()]
    };
    std::thread::scope(|scope| {
        for address in unused(0x99) {
            for netns in [Netns::Host, A, A] {
                let sandbox = &sandbox;
                scope.spawn(move || {
                    let connect =
                        || TcpStream::connect_timeout(&(address, 80).into(), Duration::from_secs(20));
                    let error = sandbox.inside(netns, connect).expect_err("no machine is there");
                    assert_eq!(
                        error.raw_os_error(),
                        Some(nix::libc::EHOSTUNREACH),
                        "{netns:?} {address}: {error}"
                    );
                });
            }
        }
    });
    let text = sandbox.ok(&["explain", "--from", "a", "--to", "10.0.0.99:80"]);
    assert!(text.contains("by uplink, to a neighbour that the kernel must resolve first"), "{text}");
}

#[test]
fn default_route_of_every_form_is_followed() {
    let (sandbox, _daemon, _services) = world("");
    sandbox.sh(
        Netns::Outside,
        "ip address add 10.0.0.3/24 dev eth0; ip address add 2001:db8:0:1::3/64 dev eth0 nodad; \
         ip address add fe80::2:2/64 dev eth0 nodad; sysctl -qw net.ipv4.conf.eth0.proxy_arp=1",
    );
    let (two, object) = (
        "nexthop via 10.0.0.2 dev uplink nexthop via 10.0.0.3 dev uplink",
        "ip nexthop replace id 7 via 10.0.0.2 dev uplink; ip route replace default nhid 7",
    );
    for (form, version) in [
        (format!("ip route replace default {two}"), 4),
        (object.to_owned(), 4),
        (format!("sysctl -qw net.ipv4.nexthop_compat_mode=0; {object}"), 4),
        ("ip -4 route replace default via inet6 fe80::2:2 dev uplink".to_owned(), 4),
        ("ip route replace default dev uplink scope link".to_owned(), 4),
        ("ip route add 192.0.2.0/24 via 10.0.0.3".to_owned(), 4),
        (
            "ip route add 192.0.2.0/24 via 10.0.0.3 table 100; ip rule add to 192.0.2.0/24 table 100"
                .to_owned(),
            4,
        ),
        (
            "ip -6 route del default; ip -6 route add default nexthop via 2001:db8:0:1::2 dev uplink \
             nexthop via 2001:db8:0:1::3 dev uplink"
                .to_owned(),
            6,
        ),
        ("ip -6 route del default; ip -6 route add default via fe80::2:2 dev uplink metric 9".to_owned(), 6),
    ] {
        sandbox.sh(
            Netns::Host,
            "set +e; exec 2>/dev/null >/dev/null; ip route flush table 100; ip rule del table 100; \
             ip route del 192.0.2.0/24; ip route del default; ip nexthop flush; \
             sysctl -qw net.ipv4.nexthop_compat_mode=1; true",
        );
        sandbox.sh(Netns::Host, &form);
        println!("{form}");
        let far = if version == 4 { IpAddr::V4(FAR) } else { FAR6.into() };
        let seen = expect(&sandbox, Netns::Host, (far, HOST_PORT), "outside");
        // Before that the container has its routes of the form before.
        wait::until("health", || sandbox.portmap(&["doctor"]).status.success());
        assert_eq!(expect(&sandbox, A, (far, HOST_PORT), "outside"), seen, "{form}");
    }
}

#[test]
fn packets_for_a_vpn_do_not_leave_by_the_uplink() {
    let second = "ip link add vpn type veth peer name vpn netns outside; ip address add 10.9.0.2/24 dev vpn; \
                  ip link set vpn up; ip -n outside address add 10.9.0.1/24 dev vpn; ip -n outside link set vpn up; \
                  ip netns exec outside iptables -A INPUT -i eth0 -d 192.0.2.1 -j ACCEPT; \
                  ip netns exec outside iptables -A INPUT -i vpn -d 192.0.2.1 -j ACCEPT\n";
    let (sandbox, _daemon, _services) = world(second);
    // The far address is reached by both; all traffic is to go through the VPN, as wg-quick and others do it.
    sandbox.sh(
        Netns::Host,
        "ip route add default via 10.9.0.1 table 51820; ip rule add not fwmark 51820 table 51820; \
         ip rule add table main suppress_prefixlength 0",
    );
    let seen = expect(&sandbox, Netns::Host, (FAR, HOST_PORT), "outside");
    assert_eq!(seen, IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)), "the host sends it into the VPN");
    let seen_by = |interface: &str| -> u64 {
        let rules = sandbox.sh(Netns::Outside, "iptables -nvxL INPUT");
        let rule = rules.lines().find(|line| line.split_whitespace().any(|word| word == interface));
        let count = rule.and_then(|rule| rule.split_whitespace().next()).expect("a rule");
        count.parse().expect("a number")
    };
    wait::until("the container's packets to go into the VPN", || {
        let before = seen_by("vpn");
        let _answer = ask(&sandbox, A, Transport::Udp, (FAR, HOST_PORT));
        seen_by("vpn") > before
    });
    // The other end of a VPN drops packets from other addresses.
    wait::until("the container's source to be that of the VPN", || {
        ask(&sandbox, A, Transport::Tcp, (FAR, HOST_PORT)).is_ok_and(|answer| answer.client.ip() == seen)
    });
    let before = seen_by("eth0");
    for _ in 0..3 {
        assert_eq!(expect(&sandbox, A, (FAR, HOST_PORT), "outside"), seen, "the host's source address");
    }
    assert_eq!(seen_by("eth0"), before, "nothing leaves in the clear");
    let text = sandbox.ok(&["explain", "--from", "a", "--to", "192.0.2.1:8080"]);
    assert!(text.contains(" on vpn") || text.contains("by vpn"), "{text}");
}
