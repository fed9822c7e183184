//! The ways by which a container's frames come to the host, and what is said about a frame beside its bytes.

use std::{
    fmt::{self, Write as _},
    io,
    net::UdpSocket,
    os::fd::AsRawFd as _,
};

use aya::{
    Ebpf,
    maps::Array,
    programs::{SchedClassifier, TcAttachType, tc},
};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use portmap::kernel::offloads;
use portmap_tests::{
    random::Random,
    sandbox::{HOST, HOST6, OUTSIDE, OUTSIDE6, Place, Sandbox},
};

use crate::{
    frames::{self, FIRST_PORT, Frame, OWN, Taste, Theme},
    orders::{
        CLONE_TO_ETH0, DECOY, FIXED, HEAD, MARKED, ORDER, POP, PUSH, TAG, TO_ETH0, TO_PEER, TUNNEL, WRAP,
    },
    reading::{self, Datagram, ETHERNET, Part, TCP},
    sockets::{Socket, VIRTIO},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("BPF_OBJECTS"), "/hostile"));

/// Marks: that of a program that is only asked, that of what is decided already, and one that means nothing.
const MARKS: [u32; 4] = [0, 0x504d_3f3f, 0x504d_4c4f, 7];
/// Priorities: a class of the operator's, and all classes' own number, which leads past them.
const PRIORITIES: [u32; 4] = [0, 0x1_0020, 0x1_0000, 7];
/// Where they are among the words of the attacker's programs.
const PRIORITIES_AT: u32 = 16;
/// The address of the container's loopback device, by which its program knows whose frames they are.
const LO_MAC: [u8; 6] = [2, b'P', b'M', 0, 0, 1];
/// Bytes of the largest frame that the uplink carries.
pub(crate) const LARGEST: usize = ETHERNET + 1500;

/// A way from a container to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
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

impl Entry {
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

    fn has_virtio(self) -> bool {
        !matches!(self, Self::Packet { .. } | Self::Headers | Self::Datagrams)
    }
}

/// One frame, and all that is said about it.
#[derive(Clone)]
pub(crate) struct Shot {
    pub(crate) number: u32,
    pub(crate) entry: Entry,
    pub(crate) virtio: Option<[u8; VIRTIO]>,
    pub(crate) frame: Vec<u8>,
    /// What the kernel takes it for; 0 if it is to find out.
    pub(crate) protocol: u16,
    pub(crate) mark: u32,
    pub(crate) priority: u32,
    /// Bytes of segments that a socket asks for.
    segment: u16,
    /// The datagram of which it is the first fragment, if it has a port of the container's.
    pub(crate) begins: Option<Datagram>,
    /// How often it is to be counted: at least, and at most if that is known.
    pub(crate) least: u64,
    pub(crate) most: Option<u64>,
}

impl Shot {
    /// A frame of a batch that comes in by `entry`.
    pub(crate) fn any(
        random: &mut Random,
        theme: Theme,
        entry: Entry,
        index: u16,
        number: u32,
        ephemeral: (u16, u16),
    ) -> Self {
        let is_cut = entry.has_virtio()
            && match theme {
                Theme::Any => random.once_in(2),
                Theme::Parts => index > 0,
                _ => true,
            };
        let taste = Taste { theme, is_large: is_cut && (theme != Theme::Any || !random.once_in(4)) };
        let frame = frames::any(random, taste, index, number, ephemeral);
        let is_short = frame.bytes.len() < ETHERNET + 10;
        let is_odd = theme == Theme::Any && random.once_in(20);
        let mut shot = Self {
            number,
            entry,
            virtio: entry.has_virtio().then(|| virtio(random, &frame, theme, is_cut)),
            protocol: if is_odd { random.pick(&[0x0800, 0x86dd, 0x0806, 0x8100]) } else { 0 },
            mark: random.pick(&MARKS),
            priority: random.pick(&PRIORITIES),
            segment: if random.once_in(2) { random.pick(&[1, 8, 100, 1000, 1472]) } else { 0 },
            begins: begun(&frame, ephemeral),
            frame: frame.bytes.clone(),
            least: 0,
            most: None,
        };
        if entry == Entry::Loopback && !is_short && !random.once_in(8) {
            shot.frame[..6].copy_from_slice(&LO_MAC);
            shot.frame[6..12].copy_from_slice(&LO_MAC);
        }
        let fits = !is_cut && shot.frame.len() <= LARGEST;
        match entry {
            Entry::Packet { .. } | Entry::Virtio { .. } if fits && !is_short => {
                (shot.least, shot.most) = (1, Some(1));
            }
            Entry::Program | Entry::Pair => {
                let ways = [TO_PEER, TO_PEER, TO_PEER, TO_PEER, TO_ETH0, CLONE_TO_ETH0, 3];
                let way = if theme == Theme::Any { random.pick(&ways) } else { TO_PEER };
                shot.order(random, &frame, theme, way);
                let is_sure = !is_short && (entry == Entry::Program || !is_cut);
                match way {
                    TO_PEER if is_sure => (shot.least, shot.most) = (1, Some(1)),
                    CLONE_TO_ETH0 if is_sure => shot.least = 1,
                    _ => {}
                }
            }
            _ => {}
        }
        shot
    }

