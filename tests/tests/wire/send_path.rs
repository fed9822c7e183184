//! The ways by which a container's frames come to the host, and what is said about a frame beside its bytes.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

use aya::{
    Ebpf,
    maps::Array,
    programs::{SchedClassifier, TcAttachType, tc},
};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use portmap::kernel::offloads;
use portmap_tests::sandbox::{HOST, HOST6, Netns, OUTSIDE, OUTSIDE6, Sandbox};

use crate::{
    frames::{self, FIRST_PORT, OWN},
    orders::{MARKED, TUNNEL},
    parser::ETHERNET,
    probe::Probe,
    sockets::Socket,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("BPF_OBJECTS"), "/hostile"));

/// Marks: that of a program that is only asked, that of what is decided already, and one that means nothing.
pub(crate) const MARKS: [u32; 4] = [0, 0x504d_3f3f, 0x504d_4c4f, 7];
/// Priorities: a class of the operator's, and all classes' own number, which leads past them.
pub(crate) const PRIORITIES: [u32; 4] = [0, 0x1_0020, 0x1_0000, 7];
/// Where they are among the words of the attacker's programs.
pub(crate) const PRIORITIES_AT: u32 = 16;
/// Bytes of the largest frame that the uplink carries.
pub(crate) const MAX_FRAME: usize = ETHERNET + 1500;

/// A way from a container to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendPath {
    /// Frames, past the interface's queue or not.
    Packet { bypass: bool },
    /// Frames with virtio headers: to be cut, and summed up, by others.
    Virtio { bypass: bool },
    /// The same at the loopback device.
    Loopback,
    /// A program that puts frames into the host's end of the pair, or sends them by `eth0`, uncut.
    Program,
    /// The same behind a pair of the container's own.
    Pair,
    /// Packets with headers of their own, which the container's routes send.
    Headers,
    /// Datagrams, which the kernel makes.
    Datagrams,
}

impl SendPath {
    pub(crate) const ALL: [Self; 9] = [
        Self::Packet { bypass: false },
        Self::Packet { bypass: true },
        Self::Virtio { bypass: false },
        Self::Virtio { bypass: true },
        Self::Loopback,
        Self::Program,
        Self::Pair,
        Self::Headers,
        Self::Datagrams,
    ];

    pub(crate) fn has_virtio(self) -> bool {
        !matches!(self, Self::Packet { .. } | Self::Headers | Self::Datagrams)
    }
}

/// All ways of a container, open.
pub(crate) struct Senders {
    packet: [Socket; 2],
    virtio: [Socket; 2],
    loopback: Socket,
    gso: Socket,
    pair: Socket,
    headers: [Socket; 2],
    datagrams: [UdpSocket; 2],
    /// The attacker's programs, attached, and the operator's.
    programs: Ebpf,
}

impl Senders {
    /// Opens them in the container at `place`, and makes what they need there.
    pub(crate) fn open(sandbox: &Sandbox, place: Netns<'_>) -> Self {
        sandbox.sh(
            place,
            "sysctl -qw net.ipv6.conf.default.disable_ipv6=1
             ip link add v0 type veth peer name v1
             ip link set v0 mtu 65000 arp off up; ip link set v1 mtu 65000 arp off up
             sysctl -qw net.ipv4.ip_default_ttl=57 net.ipv6.conf.eth0.hop_limit=57 net.ipv6.conf.lo.hop_limit=57",
        );
        let mut programs = Ebpf::load(OBJECT).expect("the object is built with the BPF toolchain");
        let mut words: Array<_, u32> =
            programs.map_mut("hostile_words").expect("it is there").try_into().expect("an array");
        for (index, word) in (0..).zip(MARKS) {
            words.set(index, word, 0).expect("a word");
        }
        for (index, word) in (PRIORITIES_AT..).zip(PRIORITIES) {
            words.set(index, word, 0).expect("a word");
        }
        for (index, word) in (TUNNEL..).zip(frames::tunnel()) {
            words.set(index, word, 0).expect("a word");
        }
        let attach = |programs: &mut Ebpf, name, interface, at| {
            let program: &mut SchedClassifier =
                programs.program_mut(name).expect("it is there").try_into().expect("a classifier");
            program.load().expect("the kernel takes it");
            // Only where the kernel has no TCX links; portmap's may be there already.
            let _ = tc::qdisc_add_clsact(interface);
            program.attach(interface, at).expect("root may");
        };
        sandbox.inside(Netns::Host, || {
            attach(&mut programs, "operators_witness", "uplink", TcAttachType::Egress);
        });
        sandbox.inside(place, || {
            attach(&mut programs, "hostile_in", "v1", TcAttachType::Ingress);
            attach(&mut programs, "hostile_out", "v1", TcAttachType::Egress);
            let datagrams = ["0.0.0.0", "::"].map(|any| {
                let socket = UdpSocket::bind((any, 0)).expect("an ephemeral port");
                socket.set_nonblocking(true).expect("a socket");
                socket.set_ttl(57).expect("a socket");
                socket
            });
            Self {
                packet: [false, true].map(|bypass| Socket::sender("eth0", false, bypass)),
                virtio: [false, true].map(|bypass| Socket::sender("eth0", true, bypass)),
                loopback: Socket::sender("lo", true, false),
                gso: Socket::sender("v1", true, false),
                pair: Socket::sender("v0", true, false),
                headers: [false, true].map(Socket::headers_included),
                datagrams,
                programs,
            }
        })
    }

