//! Time of a program alone, by `BPF_PROG_TEST_RUN`: the kernel runs it repeatedly on one frame.
//!
//! The loop around the program costs as much as a short program, so only the difference to the empty program
//! is meaningful. The kernel does not execute redirects, and all data stays in the L1 cache. The trials on
//! the receive path have neither of these limits.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use portmap_common::{
    names,
    slot::{SLOTS, loopback_mac, veth_ifindex},
    tables::{PORTS, PortEntry},
};
use portmap_tests::frames::{Frame, TCP};

use crate::classifier::{
    hosts::{self, Host},
    layout,
    source::{self, SENDER, Source},
    statistics::Random,
    trials::ATTEMPTS,
    world::{Classifier, HOST, HOST_MAC, HOST6, World},
};
use crate::machine::{Disturbance, Machine};

/// Numbers of owned ports for measurements of the uplink's program.
pub(crate) const OWNED_PORTS: [u16; 4] = [1, 1_024, 16_384, 65_535];
/// Source address of IPv6 packets from outside.
const SENDER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// Frames of a probe, to different ports, with TCP and UDP.
const FRAMES: u16 = 16;
/// Runs on each frame.
const REPEAT: u32 = 10_000;
/// The slot of the measured container, which is the first.
pub(crate) const SLOT: u16 = 1;
/// The slot of a container with a rate limit that never drops a packet.
pub(crate) const LIMITED_SLOT: u16 = 2;

/// Offset in the frame at which the program that only delivers reads the owner.
const OWNER: usize = 14 + 20 + 8;

const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// A program, frames, and the expected return code.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) name: String,
    /// The number of owned ports, for the uplink's program with packets to a container.
    pub(crate) owned_ports: Option<u16>,
    program: Program,
    ifindex: u32,
    frames: Vec<Vec<u8>>,
    code: i32,
    /// The number of owned ports in the table.
    table: u16,
    host: Host,
}