    /// Whether somebody is to cut it.
    pub(crate) fn is_cut(&self) -> bool {
        self.virtio.is_some_and(|header| header[1] != 0) || self.entry == Entry::Datagrams
    }

    /// A frame without fault by the same way.
    pub(crate) fn honest(entry: Entry, number: u32) -> Self {
        let mut frame = frames::honest(number);
        let entry = if matches!(entry, Entry::Program | Entry::Pair) {
            frame[..6].copy_from_slice(&[ORDER, TO_PEER, 0, 0, 0, PRIORITIES_AT.to_le_bytes()[0]]);
            entry
        } else {
            Entry::Packet { bypass: false }
        };
        Self {
            number,
            entry,
            virtio: entry.has_virtio().then_some([0; VIRTIO]),
            frame,
            protocol: 0,
            mark: 0,
            priority: 0,
            segment: 0,
            begins: None,
            least: 1,
            most: Some(1),
        }
    }

    /// Has a program do something to it.
    fn order(&mut self, random: &mut Random, frame: &Frame, theme: Theme, way: u8) {
        let (mut what, mut amount) = (way, 0);
        let decoy = decoy(frame.is_ipv6);
        let which = match theme {
            Theme::Any => random.below(10),
            Theme::Moved => random.below(3),
            _ => 9,
        };
        // What the container's own kernel sends on is not to be cut with headers elsewhere: Linux 6.12.117 reads outside of the
        // packet then (`__dev_queue_xmit`), and ends before the host has seen anything.
        let may_move = way == TO_PEER || !self.is_cut();
        match which {
            0..2 if !may_move => {}
            0..2 => {
                // Headers in front, which are taken off again: what was found out about them is about others then.
                let room = 8 * random.pick(&[4_usize, 8, 64, 128, 180]);
                (what, amount) =
                    (way | POP | random.pick(&[0, FIXED]), u8::try_from(room / 8).expect("small"));
                let front = decoy.into_iter().chain(std::iter::repeat(0)).take(room);
                self.frame.splice(ETHERNET..ETHERNET, front);
            }
            2 => {
                // Headers that the kernel has looked at; the real ones are put in front of them.
                let room = 8 * random.pick(&[1_usize, 16, 64, 160, 180]);
                if let Some(rest) = self.frame.get(room + ETHERNET + DECOY + HEAD..) {
                    (what, amount) = (way | PUSH, u8::try_from(room / 8).expect("small"));
                    let sent = [&self.frame[..ETHERNET], &decoy, &self.frame[..HEAD], rest].concat();
                    self.frame = sent;
                }
            }
            3 if !frame.is_ipv6 => what = way | WRAP | random.pick(&[0, FIXED]),
            4 => (what, amount) = (way | TAG, random.byte()),
            _ => {}
        }
        let mark = u8::try_from(random.below(MARKS.len())).expect("few");
        let priority = u8::try_from(random.below(PRIORITIES.len())).expect("few");
        (self.mark, self.priority) = (MARKS[usize::from(mark)], PRIORITIES[usize::from(priority)]);
        if self.frame.len() >= 6 {
            let priority = PRIORITIES_AT.to_le_bytes()[0] + priority;
            self.frame[..6].copy_from_slice(&[ORDER, what, amount, 0, mark, priority]);
        }
    }
}

