//! The scenes of the demonstration.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Instant,
};

use portmap_tests::{
    daemon::Daemon,
    frames::{Frame, ICMP},
    packet_socket::PacketSocket,
    sandbox::{FAR, HOST, HOST_MAC, Netns, OUTSIDE, Sandbox, binary},
    service::{Service, Transport, ask},
    wait,
};

use crate::screen::{Screen, say};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const WEB: Netns<'_> = Netns::Container("web");
const API: Netns<'_> = Netns::Container("api");
const BATCH: Netns<'_> = Netns::Container("batch");
/// The ports of the services in containers and on the host.
const WEB_PORT: u16 = 31000;
const API_PORT: u16 = 31010;
const HOST_PORT: u16 = 8080;

/// Repetitions of a timed command.
const TIMES: usize = 9;

const FLAGS: [&str; 8] = [
    "--ports",
    "20000-32000",
    "--ephemeral-ports",
    "61440-65535",
    // The last scene adds and deletes more containers than there are blocks.
    "--ephemeral-ports-quarantine",
    "0",
    "--listen",
    "none",
];

/// Plays all scenes and returns the running daemon.
pub(crate) fn play(screen: &Screen, sandbox: &Sandbox) -> Daemon {
    let daemon = set_the_stage(screen, sandbox);
    let services = [
        (WEB, WEB_PORT, "web"),
        (API, API_PORT, "api"),
        (Netns::Host, HOST_PORT, "the host"),
        (Netns::Outside, HOST_PORT, "outside"),
    ];
    let services =
        services.map(|(place, port, name)| Service::start(sandbox, place, Transport::Tcp, port, name));
    connections(screen, sandbox);
    drop(services);
    own_ports(screen, sandbox);
    drops(screen, sandbox);
    in_the_kernel(screen, sandbox);
    many_ports(screen, sandbox);
    daemon
}

fn set_the_stage(screen: &Screen, sandbox: &Sandbox) -> Daemon {
    screen.title("One host with one address, 10.0.0.1, and three containers that share it");
    let daemon = sandbox.daemon_with(&FLAGS);
    screen.command(&format!("portmapd {}", FLAGS.join(" ")), "ready");
    for arguments in [
        &["add", "web", "--ports", "31000-31009"][..],
        &["add", "api", "--ports", "31010-31019"],
        &["add", "batch"],
    ] {
        sandbox.ok(arguments);
        screen.command(&format!("portmap {}", arguments.join(" ")), "");
    }
    screen.command("portmap list", &sandbox.ok(&["list"]));
    daemon
}

fn connections(screen: &Screen, sandbox: &Sandbox) {
    screen.title("Packets to a port reach its owner, from everywhere and by every address of the host");
    for (from, name, to) in [
        (Netns::Outside, "outside", (HOST, WEB_PORT)),
        (Netns::Outside, "outside", (HOST, API_PORT)),
        (Netns::Outside, "outside", (HOST, HOST_PORT)),
        (Netns::Host, "host", (LOCALHOST, WEB_PORT)),
        (WEB, "web", (HOST, API_PORT)),
        (WEB, "web", (LOCALHOST, API_PORT)),
        (BATCH, "batch", (Ipv4Addr::new(127, 1, 2, 3), WEB_PORT)),
        (WEB, "web", (LOCALHOST, WEB_PORT)),
        (API, "api", (LOCALHOST, HOST_PORT)),
        (API, "api", (OUTSIDE, HOST_PORT)),
        (BATCH, "batch", (FAR, HOST_PORT)),
    ] {
        let way = format!("{name:<8} connects to {}:{}", to.0, to.1);
        let answer = ask(sandbox, from, Transport::Tcp, to).unwrap_or_else(|error| panic!("{way}: {error}"));
        screen.arrives(&way, &format!("{} answers, sees {}", answer.from, answer.client));
    }
}

fn own_ports(screen: &Screen, sandbox: &Sandbox) {
    screen.title("bind(0) returns a port of the container");
    for (place, name) in [(WEB, "web"), (API, "api"), (BATCH, "batch"), (Netns::Host, "host")] {
        let ports = sandbox.inside(place, || {
            let sockets: Vec<_> =
                (0..5).map(|_| UdpSocket::bind("0.0.0.0:0").expect("a port is free")).collect();
            let port = |socket: &UdpSocket| socket.local_addr().expect("bound").port().to_string();
            sockets.iter().map(port).collect::<Vec<_>>().join(" ")
        });
        screen.arrives(&format!("{name:<8} binds port 0 five times"), &ports);
    }
}