/// The program of a probe.
#[derive(Clone, Copy, Debug)]
enum Program {
    /// A program of the benchmark, by its name.
    Least(&'static str),
    /// A program of portmap, by its name.
    Portmap(&'static str),
}

/// One probe in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) nanoseconds: f64,
    pub(crate) disturbance: Disturbance,
}

/// Place of the empty program among the probes.
pub(crate) const EMPTY: usize = 0;
/// Place of its second measurement.
pub(crate) const EMPTY_AGAIN: usize = 1;

/// Returns all probes.
pub(crate) fn probes() -> Vec<Probe> {
    let uplink = Classifier::Portmap.ifindex();
    let inbound = |port: u16| (SENDER, (HOST, port));
    let from_outside = |owned: u16| frames(|number| inbound(spread(owned, number)));
    let probe = |name: &str, program, ifindex, frames, code| Probe {
        name: name.to_owned(),
        owned_ports: None,
        program,
        ifindex,
        frames,
        code,
        table: OWNED_PORTS[2],
        host: Host::Simple,
    };
    let mut probes = vec![
        probe("empty program", Program::Least(source::EMPTY), uplink, from_outside(OWNED_PORTS[2]), NEXT),
        probe(
            "empty program again",
            Program::Least(source::EMPTY),
            uplink,
            from_outside(OWNED_PORTS[2]),
            NEXT,
        ),
    ];
    let mut to_slot = from_outside(OWNED_PORTS[2]);
    for frame in &mut to_slot {
        frame[OWNER..OWNER + 2].copy_from_slice(&SLOT.to_ne_bytes());
    }
    probes.push(probe("delivery only", Program::Least(source::DELIVER), uplink, to_slot, REDIRECT));
    for owned in OWNED_PORTS {
        let frames = from_outside(owned);
        let name = format!("uplink, to a container, {owned} owned ports");
        let probe = probe(&name, Program::Portmap(names::PROG_UPLINK_INGRESS), uplink, frames, REDIRECT);
        probes.push(Probe { owned_ports: Some(owned), table: owned, ..probe });
    }
    let host_ports = frames(|number| inbound(60_000 + number));
    probes.push(probe(
        "uplink, to the host",
        Program::Portmap(names::PROG_UPLINK_INGRESS),
        uplink,
        host_ports,
        NEXT,
    ));

    let over_ipv6 = |name: &str, owned: u16, code: i32| {
        let frames = from_outside(owned).iter().map(|frame| as_ipv6(frame)).collect();
        probe(name, Program::Portmap(names::PROG_UPLINK_INGRESS), uplink, frames, code)
    };
    let with_addresses = format!("uplink, to a container, {} further addresses", hosts::ADDRESSES);
    let frames_to = from_outside(OWNED_PORTS[2]);
    let by_primary =
        probe(&with_addresses, Program::Portmap(names::PROG_UPLINK_INGRESS), uplink, frames_to, REDIRECT);
    probes.push(Probe { host: Host::Addresses, ..by_primary });
    let frames_to = frames(|number| (SENDER, (hosts::further_address(), spread(OWNED_PORTS[2], number))));
    let name = "by a further address: uplink, to a container";
    let by_further = probe(name, Program::Portmap(names::PROG_UPLINK_INGRESS), uplink, frames_to, REDIRECT);
    probes.push(Probe { host: Host::Addresses, ..by_further });
    probes.push(over_ipv6("uplink, IPv6, to a container", OWNED_PORTS[2], REDIRECT));

    let own = own_port(SLOT);
    let other = own + 1;
    let veth = veth_ifindex(SLOT);
    let outbound = |name: &str, from_port: u16, to: (Ipv4Addr, u16), code: i32| {
        let frames = frames(|_| ((HOST, from_port), to));
        probe(name, Program::Portmap(names::PROG_VETH_INGRESS), veth, frames, code)
    };
    let far = (Ipv4Addr::new(192, 0, 2, 1), 443);
    probes.push(outbound("host veth, to outside", own, far, REDIRECT));
    let limited = outbound("host veth, to outside, with a limit", own_port(LIMITED_SLOT), far, REDIRECT);
    probes.push(Probe { ifindex: veth_ifindex(LIMITED_SLOT), ..limited });
    let by_fib = format!("host veth, to outside, by the FIB of {} routes", hosts::ROUTES);
    probes.push(Probe { host: Host::Routes, ..outbound(&by_fib, own, far, REDIRECT) });
    probes.push(outbound("host veth, to a container", own, (HOST, other), REDIRECT));
    probes.push(outbound("host veth, to the host", own, (HOST, 60_000), REDIRECT));
    probes.push(outbound("host veth, foreign source port", other, (HOST, other), SHOT));
    let lo = |name: &str, to_port: u16, code: i32| {
        let frames = frames(|_| ((HOST, 60_000), (HOST, to_port)));
        probe(name, Program::Portmap(names::PROG_LO_INGRESS), 1, frames, code)
    };
    probes.push(lo("host lo, to a container", own, REDIRECT));
    probes.push(lo("host lo, to the host", 60_001, NEXT));
    let inside = |name: &str, to_port: u16, code: i32| {
        let mut frames = frames(|_| ((HOST, own), (HOST, to_port)));
        for frame in &mut frames {
            frame[6..12].copy_from_slice(&loopback_mac(SLOT));
        }
        probe(name, Program::Portmap(names::PROG_CONTAINER_LO), 1, frames, code)
    };
    probes.push(inside("container lo, to another container", other, REDIRECT));
    probes.push(inside("container lo, to itself", own, NEXT));
    probes
}

/// Returns a port that the container in a slot owns in a [`table`] of all ports.
fn own_port(slot: u16) -> u16 {
    (1..=u16::MAX).find(|port| owner(*port) == slot).expect("every slot owns a port")
}

/// Returns the owner of a port in [`table`]: adjacent ports belong to different containers.
fn owner(port: u16) -> u16 {
    1 + port % (SLOTS - 1)
}

/// Returns the table in which containers own ports 1 to `owned`.
fn table(owned: u16) -> Vec<PortEntry> {
    let mut table = vec![PortEntry::default(); PORTS];
    for port in 1..=owned {
        table[usize::from(port)] = layout::entry(owner(port));
    }
    table
}

/// Returns the destination port of a frame: the frames spread over all owned ports.
fn spread(owned: u16, number: u16) -> u16 {
    let place = u32::from(number) * u32::from(owned - 1) / u32::from(FRAMES - 1);
    1 + u16::try_from(place).expect("less than the number of ports")
}

/// Returns frames with these addresses, source first, alternating TCP and UDP.
fn frames(addresses: impl Fn(u16) -> ((Ipv4Addr, u16), (Ipv4Addr, u16))) -> Vec<Vec<u8>> {
    (0..FRAMES)
        .map(|number| {
            let (from, to) = addresses(number);
            let mut frame = Frame::udp(from, to);
            frame.to_mac = HOST_MAC;
            frame.from_mac = HOST_MAC;
            frame.payload = vec![0; 18];
            if number % 2 == 0 { frame } else { frame.protocol(TCP) }.bytes()
        })
        .collect()
}

/// Converts an IPv4 frame into an IPv6 frame to the host's address.
fn as_ipv6(frame: &[u8]) -> Vec<u8> {
    const IPV4_HEADER: usize = 20;
    let (ethernet, packet) = frame.split_at(14);
    let payload = &packet[IPV4_HEADER..];
    let length = u16::try_from(payload.len()).expect("a short packet");
    let mut bytes = ethernet[..12].to_vec();
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    bytes.extend(length.to_be_bytes());
    // Next header and hop limit.
    bytes.extend([packet[9], 64]);
    bytes.extend(SENDER6.octets());
    bytes.extend(HOST6.octets());
    bytes.extend(payload);
    bytes
}

/// Measures all probes in every round, in random order. The result is by round, then by probe.
pub(crate) fn run(
    (world, own): (&World, &mut Source),
    machine: &Machine,
    probes: &[Probe],
    rounds: usize,
    random: &mut Random,
) -> Result<Vec<Vec<Run>>> {
    let pinned = |name| SchedClassifier::from_pin(world.pins.program(name));
    let programs = names::PROGRAMS.map(|name| (name, pinned(name)));
    let mut order: Vec<usize> = (0..probes.len()).collect();
    let mut measured = Vec::new();
    for _ in 0..rounds {
        random.shuffle(&mut order);
        let nothing = Run { nanoseconds: 0.0, disturbance: Disturbance { steal: 0, switches: 0 } };
        let mut round = vec![nothing; probes.len()];
        for place in &order {
            let probe = &probes[*place];
            let program = match probe.program {
                Program::Least(name) => &*own.classifier(name)?,
                Program::Portmap(wanted) => {
                    let found = programs.iter().find(|(name, _)| *name == wanted);
                    let (_, program) = found.context("portmap pins all its programs")?;
                    program.as_ref().map_err(|error| anyhow::anyhow!("cannot open {wanted}: {error}"))?
                }
            };
            world.publish(&table(probe.table));
            probe.host.publish(world)?;
            round[*place] = run_probe(program, machine, probe)?;
        }
        measured.push(round);
    }
    Ok(measured)
}

fn run_probe(program: &SchedClassifier, machine: &Machine, probe: &Probe) -> Result<Run> {
    let context = context(probe.ifindex);
    let run = |frame: &[u8], repeat| -> Result<()> {
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).with_context(|| format!("cannot run {}", probe.name))?;
        let code = result.return_value.cast_signed();
        ensure!(code == probe.code, "{}: the program returns {code}, expected {}", probe.name, probe.code);
        Ok(())
    };
    probe.frames.iter().try_for_each(|frame| run(frame, REPEAT / 10))?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let before = machine.disturbance()?;
        // The kernel reports whole nanoseconds, which is too coarse.
        let start = Instant::now();
        probe.frames.iter().try_for_each(|frame| run(frame, REPEAT))?;
        let time = start.elapsed();
        let disturbance = machine.disturbance()?.since(before);
        if disturbance.is_none() || attempts == ATTEMPTS {
            let runs = f64::from(FRAMES) * f64::from(REPEAT);
            return Ok(Run { nanoseconds: time.as_secs_f64() * 1e9 / runs, disturbance });
        }
    }
}

