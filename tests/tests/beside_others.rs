//! What is there already stays, or is named: sockets, programs and settings of the host, and what is in a namespace of
//! somebody else's.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use portmap::{
    kernel::programs::{self, AttachMode, AttachPoint},
    paths::Pins,
};
use portmap_common::names::PROG_UPLINK_EGRESS;
use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, OUTSIDE, Place, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::{Value, json};

const A: Place<'_> = Place::Container("a");
const THEIRS: Place<'_> = Place::Container("theirs");

/// The findings about a subject, as lines of health and text.
fn findings(sandbox: &Sandbox, subject: &str) -> Vec<String> {
    let output = sandbox.portmap(&["doctor", "-o", "json"]);
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let about = all.iter().filter(|finding| finding["subject"] == subject);
    let text = |finding: &Value, key| finding[key].as_str().expect("text").to_owned();
    about.map(|finding| format!("{} {}", text(finding, "health"), text(finding, "text"))).collect()
}

/// A socket of the host that is connected from `port` with a service outside.
fn connected(sandbox: &Sandbox, port: u16) -> UdpSocket {
    sandbox.inside(Place::Host, || {
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
fn sockets_of_the_host_keep_their_ports_unless_they_are_taken() {
    let sandbox = Sandbox::new();
    let _outside = Service::start(&sandbox, Place::Outside, Transport::Udp, 7001, "outside");
    let (ephemeral, fixed) = (connected(&sandbox, 61500), connected(&sandbox, 31002));
    let daemon = sandbox.daemon();
    wait::until("the start to name them", || daemon.log().contains("connected from UDP ports 31002,61500"));
    let tcp = sandbox.inside(Place::Host, || TcpListener::bind((HOST, 31000))).expect("a listener");
    let udp = sandbox.inside(Place::Host, || UdpSocket::bind("[::]:31001")).expect("a socket");
    // No container gets what comes to another address of the host.
    sandbox.sh(Place::Host, "ip address add 198.51.100.1/32 dev lo");
    let elsewhere =
        sandbox.inside(Place::Host, || TcpListener::bind("198.51.100.1:31005")).expect("a listener");
    let error = sandbox.fails(&["add", "a", "--ports", "31000-31009"], 4);
    assert!(error.contains("TCP port 31000 and UDP port 31001") && error.contains("--take"), "{error}");
    assert_eq!(sandbox.json(&["list"]), json!([]));
    // A block in which the host has a connection is passed over, a connection on a port that is asked for is named.
    let added = sandbox.json(&["add", "a", "--ports", "31002-31009"]);
    assert_eq!(added["ephemeral_ports"], json!([62464, 63487]));
    let warnings = added["warnings"].as_array().expect("warnings");
    assert!(warnings.len() == 1 && warnings[0].as_str().expect("text").contains("31002"), "{added}");
    assert!(is_answered(&ephemeral));
    let error = sandbox.fails(&["update", "a", "--ports", "31000,31002"], 4);
    assert!(error.contains("31000") && !error.contains("31002"), "{error}");
    assert_eq!(sandbox.json(&["show", "a"])["ports"], json!([[31002, 31009]]));
    // Where they are taken, that is said, and doctor goes on saying it without calling it a problem.
    let taken = sandbox.portmap(&["update", "a", "--ports", "31000-31002", "--take"]);
    let warned = String::from_utf8_lossy(&taken.stderr);
    assert!(
        taken.status.success() && warned.starts_with("warning: taken from the host: TCP port 31000"),
        "{warned}"
    );
    let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    assert_eq!(ask(&sandbox, Place::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer").from, "a");
    let found = findings(&sandbox, "host listeners").join("\n");
    assert!(found.starts_with("notice ") && found.contains("TCP port 31000 and UDP port 31001"), "{found}");
    assert!(found.contains("connected from UDP ports 31002,61500") && !found.contains("31005"), "{found}");
    assert!(sandbox.portmap(&["doctor"]).status.success());
    // What was taken once is not asked for again.
    drop(fixed);
    let changed = sandbox.json(&["update", "a", "--ports", "31000,31001"]);
    assert_eq!(changed["warnings"], json!([]));
    // A block whose connections have ended is given out.
    drop((ephemeral, tcp, udp, elsewhere));
    assert_eq!(sandbox.json(&["add", "b"])["ephemeral_ports"], json!([61440, 62463]));
    assert!(findings(&sandbox, "host listeners")[0].starts_with("ok "));
}

#[test]
fn the_name_of_a_process_commands_no_terminal() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let listen = "import socket, time; open('/proc/self/comm', 'w').write('a\\n\\x1b[31mOK'); \
                  s = socket.create_server(('', 31000)); time.sleep(600)";
    let mut process =
        sandbox.command(Place::Host, "python3").args(["-c", listen]).spawn().expect("it is installed");
    let listens = || !sandbox.sh(Place::Host, "ss -Hlnt 'sport = :31000'").is_empty();
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
fn the_log_has_a_line_for_each_change() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "audit", "--ports", "31000", "--egress-rate", "1000KB"]);
    sandbox.ok(&["update", "audit", "--ports", "31001"]);
    sandbox.fails(&["add", "audit"], 4);
    sandbox.fails(&["update", "nobody", "--ports", "31001"], 3);
    sandbox.ok(&["del", "audit"]);
    for expected in [
        "INFO container \"audit\": added, slot 1, ports 31000, ephemeral ports 61440-62463, sends 1024000 B/s",
        "INFO container \"audit\": updated, slot 1, ports 31001,",
        "WARN container \"audit\": not added: a container is already called \"audit\"",
        "WARN container \"nobody\": not updated: no container is called",
        "INFO container \"audit\": removed",
    ] {
        let lines = || daemon.log().lines().filter(|line| plain(line).contains(expected)).count();
        wait::until(expected, || lines() == 1);
    }
}

/// A line of a log with single spaces and without the names of modules.
fn plain(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().filter(|word| !word.starts_with("portmap::")).collect();
    words.join(" ")
}

#[test]
fn doctor_says_what_is_wrong_with_the_uplink_itself() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    // What cannot help is not advised; what the daemon is about to follow by itself may be for a moment.
    let expect = |what: &str| {
        wait::until(what, || {
            let uplink = findings(&sandbox, "uplink");
            let all = [uplink.clone(), findings(&sandbox, "host addresses")].concat();
            uplink[0].starts_with(what) && all.iter().all(|text| !text.contains("--repair"))
        });
    };
    expect("ok uplink, to elsewhere by 10.0.0.2");
    sandbox.sh(Place::Outside, "ip link set eth0 down");
    expect("problem uplink has no carrier");
    sandbox.sh(Place::Outside, "ip link set eth0 up");
    expect("ok ");
    sandbox.sh(Place::Host, "ip link set uplink down");
    expect("problem uplink is down");
    sandbox.sh(Place::Host, "ip link set uplink up; ip -4 route replace default dev uplink");
    expect("notice no default route with a gateway leaves by uplink");
    sandbox.sh(Place::Host, &format!("ip -4 route replace default via {OUTSIDE}"));
    expect("ok ");
}

/// Ends what runs beside a test, however that ends.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn our_programs_are_first_at_the_uplink() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--reconcile=false"]].concat());
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let _service = Service::start(&sandbox, A, Transport::Udp, 31000, "a");
    let subject = "program at uplink ingress";
    if AttachMode::detect() == AttachMode::Clsact {
        // Filters have an order that is not ours to change: it is said.
        let filter = "tc filter add dev uplink ingress pref 7 protocol all u32 match u32 0 0 flowid 1:1";
        sandbox.sh(Place::Host, filter);
        let found = findings(&sandbox, subject).remove(0);
        assert!(found.contains("problem the u32 filter with preference 7 is before"), "{found}");
        sandbox.sh(Place::Host, "tc filter del dev uplink ingress pref 7");
        assert!(findings(&sandbox, subject)[0].starts_with("ok "));
        return;
    }
    // Somebody's program that comes later goes to the head of the chain, and nothing is lost while ours goes there again.
    let pins = Pins::new(sandbox.path("/sys/fs/bpf/portmap"));
    let theirs = AttachPoint {
        interface: "uplink".to_owned(),
        ingress: true,
        program: PROG_UPLINK_EGRESS,
        attach_mode: AttachMode::Tcx,
        link: pins.link("theirs"),
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = End(&done);
        let traffic = scope.spawn(|| {
            let mut answers = 0;
            while !done.load(Ordering::Relaxed) {
                let answer = ask(&sandbox, Place::Outside, Transport::Udp, (HOST, 31000));
                assert_eq!(answer.expect("an answer").from, "a");
                answers += 1;
            }
            answers
        });
        for _ in 0..3 {
            sandbox.inside(Place::Host, || programs::attach(&pins, &theirs)).expect("attached");
            let found = findings(&sandbox, subject).remove(0);
            assert!(found.contains(&format!("problem {PROG_UPLINK_EGRESS} (id ")), "{found}");
            sandbox.ok(&["doctor", "--repair"]);
            assert!(findings(&sandbox, subject)[0].starts_with("ok "));
            // It goes on running, behind ours.
            let is_there = || sandbox.inside(Place::Host, || programs::is_attached(&pins, &theirs));
            assert!(matches!(is_there(), Ok(true)));
            sandbox.inside(Place::Host, || programs::detach(&theirs)).expect("detached");
            // The kernel lets go of a link some time after its pin.
            wait::until("it to be detached", || matches!(is_there(), Ok(false)));
        }
        drop(end);
        assert!(traffic.join().expect("no packet is lost") > 0);
    });
}

