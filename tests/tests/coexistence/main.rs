//! Coexistence: sockets, programs and settings of the host, and the content of existing namespaces, are
//! kept or reported. Other programs of a host do not disturb containers, nor are they disturbed.

mod ipsec;
mod nat;
mod neighbours;
mod notifications;

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
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
    sandbox::{DAEMON_FLAGS, HOST, Netns, OUTSIDE, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::{Value, json};

const A: Netns<'_> = Netns::Container("a");
const EXISTING: Netns<'_> = Netns::Container("existing");

/// Returns the findings about a subject, as lines with status and text.
fn findings(sandbox: &Sandbox, subject: &str) -> Vec<String> {
    let output = sandbox.portmap(&["doctor", "-o", "json"]);
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let about = all.iter().filter(|finding| finding["subject"] == subject);
    let text = |finding: &Value, key| finding[key].as_str().expect("text").to_owned();
    about.map(|finding| format!("{} {}", text(finding, "health"), text(finding, "text"))).collect()
}

/// Returns a connected socket of the host on `port`, with a service outside as its peer.
fn connected(sandbox: &Sandbox, port: u16) -> UdpSocket {
    sandbox.inside(Netns::Host, || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port is free");
        socket.connect((OUTSIDE, 7001)).expect("connected");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        socket
    })
}

fn is_answered(socket: &UdpSocket) -> bool {
    socket.send(b"?").expect("sent");
    socket.recv(&mut [0; 64]).is_ok()
}

#[test]
fn host_listener_keeps_its_port_without_take() {
    let sandbox = Sandbox::new();
    let _outside = Service::start(&sandbox, Netns::Outside, Transport::Udp, 7001, "outside");
    let (ephemeral, fixed) = (connected(&sandbox, 61500), connected(&sandbox, 31002));
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--exclude-address", "198.51.100.1"]].concat());
    wait::until("the start to name them", || daemon.log().contains("connected from UDP ports 31002,61500"));
    let tcp = sandbox.inside(Netns::Host, || TcpListener::bind((HOST, 31000))).expect("a listener");
    let udp = sandbox.inside(Netns::Host, || UdpSocket::bind("[::]:31001")).expect("a socket");
    // Packets to an address that is not shared reach no container.
    sandbox.sh(Netns::Host, "ip address add 198.51.100.1/32 dev lo");
    let elsewhere =
        sandbox.inside(Netns::Host, || TcpListener::bind("198.51.100.1:31005")).expect("a listener");
    let error = sandbox.fails(&["add", "a", "--ports", "31000-31009"], 4);
    assert!(error.contains("TCP port 31000 and UDP port 31001") && error.contains("--take"), "{error}");
    assert_eq!(sandbox.json(&["list"]), json!([]));
    // The daemon skips a block in which the host has a connection. A connection from a requested port goes on.
    let added = sandbox.json(&["add", "a", "--ports", "31002-31009"]);
    assert_eq!(added["ephemeral_ports"], json!([62464, 63487]));
    assert_eq!(added["warnings"], json!([]));
    assert!(is_answered(&ephemeral) && is_answered(&fixed));
    let error = sandbox.fails(&["update", "a", "--ports", "31000,31002"], 4);
    assert!(error.contains("31000") && !error.contains("31002"), "{error}");
    assert_eq!(sandbox.json(&["show", "a"])["ports"], json!([[31002, 31009]]));
    // With `--take` the answer contains a warning, and doctor keeps reporting the listener, as a
    // notice.
    let taken = sandbox.portmap(&["update", "a", "--ports", "31000-31002", "--take"]);
    let warned = String::from_utf8_lossy(&taken.stderr);
    assert!(
        taken.status.success() && warned.starts_with("warning: taken from the host: TCP port 31000"),
        "{warned}"
    );
    let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    assert_eq!(ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer").from, "a");
    let found = findings(&sandbox, "host listeners").join("\n");
    assert!(found.starts_with("notice ") && found.contains("TCP port 31000 and UDP port 31001"), "{found}");
    assert!(found.contains("connected from UDP ports 31002,61500") && !found.contains("31005"), "{found}");
    assert!(sandbox.portmap(&["doctor"]).status.success());
    // A taken port needs no second `--take`.
    drop(fixed);
    let changed = sandbox.json(&["update", "a", "--ports", "31000,31001"]);
    assert_eq!(changed["warnings"], json!([]));
    // A block is assigned once its connections have ended.
    drop((ephemeral, tcp, udp, elsewhere));
    assert_eq!(sandbox.json(&["add", "b"])["ephemeral_ports"], json!([61440, 62463]));
    assert!(findings(&sandbox, "host listeners")[0].starts_with("ok "));
}

#[test]
fn host_listener_name_is_escaped_for_the_terminal() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let listen = "import socket, time; open('/proc/self/comm', 'w').write('a\\n\\x1b[31mOK'); \
                  s = socket.create_server(('', 31000)); time.sleep(600)";
    let mut process =
        sandbox.command(Netns::Host, "python3").args(["-c", listen]).spawn().expect("it is installed");
    let listens = || !sandbox.sh(Netns::Host, "ss -Hlnt 'sport = :31000'").is_empty();
    wait::until("the process to listen", listens);
    for text in [
        sandbox.fails(&["add", "a", "--ports", "31000"], 4),
        sandbox.portmap(&["doctor"]).stdout.iter().copied().map(char::from).collect(),
    ] {
        assert!(text.contains(r"a\n\u{1b}[31mOK") && !text.contains('\u{1b}'), "{text}");
    }
    process.kill().expect("it runs");
    process.wait().expect("it ends");
}