impl fmt::Display for Shot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 512;
        let Self { number, entry, virtio, frame, protocol, mark, priority, segment, .. } = self;
        write!(
            formatter,
            "frame {number} by {entry:?}, protocol {protocol:#x}, mark {mark:#x}, priority {priority:#x}, segment {segment}, virtio header {}, {} bytes: {}{}",
            virtio.as_ref().map_or("none".to_owned(), |header| hex(header)),
            frame.len(),
            hex(&frame[..frame.len().min(SHOWN)]),
            if frame.len() > SHOWN { "…" } else { "" },
        )
    }
}

/// The datagram of which a frame is the first fragment, if it has a port of the container's.
fn begun(frame: &Frame, ephemeral: (u16, u16)) -> Option<Datagram> {
    let rest = frame.bytes.get(ETHERNET..)?;
    let packet = reading::packet(rest, frame.is_ipv6, false).ok()?;
    let is_own = |port: u16| OWN.contains(&port) || (ephemeral.0..=ephemeral.1).contains(&port);
    let may_pass = !packet.has_ports() || packet.ports().is_some_and(|(from, _)| is_own(from));
    (packet.part == Part::First && may_pass).then(|| packet.datagram())
}

/// Bytes for people.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An IP header and a transport header, to be found in a frame by whoever looks for some.
fn decoy(is_ipv6: bool) -> [u8; DECOY] {
    let mut bytes = [0; DECOY];
    if is_ipv6 {
        bytes[..8].copy_from_slice(&[0x60, 0, 0, 0, 1, 0, 6, 9]);
        bytes[8..24].copy_from_slice(&HOST6.octets());
        bytes[24..40].copy_from_slice(&OUTSIDE6.octets());
        bytes[52] = 5 << 4;
    } else {
        bytes[..12].copy_from_slice(&[0x45, 0, 1, 0, 0, 0, 0, 0, 9, 6, 0, 0]);
        bytes[12..16].copy_from_slice(&HOST.octets());
        bytes[16..20].copy_from_slice(&OUTSIDE.octets());
        let sum = frames::checksum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum);
        bytes[32] = 5 << 4;
    }
    bytes
}

