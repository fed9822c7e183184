//! Another block of ephemeral ports for a running container: what it carries, and what becomes of the
//! connections that use the old one.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    ops::RangeInclusive,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::Linger};
use portmap_tests::{
    daemon::Daemon,
    load,
    sandbox::{DAEMON_FLAGS, HOST, Netns, OUTSIDE, Sandbox},
    wait,
};
use serde_json::{Value, json};

const A: Netns<'_> = Netns::Container("a");
/// The port of the server outside.
const SERVER: (Ipv4Addr, u16) = (OUTSIDE, 8080);

/// A daemon with 64 ephemeral ports, in blocks of 16.
fn with_small_blocks(sandbox: &Sandbox, more: &str) -> Daemon {
    let flags = format!("--ephemeral-ports 65472-65535 --ephemeral-ports-per-container 16 {more}");
    let flags: Vec<&str> = DAEMON_FLAGS.into_iter().chain(flags.split_whitespace()).collect();
    sandbox.daemon_with(&flags)
}

fn server(sandbox: &Sandbox) -> TcpListener {
    sandbox.inside(Netns::Outside, || TcpListener::bind(SERVER)).expect("the port is free")
}

/// A connection from a container to the server, with both ends.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    /// Connects; the error is that of the kernel in the container.
    fn open(sandbox: &Sandbox, listener: &TcpListener, from: Netns<'_>) -> std::io::Result<Self> {
        let client = sandbox.inside(from, || TcpStream::connect(SERVER))?;
        let (server, _) = listener.accept().expect("a connection");
        for end in [&client, &server] {
            end.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
            // Closing it sends a reset, so no end waits in `TIME_WAIT`.
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(end, Linger, &linger).expect("a socket");
        }
        Ok(Self { client, server })
    }

    fn port(&self) -> u16 {
        self.client.local_addr().expect("an address").port()
    }

    /// Asserts that data passes in both directions.
    fn expect_alive(&mut self) {
        let mut data = [0; 4];
        self.client.write_all(b"ping").expect("sent");
        self.server.read_exact(&mut data).expect("received");
        self.server.write_all(b"pong").expect("sent");
        self.client.read_exact(&mut data).expect("received");
        assert_eq!(&data, b"pong");
    }
}

fn ports(container: &Value) -> RangeInclusive<u16> {
    let bound = |at: usize| {
        u16::try_from(container["ephemeral_ports"][at].as_u64().expect("a port")).expect("a port")
    };
    bound(0)..=bound(1)
}

fn update(sandbox: &Sandbox, size: &str) -> Value {
    sandbox.json(&["update", "a", "--ephemeral-ports-per-container", size])
}

#[test]
fn block_that_is_exhausted_grows_in_place() {
    let sandbox = Sandbox::new();
    let daemon = with_small_blocks(&sandbox, "");
    sandbox.ok(&["add", "a"]);
    let listener = server(&sandbox);
    let connect = || Connection::open(&sandbox, &listener, A);
    // A block carries as many connections to one destination as it has ports.
    let mut connections: Vec<_> = (0..16).map(|_| connect().expect("a free port")).collect();
    let error = connect().err().expect("no port is free");
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "{error}");
    let grown = update(&sandbox, "32");
    assert_eq!((&grown["ephemeral_ports"], &grown["draining_ports"]), (&json!([65472, 65503]), &json!([])));
    assert_eq!(grown["warnings"], json!([]), "no connection changes its port");
    connections.extend((0..16).map(|_| connect().expect("a free port")));
    connections.iter_mut().for_each(Connection::expect_alive);
    sandbox.ok(&["doctor"]);
    assert!(
        daemon.log().contains("container \"a\": updated, slot 1, ports none, ephemeral ports 65472-65503,")
    );
}

