//! The services of one namespace, on one thread that sleeps while nothing comes: a run has hundreds of them.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portmap_tests::sandbox::{Netns, Sandbox};

/// Services that reply with their name and the client's address, until they are dropped.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a TCP service on all addresses, and a UDP service on each of `own`, so that the answer comes from the
    /// address that was asked; or on all addresses, so that the routes choose.
    pub(crate) fn start(sandbox: &Sandbox, netns: Netns<'_>, name: &str, port: u16, own: &[IpAddr]) -> Self {
        let all = [IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let own = if own.is_empty() { &all } else { own };
        let (listener, sockets) = sandbox.inside(netns, || {
            let listener = TcpListener::bind((all[0], port)).expect("the port is free");
            let bind = |address: &IpAddr| {
                UdpSocket::bind((*address, port))
                    .unwrap_or_else(|error| panic!("{netns:?} {address}: {error}"))
            };
            (listener, own.iter().map(bind).collect::<Vec<_>>())
        });
        listener.set_nonblocking(true).expect("a socket");
        for socket in &sockets {
            socket.set_nonblocking(true).expect("a socket");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (stop.clone(), name.to_owned());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                wait(&listener, &sockets);
                while let Ok((mut stream, client)) = listener.accept() {
                    let _ = write!(stream, "{name} {client}");
                }
                for socket in &sockets {
                    reply(socket, &name);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for a client.
fn wait(listener: &TcpListener, sockets: &[UdpSocket]) {
    let mut ready: Vec<PollFd<'_>> = [listener.as_fd()]
        .into_iter()
        .chain(sockets.iter().map(UdpSocket::as_fd))
        .map(|file| PollFd::new(file, PollFlags::POLLIN))
        .collect();
    // In between it looks whether it shall stop.
    poll(&mut ready, PollTimeout::from(100_u8)).expect("polled");
}

fn reply(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 64];
    let mut next = || -> Option<SocketAddr> { Some(socket.recv_from(&mut buffer).ok()?.1) };
    while let Some(client) = next() {
        let _ = socket.send_to(format!("{name} {client}").as_bytes(), client);
    }
}
