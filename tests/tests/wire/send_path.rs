//! The send paths available to root in a container.

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

/// Marks: none, dry run, handled, and an arbitrary one.
pub(crate) const MARKS: [u32; 4] = [0, 0x504d_3f3f, 0x504d_4c4f, 7];
/// Priorities: none, a class of the operator's, the qdisc's handle ("direct" in HTB), and an arbitrary one.
pub(crate) const PRIORITIES: [u32; 4] = [0, 0x1_0020, 0x1_0000, 7];
/// Index of the priorities in the map of the attacker's programs.
pub(crate) const PRIORITIES_AT: u32 = 16;
/// Bytes of the largest frame that fits the uplink's MTU.
pub(crate) const MAX_FRAME: usize = ETHERNET + 1500;

/// A send path from a container to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendPath {
    /// A packet socket, through or past the qdisc.
    Packet { bypass: bool },
    /// A packet socket with virtio headers: segmentation and checksum are left to the device.
    Virtio { bypass: bool },
    /// The same at the loopback device.
    Loopback,
    /// A program that redirects frames into the host's end of the pair, or out of `eth0`, without
    /// segmentation.
    Program,
    /// The same behind a veth pair of the container's own.
    Pair,
    /// A raw socket with IP headers of the sender (`IP_HDRINCL`), routed by the container.
    Headers,
    /// UDP datagrams of the container's own stack.
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

/// Open sockets of all send paths.
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
    /// Opens them in a container, and creates the interfaces that they need.
    pub(crate) fn open(sandbox: &Sandbox, netns: Netns<'_>) -> Self {
        sandbox.sh(
            netns,
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
            // Only without TCX; portmap may have created the qdisc already.
            let _ = tc::qdisc_add_clsact(interface);
            program.attach(interface, at).expect("root may");
        };
        sandbox.inside(Netns::Host, || {
            attach(&mut programs, "operators_witness", "uplink", TcAttachType::Egress);
        });
        sandbox.inside(netns, || {
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

    /// Returns the number of packets that have left by the uplink with a mark.
    pub(crate) fn marked(&self) -> u32 {
        let words = self.programs.map("hostile_words").expect("it is there");
        Array::<_, u32>::try_from(words).and_then(|words| words.get(&MARKED, 0)).expect("a word")
    }

    /// Sends a frame; fails if the kernel refuses it.
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

/// Disables the offloads of an interface of the calling thread's namespace, so that the kernel segments and
/// computes checksums before transmission.
pub(crate) fn without_offloads(interface: &str) {
    // Not a feature that can be changed.
    let is_meant = |name: &str| name.starts_with("tx-") && !name.starts_with("tx-lockless");
    offloads::disable(interface, is_meant).expect("it is there");
}
