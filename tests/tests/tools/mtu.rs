//! Uplinks with an unusual MTU.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use portmap_tests::{
    sandbox::{Netns, OUTSIDE, OUTSIDE6},
    service::any,
    wait,
};

use crate::{A, A_PORT, B, B_PORT, HOST_PORT, LOCAL, SHARED, World};

#[test]
fn mtu_large_or_small_carries_all_traffic() {
    for mtu in [9000, 1280, 576] {
        let world =
            World::with(&format!("ip link set uplink mtu {mtu}; ip -n outside link set eth0 mtu {mtu}"));
        let has_ipv6 = mtu >= 1280;
        let warned = world.daemon.log().contains("IPv6 needs 1280, so containers have none");
        assert_eq!(warned, !has_ipv6, "{}", world.daemon.log());
        assert_eq!(world.sandbox.json(&["show", "a"])["ip6"].is_null(), !has_ipv6);
        let servers = [(A, A_PORT), (B, B_PORT), (Netns::Host, HOST_PORT), (Netns::Outside, HOST_PORT)]
            .map(|(netns, port)| (netns, Server::start(&world, netns, port)));
        let outside = [IpAddr::V4(OUTSIDE), OUTSIDE6.into()];
        for (from, to, addresses) in [
            (Netns::Outside, 0, &SHARED[..]),
            (B, 0, &LOCAL[..]),
            (Netns::Host, 0, &LOCAL[..]),
            (A, 2, &LOCAL[..]),
            (A, 3, &outside[..]),
        ] {
            let (netns, server) = &servers[to];
            for address in addresses.iter().filter(|address| has_ipv6 || address.is_ipv4()) {
                server.exchange(
                    &world,
                    from,
                    *address,
                    &format!("MTU {mtu}, {from:?} to {netns:?} by {address}"),
                );
            }
        }
    }
}

/// Sockets that receive long streams and datagrams.
struct Server {
    listener: TcpListener,
    socket: UdpSocket,
    port: u16,
}

impl Server {
    fn start(world: &World, netns: Netns<'_>, port: u16) -> Self {
        let address = (Ipv6Addr::UNSPECIFIED, port);
        let listener = world.sandbox.inside(netns, || TcpListener::bind(address)).expect("the port is free");
        let socket = world.receiver(netns, port);
        socket.set_nonblocking(false).expect("a socket");
        socket.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
        Self { listener, socket, port }
    }

    /// Sends a long stream in both directions, and a datagram larger than any of the MTUs.
    fn exchange(&self, world: &World, from: Netns<'_>, address: IpAddr, what: &str) {
        let to = SocketAddr::new(address, self.port);
        let bytes: Vec<u8> = (0..1_u32 << 16).flat_map(u32::to_le_bytes).collect();
        let client = world.sandbox.inside(from, || TcpStream::connect_timeout(&to, wait::LIMIT));
        let mut client = client.unwrap_or_else(|error| panic!("{what}: {error}"));
        let (mut server, _) = self.listener.accept().expect("a connection");
        let reflect = thread::spawn(move || {
            let mut received = Vec::new();
            server.read_to_end(&mut received).expect("received");
            server.write_all(&received).expect("sent");
        });
        client.write_all(&bytes).expect("sent");
        client.shutdown(std::net::Shutdown::Write).expect("a connection");
        let mut received = Vec::new();
        client.read_to_end(&mut received).expect("received");
        reflect.join().expect("reflected");
        assert!(received == bytes, "{what}: {} bytes of {}", received.len(), bytes.len());

        let datagram = &bytes[..20_000];
        let sent = world.sandbox.inside(from, || UdpSocket::bind(any(to, 0))?.send_to(datagram, to));
        sent.unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(buffer[..length] == *datagram, "{what}: {length} bytes");
    }
}