fn drops(screen: &Screen, sandbox: &Sandbox) {
    screen.title("Forged packets of root in a container are dropped and counted by reason");
    let socket = sandbox.inside(WEB, || PacketSocket::open("eth0"));
    let good = Frame { from_mac: HOST_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, WEB_PORT), (OUTSIDE, 53)) };
    for (what, frame, reason) in [
        ("from a port of api", Frame { from_port: API_PORT, ..good.clone() }, "source_port"),
        ("from the host's port 22", Frame { from_port: 22, ..good.clone() }, "source_port"),
        ("from another address", Frame { from: FAR, ..good.clone() }, "source_address"),
        ("to the broadcast address", Frame { to: Ipv4Addr::BROADCAST, ..good.clone() }, "destination"),
        ("an ARP announcement", Frame { ether_type: 0x0806, ..good.clone() }, "arp"),
        ("into a VLAN", Frame { vlan: Some(7), ..good.clone() }, "vlan"),
        ("a fragment with hidden ports", Frame { fragment: 0x2001, ..good.clone() }, "fragment"),
        ("an ICMP redirect", Frame { icmp: [5, 1], ..good.protocol(ICMP) }, "icmp"),
    ] {
        let before = sandbox.dropped("web", reason);
        socket.send(&frame.bytes());
        wait::until(what, || sandbox.dropped("web", reason) == before + 1);
        screen.dropped(&format!("web      sends {what}"), reason);
    }
    screen.command("portmap stats web", &sandbox.ok(&["stats", "web"]));
}

fn in_the_kernel(screen: &Screen, sandbox: &Sandbox) {
    screen.title("All owners are in one map, with one lookup per packet");
    for (port, comment) in
        [(WEB_PORT, "a port of web"), (62500, "an ephemeral port of api"), (22, "a port of the host")]
    {
        let [low, high] = port.to_le_bytes();
        let command =
            format!("bpftool map lookup pinned /sys/fs/bpf/portmap/v6/maps/pm_ports key {low} {high} 0 0");
        let output = sandbox.sh(Netns::Host, &command);
        let line: String = output.split_whitespace().collect::<Vec<_>>().join(" ");
        screen.command(&format!("{command}   # {port}, {comment}"), &line);
    }
}

fn many_ports(screen: &Screen, sandbox: &Sandbox) {
    screen.title("A container with 10,000 ports costs no more than one with none");
    for (name, ports) in [("none", &[][..]), ("many", &["--ports", "20000-29999"])] {
        let arguments = [&["add", name][..], ports].concat();
        let mut times: Vec<_> = (0..TIMES)
            .map(|_| {
                let start = Instant::now();
                sandbox.ok(&arguments);
                let time = start.elapsed();
                sandbox.ok(&["del", name]);
                time.as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let median = times[TIMES / 2];
        let what = format!("{median:.0} ms, the median of {TIMES}");
        screen.command(&format!("time portmap {}", arguments.join(" ")), &what);
    }
    sandbox.ok(&["add", "many", "--ports", "20000-29999"]);
    let _service = Service::start(sandbox, Netns::Container("many"), Transport::Tcp, 29_999, "many");
    let answer = ask(sandbox, Netns::Outside, Transport::Tcp, (HOST, 29_999)).expect("an answer");
    screen.arrives("outside  connects to 10.0.0.1:29999", &format!("{} answers", answer.from));
}

/// Removes everything and shows that nothing is left.
pub(crate) fn clean_up(screen: &Screen, sandbox: &Sandbox, daemon: Daemon) {
    screen.title("Teardown leaves no trace");
    screen.command("portmap teardown", &sandbox.ok(&["teardown"]));
    daemon.wait();
    screen
        .command("ls /run/netns; ip -brief link", &sandbox.sh(Netns::Host, "ls /run/netns; ip -brief link"));
}

/// Prints the commands to enter a sandbox that outlives this process.
pub(crate) fn how_to_look_around(screen: &Screen, sandbox: &Sandbox) {
    let portmap = binary("portmap");
    let portmap = portmap.display();
    let init = sandbox.init();
    screen.title("The sandbox stays up");
    say(&format!(
        "enter the host:        nsenter --target {init} --net --mount --pid bash\n\
         there, list all:       {portmap} list\n\
         enter a container:     {portmap} exec web -- bash\n\
         play the outside:      ip netns exec outside bash\n\
         end it all:            kill -KILL {init}"
    ));
}
