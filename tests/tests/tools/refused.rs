//! A connection to a port without a listener is refused at once, on every path.

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
    let paths = [
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
    for (netns, addresses, port) in paths {
        for address in addresses {
            let to = SocketAddr::new(*address, port);
            let socket = world.sandbox.inside(netns, || UdpSocket::bind(any(to, 0))).expect("a port");
            socket.connect(to).expect("connected");
            socket.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
            socket.send(b"?").expect("sent");
            // The refusal is an ICMP error, which must find its way back to this socket.
            let error = socket.recv(&mut [0; 16]).expect_err("no listener");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "UDP {netns:?} to {to}: {error}");
            let tcp = world.sandbox.inside(netns, || TcpStream::connect_timeout(&to, wait::LIMIT));
            let error = tcp.expect_err("no listener");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "TCP {netns:?} to {to}: {error}");
        }
    }
    assert_eq!([world.drops("a"), world.drops("b")], [const { BTreeMap::new() }; 2]);
}