/// Settings, and values that no new namespace has of them.
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

fn setting(sandbox: &Sandbox, place: Place<'_>, name: &str) -> String {
    sandbox.sh(place, &format!("cat /proc/sys/net/{name}")).trim().to_owned()
}

/// That two long texts are the same; only lines that differ are told.
fn assert_same(now: &str, before: &str) {
    let differing = now.lines().zip(before.lines()).filter(|(now, before)| now != before);
    assert_eq!(differing.collect::<Vec<_>>(), []);
    assert_eq!(now.lines().count(), before.lines().count());
}

#[test]
fn a_new_namespace_has_the_hosts_settings_and_somebody_elses_on_request() {
    let sandbox = Sandbox::new();
    for (name, value) in SETTINGS {
        sandbox.sh(Place::Host, &format!("echo '{value}' > /proc/sys/net/{name}"));
    }
    sandbox.sh(
        Place::Host,
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 40000 > /proc/sys/net/ipv4/ip_unprivileged_port_start; \
         ip netns add theirs; ip -n theirs link set lo address 02:00:00:00:00:01",
    );
    let flags = ["--ephemeral-ports", "20480-24575"];
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &flags].concat());
    let is_like_the_host =
        |place| SETTINGS.iter().all(|(name, value)| setting(&sandbox, place, name) == *value);
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    for (name, value) in SETTINGS {
        assert_eq!(setting(&sandbox, A, name), value, "{name}");
    }
    // It forwards nothing, and may give out all of its block.
    assert_eq!(setting(&sandbox, A, "ipv4/ip_forward"), "0");
    assert_eq!(setting(&sandbox, A, "ipv4/ip_unprivileged_port_start"), "20480");
    assert_eq!(setting(&sandbox, A, "ipv4/ip_local_port_range"), "20480\t21503");
    // What changes at the host is in the next one.
    sandbox.sh(Place::Host, "echo 602 > /proc/sys/net/ipv4/tcp_keepalive_time");
    sandbox.ok(&["add", "b"]);
    assert_eq!(setting(&sandbox, Place::Container("b"), "ipv4/tcp_keepalive_time"), "602");
    sandbox.sh(Place::Host, "echo 601 > /proc/sys/net/ipv4/tcp_keepalive_time");
    // Somebody else's is as it was, before and after, unless it is to be like the host. That its loopback device has been up
    // once the kernel does not forget (`noqueue`).
    let look = || {
        let script = "cd /proc/sys/net; ip -o link show lo; ip -o address; grep -H . $(find core ipv4 ipv6 ipv6/icmp unix -maxdepth 1 -type f \
                      -perm -600 ! -name tcp_fastopen_key) ipv4/conf/*/*";
        sandbox.sh(THEIRS, script).replace(" noop ", " noqueue ")
    };
    sandbox.sh(THEIRS, "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter");
    let before = look();
    assert!(!is_like_the_host(THEIRS));
    sandbox.ok(&["add", "c", "--netns", "/run/netns/theirs"]);
    assert!(!is_like_the_host(THEIRS));
    sandbox.ok(&["del", "c"]);
    assert_same(&look(), &before);
    sandbox.ok(&["add", "c", "--netns", "/run/netns/theirs", "--inherit-sysctls"]);
    assert!(is_like_the_host(THEIRS));
    drop(daemon);
    let _daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &flags].concat());
    sandbox.ok(&["del", "c"]);
    assert_same(&look(), &before);
    let error = sandbox.fails(&["add", "d", "--inherit-sysctls"], 2);
    assert!(error.contains("--netns or --pid"), "{error}");
}

