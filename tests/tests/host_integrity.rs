//! The host's own configuration is preserved, and no container, user or tool can block starts and
//! deletions.

use std::os::{
    linux::net::SocketAddrExt as _,
    unix::net::{SocketAddr, UnixListener},
};

use nix::libc;
use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, Netns, Sandbox, binary},
    service::{Service, Transport, ask},
    wait,
};

const A: Netns<'_> = Netns::Container("a");

/// Returns the ports outside the host's ephemeral range.
fn reserved(sandbox: &Sandbox) -> String {
    sandbox.sh(Netns::Host, "cat /proc/sys/net/ipv4/ip_local_reserved_ports").trim().to_owned()
}

#[test]
fn reserved_ports_of_the_host_stay_reserved() {
    let sandbox = Sandbox::new();
    let lists = ["8080,9090", "1521,2049,3306,5432,6379,8080,9090,9200,10250-10256,11211,15672,16509"];
    // More than a page.
    let many: Vec<String> = (1..1200_u32).map(|number| (20 * number).to_string()).collect();
    for own in lists.map(str::to_owned).into_iter().chain([many.join(",")]) {
        sandbox.sh(Netns::Host, &format!("echo {own} > /proc/sys/net/ipv4/ip_local_reserved_ports"));
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
    sandbox.sh(Netns::Host, "echo > /proc/sys/net/ipv4/ip_local_reserved_ports");
}

#[test]
fn reserved_ports_may_overlap_the_port_range() {
    let sandbox = Sandbox::new();
    sandbox.daemon().stop();
    sandbox.sh(Netns::Host, "echo 30000 62000 > /proc/sys/net/ipv4/ip_local_port_range");
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
}

#[test]
fn delete_succeeds_despite_container_sysctls() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "ip netns add existing; ip -n existing link set lo up");
    let add = ["add", "a", "--netns", "/run/netns/existing", "--ports", "31000"];
    // The kernel then refuses to restore the old range.
    let refuse = "cd /proc/sys/net/ipv4; echo 65000 65535 > ip_local_port_range; \
        echo 65000 > ip_unprivileged_port_start";
    let daemon = sandbox.daemon();
    sandbox.ok(&add);
    sandbox.sh(Netns::Container("existing"), refuse);
    sandbox.ok(&["del", "a"]);
    assert!(daemon.log().contains("cannot restore all settings of /run/netns/existing"), "{}", daemon.log());
    sandbox.ok(&["add", "b", "--ports", "31000"]);
}

#[test]
fn netns_path_to_another_file_type_is_refused() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.sh(Netns::Host, "mkfifo /run/pipe; mknod /run/device c 5 0");
    for path in ["/run/pipe", "/run/device", "/dev/null", "/proc/1/ns/mnt"] {
        let error = sandbox.fails(&["add", "a", "--netns", path], 2);
        assert!(error.contains("is not a network namespace"), "{error}");
    }
    sandbox.ok(&["doctor"]);
    daemon.stop();
}

#[test]
fn daemon_is_unique_per_netns() {
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
    assert!(log.contains("with the state in /run/portmap, runs in this network namespace"), "{log}");
    refused(&state);
    sandbox.fails(&["teardown", "--state-dir", "/run/other"], 4);
    sandbox.expect_inventory(&before, "after a teardown that is refused");
    // The containers of a stopped daemon are protected, too.
    daemon.stop();
    let log = refused(&[state, bpffs].concat());
    assert!(log.contains("belongs to the state in /run/portmap"), "{log}");
    sandbox.fails(&["teardown", "--state-dir", "/run/other"], 4);
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
    sandbox.sh(Netns::Host, "test ! -e /run/other");
}

#[test]
fn daemon_is_unique_per_netns_across_mounts() {
    let sandbox = Sandbox::new();
    // Binding the public name does not block the daemon.
    let user = sandbox.inside(Netns::Host, || {
        // SAFETY: the system call takes integers and affects only the calling thread, which ends
        // with this closure.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(changed, 0);
        let name = SocketAddr::from_abstract_name("portmap").expect("a name");
        UnixListener::bind_addr(&name).expect("the name is free")
    });
    let daemon = sandbox.daemon();
    assert!(daemon.log().contains("has the abstract socket @portmap"));
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
            .command(Netns::Host, "unshare")
            .args(["--mount", "sh", "-c", &script])
            .output()
            .expect("unshare is part of util-linux");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{log}");
        assert!(log.contains("with another /run runs in this network namespace"), "{log}");
        sandbox.expect_inventory(&before, command);
    };
    with_other_files(&format!("{} {}", binary("portmapd").display(), DAEMON_FLAGS.join(" ")));
    with_other_files(&format!("{} teardown", binary("portmap").display()));
    sandbox.ok(&["doctor"]);
}

