//! A host that changes under load.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, FAR, FAR6, HOST, HOST6, Netns, OUTSIDE, OUTSIDE6, Sandbox},
    service::{Service, Transport, ask},
    wait,
};

use super::{
    A, HOST_PORT, PORT, expect,
    uplinks::{CARD, CARD_HOST, tunnel_of},
    wait_for,
};

/// Limits of the pause between an answer and the next request, which is longer on a slower machine, so that it has time
/// for others.
const PAUSE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];
/// The pause as a multiple of the time that the answer took.
const SHARE: u32 = 40;

/// A connection whose client sends requests without end and waits for each answer.
struct Connection {
    ends: [TcpStream; 2],
    threads: Vec<JoinHandle<()>>,
    answers: Arc<AtomicU64>,
}

impl Connection {
    fn open(sandbox: &Sandbox, from: Netns<'_>, to: (Netns<'_>, SocketAddr)) -> Self {
        let listener = sandbox.inside(to.0, || TcpListener::bind(to.1)).expect("its port");
        let client = sandbox.inside(from, || TcpStream::connect(to.1));
        let client = client.unwrap_or_else(|error| panic!("{from:?} to {to:?}: {error}"));
        let server = listener.accept().expect("a connection").0;
        let ends = [client.try_clone().expect("cloned"), server.try_clone().expect("cloned")];
        let answers = Arc::new(AtomicU64::new(0));
        let answered = answers.clone();
        let threads = vec![
            thread::spawn(move || exchange(server, None)),
            thread::spawn(move || exchange(client, Some(&answered))),
        ];
        Self { ends, threads, answers }
    }

    fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

