//! UDP GSO: segmentation is left to the kernel, and by the kernel to the uplink.

use std::{
    io::IoSlice,
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd as _,
};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use portmap_tests::{
    sandbox::{Netns, OUTSIDE, OUTSIDE6},
    service::any,
    wait,
};

use crate::{A, HOST_PORT, World};

/// Bytes per datagram, and datagrams per send; the last one is shorter.
const SEGMENT: u16 = 1200;
const DATAGRAMS: usize = 20;

#[test]
fn gso_datagrams_arrive_outside() {
    let world = World::new();
    let receiver = world.receiver(Netns::Outside, HOST_PORT);
    for address in [IpAddr::V4(OUTSIDE), OUTSIDE6.into()] {
        let to = (address, HOST_PORT).into();
        let socket = world.sandbox.inside(A, || UdpSocket::bind(any(to, 0))).expect("a port");
        let bytes: Vec<u8> = (0..SEGMENT).flat_map(u16::to_le_bytes).cycle().take(23_500).collect();
        let all = [IoSlice::new(&bytes)];
        let how = [ControlMessage::UdpGsoSegments(&SEGMENT)];
        let sent =
            sendmsg(socket.as_raw_fd(), &all, &how, MsgFlags::empty(), Some(&SockaddrStorage::from(to)));
        assert_eq!(sent, Ok(bytes.len()), "{address}");
        let mut arrived = Vec::new();
        for datagram in 0..DATAGRAMS {
            let mut buffer = [0; 2000];
            let what = format!("datagram {datagram} at {address}");
            let length = wait::for_value(&what, || receiver.recv(&mut buffer).ok());
            arrived.extend_from_slice(&buffer[..length]);
        }
        assert!(arrived == bytes, "{address}: {} bytes of {}", arrived.len(), bytes.len());
    }
    assert_eq!(world.drops("a").get("malformed").copied().unwrap_or_default(), 0);
    // Counted as on the wire, each datagram with its Ethernet, IP and UDP header.
    let counted = &world.sandbox.json(&["stats", "a"])["traffic"]["tx_outside"];
    let bytes = 2 * 23_500 + DATAGRAMS * (2 * (14 + 8) + 20 + 40);
    assert_eq!((&counted["packets"], &counted["bytes"]), (&(2 * DATAGRAMS).into(), &bytes.into()));
}