/// A `struct virtio_net_hdr`: what suits the frame, or mostly that if the theme is everything.
fn virtio(random: &mut Random, frame: &Frame, theme: Theme, is_cut: bool) -> [u8; VIRTIO] {
    const NEEDS_CHECKSUM: u8 = 1;
    let is_any = theme == Theme::Any;
    let is_tcp = frame.protocol == TCP;
    let start = match theme {
        // That of what is put in front of it.
        Theme::Moved => ETHERNET + if frame.is_ipv6 { 40 } else { 20 },
        _ => frame.transport,
    };
    let start = u16::try_from(start).unwrap_or(0);
    let header = if is_tcp { 20 } else { 8 };
    let suits = match (is_tcp, frame.is_ipv6) {
        (true, false) => 1,
        (true, true) => 4,
        (false, _) if theme == Theme::Parts => 3,
        (false, _) if theme == Theme::Tiny => 5,
        (false, _) => random.pick(&[3, 5]),
    };
    let kind = if is_any && random.once_in(6) { random.pick(&[1, 3, 4, 5, 0x81, 0x84, 7]) } else { suits };
    let kind = if is_any && random.once_in(8) { kind | 0x80 } else { kind };
    let size = match theme {
        _ if !is_cut => 0,
        Theme::Any => random.pick(&[
            1, 2, 8, 72, 100, 536, 536, 1000, 1000, 1200, 1400, 1400, 1448, 1460, 1480, 1500, 2800, 9000,
            65535,
        ]),
        Theme::Parts => random.pick(&[8, 536, 1000, 1400]),
        Theme::Moved => random.pick(&[1000, 1400, 1460, 1500, 2000, 2800]),
        Theme::Tiny => random.pick(&[1, 2, 8]),
        Theme::Headers => random.pick(&[72, 100, 536]),
    };
    let flags = match theme {
        Theme::Any if random.once_in(5) => random.pick(&[0, 2]),
        // Of a first fragment nobody leaves it, and one that is dropped speaks for no others.
        Theme::Parts if !is_cut => 0,
        _ => NEEDS_CHECKSUM,
    };
    let mut any =
        |right: u16, wrong: &[u16]| if is_any && random.once_in(4) { random.pick(wrong) } else { right };
    let length = any(start + header, &[0, 14, 34, 60, 1000]);
    let from = any(start, &[0, 14, 34, 35, 54, 62, 74, 90, 134]);
    let at = any(if is_tcp { 16 } else { 6 }, &[0, 1, 2, 4, 8, 12, 22, 30]);
    let mut bytes = [0; VIRTIO];
    bytes[..2].copy_from_slice(&[flags, if is_cut { kind } else { 0 }]);
    for (place, field) in [length, size, from, at].into_iter().enumerate() {
        bytes[2 + 2 * place..][..2].copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// All ways of a container, open.
pub(crate) struct Entries {
    packet: [Socket; 2],
    virtio: [Socket; 2],
    loopback: Socket,
    uncut: Socket,
    pair: Socket,
    headers: [Socket; 2],
    datagrams: [UdpSocket; 2],
    /// The attacker's programs, attached, and the operator's.
    programs: Ebpf,
}

impl Entries {
    /// Opens them in the container at `place`, and makes what they need there.
    pub(crate) fn open(sandbox: &Sandbox, place: Place<'_>) -> Self {
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
        sandbox.inside(Place::Host, || {
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
                uncut: Socket::sender("v1", true, false),
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
    pub(crate) fn send(&self, shot: &Shot) -> io::Result<()> {
        let framed;
        let bytes = match &shot.virtio {
            Some(header) => {
                framed = [header, &shot.frame[..]].concat();
                &framed
            }
            None => &shot.frame,
        };
        let socket = match shot.entry {
            Entry::Packet { bypass } => &self.packet[usize::from(bypass)],
            Entry::Virtio { bypass } => &self.virtio[usize::from(bypass)],
            Entry::Loopback => &self.loopback,
            Entry::Program => &self.uncut,
            Entry::Pair => &self.pair,
            Entry::Headers => {
                let packet = shot.frame.get(ETHERNET..).unwrap_or_default();
                let is_ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
                let socket = &self.headers[usize::from(is_ipv6)];
                socket.mark(shot.mark, shot.priority);
                return if is_ipv6 { socket.send_ipv6(packet) } else { socket.send_ipv4(packet) };
            }
            Entry::Datagrams => return self.send_datagram(shot),
        };
        socket.mark(shot.mark, shot.priority);
        socket.send(bytes, shot.protocol)
    }

    fn send_datagram(&self, shot: &Shot) -> io::Result<()> {
        let is_ipv6 = shot.number.is_multiple_of(3);
        let index = u16::try_from(shot.number % 64).expect("small");
        let (to_outside, to_host) = if is_ipv6 {
            (OUTSIDE6.into(), HOST6.into())
        } else {
            (std::net::IpAddr::from(OUTSIDE), HOST.into())
        };
        let to = match shot.number % 5 {
            0 => (to_host, FIRST_PORT + index),
            1 => (to_host, *frames::OTHERS.start()),
            2 => (to_host, *OWN.start()),
            _ => (to_outside, FIRST_PORT + index),
        };
        let to = SockaddrStorage::from(std::net::SocketAddr::from(to));
        let socket = &self.datagrams[usize::from(is_ipv6)];
        let segments = [ControlMessage::UdpGsoSegments(&shot.segment)];
        let control = if shot.segment == 0 { &[][..] } else { &segments[..] };
        let payload = shot.frame.get(ETHERNET + 48..).unwrap_or_default();
        let parts = [io::IoSlice::new(payload)];
        sendmsg(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    }
}

/// Has the kernel cut and sum up what leaves an interface of the calling thread's namespace, as where a card can do neither.
pub(crate) fn without_offloads(interface: &str) {
    // This one is no feature that can be set.
    let is_meant = |name: &str| name.starts_with("tx-") && !name.starts_with("tx-lockless");
    offloads::disable(interface, is_meant).expect("it is there");
}
