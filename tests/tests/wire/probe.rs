//! Probes: hostile frames with their metadata (marks, offloads, instructions to the attacker's programs).

use std::fmt::{self, Write as _};

use portmap_tests::{
    random::Random,
    sandbox::{HOST, HOST6, OUTSIDE, OUTSIDE6},
};

use crate::{
    frames::{self, Frame, FrameSpec, OWN, Theme},
    headers::checksum,
    orders::{CLONE_TO_ETH0, DECOY, FIXED, HEAD, ORDER, POP, PUSH, TAG, TO_ETH0, TO_PEER, WRAP},
    parser::{self, Datagram, ETHERNET, FragmentPosition, TCP},
    send_path::{MARKS, MAX_FRAME, PRIORITIES, PRIORITIES_AT, SendPath},
    sockets::VIRTIO,
};

/// MAC address of the container's loopback device, which identifies the sender.
const LO_MAC: [u8; 6] = [2, b'P', b'M', 0, 0, 1];
/// A frame with its metadata.
#[derive(Clone)]
pub(crate) struct Probe {
    pub(crate) number: u32,
    pub(crate) path: SendPath,
    pub(crate) virtio: Option<[u8; VIRTIO]>,
    pub(crate) frame: Vec<u8>,
    /// Protocol of the socket address; 0 if the kernel must derive it.
    pub(crate) protocol: u16,
    pub(crate) mark: u32,
    pub(crate) priority: u32,
    /// Segment size of a UDP GSO send, in bytes.
    pub(crate) segment: u16,
    /// The datagram of which the frame is the first fragment, if its port is owned.
    pub(crate) starts_datagram: Option<Datagram>,
    /// How often the host must count the frame: lower bound, and upper bound if known.
    pub(crate) min_count: u64,
    pub(crate) max_count: Option<u64>,
}

/// More bytes than the program adds to a frame.
const MAX_ROOM: u64 = 8 * 256;

impl Probe {
    /// Generates a frame of a batch for a send path.
    pub(crate) fn any(
        random: &mut Random,
        theme: Theme,
        path: SendPath,
        index: u16,
        number: u32,
        ephemeral: (u16, u16),
    ) -> Self {
        let is_gso = path.has_virtio()
            && match theme {
                Theme::Any => random.once_in(2),
                Theme::Fragments => index > 0,
                _ => true,
            };
        let spec = FrameSpec { theme, is_large: is_gso && (theme != Theme::Any || !random.once_in(4)) };
        let frame = frames::any(random, spec, index, number, ephemeral);
        let is_short = frame.bytes.len() < ETHERNET + 10;
        let is_odd = theme == Theme::Any && random.once_in(20);
        let mut probe = Self {
            number,
            path,
            virtio: path.has_virtio().then(|| virtio(random, &frame, theme, is_gso)),
            protocol: if is_odd { random.pick(&[0x0800, 0x86dd, 0x0806, 0x8100]) } else { 0 },
            mark: random.pick(&MARKS),
            priority: random.pick(&PRIORITIES),
            segment: if random.once_in(2) { random.pick(&[1, 8, 100, 1000, 1472]) } else { 0 },
            starts_datagram: first_fragment(&frame, ephemeral),
            frame: frame.bytes.clone(),
            min_count: 0,
            max_count: None,
        };
        if path == SendPath::Loopback && !is_short && !random.once_in(8) {
            probe.frame[..6].copy_from_slice(&LO_MAC);
            probe.frame[6..12].copy_from_slice(&LO_MAC);
        }
        let fits = !is_gso && probe.frame.len() <= MAX_FRAME;
        match path {
            SendPath::Packet { .. } | SendPath::Virtio { .. } if fits && !is_short => {
                (probe.min_count, probe.max_count) = (1, Some(1));
            }
            SendPath::Program | SendPath::Pair => {
                let ways = [TO_PEER, TO_PEER, TO_PEER, TO_PEER, TO_ETH0, CLONE_TO_ETH0, 3];
                let way = if theme == Theme::Any { random.pick(&ways) } else { TO_PEER };
                probe.instruct(random, &frame, theme, way);
                let is_sure = !is_short && (path == SendPath::Program || !is_gso);
                match way {
                    TO_PEER if is_sure => {
                        (probe.min_count, probe.max_count) = (1, Some(probe.max_segments()));
                    }
                    CLONE_TO_ETH0 if is_sure => probe.min_count = 1,
                    _ => {}
                }
            }
            _ => {}
        }
        probe
    }

    /// Returns whether the frame has segmentation offload.
    pub(crate) fn is_gso(&self) -> bool {
        self.virtio.is_some_and(|header| header[1] != 0) || self.path == SendPath::Datagrams
    }

    /// Returns an upper bound of the number of packets on the wire, also if the program adds headers.
    fn max_segments(&self) -> u64 {
        let gso_size = match self.virtio {
            Some([_, kind, _, _, low, high, ..]) if kind != 0 => u16::from_le_bytes([low, high]),
            _ => 0,
        };
        if gso_size == 0 { 1 } else { (self.frame.len() as u64 + MAX_ROOM).div_ceil(gso_size.into()) }
    }

    /// Creates a well-formed frame for the same send path.
    pub(crate) fn well_formed(path: SendPath, number: u32) -> Self {
        let mut frame = frames::well_formed(number);
        let path = if matches!(path, SendPath::Program | SendPath::Pair) {
            frame[..6].copy_from_slice(&[ORDER, TO_PEER, 0, 0, 0, PRIORITIES_AT.to_le_bytes()[0]]);
            path
        } else {
            SendPath::Packet { bypass: false }
        };
        Self {
            number,
            path,
            virtio: path.has_virtio().then_some([0; VIRTIO]),
            frame,
            protocol: 0,
            mark: 0,
            priority: 0,
            segment: 0,
            starts_datagram: None,
            min_count: 1,
            max_count: Some(1),
        }
    }

