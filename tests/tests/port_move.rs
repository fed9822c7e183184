//! Ports that change owners under traffic: a packet must never reach a container that owned the port
//! neither before nor after.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use portmap::{kernel::port_table::PortTable, paths::Pins};
use portmap_common::{slot::veth_ifindex, tables::PortEntry};
use portmap_tests::sandbox::{HOST, Netns, Sandbox};

/// The port that moves. It belongs to no container's record: the test writes the port map behind the
/// daemon's back.
const PORT: u16 = 31500;
/// The owners in turn, and a container that never owns the port.
const OWNERS: [&str; 4] = ["a", "b", "c", "d"];
const BYSTANDER: &str = "e";
/// Number of moves, at a rate of at least a thousand per second.
const MOVES: usize = 4000;
const PAUSE: Duration = Duration::from_micros(700);

/// Returns the owner after a number of moves.
const fn owner(moves: usize) -> usize {
    moves % OWNERS.len()
}

#[test]
fn port_move_never_reaches_a_third_container() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let slots: Vec<u16> = OWNERS
        .iter()
        .map(|name| {
            let added = sandbox.json(&["add", name, "--ephemeral-ports-per-container", "16"]);
            u16::try_from(added["slot"].as_u64().expect("a slot")).expect("a slot")
        })
        .collect();
    sandbox.ok(&["add", BYSTANDER, "--ephemeral-ports-per-container", "16"]);
    let pins = Pins::new(sandbox.path("/sys/fs/bpf/portmap"));
    let ports = PortTable::open(&pins).expect("the pinned port map");
    let give = |moves: usize| {
        let slot = slots[owner(moves)];
        ports.set(PORT, PortEntry { ifindex: veth_ifindex(slot), slot, flags: 0 });
    };

    // The number of moves that have started and that have completed. Between the two, either owner is
    // valid.
    let (begun, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    give(0);
    let receivers: Vec<_> = OWNERS
        .iter()
        .enumerate()
        .map(|(number, name)| {
            let socket = listen(&sandbox, name);
            let (begun, over) = (begun.clone(), over.clone());
            thread::spawn(move || receive(&socket, number, &begun, &over))
        })
        .collect();
    let bystander = listen(&sandbox, BYSTANDER);
    let senders: Vec<_> = [Netns::Outside, Netns::Host]
        .map(|netns| {
            let socket = sandbox.inside(netns, || UdpSocket::bind("0.0.0.0:0")).expect("a socket");
            let (done, over) = (done.clone(), over.clone());
            thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let moves = done.load(Ordering::SeqCst);
                    // A full queue is not an error here.
                    let _ = socket.send_to(&moves.to_ne_bytes(), (HOST, PORT));
                }
            })
        })
        .into();

    let start = Instant::now();
    for moves in 1..=MOVES {
        begun.store(moves, Ordering::SeqCst);
        give(moves);
        done.store(moves, Ordering::SeqCst);
        thread::sleep(PAUSE);
    }
    let seconds = start.elapsed().as_secs_f64();
    over.store(true, Ordering::SeqCst);
    for sender in senders {
        sender.join().expect("the sender ends");
    }
    let mut received = Received::default();
    for receiver in receivers {
        let one = receiver.join().expect("the receiver ends");
        received.packets += one.packets;
        received.telling += one.telling;
        received.wrong.extend(one.wrong);
    }
    assert_eq!(received.wrong, [], "of {} packets", received.packets);
    bystander.set_nonblocking(true).expect("a socket");
    assert!(bystander.recv_from(&mut [0; 8]).is_err(), "the bystander has received something");
    println!(
        "{MOVES} moves in {seconds:.1} s, {} packets, {} of them telling",
        received.packets, received.telling
    );
    // Packets in flight for a whole round of owners prove nothing; most are faster.
    assert!(received.telling > MOVES, "only {} of {} packets tell", received.telling, received.packets);
}

fn listen(sandbox: &Sandbox, name: &str) -> UdpSocket {
    sandbox.inside(Netns::Container(name), || UdpSocket::bind(("0.0.0.0", PORT))).expect("the port is free")
}

/// The packets that a container has received.
#[derive(Default)]
struct Received {
    packets: usize,
    /// Packets during whose flight at least one container did not own the port.
    telling: usize,
    /// Misdelivered packets: the container, and the moves before and after the packet's flight.
    wrong: Vec<(usize, usize, usize)>,
}

fn receive(socket: &UdpSocket, number: usize, begun: &AtomicUsize, over: &AtomicBool) -> Received {
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
    let mut received = Received::default();
    let mut bytes = [0; size_of::<usize>()];
    loop {
        if socket.recv_from(&mut bytes).is_err() {
            if over.load(Ordering::SeqCst) {
                return received;
            }
            continue;
        }
        // Every move that had completed when the packet was sent precedes it; every move that has
        // not started follows it.
        let (before, after) = (usize::from_ne_bytes(bytes), begun.load(Ordering::SeqCst));
        received.packets += 1;
        if after - before < OWNERS.len() - 1 {
            received.telling += 1;
        }
        if (before..=after).all(|moves| owner(moves) != number) {
            received.wrong.push((number, before, after));
        }
    }
}