/// Answers requests, or sends them and counts the answers, until an end is shut down.
fn exchange(mut end: TcpStream, answers: Option<&AtomicU64>) {
    let mut message = [7; 700];
    loop {
        let start = Instant::now();
        if answers.is_some() && end.write_all(&message).is_err() || end.read_exact(&mut message).is_err() {
            return;
        }
        if let Some(answers) = answers {
            answers.fetch_add(1, Ordering::Relaxed);
            thread::sleep((start.elapsed() * SHARE).clamp(PAUSE[0], PAUSE[1]));
        } else if end.write_all(&message).is_err() {
            return;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for end in &self.ends {
            // An end whose connection was lost is shut down already.
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The connections of the container and of a process of the host in its place, by what they lead through.
struct Pairs<'a> {
    sandbox: &'a Sandbox,
    all: Vec<(String, [Connection; 2])>,
    next_port: u16,
}

impl Pairs<'_> {
    /// Opens connections from outside to an address of the host.
    fn open_to(&mut self, address: impl Into<IpAddr> + Copy, way: &str) {
        let pair = [(A, 31001), (Netns::Host, 8100)].map(|(netns, port)| {
            let to = SocketAddr::from((address.into(), port + self.next_port));
            Connection::open(self.sandbox, Netns::Outside, (netns, to))
        });
        self.note(way, pair);
    }

    /// Opens connections to the outside.
    fn open_from(&mut self, address: impl Into<IpAddr> + Copy, way: &str) {
        let pair = [(A, 9000), (Netns::Host, 9100)].map(|(netns, port)| {
            let to = SocketAddr::from((address.into(), port + self.next_port));
            Connection::open(self.sandbox, netns, (Netns::Outside, to))
        });
        self.note(way, pair);
    }

    fn note(&mut self, way: &str, pair: [Connection; 2]) {
        self.next_port += 1;
        self.all.push((way.to_owned(), pair));
    }

    /// Asserts that the container has lost no connection that the host has not lost, and that neither has lost one, but
    /// by these ways.
    fn expect_alive(&self, after: &str, lost: &[&str]) {
        for (way, [container, host]) in &self.all {
            if lost.contains(&way.as_str()) {
                continue;
            }
            for (who, connection) in [("host", host), ("container", container)] {
                let before = connection.answers();
                wait::until(&format!("the {who}'s connection, {way}, to go on after {after}"), || {
                    connection.answers() > before + 2
                });
            }
        }
    }
}

#[test]
fn changes_under_load_cost_no_connection_that_the_host_keeps() {
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 77);
    const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x77);
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, CARD);
    let flags = ["--uplink", "uplink", "--uplink", "card1", "--uplink", "tunnel"];
    let _daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &flags].concat());
    sandbox.ok(&["add", "a", "--ports", "31000-31019"]);
    let _services = [(A, PORT, "a"), (Netns::Outside, HOST_PORT, "outside")]
        .map(|(netns, port, name)| Service::both(&sandbox, netns, port, name));
    let mut pairs = Pairs { sandbox: &sandbox, all: Vec::new(), next_port: 0 };
    pairs.open_to(HOST, "to the first card");
    pairs.open_to(HOST6, "to the first card by IPv6");
    pairs.open_to(CARD_HOST, "to the second card");
    pairs.open_from(OUTSIDE, "from the first card");
    pairs.open_from(OUTSIDE6, "from the first card by IPv6");
    pairs.open_from(FAR, "by the default route");
    pairs.open_from(FAR6, "by the default route of IPv6");
    pairs.expect_alive("the start", &[]);

    // The host joins a VPN, as wg-quick does it.
    let vpn = tunnel_of(&sandbox);
    // The other end of a VPN takes its packets by the VPN only.
    sandbox.sh(Netns::Outside, "iptables -A INPUT -i eth0 -s 10.8.0.0/24 -j DROP");
    sandbox.sh(
        Netns::Host,
        "ip route add default dev tunnel table 51820; ip rule add not fwmark 51820 table 51820; \
         ip rule add table main suppress_prefixlength 0",
    );
    pairs.expect_alive("joining a VPN", &[]);
    let by_vpn = expect(&sandbox, Netns::Host, (FAR, HOST_PORT), "outside");
    wait::until("the container to take the VPN", || {
        ask(&sandbox, A, Transport::Tcp, (FAR, HOST_PORT)).is_ok_and(|answer| answer.client.ip() == by_vpn)
    });
    pairs.open_from(FAR, "by the VPN");

    // It gets virtual addresses.
    sandbox.sh(
        Netns::Host,
        &format!("ip address add {VIP}/32 dev uplink; ip address add {VIP6}/128 dev uplink nodad"),
    );
    wait_for(&sandbox, Netns::Outside, (VIP, PORT), "a");
    wait_for(&sandbox, Netns::Outside, (VIP6, PORT), "a");
    pairs.open_to(VIP, "to the virtual address");
    pairs.open_to(VIP6, "to the virtual address of IPv6");
    pairs.expect_alive("getting virtual addresses", &[]);

    // DHCP renews the address: with other lifetimes, and by removing and adding it, with all its routes.
    sandbox.sh(
        Netns::Host,
        &format!("ip address change {HOST}/24 dev uplink valid_lft 3600 preferred_lft 1800"),
    );
    pairs.expect_alive("a renewal", &[]);
    sandbox.sh(
        Netns::Host,
        &format!(
            "ip -batch - <<END\naddress del {HOST}/24 dev uplink\naddress add {HOST}/24 dev uplink\n\
             route replace default via {OUTSIDE} dev uplink\nEND"
        ),
    );
    pairs.expect_alive("a new lease of the same address", &[]);

    // It loses a card.
    let lost = ["to the second card"];
    sandbox.sh(Netns::Host, "ip link del card1");
    pairs.expect_alive("the loss of a card", &lost);

    // The virtual addresses move to another host, and the VPN ends.
    let lost = ["to the second card", "to the virtual address", "to the virtual address of IPv6"];
    sandbox.sh(
        Netns::Host,
        &format!("ip address del {VIP}/32 dev uplink; ip address del {VIP6}/128 dev uplink"),
    );
    pairs.expect_alive("the loss of the virtual addresses", &lost);
    let lost = [&lost[..], &["by the VPN"]].concat();
    sandbox.sh(
        Netns::Host,
        "ip rule del not fwmark 51820 table 51820; ip rule del table main suppress_prefixlength 0; \
         ip link set tunnel down",
    );
    pairs.expect_alive("the end of the VPN", &lost);
    drop(pairs);
    // Its device ends with it; an uplink that is named and does not exist is no problem.
    drop(vpn);
    wait::until("health", || sandbox.portmap(&["doctor"]).status.success());
}
