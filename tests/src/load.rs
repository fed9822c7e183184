//! Request/reply traffic that must not lose a packet.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use crate::{
    sandbox::{Netns, Sandbox},
    wait,
};

/// A UDP server: namespace, port, and the byte that identifies it in its replies.
pub type Server = (Netns<'static>, u16, u8);

/// A flow: client namespace, index of the server, and the destination address.
pub type Flow = (Netns<'static>, usize, Ipv4Addr);

/// Runs `work` while each flow sends requests, one at a time, with a pause after each reply.
///
/// # Panics
///
/// Panics if a request is lost, or answered by another server.
pub fn under_load<T>(
    sandbox: &Sandbox,
    servers: &[Server],
    flows: &[Flow],
    pause: Duration,
    work: impl FnOnce() -> T,
) -> T {
    let (asked_enough, ends, answers) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let sockets: Vec<(UdpSocket, u8)> = servers
        .iter()
        .map(|(netns, port, own)| {
            let server =
                sandbox.inside(*netns, || UdpSocket::bind(("0.0.0.0", *port))).expect("the port is free");
            server.set_read_timeout(Some(Duration::from_millis(100))).expect("a time");
            (server, *own)
        })
        .collect();
    thread::scope(|scope| {
        let (asked_enough, ends, answers) = (&asked_enough, &ends, &answers);
        // Guards, because the scope waits for its threads even if `work` panics. Servers outlive clients.
        let _server_end = End(ends);
        let client_end = End(asked_enough);
        for (server, own) in &sockets {
            scope.spawn(move || serve(server, *own, ends));
        }
        let clients: Vec<_> = flows
            .iter()
            .map(|(from, server, address)| {
                let (_, port, own) = servers[*server];
                let to = SocketAddr::new((*address).into(), port);
                let client = sandbox.inside(*from, || UdpSocket::bind("0.0.0.0:0")).expect("a port");
                client.set_read_timeout(Some(wait::LIMIT)).expect("a time");
                client.connect(to).expect("connected");
                scope.spawn(move || {
                    ask(&client, own, pause, asked_enough, answers)
                        .map_err(|error| format!("{from:?} to {to}: {error}"))
                })
            })
            .collect();
        let enough = 20 * u64::try_from(flows.len()).expect("a number");
        wait::until("traffic to flow", || answers.load(Ordering::Relaxed) > enough);
        let before = answers.load(Ordering::Relaxed);
        let result = work();
        let meanwhile = answers.load(Ordering::Relaxed) - before;
        drop(client_end);
        let lost: Vec<String> = clients
            .into_iter()
            .filter_map(|client| client.join().expect("it does not panic").err())
            .collect();
        assert!(lost.is_empty(), "{lost:?}");
        println!("{meanwhile} requests answered meanwhile");
        result
    })
}

fn serve(server: &UdpSocket, own: u8, ends: &AtomicBool) {
    let mut question = [0; 9];
    while !ends.load(Ordering::Relaxed) {
        let Ok((_, client)) = server.recv_from(&mut question) else { continue };
        question[8] = own;
        let _ = server.send_to(&question, client);
    }
}

/// Sends requests one after the other; fails if one is not answered by its server.
fn ask(
    client: &UdpSocket,
    own: u8,
    pause: Duration,
    ends: &AtomicBool,
    answers: &AtomicU64,
) -> Result<(), String> {
    let mut number = 0_u64;
    while !ends.load(Ordering::Relaxed) {
        let mut expected = [own; 9];
        expected[..8].copy_from_slice(&number.to_ne_bytes());
        let mut answer = [0; 9];
        let asked = client.send(&expected).and_then(|_| client.recv(&mut answer));
        if asked.is_err() || answer != expected {
            return Err(format!("request {number}: {asked:?}, {answer:?}"));
        }
        number += 1;
        answers.fetch_add(1, Ordering::Relaxed);
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
    Ok(())
}

/// Sets a flag when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
