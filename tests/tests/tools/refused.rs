//! A port that nobody listens on is refused at once, on every path.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
};

use portmap_tests::{
    sandbox::{FAR, FAR6, Netns, OUTSIDE, OUTSIDE6},
    service::any,
    wait,
};

use crate::{A, A_PORT, B, B_PORT, HOST_PORT, LOCAL, SHARED, World};

#[test]
fn closed_port_is_refused_on_every_path() {
    let world = World::new();
    let outside = [IpAddr::V4(OUTSIDE), OUTSIDE6.into(), FAR.into(), FAR6.into()];
    let ways = [
        (Netns::Outside, &SHARED[..], A_PORT),
        (Netns::Outside, &SHARED[..], HOST_PORT),
        (A, &outside[..], HOST_PORT),
        (Netns::Host, &outside[..], HOST_PORT),
        (A, &LOCAL[..], A_PORT),
        (A, &LOCAL[..], B_PORT),
        (B, &LOCAL[..], A_PORT),
        (A, &LOCAL[..], HOST_PORT),
        (Netns::Host, &LOCAL[..], A_PORT),
        (Netns::Host, &LOCAL[..], HOST_PORT),
    ];
    for (place, addresses, port) in ways {
        for address in addresses {
            let to = SocketAddr::new(*address, port);
            let socket = world.sandbox.inside(place, || UdpSocket::bind(any(to, 0))).expect("a port");
            socket.connect(to).expect("connected");
            socket.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
            socket.send(b"?").expect("sent");
            // What says so is an ICMP error, which has to find its way back to this very socket.
            let error = socket.recv(&mut [0; 16]).expect_err("nobody listens");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "UDP {place:?} to {to}: {error}");
            let tcp = world.sandbox.inside(place, || TcpStream::connect_timeout(&to, wait::LIMIT));
            let error = tcp.expect_err("nobody listens");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "TCP {place:?} to {to}: {error}");
        }
    }
    assert_eq!([world.drops("a"), world.drops("b")], [const { BTreeMap::new() }; 2]);
}
