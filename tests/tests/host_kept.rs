//! Nothing of the host is lost, and nothing and nobody keeps portmap from starting and ending.

use std::os::{
    linux::net::SocketAddrExt as _,
    unix::net::{SocketAddr, UnixListener},
};

use nix::libc;
use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, Place, Sandbox, binary},
    service::{Service, Transport, ask},
    wait,
};

const A: Place<'_> = Place::Container("a");

/// The ports that the host does not give out by itself.
fn reserved(sandbox: &Sandbox) -> String {
    sandbox.sh(Place::Host, "cat /proc/sys/net/ipv4/ip_local_reserved_ports").trim().to_owned()
}

#[test]
fn what_the_host_reserves_stays_reserved() {
    let sandbox = Sandbox::new();
    let lists = ["8080,9090", "1521,2049,3306,5432,6379,8080,9090,9200,10250-10256,11211,15672,16509"];
    // More than a page.
    let many: Vec<String> = (1..1200_u32).map(|number| (20 * number).to_string()).collect();
    for own in lists.map(str::to_owned).into_iter().chain([many.join(",")]) {
        sandbox.sh(Place::Host, &format!("echo {own} > /proc/sys/net/ipv4/ip_local_reserved_ports"));
        let before = reserved(&sandbox);
        assert_eq!(before, own);
        sandbox.daemon().stop();
        let with_ours = reserved(&sandbox);
        let _daemon = sandbox.daemon();
        sandbox.ok(&["doctor"]);
        assert_eq!(reserved(&sandbox), with_ours, "a second start changes nothing");
        sandbox.ok(&["teardown"]);
        assert_eq!(reserved(&sandbox), before);
    }
    sandbox.sh(Place::Host, "echo > /proc/sys/net/ipv4/ip_local_reserved_ports");
}

#[test]
fn a_range_that_moves_over_reserved_ports_is_no_obstacle() {
    let sandbox = Sandbox::new();
    sandbox.daemon().stop();
    sandbox.sh(Place::Host, "echo 30000 62000 > /proc/sys/net/ipv4/ip_local_port_range");
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
}

#[test]
fn what_a_container_sets_inside_keeps_nobody_from_deleting_it() {
    let sandbox = Sandbox::new();
    sandbox.sh(Place::Host, "ip netns add theirs; ip -n theirs link set lo up");
    let add = ["add", "a", "--netns", "/run/netns/theirs", "--ports", "31000"];
    // The kernel does not put the old range back then.
    let refuse = "cd /proc/sys/net/ipv4; echo 65000 65535 > ip_local_port_range; echo 65000 > ip_unprivileged_port_start";
    let daemon = sandbox.daemon();
    sandbox.ok(&add);
    sandbox.sh(Place::Container("theirs"), refuse);
    sandbox.ok(&["del", "a"]);
    assert!(daemon.log().contains("is not as it was before"), "{}", daemon.log());
    sandbox.ok(&["add", "b", "--ports", "31000"]);
}

#[test]
fn what_is_no_namespace_is_not_waited_for() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.sh(Place::Host, "mkfifo /run/pipe; mknod /run/device c 5 0");
    for path in ["/run/pipe", "/run/device", "/dev/null", "/proc/1/ns/mnt"] {
        let error = sandbox.fails(&["add", "a", "--netns", path], 2);
        assert!(error.contains("is not a network namespace"), "{error}");
    }
    sandbox.ok(&["doctor"]);
    daemon.stop();
}

#[test]
fn one_daemon_in_a_network_namespace() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let before = sandbox.inventory();
    let refused = |directories: &[&str]| {
        let (code, log) = sandbox.refused_daemon(&[&DAEMON_FLAGS[..], directories].concat());
        assert_eq!(code, 4, "{log}");
        sandbox.expect_inventory(&before, "after a refusal");
        log
    };
    let (state, bpffs) = (["--state-dir", "/run/other"], ["--bpffs-dir", "/sys/fs/bpf/other"]);
    let log = refused(&[state, bpffs].concat());
    assert!(log.contains("with the state in /run/portmap, is at work in this network namespace"), "{log}");
    refused(&state);
    sandbox.fails(&["teardown", "--state-dir", "/run/other"], 4);
    sandbox.expect_inventory(&before, "after a teardown that is refused");
    // The containers of one that does not run are its own, too.
    daemon.stop();
    let log = refused(&[state, bpffs].concat());
    assert!(log.contains("belongs to the state in /run/portmap"), "{log}");
    sandbox.fails(&["teardown", "--state-dir", "/run/other"], 4);
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
    sandbox.sh(Place::Host, "test ! -e /run/other");
}

