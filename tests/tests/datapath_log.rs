//! `--datapath-log`: verdicts in the daemon's log, by a build with the feature `datapath-log`.

use std::net::{Ipv4Addr, UdpSocket};

use portmap_tests::{
    daemon::Daemon,
    faults::sample,
    frames::Frame,
    not_run,
    packet_socket::PacketSocket,
    sandbox::{DAEMON_FLAGS, HOST, HOST_MAC, Netns, OUTSIDE, OUTSIDE_MAC, Sandbox, find_binary},
    wait,
};

/// The build with the feature. `cargo xtask test` makes it.
const LOGGING: &str = "datapath-log/portmapd";

/// Packets that exceed the limit on records.
const PACKETS: usize = 2_000;

/// Starts a daemon that logs, with containers `a` (31000-31009) and `b` (31010-31019), which send no packets by
/// themselves. Returns `None`, and says so, without such a build.
fn world(target: &str) -> Option<(Sandbox, Daemon)> {
    if find_binary(LOGGING).is_none() {
        not_run("there is no build with the feature datapath-log; `cargo xtask test` makes it");
        return None;
    }
    let sandbox = Sandbox::new().with_portmapd(LOGGING);
    sandbox.sh(Netns::Host, "echo 1 > /proc/sys/net/ipv6/conf/uplink/disable_ipv6");
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--datapath-log", target]].concat());
    for (name, ports) in [("a", "31000-31009"), ("b", "31010-31019")] {
        sandbox.ok(&["add", name, "--ports", ports]);
    }
    wait::until("the log of verdicts", || daemon.log().contains(&format!("{target}: logging verdicts")));
    Some((sandbox, daemon))
}

/// Returns whether this is an emulated machine, and says that the calling test does not run there.
fn is_emulated() -> bool {
    let is_emulated = sample() != 1;
    if is_emulated {
        not_run("it hardly depends on the kernel");
    }
    is_emulated
}

/// Sends a frame from a container.
fn send(sandbox: &Sandbox, name: &str, frame: &Frame) {
    sandbox.inside(Netns::Container(name), || PacketSocket::open("eth0")).send(&frame.bytes());
}

/// Sends a UDP packet from outside to a port of the host's address.
fn send_from_outside(sandbox: &Sandbox, from: Ipv4Addr, port: u16) {
    let frame = Frame { from_mac: OUTSIDE_MAC, to_mac: HOST_MAC, ..Frame::udp((from, 40_000), (HOST, port)) };
    sandbox.inside(Netns::Outside, || PacketSocket::open("eth0")).send(&frame.bytes());
}

/// Returns a frame from this port to the outside.
fn from_port(port: u16) -> Frame {
    Frame { from_mac: HOST_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, port), (OUTSIDE, 8080)) }
}

/// Returns the lines about UDP packets, from the verdict on. (Stacks answer some of them by ICMP errors.)
fn verdicts(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains(" hook=") && line.contains(" protocol=udp "));
    lines.map(|line| line.split_once(" INFO ").expect("a level").1.trim().to_owned()).collect()
}

/// Waits for so many lines about UDP packets.
fn wait_verdicts(daemon: &Daemon, number: usize) -> Vec<String> {
    wait::until("verdicts in the log", || verdicts(daemon).len() >= number);
    verdicts(daemon)
}

#[test]
fn datapath_log_has_the_verdicts_of_one_container() {
    let Some((sandbox, daemon)) = world("a") else { return };
    // The other container's packets come first, so that their lines would be there when a's are.
    send(&sandbox, "b", &from_port(22));
    send(&sandbox, "b", &from_port(31_010));
    send_from_outside(&sandbox, OUTSIDE, 31_010);
    wait::until("the drop", || sandbox.dropped("b", "source_port") == 1);
    send(&sandbox, "a", &from_port(22));
    send(&sandbox, "a", &from_port(31_000));
    send_from_outside(&sandbox, OUTSIDE, 31_000);
    // No peer outside may have the host's address, so this is dropped on its way to the container.
    send_from_outside(&sandbox, HOST, 31_001);
    let packet = |text: &str| format!("protocol=udp length=49 packet={text}");
    assert_eq!(
        wait_verdicts(&daemon, 4),
        [
            "dropped: source_port - The source port is not owned by the sending container. name=a \
             hook=pm_veth_in verdict=drop reason=source_port "
                .to_owned()
                + &packet("10.0.0.1:22 > 10.0.0.2:8080"),
            "to the outside by 10.0.0.2 on uplink name=a hook=pm_veth_in verdict=to_outside ".to_owned()
                + &packet("10.0.0.1:31000 > 10.0.0.2:8080"),
            "to container a (slot 1, pm1, ifindex 1000001) name=outside hook=pm_uplink_in \
             verdict=to_container "
                .to_owned()
                + &packet("10.0.0.2:40000 > 10.0.0.1:31000"),
            "dropped: source_address - The source is not an address that the sender may use. name=outside \
             hook=pm_uplink_in verdict=drop reason=source_address "
                .to_owned()
                + &packet("10.0.0.1:40000 > 10.0.0.1:31001"),
        ]
    );
}

