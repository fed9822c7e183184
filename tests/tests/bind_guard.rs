//! The bind guard: which ports a container may bind, and installation and removal without leftovers.
//!
//! A single test, because a process is in one cgroup at a time.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

use portmap_tests::{
    cgroup::Cgroup,
    sandbox::{DAEMON_FLAGS, Netns, Sandbox},
    wait,
};

const A: Netns<'_> = Netns::Container("a");
const B: Netns<'_> = Netns::Container("b");

/// Prints the port of a socket after the C library's `bindresvport`.
const BINDRESVPORT: &str = r"python3 -c '
import ctypes, socket
s = socket.socket()
if ctypes.CDLL(None, use_errno=True).bindresvport(s.fileno(), None): raise OSError(ctypes.get_errno())
print(s.getsockname()[1])'";

/// Returns whether sockets can be bound to a port in a namespace, for IPv4 and IPv6, TCP and UDP. All must
/// agree.
fn can_bind(sandbox: &Sandbox, netns: Netns<'_>, port: u16) -> bool {
    let addresses: [SocketAddr; 3] = [
        (Ipv4Addr::UNSPECIFIED, port).into(),
        (Ipv4Addr::LOCALHOST, port).into(),
        (Ipv6Addr::UNSPECIFIED, port).into(),
    ];
    let results: Vec<bool> = sandbox.inside(netns, || {
        let tcp = addresses.iter().map(|address| TcpListener::bind(address).map(drop));
        let udp = addresses.iter().map(|address| UdpSocket::bind(address).map(drop));
        let is_allowed = |result: Result<(), io::Error>| match result {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::AddrInUse, "port {port}: {error}");
                false
            }
        };
        tcp.chain(udp).map(is_allowed).collect()
    });
    assert!(results.iter().all(|one| Some(one) == results.first()), "port {port}: {results:?}");
    results.contains(&true)
}

/// A client that needs a privileged port tries one after the other, from an arbitrary first one.
fn expect_privileged_port(sandbox: &Sandbox) {
    sandbox.ok(&["add", "nfs-client", "--ports", "1005"]);
    for _ in 0..5 {
        let port = sandbox.sh(Netns::Container("nfs-client"), BINDRESVPORT);
        assert_eq!(port.trim(), "1005");
    }
    sandbox.ok(&["del", "nfs-client"]);
}

/// The usual flags, with some privileged ports.
fn flags() -> [&'static str; DAEMON_FLAGS.len()] {
    DAEMON_FLAGS.map(|flag| if flag == "31000-32000" { "1000-1009,31000-32000" } else { flag })
}