#[test]
fn one_daemon_in_a_network_namespace_whatever_files_it_sees() {
    let sandbox = Sandbox::new();
    // A name that anybody may take keeps nobody away.
    let user = sandbox.inside(Place::Host, || {
        // SAFETY: the system call takes integers, and is of the calling thread alone, which ends with this.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(changed, 0);
        let name = SocketAddr::from_abstract_name("portmap").expect("a name");
        UnixListener::bind_addr(&name).expect("nobody has it")
    });
    let daemon = sandbox.daemon();
    assert!(daemon.log().contains("the abstract socket @portmap is taken"));
    daemon.stop();
    drop(user);
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let before = sandbox.inventory();
    let with_other_files = |command: &str| {
        let script = format!(
            "mount -t tmpfs none /run && exec {command} --state-dir /run/other --bpffs-dir /sys/fs/bpf/other"
        );
        let output = sandbox
            .command(Place::Host, "unshare")
            .args(["--mount", "sh", "-c", &script])
            .output()
            .expect("unshare is part of util-linux");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{log}");
        assert!(log.contains("with another /run is at work in this network namespace"), "{log}");
        sandbox.expect_inventory(&before, command);
    };
    with_other_files(&format!("{} {}", binary("portmapd").display(), DAEMON_FLAGS.join(" ")));
    with_other_files(&format!("{} teardown", binary("portmap").display()));
    sandbox.ok(&["doctor"]);
}

#[test]
fn a_containers_namespace_is_no_host() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let before = sandbox.inventory();
    let other = "--state-dir /run/other --bpffs-dir /sys/fs/bpf/other";
    for command in [
        format!("{} {} {other}", binary("portmapd").display(), DAEMON_FLAGS.join(" ")),
        format!("{} --ports 70000 {other}", binary("portmapd").display()),
        format!("{} teardown {other}", binary("portmap").display()),
    ] {
        let output = sandbox
            .command(Place::Container("a"), "sh")
            .args(["-c", &format!("exec {command}")])
            .output()
            .expect("a shell");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{command}: {log}");
        sandbox.expect_inventory(&before, &command);
        sandbox.ok(&["doctor"]);
    }
}

#[test]
fn a_users_lock_keeps_nobody_away() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    assert_eq!(sandbox.sh(Place::Host, "stat -c %a /run/portmap/lock"), "600\n");
    daemon.stop();
    // As an earlier version made it.
    sandbox.sh(Place::Host, "chmod 644 /run/portmap/lock");
    let mut user = sandbox.command(Place::Host, "setpriv");
    user.args(["--reuid=65534", "--clear-groups", "flock", "/run/portmap/lock", "sleep", "60"]);
    let mut user = user.spawn().expect("setpriv is part of util-linux");
    wait::until("the lock to be held", || {
        !sandbox
            .command(Place::Host, "flock")
            .args(["-n", "/run/portmap/lock", "true"])
            .status()
            .expect("flock")
            .success()
    });
    let daemon = sandbox.daemon();
    daemon.stop();
    user.kill().expect("it runs");
    user.wait().expect("it ends");
}

#[test]
fn pins_that_are_removed_come_back() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let _service = Service::start(&sandbox, A, Transport::Udp, 31000, "a");
    let before = sandbox.inventory();
    sandbox.sh(Place::Host, "find /sys/fs/bpf/portmap -delete");
    let found = sandbox.portmap(&["doctor"]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.contains("pins are missing") || found.contains("in service"), "{found}");
    sandbox.ok(&["doctor", "--repair"]);
    ask(&sandbox, Place::Outside, Transport::Udp, (HOST, 31000)).expect("an answer");
    sandbox.expect_inventory(&before, "with pins again");
}

#[test]
fn a_full_file_system_keeps_no_container() {
    let sandbox = Sandbox::new();
    sandbox.sh(Place::Host, "mkdir /run/portmap; mount -t tmpfs -o size=256k tmpfs /run/portmap");
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    sandbox.ok(&["add", "b", "--ports", "31001"]);
    let before = sandbox.json(&["list"]);
    sandbox.sh(Place::Host, "cat /dev/zero > /run/portmap/full 2>/dev/null || true");
    sandbox.fails(&["update", "a", "--ports", "31002"], 1);
    assert_eq!(sandbox.json(&["list"]), before);
    sandbox.ok(&["del", "a"]);
    assert_eq!(sandbox.json(&["list"]).as_array().map(Vec::len), Some(1));
    sandbox.ok(&["doctor"]);
    sandbox.sh(Place::Host, "rm /run/portmap/full");
    daemon.stop();
    let daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["list"]).as_array().map(Vec::len), Some(1));
    sandbox.ok(&["teardown"]);
    daemon.wait();
    sandbox.sh(Place::Host, "umount /run/portmap; rmdir /run/portmap");
}