#[test]
fn log_has_one_line_per_change() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "audit", "--ports", "31000", "--egress-rate", "1000KB"]);
    sandbox.ok(&["update", "audit", "--ports", "31001"]);
    sandbox.fails(&["add", "audit"], 4);
    sandbox.fails(&["update", "absent", "--ports", "31001"], 3);
    sandbox.ok(&["del", "audit"]);
    for expected in [
        "container \"audit\": added, slot 1, ports 31000, ephemeral ports 61440-62463, sends 1024000 B/s",
        "container \"audit\": updated, slot 1, ports 31001,",
        "container \"audit\": not added: ",
        "container \"absent\": not updated: ",
        "container \"audit\": removed",
    ] {
        let lines = || daemon.log().lines().filter(|line| plain(line).contains(expected)).count();
        wait::until(expected, || lines() == 1);
    }
}

/// Returns a log line with single spaces and without module names.
fn plain(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().filter(|word| !word.starts_with("portmap::")).collect();
    words.join(" ")
}

#[test]
fn doctor_names_uplink_faults() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    // doctor must not advise useless commands. Until the daemon has followed the change it may report a
    // transient fault.
    let expect = |status: &str, subject: &str| {
        wait::until(&format!("{status}: {subject}"), || {
            let uplink = findings(&sandbox, "uplink");
            let all = [uplink.clone(), findings(&sandbox, "host addresses")].concat();
            uplink[0].starts_with(status)
                && uplink[0].contains(subject)
                && all.iter().all(|text| !text.contains("--repair"))
        });
    };
    expect("ok", "10.0.0.2");
    sandbox.sh(Netns::Outside, "ip link set eth0 down");
    expect("problem", "no carrier");
    sandbox.sh(Netns::Outside, "ip link set eth0 up");
    expect("ok", "uplink");
    sandbox.sh(Netns::Host, "ip link set uplink down");
    expect("problem", "down");
    sandbox.sh(Netns::Host, "ip link set uplink up; ip -4 route replace default dev uplink");
    expect("ok", "the default route has no single IPv4 gateway");
    sandbox.sh(Netns::Host, &format!("ip -4 route replace default via {OUTSIDE}"));
    expect("ok", "uplink");
}

