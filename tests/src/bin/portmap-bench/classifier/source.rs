//! The benchmark's own BPF object: the source of packets, and the programs that are the least to compare with.
//!
//! Packets are XDP live frames (`BPF_PROG_TEST_RUN`): the kernel itself makes them, on this CPU, and receives them
//! on any interface, batch by batch as a driver does. No driver and no sender take part, so that time per packet
//! is nothing but the receive path. The time is taken where a batch of frames begins, so that the kernel's
//! preparations, which wait for other CPUs, are not part of it, and one batch that an interrupt or another task
//! made longer is only one of many.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf,
    maps::Array,
    programs::{SchedClassifier, TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use portmap_common::tables::PortEntry;
use portmap_tests::frames::Frame;

use crate::classifier::world::{HOST, HOST_MAC};

/// Length of the sequence of packets in the object's map.
pub(crate) const SEQUENCE: usize = 32_768;
/// Frames that the kernel receives at a time, as many as a driver's poll takes from its ring.
pub(crate) const BATCH: u32 = 64;
/// Batches whose times the object's map keeps.
const BATCHES: u16 = 16_384;
/// Most packets whose times are kept.
pub(crate) const MOST_PACKETS: u32 = BATCHES as u32 * BATCH;

/// Name of the program that does nothing.
pub(crate) const EMPTY: &str = "bench_empty";
/// Name of the program that delivers without a verdict.
pub(crate) const DELIVER: &str = "bench_deliver";

/// Who sends.
pub(crate) const SENDER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 2), 40_000);

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("BPF_OBJECTS"), "/packet-source"));

/// The loaded object.
pub(crate) struct Source {
    object: Ebpf,
    frame: Vec<u8>,
}

impl Source {
    /// Loads the programs.
    pub(crate) fn load() -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "built without a BPF toolchain: run `cargo xtask setup`, then `cargo xtask bench`"
        );
        let mut object = Ebpf::load(OBJECT).context("cannot load the BPF object of the benchmarks")?;
        let source: &mut Xdp = object.program_mut("bench_source").context("bench_source")?.try_into()?;
        source.load().context("the kernel refuses bench_source")?;
        for name in [EMPTY, DELIVER] {
            let program: &mut SchedClassifier = object.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        Ok(Self { object, frame: dead_end_frame() })
    }

    /// A program for a tc hook.
    pub(crate) fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier> {
        Ok(self.object.program_mut(name).context(name)?.try_into()?)
    }

    /// Sets the packets' destination ports, and who owns each of them.
    pub(crate) fn set_ports(&mut self, ports: &[u16], table: &[PortEntry]) -> Result<()> {
        let packets: Vec<[u16; 2]> =
            ports.iter().map(|port| [port.to_be(), table[usize::from(*port)].slot]).collect();
        let Ok(packets) = <[[u16; 2]; SEQUENCE]>::try_from(packets) else {
            bail!("{} ports: expected {SEQUENCE}", ports.len());
        };
        let map = self.object.map_mut("bench_packets").context("bench_packets")?;
        Array::<_, [[u16; 2]; SEQUENCE]>::try_from(map)?.set(0, packets, 0).context("cannot set the packets")
    }

    /// Has the kernel receive packets on an interface, from this place of the sequence on. Both numbers are of
    /// whole batches.
    pub(crate) fn send(&mut self, ifindex: u32, place: u32, packets: u32) -> Result<()> {
        debug_assert!(place.is_multiple_of(BATCH) && packets.is_multiple_of(BATCH));
        let map = self.object.map_mut("bench_cursor").context("bench_cursor")?;
        Array::<_, u32>::try_from(map)?.set(0, place, 0).context("cannot set the place in the sequence")?;
        let program: &Xdp = self.object.program("bench_source").context("bench_source")?.try_into()?;
        let context = context(u32::try_from(self.frame.len()).context("a short frame")?, ifindex);
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&context),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        program
            .test_run(options)
            .with_context(|| format!("the kernel makes no live frames for interface {ifindex}"))?;
        Ok(())
    }

    /// Nanoseconds per packet of the batches that were just sent, without the first ones, which bring code and
    /// data into the caches.
    pub(crate) fn times(&self, place: u32, packets: u32) -> Result<Vec<f64>> {
        let map = self.object.map("bench_times").context("bench_times")?;
        let times = Array::<_, [u64; BATCHES as usize]>::try_from(map)?
            .get(&0, 0)
            .context("cannot read the batches' times")?;
        let (first, count) = (place / BATCH, packets / BATCH);
        let begun: Vec<u64> =
            (first + count / 8..first + count).map(|batch| times[batch as usize % times.len()]).collect();
        Ok(begun.windows(2).map(|pair| per_packet(pair[1] - pair[0])).collect())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a batch takes far less than 2^52 nanoseconds")]
fn per_packet(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / f64::from(BATCH)
}

/// `xdp_md` (`linux/bpf.h`): the frame starts at 0 and ends at its length, the metadata is none, the interface is
/// given; queue and egress interface stay 0.
fn context(length: u32, ifindex: u32) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&length.to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// A UDP packet for the host that ends at the first thing which the stack behind the hook checks and no classifier
/// looks at: the checksum of its IPv4 header. That is the same short way for all variants, and the kernel counts
/// it, separately for each network namespace.
fn dead_end_frame() -> Vec<u8> {
    const HEADER_CHECKSUM: usize = 14 + 10;
    let mut frame = Frame::udp(SENDER, (HOST, 0));
    frame.to_mac = HOST_MAC;
    // The shortest Ethernet frame has 60 bytes.
    frame.payload = vec![0; 60 - 14 - 20 - 8];
    let mut bytes = frame.bytes();
    bytes[HEADER_CHECKSUM] ^= 0xff;
    bytes
}
