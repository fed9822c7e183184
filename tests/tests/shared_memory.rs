//! Packets in memory that their sender can modify after the check. Root in a container creates such packets
//! by splicing its own pages into datagrams and then removing the outer headers, with the receiving end of
//! a tunnel or, as here, with a program on its own `eth0`.

use std::{
    net::{IpAddr, UdpSocket},
    num::NonZero,
    os::fd::AsFd,
};

use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType, tc},
};
use nix::{
    fcntl::{SpliceFFlags, splice, vmsplice},
    sys::mman::{MapFlags, ProtFlags, mmap_anonymous},
    unistd::pipe,
};
use portmap_tests::{
    frames::{Frame, ICMP},
    packet_socket::PacketSocket,
    sandbox::{HOST, HOST6, Netns, OUTSIDE, OUTSIDE_MAC, OUTSIDE6, Sandbox},
    wait,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("BPF_OBJECTS"), "/hostile"));

const A: Netns<'_> = Netns::Container("a");
/// A port of the container, and one that it does not own.
const OWN: u16 = 31000;
const FOREIGN: u16 = 31010;
/// Identifies the frames of this test.
const MARK: &[u8] = b"in shared memory";
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Memory whose pages are passed to the kernel, so that later writes change the packet.
struct Page {
    start: *mut u8,
}

impl Page {
    const SIZE: usize = 4096;

    fn new(bytes: &[u8]) -> Self {
        let size = NonZero::new(Self::SIZE).expect("not zero");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new memory at an address of the kernel's choice. It stays mapped until the
        // process ends.
        let start = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_SHARED) }.expect("a page");
        let page = Self { start: start.as_ptr().cast() };
        page.write(0, bytes);
        page
    }

    /// Writes without synchronisation with the kernel's readers.
    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= Self::SIZE);
        for (number, byte) in bytes.iter().enumerate() {
            // SAFETY: the byte is within the page, which is mapped; no reference to it exists.
            let target = unsafe { self.start.add(at + number) };
            // SAFETY: the same.
            unsafe { target.write_volatile(*byte) };
        }
    }

    /// Sends the first bytes as the payload of one datagram, without copying them.
    fn send(&self, length: usize, socket: &UdpSocket) {
        let (read, write) = pipe().expect("a pipe");
        // SAFETY: the bytes are mapped; only the kernel reads them during concurrent writes.
        let bytes = unsafe { std::slice::from_raw_parts(self.start, length) };
        let moved = vmsplice(write.as_fd(), &[std::io::IoSlice::new(bytes)], SpliceFFlags::empty());
        assert_eq!(moved, Ok(length));
        let sent = splice(read.as_fd(), None, socket.as_fd(), None, length, SpliceFFlags::empty());
        assert_eq!(sent, Ok(length));
    }
}

/// A packet, and the offset of the port that decides.
struct Case {
    what: &'static str,
    packet: Vec<u8>,
    port: usize,
}

/// Returns an IPv4 packet without its Ethernet header.
fn packet(frame: &Frame) -> Vec<u8> {
    frame.bytes().split_off(ETHERNET)
}

fn cases() -> Vec<Case> {
    let datagram = Frame { payload: MARK.to_vec(), ..Frame::udp((HOST, OWN), (OUTSIDE, 8080)) };
    let answered = Frame { payload: MARK.to_vec(), ..Frame::udp((OUTSIDE, 8080), (HOST, OWN)) };
    let error = Frame { icmp: [3, 3], payload: packet(&answered), ..datagram.clone() }.protocol(ICMP);
    // An IPv6 header, eight bytes of destination options, and the datagram.
    let udp = packet(&datagram).split_off(20);
    let mut ipv6 = vec![0x60, 0, 0, 0, 0, u8::try_from(8 + udp.len()).expect("short"), 60, 64];
    ipv6.extend(HOST6.octets());
    ipv6.extend(OUTSIDE6.octets());
    ipv6.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    ipv6.extend(&udp);
    vec![
        Case { what: "a plain packet", packet: packet(&datagram), port: 20 },
        Case {
            what: "ports behind options",
            packet: packet(&Frame { options: vec![1; 4], ..datagram.clone() }),
            port: 24,
        },
        Case {
            what: "ports of a first fragment",
            packet: packet(&Frame { fragment: 0x2000, ..datagram }),
            port: 20,
        },
        // After the header, the eight bytes of the error, the embedded header and its source port.
        Case { what: "ports in an ICMP error", packet: packet(&error), port: 20 + 8 + 20 + 2 },
        Case { what: "ports behind an extension header", packet: ipv6, port: 40 + 8 },
    ]
}

#[test]
fn packet_cannot_change_after_the_check() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    let mut hostile = Ebpf::load(OBJECT).expect("the object is built with the BPF toolchain");
    let program: &mut SchedClassifier =
        hostile.program_mut("hostile_strip").expect("it is there").try_into().expect("a classifier");
    program.load().expect("the kernel takes it");
    sandbox.inside(A, || {
        // Only without TCX; portmap may have created the qdisc already.
        let _ = tc::qdisc_add_clsact("eth0");
        program.attach("eth0", TcAttachType::Egress).expect("a container's root may");
    });
    let witness = sandbox.inside(Netns::Outside, || PacketSocket::listening("eth0"));
    for Case { what, packet, port } in cases() {
        let page = Page::new(&packet);
        let to: IpAddr = if packet[0] >> 4 == 4 { OUTSIDE.into() } else { OUTSIDE6.into() };
        let socket = sandbox.inside(A, || {
            let socket = UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)).expect("a socket");
            let mapped = match to {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            socket.connect((mapped, 9)).expect("there is a route");
            socket
        });
        page.send(packet.len(), &socket);
        // The capture also contains the replies from outside.
        let is_ours = |frame: &[u8]| {
            frame.starts_with(&OUTSIDE_MAC) && frame.windows(MARK.len()).any(|part| part == MARK)
        };
        wait::until(what, || match witness.peek() {
            Some(frame) if is_ours(&frame) => true,
            Some(_) => witness.receive().is_none(),
            None => false,
        });
        // The packet has passed the check and waits for its receiver.
        page.write(port, &FOREIGN.to_be_bytes());
        let frame = witness.receive().expect("it was there a moment ago");
        let received = &frame[ETHERNET + port..][..2];
        assert_eq!(received, OWN.to_be_bytes(), "{what}: the port has changed after it was checked");
    }
}