    /// Writes an instruction for the attacker's program into the frame.
    fn instruct(&mut self, random: &mut Random, frame: &Frame, theme: Theme, way: u8) {
        let (mut what, mut amount) = (way, 0);
        let decoy = decoy(frame.is_ipv6);
        let which = match theme {
            Theme::Any => random.below(10),
            Theme::MovedHeaders => random.below(3),
            _ => 9,
        };
        // The container's own kernel must not segment a frame with moved headers: Linux 6.12.117
        // then reads outside the packet (`__dev_queue_xmit`) and crashes before the frame reaches
        // the host.
        let may_move = way == TO_PEER || !self.is_gso();
        match which {
            0..2 if !may_move => {}
            0..2 => {
                // Front headers that the program removes: the kernel has parsed those, not
                // the ones behind.
                let room = 8 * random.pick(&[4_usize, 8, 64, 128, 180]);
                (what, amount) =
                    (way | POP | random.pick(&[0, FIXED]), u8::try_from(room / 8).expect("small"));
                let front = decoy.into_iter().chain(std::iter::repeat(0)).take(room);
                self.frame.splice(ETHERNET..ETHERNET, front);
            }
            2 => {
                // Headers that the kernel has parsed; the program pushes the real ones in
                // front of them.
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

impl fmt::Display for Probe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 512;
        let Self { number, path, virtio, frame, protocol, mark, priority, segment, .. } = self;
        write!(
            formatter,
            "frame {number} by {path:?}, protocol {protocol:#x}, mark {mark:#x}, \
             priority {priority:#x}, segment {segment}, virtio header {}, {} bytes: {}{}",
            virtio.as_ref().map_or("none".to_owned(), |header| hex(header)),
            frame.len(),
            hex(&frame[..frame.len().min(SHOWN)]),
            if frame.len() > SHOWN { "…" } else { "" },
        )
    }
}

/// Returns the datagram of which a frame is the first fragment, if its port is owned.
fn first_fragment(frame: &Frame, ephemeral: (u16, u16)) -> Option<Datagram> {
    let rest = frame.bytes.get(ETHERNET..)?;
    let packet = parser::packet(rest, frame.is_ipv6, false).ok()?;
    let is_own = |port: u16| OWN.contains(&port) || (ephemeral.0..=ephemeral.1).contains(&port);
    let may_pass = !packet.has_ports() || packet.ports().is_some_and(|(from, _)| is_own(from));
    (packet.part == FragmentPosition::First && may_pass).then(|| packet.datagram())
}

/// Formats bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns IP and transport headers that a parser may mistake for the frame's own.
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
        let sum = checksum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum);
        bytes[32] = 5 << 4;
    }
    bytes
}

/// Returns a `struct virtio_net_hdr` that matches the frame; with the theme `Any`, only in most cases.
fn virtio(random: &mut Random, frame: &Frame, theme: Theme, is_gso: bool) -> [u8; VIRTIO] {
    const NEEDS_CHECKSUM: u8 = 1;
    let is_any = theme == Theme::Any;
    let is_tcp = frame.protocol == TCP;
    let start = match theme {
        // Of the headers in front.
        Theme::MovedHeaders => ETHERNET + if frame.is_ipv6 { 40 } else { 20 },
        _ => frame.transport,
    };
    let start = u16::try_from(start).unwrap_or(0);
    let header = if is_tcp { 20 } else { 8 };
    let suits = match (is_tcp, frame.is_ipv6) {
        (true, false) => 1,
        (true, true) => 4,
        (false, _) if theme == Theme::Fragments => 3,
        (false, _) if theme == Theme::TinySegments => 5,
        (false, _) => random.pick(&[3, 5]),
    };
    let kind = if is_any && random.once_in(6) { random.pick(&[1, 3, 4, 5, 0x81, 0x84, 7]) } else { suits };
    let kind = if is_any && random.once_in(8) { kind | 0x80 } else { kind };
    let size = match theme {
        _ if !is_gso => 0,
        Theme::Any => random.pick(&[
            1, 2, 8, 72, 100, 536, 536, 1000, 1000, 1200, 1400, 1400, 1448, 1460, 1480, 1500, 2800, 9000,
            65535,
        ]),
        Theme::Fragments => random.pick(&[8, 536, 1000, 1400]),
        Theme::MovedHeaders => random.pick(&[1000, 1400, 1460, 1500, 2000, 2800]),
        Theme::TinySegments => random.pick(&[1, 2, 8]),
        Theme::ManyHeaders => random.pick(&[72, 100, 536]),
    };
    let flags = match theme {
        Theme::Any if random.once_in(5) => random.pick(&[0, 2]),
        // No stack leaves the checksum of a first fragment to the device, and a dropped one does
        // not admit the others.
        Theme::Fragments if !is_gso => 0,
        _ => NEEDS_CHECKSUM,
    };
    let mut any =
        |right: u16, wrong: &[u16]| if is_any && random.once_in(4) { random.pick(wrong) } else { right };
    let length = any(start + header, &[0, 14, 34, 60, 1000]);
    let from = any(start, &[0, 14, 34, 35, 54, 62, 74, 90, 134]);
    let at = any(if is_tcp { 16 } else { 6 }, &[0, 1, 2, 4, 8, 12, 22, 30]);
    let mut bytes = [0; VIRTIO];
    bytes[..2].copy_from_slice(&[flags, if is_gso { kind } else { 0 }]);
    for (index, field) in [length, size, from, at].into_iter().enumerate() {
        bytes[2 + 2 * index..][..2].copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}