/// A child process that is killed on drop.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn uplink_programs_run_before_foreign_ones() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--reconcile=false"]].concat());
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let _service = Service::start(&sandbox, A, Transport::Udp, 31000, "a");
    let subject = "program at uplink ingress";
    if AttachMode::detect() == AttachMode::Clsact {
        // portmap cannot change the order of filters, so doctor reports it.
        let filter = "tc filter add dev uplink ingress pref 7 protocol all u32 match u32 0 0 flowid 1:1";
        sandbox.sh(Netns::Host, filter);
        let found = findings(&sandbox, subject).remove(0);
        assert!(found.contains("problem the u32 filter with preference 7 runs before"), "{found}");
        sandbox.sh(Netns::Host, "tc filter del dev uplink ingress pref 7");
        assert!(findings(&sandbox, subject)[0].starts_with("ok "));
        return;
    }
    // A foreign program that is attached later becomes the first in the chain; portmap then moves back
    // to the front without packet loss.
    let pins = Pins::new(sandbox.path("/sys/fs/bpf/portmap"));
    let foreign = AttachPoint {
        interface: "uplink".to_owned(),
        ingress: true,
        program: PROG_UPLINK_EGRESS,
        attach_mode: AttachMode::Tcx,
        link: pins.link("foreign"),
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = End(&done);
        let traffic = scope.spawn(|| {
            let mut answers = 0;
            while !done.load(Ordering::Relaxed) {
                let answer = ask(&sandbox, Netns::Outside, Transport::Udp, (HOST, 31000));
                assert_eq!(answer.expect("an answer").from, "a");
                answers += 1;
            }
            answers
        });
        for _ in 0..3 {
            sandbox
                .inside(Netns::Host, || programs::attach(&Netlink::open()?, &pins, &foreign))
                .expect("attached");
            let found = findings(&sandbox, subject).remove(0);
            assert!(found.contains(&format!("problem {PROG_UPLINK_EGRESS} (id ")), "{found}");
            sandbox.ok(&["doctor", "--repair"]);
            assert!(findings(&sandbox, subject)[0].starts_with("ok "));
            // The foreign program still runs, after ours.
            let is_there =
                || sandbox.inside(Netns::Host, || programs::is_attached(&Netlink::open()?, &pins, &foreign));
            assert!(matches!(is_there(), Ok(true)));
            sandbox.inside(Netns::Host, || programs::detach(&Netlink::open()?, &foreign)).expect("detached");
            // The kernel releases a link some time after its pin.
            wait::until("it to be detached", || matches!(is_there(), Ok(false)));
        }
        drop(end);
        assert!(traffic.join().expect("no packet is lost") > 0);
    });
}

/// Settings, with values that differ from those of a new namespace.
const SETTINGS: [(&str, &str); 9] = [
    ("ipv4/ping_group_range", "0\t100"),
    ("ipv4/tcp_keepalive_time", "601"),
    ("ipv4/tcp_rmem", "4096\t131072\t12582912"),
    ("ipv4/ipfrag_high_thresh", "9000000"),
    ("ipv4/ipfrag_low_thresh", "8000000"),
    ("ipv6/bindv6only", "1"),
    ("ipv6/icmp/echo_ignore_all", "1"),
    ("core/somaxconn", "4097"),
    ("unix/max_dgram_qlen", "77"),
];

fn setting(sandbox: &Sandbox, netns: Netns<'_>, name: &str) -> String {
    sandbox.sh(netns, &format!("cat /proc/sys/net/{name}")).trim().to_owned()
}

/// Asserts that two long texts are equal; the message contains only the differing lines.
fn assert_same(now: &str, before: &str) {
    let differing = now.lines().zip(before.lines()).filter(|(now, before)| now != before);
    assert_eq!(differing.collect::<Vec<_>>(), []);
    assert_eq!(now.lines().count(), before.lines().count());
}