#[test]
fn what_is_there_in_a_namespace_or_at_the_host_is_named_or_passed_by() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.sh(
        Place::Host,
        "ip netns add theirs; ip -n theirs link add eth0 type veth peer name e1; \
         ip -n theirs address add 192.0.2.1/24 dev eth0; ip -n theirs link set e1 up",
    );
    let look = || sandbox.sh(THEIRS, "ip -o link; ip -o address; ip route");
    let add = ["add", "a", "--netns", "/run/netns/theirs", "--ports", "31000"];
    // The kernel notes that e1 has no carrier a moment later.
    wait::until("e1's state to be known", || look().contains("NO-CARRIER"));
    let before = look();
    let error = sandbox.fails(&add, 4);
    assert!(error.contains("eth0"), "{error}");
    assert_eq!(look(), before);
    // An interface with another name is no obstacle, a default route by it is.
    sandbox.sh(
        THEIRS,
        "ip link set eth0 down; ip link set eth0 name e0; ip link set e0 up; ip route add default via 192.0.2.2",
    );
    let error = sandbox.fails(&add, 4);
    assert!(error.contains("default route by e0 (gateway 192.0.2.2)"), "{error}");
    let routes = || sandbox.sh(THEIRS, "ip route show default");
    assert_eq!(routes().trim(), "default via 192.0.2.2 dev e0");
    sandbox.sh(THEIRS, "ip route del default");
    sandbox.ok(&add);
    assert!(sandbox.portmap(&["doctor"]).status.success());
    assert_eq!(sandbox.json(&["show", "a"])["slot"], 1);
    // Somebody else's interfaces of the host have what goes with slots 2 and 3.
    sandbox.sh(
        Place::Host,
        "ip link add pm2 type veth peer name others; ip link add x index 1000003 type veth peer name more",
    );
    assert_eq!(sandbox.json(&["add", "b"])["slot"], 4);
    sandbox.sh(Place::Host, "ip link show pm2; ip link show x; ip link del pm2; ip link del x");
    assert_eq!(sandbox.json(&["add", "c"])["slot"], 2);
}