#[test]
fn datapath_log_has_the_verdicts_of_one_port() {
    if is_emulated() {
        return;
    }
    let Some((sandbox, daemon)) = world("31010") else { return };
    send(&sandbox, "b", &from_port(31_011));
    send(&sandbox, "a", &from_port(31_010));
    send(&sandbox, "b", &from_port(31_010));
    let lines = wait_verdicts(&daemon, 2);
    assert!(lines[0].contains(" name=a ") && lines[0].contains(" reason=source_port "), "{lines:?}");
    assert!(lines[1].contains(" name=b ") && lines[1].contains(" verdict=to_outside "), "{lines:?}");
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn datapath_log_of_a_host_port_names_the_reason() {
    if is_emulated() {
        return;
    }
    let Some((sandbox, daemon)) = world("8080") else { return };
    send_from_outside(&sandbox, OUTSIDE, 8080);
    let lines = wait_verdicts(&daemon, 1);
    assert!(lines[0].starts_with("left to the host: host_port - "), "{lines:?}");
    assert!(lines[0].contains(" name=outside hook=pm_uplink_in verdict=continue "), "{lines:?}");
}

#[test]
fn datapath_log_follows_the_container() {
    if is_emulated() {
        return;
    }
    let Some((sandbox, daemon)) = world("a") else { return };
    sandbox.ok(&["del", "a"]);
    wait::until("the end of the log", || daemon.log().contains("a: there is no such container now"));
    sandbox.ok(&["add", "other", "--ports", "31000"]);
    sandbox.ok(&["add", "a", "--ports", "31001"]);
    let starts = || daemon.log().matches("a: logging verdicts").count();
    wait::until("another start of the log", || starts() == 2);
    send(&sandbox, "other", &from_port(31_000));
    send(&sandbox, "a", &from_port(31_001));
    let lines = wait_verdicts(&daemon, 1);
    assert!(lines[0].ends_with("packet=10.0.0.1:31001 > 10.0.0.2:8080"), "{lines:?}");
}

#[test]
fn datapath_log_is_limited_and_counts_the_rest() {
    if is_emulated() {
        return;
    }
    let Some((sandbox, daemon)) = world("a") else { return };
    let socket = sandbox.inside(Netns::Container("a"), || PacketSocket::open("eth0"));
    let frame = from_port(22).bytes();
    for _ in 0..PACKETS {
        socket.send(&frame);
    }
    let lost = || -> usize {
        let log = daemon.log();
        let lines = log.lines().filter_map(|line| line.split_once(" verdicts were not logged, "));
        lines
            .map(|(before, _)| before.rsplit(' ').next().expect("a word").parse::<usize>().expect("a number"))
            .sum()
    };
    wait::until("every packet in the log or among the rest", || verdicts(&daemon).len() + lost() == PACKETS);
    assert!(lost() > 0, "the limit applies");
    sandbox.ok(&["list"]);
}

#[test]
fn datapath_log_delivers_packets_with_and_without_a_reader() {
    let Some((sandbox, daemon)) = world("a") else { return };
    let server = sandbox.inside(Netns::Container("a"), || UdpSocket::bind((HOST, 31_000)).expect("a socket"));
    server.set_read_timeout(Some(wait::LIMIT)).expect("a limit");
    let client = sandbox.inside(Netns::Outside, || UdpSocket::bind((OUTSIDE, 40_000)).expect("a socket"));
    client.set_read_timeout(Some(wait::LIMIT)).expect("a limit");
    let echo = || {
        let mut bytes = [0; 8];
        client.send_to(b"question", (HOST, 31_000)).expect("sent");
        let (_, from) = server.recv_from(&mut bytes).expect("a question");
        server.send_to(b"answer", from).expect("sent");
        client.recv_from(&mut bytes).expect("an answer");
    };
    echo();
    wait_verdicts(&daemon, 2);
    daemon.kill();
    echo();
    let sandbox = sandbox.with_portmapd("portmapd");
    let _daemon = sandbox.daemon();
    echo();
}

#[test]
fn datapath_log_is_refused_by_the_default_build() {
    if is_emulated() {
        return;
    }
    let sandbox = Sandbox::new();
    let (code, log) = sandbox.refused_daemon(&[&DAEMON_FLAGS[..], &["--datapath-log", "web"]].concat());
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("--datapath-log web: ") && log.contains("--features datapath-log"), "{log}");
}