#[test]
fn netns_inherits_sysctls_existing_one_on_request() {
    let sandbox = Sandbox::new();
    for (name, value) in SETTINGS {
        sandbox.sh(Netns::Host, &format!("echo '{value}' > /proc/sys/net/{name}"));
    }
    sandbox.sh(
        Netns::Host,
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 40000 > /proc/sys/net/ipv4/ip_unprivileged_port_start; \
         ip netns add existing; ip -n existing link set lo address 02:00:00:00:00:01",
    );
    let flags = ["--ephemeral-ports", "20480-24575"];
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &flags].concat());
    let is_like_the_host =
        |netns| SETTINGS.iter().all(|(name, value)| setting(&sandbox, netns, name) == *value);
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    for (name, value) in SETTINGS {
        assert_eq!(setting(&sandbox, A, name), value, "{name}");
    }
    // The container does not forward, and may use its whole block.
    assert_eq!(setting(&sandbox, A, "ipv4/ip_forward"), "0");
    assert_eq!(setting(&sandbox, A, "ipv4/ip_unprivileged_port_start"), "20480");
    assert_eq!(setting(&sandbox, A, "ipv4/ip_local_port_range"), "20480\t21503");
    // A change on the host applies to the next container.
    sandbox.sh(Netns::Host, "echo 602 > /proc/sys/net/ipv4/tcp_keepalive_time");
    sandbox.ok(&["add", "b"]);
    assert_eq!(setting(&sandbox, Netns::Container("b"), "ipv4/tcp_keepalive_time"), "602");
    sandbox.sh(Netns::Host, "echo 601 > /proc/sys/net/ipv4/tcp_keepalive_time");
    // An existing namespace keeps its settings, before and after, unless the host's are requested. The
    // kernel remembers that the loopback device has been up (`noqueue`).
    let look = || {
        let script = "cd /proc/sys/net; ip -o link show lo; ip -o address; \
            grep -H . $(find core ipv4 ipv6 ipv6/icmp unix -maxdepth 1 -type f \
                      -perm -600 ! -name tcp_fastopen_key) ipv4/conf/*/*";
        sandbox.sh(EXISTING, script).replace(" noop ", " noqueue ")
    };
    sandbox.sh(EXISTING, "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter");
    let before = look();
    assert!(!is_like_the_host(EXISTING));
    sandbox.ok(&["add", "c", "--netns", "/run/netns/existing"]);
    assert!(!is_like_the_host(EXISTING));
    sandbox.ok(&["del", "c"]);
    assert_same(&look(), &before);
    sandbox.ok(&["add", "c", "--netns", "/run/netns/existing", "--inherit-sysctls"]);
    assert!(is_like_the_host(EXISTING));
    drop(daemon);
    let _daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &flags].concat());
    sandbox.ok(&["del", "c"]);
    assert_same(&look(), &before);
    let error = sandbox.fails(&["add", "d", "--inherit-sysctls"], 2);
    assert!(error.contains("--netns or --pid"), "{error}");
}

#[test]
fn add_refuses_or_avoids_existing_interfaces() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.sh(
        Netns::Host,
        "ip netns add existing; ip -n existing link add eth0 type veth peer name e1; \
         ip -n existing address add 192.0.2.1/24 dev eth0; ip -n existing link set e1 up",
    );
    let look = || sandbox.sh(EXISTING, "ip -o link; ip -o address; ip route");
    let add = ["add", "a", "--netns", "/run/netns/existing", "--ports", "31000"];
    // The kernel reports the missing carrier of e1 with a delay.
    wait::until("e1's state to be known", || look().contains("NO-CARRIER"));
    let before = look();
    let error = sandbox.fails(&add, 4);
    assert!(error.contains("eth0"), "{error}");
    assert_eq!(look(), before);
    // An interface of another name is accepted; a default route through it is not.
    sandbox.sh(
        EXISTING,
        "ip link set eth0 down; ip link set eth0 name e0; ip link set e0 up; ip route add default via 192.0.2.2",
    );
    let error = sandbox.fails(&add, 4);
    assert!(error.contains("default route by e0 (gateway 192.0.2.2)"), "{error}");
    let routes = || sandbox.sh(EXISTING, "ip route show default");
    assert_eq!(routes().trim(), "default via 192.0.2.2 dev e0");
    sandbox.sh(EXISTING, "ip route del default");
    sandbox.ok(&add);
    assert!(sandbox.portmap(&["doctor"]).status.success());
    assert_eq!(sandbox.json(&["show", "a"])["slot"], 1);
    // Foreign interfaces of the host occupy the name and the index of slots 2 and 3.
    sandbox.sh(
        Netns::Host,
        "ip link add pm2 type veth peer name others; ip link add x index 1000003 type veth peer name more",
    );
    assert_eq!(sandbox.json(&["add", "b"])["slot"], 4);
    sandbox.sh(Netns::Host, "ip link show pm2; ip link show x; ip link del pm2; ip link del x");
    assert_eq!(sandbox.json(&["add", "c"])["slot"], 2);
}