    /// Packets that have left by the uplink with a mark.
    pub(crate) fn marked(&self) -> u32 {
        let words = self.programs.map("hostile_words").expect("it is there");
        Array::<_, u32>::try_from(words).and_then(|words| words.get(&MARKED, 0)).expect("a word")
    }

    /// Sends a frame; an error if the kernel refuses.
    pub(crate) fn send(&self, probe: &Probe) -> io::Result<()> {
        let framed;
        let bytes = match &probe.virtio {
            Some(header) => {
                framed = [header, &probe.frame[..]].concat();
                &framed
            }
            None => &probe.frame,
        };
        let socket = match probe.path {
            SendPath::Packet { bypass } => &self.packet[usize::from(bypass)],
            SendPath::Virtio { bypass } => &self.virtio[usize::from(bypass)],
            SendPath::Loopback => &self.loopback,
            SendPath::Program => &self.gso,
            SendPath::Pair => &self.pair,
            SendPath::Headers => {
                let packet = probe.frame.get(ETHERNET..).unwrap_or_default();
                let is_ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
                let socket = &self.headers[usize::from(is_ipv6)];
                socket.mark(probe.mark, probe.priority);
                return if is_ipv6 { socket.send_ipv6(packet) } else { socket.send_ipv4(packet) };
            }
            SendPath::Datagrams => return self.send_datagram(probe),
        };
        socket.mark(probe.mark, probe.priority);
        socket.send(bytes, probe.protocol)
    }

    fn send_datagram(&self, probe: &Probe) -> io::Result<()> {
        let is_ipv6 = probe.number.is_multiple_of(3);
        let index = u16::try_from(probe.number % 64).expect("small");
        let (to_outside, to_host) = if is_ipv6 {
            (OUTSIDE6.into(), HOST6.into())
        } else {
            (std::net::IpAddr::from(OUTSIDE), HOST.into())
        };
        let to = match probe.number % 5 {
            0 => (to_host, FIRST_PORT + index),
            1 => (to_host, *frames::OTHERS.start()),
            2 => (to_host, *OWN.start()),
            _ => (to_outside, FIRST_PORT + index),
        };
        let to = SockaddrStorage::from(std::net::SocketAddr::from(to));
        let socket = &self.datagrams[usize::from(is_ipv6)];
        let segments = [ControlMessage::UdpGsoSegments(&probe.segment)];
        let control = if probe.segment == 0 { &[][..] } else { &segments[..] };
        let payload = probe.frame.get(ETHERNET + 48..).unwrap_or_default();
        let parts = [io::IoSlice::new(payload)];
        sendmsg(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    }
}

/// Has the kernel cut and sum up what leaves an interface of the calling thread's namespace, as where a card can do neither.
pub(crate) fn without_offloads(interface: &str) {
    // This one is no feature that can be set.
    let is_meant = |name: &str| name.starts_with("tx-") && !name.starts_with("tx-lockless");
    offloads::turn_off(interface, is_meant).expect("it is there");
}