#[test]
fn a_teardown_without_its_state_knows_what_was() {
    let sandbox = Sandbox::new();
    let virgin = sandbox.inventory();
    let look = "ip -o link show type veth; cd /proc/sys/net/ipv4; cat conf/lo/accept_local conf/lo/route_localnet ip_local_reserved_ports";
    let before = sandbox.sh(Place::Host, look);
    for place_is_known in [true, false] {
        let daemon = sandbox.daemon();
        sandbox.ok(&["add", "a", "--ports", "31000"]);
        daemon.kill();
        sandbox.sh(Place::Host, "rm -r /run/portmap");
        if !place_is_known {
            sandbox.sh(Place::Host, "rm -r /run/portmap-places");
        }
        let output = sandbox.portmap(&["teardown"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        assert!(told.contains("removed pm1, the interface of container \"a\""), "{told}");
        sandbox.sh(Place::Host, "ip netns del a");
        if place_is_known {
            assert_eq!(sandbox.sh(Place::Host, look), before);
            sandbox.expect_inventory(&virgin, "what was is known");
        } else {
            assert!(told.contains("lo/route_localnet is 1 and stays so"), "{told}");
            assert!(told.contains("ip_local_reserved_ports has "), "{told}");
            sandbox.sh(Place::Host, "echo > /proc/sys/net/ipv4/ip_local_reserved_ports");
        }
    }
}

#[test]
fn a_first_start_that_fails_leaves_nothing() {
    let sandbox = Sandbox::new();
    let virgin = sandbox.inventory();
    for step in [4, 20, 40, 60, 80, 100] {
        sandbox.order(portmap_tests::faults::Fault::Fail, step);
        let mut daemon = sandbox.start_daemon(&DAEMON_FLAGS);
        let ready = daemon.is_ready();
        assert!(ready || !daemon.ends_well());
        let Some(at) = sandbox.struck() else {
            assert!(ready, "it starts by itself");
            break;
        };
        if !ready {
            sandbox.expect_inventory(&virgin, &at);
        }
        sandbox.ok(&["teardown"]);
        sandbox.expect_inventory(&virgin, &at);
    }
}

#[test]
fn state_that_is_removed_comes_back() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let (before, container) = (sandbox.inventory(), sandbox.json(&["show", "a"]));
    sandbox.sh(Place::Host, "rm -r /run/portmap /run/portmap-places");
    wait::until("the socket to come back", || sandbox.portmap(&["list"]).status.success());
    sandbox.ok(&["doctor", "--repair"]);
    sandbox.expect_inventory(&before, "with its state again");
    let (code, log) = sandbox.refused_daemon(&[&DAEMON_FLAGS[..], &["--state-dir", "/run/other"]].concat());
    assert_eq!(code, 4, "{log}");
    daemon.kill();
    let _daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["show", "a"]), container);
    sandbox.ok(&["update", "a", "--ports", "31001"]);
}

#[test]
fn a_read_only_file_system_changes_no_container() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let (before, list) = (sandbox.inventory(), sandbox.json(&["list"]));
    // The directory itself has an open file, the lock.
    let read_only =
        "cd /run/portmap; mount --bind containers containers; mount -o remount,ro,bind containers";
    sandbox.sh(Place::Host, read_only);
    let refused: [&[&str]; 5] = [
        &["add", "b", "--ports", "31001"],
        &["update", "a", "--ports", "31002"],
        &["update", "a", "--egress-rate", "10mbit"],
        &["update", "a", "--loopback", "private"],
        &["del", "a"],
    ];
    let unchanged = |sandbox: &Sandbox, at: &str| {
        assert_eq!(sandbox.json(&["list"]), list, "{at}");
        sandbox.ok(&["doctor"]);
    };
    for command in refused {
        let error = sandbox.fails(command, 1);
        assert!(error.contains("Read-only file system"), "{error}");
        unchanged(&sandbox, &error);
    }
    daemon.stop();
    let _daemon = sandbox.daemon();
    unchanged(&sandbox, "after a start");
    sandbox.sh(Place::Host, "umount /run/portmap/containers");
    sandbox.expect_inventory(&before, "after refusals");
}