#[test]
fn bind_guard_allows_own_ports_only() {
    let cgroup = Cgroup::new();
    let _entered = cgroup.enter();
    let sandbox = Sandbox::new();
    let guard = format!("--bind-guard={}", cgroup.path().display());
    // `--reconcile=false`, because the daemon would otherwise repair the drift before doctor reports
    // it.
    let flags = flags();
    let guarded: Vec<&str> = flags.into_iter().chain([guard.as_str(), "--reconcile=false"]).collect();

    // A daemon without a guard first, so that its leftovers are not attributed to the guard.
    let daemon = sandbox.daemon_with(&flags);
    sandbox.ok(&["add", "a", "--ports", "31000-31001"]);
    assert!(can_bind(&sandbox, A, 8080));
    daemon.stop();
    let without = sandbox.inventory();

    // A container that existed before the guard is guarded, too.
    let daemon = sandbox.daemon_with(&guarded);
    sandbox.ok(&["add", "b", "--ports", "31002"]);
    let own: u16 =
        sandbox.json(&["show", "a"])["ephemeral_ports"][0].as_u64().expect("a port").try_into().expect("one");
    let expect = |netns, ports: &[u16], expected: bool| {
        for port in ports {
            assert_eq!(can_bind(&sandbox, netns, *port), expected, "{netns:?} {port}");
        }
    };
    expect(A, &[31000, 31001, own, 0], true);
    expect(A, &[31002, 8080, 80, own.wrapping_sub(1)], false);
    expect(B, &[31002, 0], true);
    expect(B, &[31000, own], false);
    // Processes outside the cgroup are not affected.
    expect(Netns::Host, &[8080, 31000], true);
    expect(Netns::Outside, &[8080, 31000], true);

    expect_privileged_port(&sandbox);

    // The guard follows changes of ownership, and the kernel enforces it without the daemon.
    sandbox.ok(&["update", "a", "--ports", "31001,31003"]);
    expect(A, &[31001, 31003], true);
    expect(A, &[31000], false);
    daemon.kill();
    expect(A, &[31003], true);
    expect(A, &[31000], false);
    let daemon = sandbox.daemon_with(&guarded);
    expect(A, &[31003], true);
    expect(A, &[31000], false);

    // doctor reports a guard that is detached in any way, and repairs it.
    for takes_away in ["rm", "bpftool link detach pinned"] {
        sandbox.sh(Netns::Host, &format!("{takes_away} /sys/fs/bpf/portmap/v*/links/pm_bind4"));
        let doctor = sandbox.portmap(&["doctor"]);
        let report = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(doctor.status.code() == Some(7) && report.contains("pm_bind4 is not attached"), "{report}");
        sandbox.ok(&["doctor", "--repair"]);
        expect(A, &[31000], false);
    }

    // Deleting a container deletes its entry.
    let entries = || {
        sandbox.sh(
            Netns::Host,
            "bpftool map dump pinned /sys/fs/bpf/portmap/v*/maps/pm_guarded | grep -c slot || true",
        )
    };
    assert_eq!(entries().trim(), "2");
    sandbox.ok(&["del", "b"]);
    assert_eq!(entries().trim(), "1");
    sandbox.ok(&["update", "a", "--ports", "31000-31001"]);
    daemon.stop();

    // The guard moves to another cgroup with the flag, and to a recreated cgroup of the same name.
    // While there is none, reconciliation of the rest of the host continues.
    let other = Cgroup::new();
    let other_can_bind = || {
        let _entered = other.enter();
        can_bind(&sandbox, A, 8080)
    };
    for _ in 0..3 {
        sandbox.daemon_with(&guarded).stop();
        assert!(!can_bind(&sandbox, A, 8080) && other_can_bind());
        let guard = format!("--bind-guard={}", other.path().display());
        let moved: Vec<&str> = flags.into_iter().chain([guard.as_str()]).collect();
        sandbox.daemon_with(&moved).stop();
        assert!(can_bind(&sandbox, A, 8080) && !other_can_bind());
    }
    let guard = format!("--bind-guard={}", other.path().display());
    let daemon = sandbox.daemon_with(&flags.into_iter().chain([guard.as_str()]).collect::<Vec<_>>());
    fs::remove_dir(other.path()).expect("a cgroup without processes");
    sandbox.sh(Netns::Host, "echo 0 > /proc/sys/net/ipv4/conf/lo/route_localnet");
    let doctor = sandbox.portmap(&["doctor", "--repair"]);
    let report = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.code() == Some(7) && report.contains(&guard), "{report}");
    assert_eq!(sandbox.sh(Netns::Host, "cat /proc/sys/net/ipv4/conf/lo/route_localnet").trim(), "1");
    // The recreated cgroup gets its guard without a command.
    fs::create_dir(other.path()).expect("another cgroup");
    wait::until("the guard to be restored", || sandbox.portmap(&["doctor"]).status.success());
    assert!(!other_can_bind());
    daemon.stop();
    let _entered = other.enter();

    // A daemon without the flag removes the guard, even one whose replacement was interrupted by a
    // kill.
    sandbox.sh(
        Netns::Host,
        "cd /sys/fs/bpf/portmap/v*/; for f in links/pm_bind4 progs/pm_bind6; do mv $f ${f}_new; done",
    );
    assert!(!can_bind(&sandbox, A, 8080));
    let daemon = sandbox.daemon_with(&flags);
    assert!(can_bind(&sandbox, A, 8080));
    daemon.stop();
    sandbox.expect_inventory(&without, "without the guard again");
    expect_refusals(&sandbox);
}

/// A path that is not a cgroup is refused by name, and so is a missing hierarchy.
fn expect_refusals(sandbox: &Sandbox) {
    let refused = |flag: &str| {
        let before = sandbox.inventory();
        let refusal = sandbox.refused_daemon(&flags().into_iter().chain([flag]).collect::<Vec<_>>());
        sandbox.expect_inventory(&before, flag);
        refusal
    };
    let (code, log) = refused("--bind-guard=/run");
    assert!(code == 2 && log.contains("/run") && log.contains("cgroup v2"), "{code}: {log}");
    sandbox.sh(Netns::Host, "umount --all --types cgroup2");
    let (code, log) = refused("--bind-guard");
    assert!(code == 2 && log.contains("cgroup v2 is not mounted"), "{code}: {log}");
}