#[test]
fn block_that_moves_keeps_connections_and_drains() {
    let sandbox = Sandbox::new();
    let daemon = with_small_blocks(&sandbox, "--ephemeral-ports-quarantine 60secs");
    let old = ports(&sandbox.json(&["add", "a"]));
    sandbox.ok(&["add", "neighbour"]);
    let listener = server(&sandbox);
    let mut before = Connection::open(&sandbox, &listener, A).expect("a free port");
    assert!(old.contains(&before.port()));
    let moved = update(&sandbox, "32");
    assert_eq!(moved["ephemeral_ports"], json!([65504, 65535]));
    assert_eq!(moved["draining_ports"], json!([[old.start(), old.end()]]));
    let warning = moved["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("former ephemeral ports 65472-65487: it keeps them until"), "{warning}");
    assert!(sandbox.ok(&["show", "a"]).contains("draining ports     65472-65487"));
    before.expect_alive();
    // A port that drains is still no service's.
    assert_eq!(sandbox.json(&["flows", "a"])["flows"][0]["direction"], "out");
    let mut after = Connection::open(&sandbox, &listener, A).expect("a free port");
    assert!(ports(&moved).contains(&after.port()));
    after.expect_alive();
    // No other container gets them.
    let refusal = sandbox.fails(&["add", "b"], 4);
    assert!(refusal.contains("no aligned block of 16 ephemeral ports is free"), "{refusal}");
    // The next daemon continues.
    daemon.kill();
    before.expect_alive();
    let daemon = with_small_blocks(&sandbox, "--ephemeral-ports-quarantine 60secs");
    sandbox.ok(&["doctor"]);
    assert_eq!(sandbox.json(&["show", "a"])["draining_ports"], moved["draining_ports"]);
    before.expect_alive();
    drop(before);
    wait::until("the ports to drain", || sandbox.json(&["show", "a"])["draining_ports"] == json!([]));
    assert!(daemon.log().contains("released the ephemeral ports 65472-65487, which it no longer uses"));
    let refusal = sandbox.fails(&["add", "b"], 4);
    assert!(refusal.contains("16 are in quarantine"), "{refusal}");
    after.expect_alive();
    sandbox.ok(&["doctor"]);
    // The container itself may have them back.
    let back = update(&sandbox, "16");
    assert_eq!(back["ephemeral_ports"], json!([65504, 65519]), "a smaller block is a part of the larger one");
    sandbox.ok(&["del", "a"]);
    sandbox.ok(&["doctor"]);
}

#[test]
fn block_drain_is_bounded() {
    let sandbox = Sandbox::new();
    let daemon = with_small_blocks(&sandbox, "--ephemeral-ports-drain 0");
    sandbox.ok(&["add", "a"]);
    sandbox.ok(&["add", "neighbour"]);
    let listener = server(&sandbox);
    let mut cut = Connection::open(&sandbox, &listener, A).expect("a free port");
    let moved = update(&sandbox, "32");
    assert_eq!(moved["draining_ports"], json!([]));
    assert!(daemon.log().contains("65472-65487 at the end of --ephemeral-ports-drain"), "{}", daemon.log());
    cut.client.write_all(b"lost").expect("the kernel accepts it");
    wait::until("its packets to be dropped", || sandbox.dropped("a", "source_port") > 0);
    cut.server.set_read_timeout(Some(Duration::from_millis(1))).expect("a socket");
    assert!(cut.server.read(&mut [0; 4]).is_err(), "nothing arrives");
    assert_eq!(sandbox.json(&["add", "b"])["ephemeral_ports"], json!([65472, 65487]));
}

#[test]
fn block_changes_lose_no_packet() {
    let sandbox = Sandbox::new();
    let _daemon = with_small_blocks(&sandbox, "");
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    sandbox.ok(&["add", "neighbour"]);
    let before = sandbox.inventory();
    let servers = [(Netns::Outside, 8080, b'o'), (A, 31000, b'a')];
    let flows = [(A, 0, OUTSIDE), (A, 0, OUTSIDE), (Netns::Outside, 1, HOST)];
    load::under_load(&sandbox, &servers, &flows, Duration::ZERO, || {
        for size in ["32", "16", "32", "16", "32"] {
            let changed = update(&sandbox, size);
            assert_eq!(changed["state"], "ready");
            sandbox.ok(&["doctor"]);
        }
    });
    wait::until("the ports to drain", || sandbox.json(&["show", "a"])["draining_ports"] == json!([]));
    sandbox.ok(&["del", "a"]);
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    sandbox.expect_inventory(&before, "with a container of the first size");
}

#[test]
fn block_refusals_change_nothing() {
    let sandbox = Sandbox::new();
    let _daemon = with_small_blocks(&sandbox, "");
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    sandbox.ok(&["add", "b"]);
    let added = sandbox.json(&["show", "a"]);
    let size = |size, code| sandbox.fails(&["update", "a", "--ephemeral-ports-per-container", size], code);
    assert!(size("100", 2).contains("100 ephemeral ports per container: expected a power of two"));
    assert!(size("8", 2).contains("expected at least 16"));
    assert!(size("64", 4).contains("no aligned block of 64 ephemeral ports is free"));
    // One part of an update fails, so all of it is rolled back.
    let both = ["update", "a", "--ports", "31001", "--ephemeral-ports-per-container", "64"];
    sandbox.fails(&both, 4);
    assert_eq!(sandbox.json(&["show", "a"]), added);
    // The kernel refuses a range that overlaps the privileged ports: `b` would get the ports of `a`, too.
    sandbox.ok(&["del", "a"]);
    let before = sandbox.json(&["show", "b"]);
    sandbox.sh(Netns::Container("b"), "echo 65488 > /proc/sys/net/ipv4/ip_unprivileged_port_start");
    let error = sandbox.fails(&["update", "b", "--ephemeral-ports-per-container", "32"], 1);
    assert!(error.contains("expected ip_unprivileged_port_start inside to be at most 65472"), "{error}");
    assert_eq!(sandbox.json(&["show", "b"]), before);
    sandbox.ok(&["doctor"]);
    // The rollback has returned what it had reserved.
    for name in ["c", "d", "e"] {
        sandbox.ok(&["add", name]);
    }
    sandbox.fails(&["add", "f"], 4);
}

/// The measurement behind the README's connections per second.
#[test]
fn block_carries_as_many_connections_a_minute_as_it_has_ports() {
    let sandbox = Sandbox::new();
    let _daemon = with_small_blocks(&sandbox, "");
    sandbox.ok(&["add", "a"]);
    let listener = server(&sandbox);
    let mut connections = 0;
    let refused = loop {
        match sandbox.inside(A, || TcpStream::connect(SERVER)) {
            Ok(client) => {
                connections += 1;
                // The side that closes first waits in `TIME_WAIT`.
                drop(client);
                drop(listener.accept().expect("a connection"));
            }
            Err(error) => break error,
        }
    };
    // More only if the first ones have ended their minute of `TIME_WAIT` meanwhile, on a slow machine.
    assert!(connections >= 16 && refused.kind() == ErrorKind::AddrNotAvailable, "{connections}: {refused}");
    let waiting = "ss -Htno state time-wait";
    wait::until("a connection to wait", || sandbox.sh(A, waiting).lines().count() > 0);
    let waiting = sandbox.sh(A, waiting);
    let first = waiting.lines().next().and_then(|line| line.split("timer:(timewait,").nth(1));
    let first = first.and_then(|timer| timer.split(',').next()).expect("a timer");
    println!("{connections} ports: {connections} connections to one destination, then none for {first}");
    assert!(first == "1min" || first.ends_with("sec"), "{waiting}");
}