/// Returns the time of so few runs of portmap's program of a probe that the log of verdicts has them all, in
/// nanoseconds per run.
#[cfg(feature = "datapath-log")]
pub(crate) fn mean_time(world: &World, probe: &Probe, runs: u32) -> Result<f64> {
    let Program::Portmap(name) = probe.program else { anyhow::bail!("{} has another program", probe.name) };
    let program = SchedClassifier::from_pin(world.pins.program(name))?;
    world.publish(&table(probe.table));
    mean_time_of(&program, probe, runs)
}

/// Returns the time of a program on the first frame of a probe, in nanoseconds per run.
#[cfg(feature = "datapath-log")]
pub(crate) fn mean_time_of(program: &SchedClassifier, probe: &Probe, runs: u32) -> Result<f64> {
    let (frame, context) = (&probe.frames[0], context(probe.ifindex));
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        repeat: runs,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).with_context(|| format!("cannot run {}", probe.name))?;
    // The kernel reports the mean.
    Ok(result.duration.as_secs_f64() * 1e9)
}

/// Returns the part of `__sk_buff` that a test run reads (`linux/bpf.h`): all fields but `ifindex` are zero.
fn context(ifindex: u32) -> [u8; 192] {
    const OFFSET_OF_IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[OFFSET_OF_IFINDEX..OFFSET_OF_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}
