//! The benchmark's own BPF object: the packet source, and the smallest programs for comparison.
//!
//! Packets are XDP live frames (`BPF_PROG_TEST_RUN`): the kernel creates them on this CPU and receives them
//! on any interface, in batches like a driver. No driver and no sender take part, so the time per packet is
//! that of the receive path. The program takes the time at the start of each batch. This excludes the
//! kernel's preparations, which wait for other CPUs, and an interrupt or another task disturbs only one of
//! many batches.

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
/// Frames of a batch, the same number as in a driver's poll.
pub(crate) const BATCH: u32 = 64;
/// Capacity of the object's map of times, in batches.
const BATCHES: u16 = 16_384;
/// Capacity of the map of times, in packets.
pub(crate) const MOST_PACKETS: u32 = BATCHES as u32 * BATCH;

/// Name of the empty program.
pub(crate) const EMPTY: &str = "bench_empty";
/// Name of the program that delivers without a verdict.
pub(crate) const DELIVER: &str = "bench_deliver";

/// Source address and port of the packets.
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

    /// Returns a program for a tc hook.
    pub(crate) fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier> {
        Ok(self.object.program_mut(name).context(name)?.try_into()?)
    }

    /// Sets the packets' destination ports and their owners.
    pub(crate) fn set_ports(&mut self, ports: &[u16], table: &[PortEntry]) -> Result<()> {
        let packets: Vec<[u16; 2]> =
            ports.iter().map(|port| [port.to_be(), table[usize::from(*port)].slot]).collect();
        let Ok(packets) = <[[u16; 2]; SEQUENCE]>::try_from(packets) else {
            bail!("{} ports: expected {SEQUENCE}", ports.len());
        };
        let map = self.object.map_mut("bench_packets").context("bench_packets")?;
        Array::<_, [[u16; 2]; SEQUENCE]>::try_from(map)?.set(0, packets, 0).context("cannot set the packets")
    }

    /// Makes the kernel receive packets on an interface, starting at a place in the sequence. Both numbers
    /// are multiples of a batch.
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
            .with_context(|| format!("the kernel refuses live frames for interface {ifindex}"))?;
        Ok(())
    }

    /// Returns the nanoseconds per packet of the batches that were just sent, without the first ones, which
    /// warm up the caches.
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

/// Returns an `xdp_md` (`linux/bpf.h`) for a frame without metadata on an interface; queue and egress
/// interface are 0.
fn context(length: u32, ifindex: u32) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&length.to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// Returns a UDP packet for the host with a wrong IPv4 header checksum. No classifier reads the checksum, and
/// the stack checks it first, so the path behind the classifier is short and the same for all variants. The
/// kernel counts these drops in each network namespace.
fn dead_end_frame() -> Vec<u8> {
    const HEADER_CHECKSUM: usize = 14 + 10;
    let mut frame = Frame::udp(SENDER, (HOST, 0));
    frame.to_mac = HOST_MAC;
    // The minimum size of an Ethernet frame is 60 bytes.
    frame.payload = vec![0; 60 - 14 - 20 - 8];
    let mut bytes = frame.bytes();
    bytes[HEADER_CHECKSUM] ^= 0xff;
    bytes
}