#[test]
fn daemon_refuses_a_containers_netns() {
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
            .command(Netns::Container("a"), "sh")
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
fn state_lock_of_a_user_is_replaced() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    assert_eq!(sandbox.sh(Netns::Host, "stat -c %a /run/portmap/lock"), "600\n");
    daemon.stop();
    // As an earlier version created it.
    sandbox.sh(Netns::Host, "chmod 644 /run/portmap/lock");
    let mut user = sandbox.command(Netns::Host, "setpriv");
    user.args(["--reuid=65534", "--clear-groups", "flock", "/run/portmap/lock", "sleep", "60"]);
    let mut user = user.spawn().expect("setpriv is part of util-linux");
    wait::until("the lock to be held", || {
        !sandbox
            .command(Netns::Host, "flock")
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
fn reconcile_restores_pins() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let _service = Service::start(&sandbox, A, Transport::Udp, 31000, "a");
    let before = sandbox.inventory();
    sandbox.sh(Netns::Host, "find /sys/fs/bpf/portmap -delete");
    let found = sandbox.portmap(&["doctor"]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.contains("pins are missing") || found.contains("in service"), "{found}");
    sandbox.ok(&["doctor", "--repair"]);
    ask(&sandbox, Netns::Outside, Transport::Udp, (HOST, 31000)).expect("an answer");
    sandbox.expect_inventory(&before, "with pins again");
}

#[test]
fn state_on_full_filesystem_allows_delete() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "mkdir /run/portmap; mount -t tmpfs -o size=256k tmpfs /run/portmap");
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    sandbox.ok(&["add", "b", "--ports", "31001"]);
    let before = sandbox.json(&["list"]);
    sandbox.sh(Netns::Host, "cat /dev/zero > /run/portmap/full 2>/dev/null || true");
    sandbox.fails(&["update", "a", "--ports", "31002"], 1);
    assert_eq!(sandbox.json(&["list"]), before);
    sandbox.ok(&["del", "a"]);
    assert_eq!(sandbox.json(&["list"]).as_array().map(Vec::len), Some(1));
    sandbox.ok(&["doctor"]);
    sandbox.sh(Netns::Host, "rm /run/portmap/full");
    daemon.stop();
    let daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["list"]).as_array().map(Vec::len), Some(1));
    sandbox.ok(&["teardown"]);
    daemon.wait();
    sandbox.sh(Netns::Host, "umount /run/portmap; rmdir /run/portmap");
}

#[test]
fn teardown_without_state_restores_the_host() {
    let sandbox = Sandbox::new();
    let initial = sandbox.inventory();
    let look = "ip -o link show type veth; cd /proc/sys/net/ipv4; \
        cat conf/lo/accept_local conf/lo/route_localnet ip_local_reserved_ports";
    let before = sandbox.sh(Netns::Host, look);
    for ownership_is_known in [true, false] {
        let daemon = sandbox.daemon();
        sandbox.ok(&["add", "a", "--ports", "31000"]);
        daemon.kill();
        sandbox.sh(Netns::Host, "rm -r /run/portmap");
        if !ownership_is_known {
            sandbox.sh(Netns::Host, "rm -r /run/portmap-places");
        }
        let output = sandbox.portmap(&["teardown"]);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{printed}");
        assert!(printed.contains("removed pm1, the interface of container \"a\""), "{printed}");
        sandbox.sh(Netns::Host, "ip netns del a");
        if ownership_is_known {
            assert_eq!(sandbox.sh(Netns::Host, look), before);
            sandbox.expect_inventory(&initial, "the host is restored");
        } else {
            assert!(printed.contains("lo/route_localnet is 1 and stays"), "{printed}");
            assert!(printed.contains("ip_local_reserved_ports contains "), "{printed}");
            sandbox.sh(Netns::Host, "echo > /proc/sys/net/ipv4/ip_local_reserved_ports");
        }
    }
}

#[test]
fn start_failure_rolls_back() {
    let sandbox = Sandbox::new();
    let initial = sandbox.inventory();
    for step in [4, 20, 40, 60, 80, 100] {
        sandbox.arm_fault(portmap_tests::faults::Fault::Fail, step);
        let mut daemon = sandbox.start_daemon(&DAEMON_FLAGS);
        let ready = daemon.wait_ready();
        assert!(ready || !daemon.wait_success());
        let Some(at) = sandbox.fault_fired() else {
            assert!(ready, "it starts by itself");
            break;
        };
        if !ready {
            sandbox.expect_inventory(&initial, &at);
        }
        sandbox.ok(&["teardown"]);
        sandbox.expect_inventory(&initial, &at);
    }
}

#[test]
fn reconcile_restores_state_files() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let (before, container) = (sandbox.inventory(), sandbox.json(&["show", "a"]));
    sandbox.sh(Netns::Host, "rm -r /run/portmap /run/portmap-places");
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
fn state_on_read_only_filesystem_is_kept() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let (before, list) = (sandbox.inventory(), sandbox.json(&["list"]));
    // The directory contains an open file, the lock.
    let read_only =
        "cd /run/portmap; mount --bind containers containers; mount -o remount,ro,bind containers";
    sandbox.sh(Netns::Host, read_only);
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
    sandbox.sh(Netns::Host, "umount /run/portmap/containers");
    sandbox.expect_inventory(&before, "after refusals");
}
