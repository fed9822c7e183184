//! Compares our netlink attributes byte for byte with those of `tc` for the same commands.

use std::process::Command;

use netlink_packet_core::Emitable as _;
use netlink_packet_route::tc::{TcAttribute, TcQdiscFqCodelOption};

use super::{Class, Leaf, fq_codel, htb, leaf_options, queue};

/// `TCA_HTB_CTAB` and `TCA_HTB_RTAB`: tables of transmission times, which `tc` sends for kernels up to 2.6.
const TABLES: [u16; 2] = [3, 4];
/// `TCA_HTB_PARMS`, and the offsets of its fields that describe those tables.
const PARMS: u16 = 1;
const OF_TABLES: [usize; 6] = [0, 4, 5, 12, 16, 17];

/// Offsets of the two burst times, and ticks per microsecond: `tc` rounds to whole microseconds.
const TIMES: [usize; 2] = [24, 28];
const MICROSECOND: u32 = 16;

/// `TCA_OPTIONS` of the last message that `tc` sends, as strace prints it.
fn sent_by_tc(commands: &str) -> Vec<u8> {
    let script = format!("ip link add test0 type veth peer name test1; {commands}");
    let (before, last) = script.rsplit_once("; ").expect("two commands at least");
    let output = Command::new("unshare")
        .args(["--net", "sh", "-ec", &format!("{before}; exec strace -xx -s 65536 -e trace=sendmsg {last}")])
        .output()
        .expect("unshare is part of util-linux");
    let trace = String::from_utf8_lossy(&output.stderr);
    // The kernel need not support the qdisc.
    let options = trace.rsplit_once("nla_type=TCA_OPTIONS}, \"");
    let options = options.unwrap_or_else(|| panic!("{commands} sends no options: {trace}")).1;
    let options = options.split_once('"').expect("a string").0;
    let bytes = options.split("\\x").skip(1).map(|byte| u8::from_str_radix(byte, 16).expect("a byte"));
    bytes.collect()
}

/// Kinds and values of nested attributes.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    while let [l0, l1, k0, k1, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        found.push((u16::from_ne_bytes([k0, k1]), bytes[4..length].to_vec()));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The serialised value of our `TCA_OPTIONS`.
fn ours(attribute: &TcAttribute) -> Vec<u8> {
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes.split_off(4)
}

#[test]
fn qdisc_htb_options_equal_those_of_tc() {
    let tc = sent_by_tc("tc qdisc add dev test0 root handle 1: htb default 1 r2q 10 direct_qlen 0");
    assert_eq!(ours(&htb::qdisc(super::LIMITED.into())), tc);
}

#[test]
fn qdisc_class_options_equal_those_of_tc() {
    // Slow, with a ceil above the rate, odd, and at the limit of the 32-bit fields: 4 GiB/s.
    for (rate, ceil, burst, ceil_burst) in [
        (125_000_u64, 125_000_u64, 3028_u64, 3028_u64),
        (12_500_000, 25_000_000, 25_000, 50_000),
        (12_345_679, 12_345_679, 24_691, 24_691),
        (625_000_000, 625_000_000, 1_250_000, 1_250_000),
        (4_294_967_296, 5_000_000_000, 8_589_934, 10_000_000),
    ] {
        let tc = sent_by_tc(&format!(
            "tc qdisc add dev test0 root handle 1: htb default 1; tc class add dev test0 parent 1: classid 1:1 htb \
             rate {rate}bps ceil {ceil}bps burst {burst} cburst {ceil_burst} quantum 15140"
        ));
        let class = Class { rate, ceil, burst, ceil_burst, quantum: 15_140 };
        let ours = attributes(&ours(&htb::class(&class)));
        let mut theirs = attributes(&tc);
        theirs.retain(|(kind, _)| !TABLES.contains(kind));
        let parameters = |all: &[(u16, Vec<u8>)]| {
            all.iter().find(|(kind, _)| *kind == PARMS).expect("they are always sent").1.clone()
        };
        let (own, mut value) = (parameters(&ours), parameters(&theirs));
        for at in OF_TABLES {
            value[at] = 0;
        }
        for at in TIMES {
            let ticks = |from: &[u8]| u32::from_ne_bytes(*from[at..].first_chunk().expect("four bytes"));
            let lost = ticks(&own) - ticks(&value);
            assert!(lost <= MICROSECOND, "{lost} ticks apart: {class:?}");
            value[at..at + 4].copy_from_slice(&own[at..at + 4]);
        }
        theirs.last_mut().expect("at least one").1 = value;
        assert_eq!(ours, theirs, "{class:?}");
    }
}

#[test]
fn qdisc_leaf_options_equal_those_of_tc() {
    let sent = |options: &str| {
        sent_by_tc(&format!(
            "tc qdisc add dev test0 root handle 1: htb default 1; \
             tc class add dev test0 parent 1: classid 1:1 htb rate 1mbit; \
             tc qdisc add dev test0 parent 1:1 handle 2: {options}"
        ))
    };
    assert_eq!(ours(&leaf_options(Leaf::Bfifo, 10_000_000)), sent("bfifo limit 1000000"));
    for (rate, times) in [
        (1_000_000_000, "target 5ms interval 100ms"),
        (605_600, "target 5ms interval 100ms"),
        (125_000, "target 24224us interval 119224us"),
        (2000, "target 1514ms interval 1609ms"),
    ] {
        assert_eq!(
            ours(&leaf_options(Leaf::FqCodel, rate)),
            sent(&format!("fq_codel {times} ecn")),
            "{rate}"
        );
    }
    let flows = queue::UPLINK_FLOWS;
    assert_eq!(
        ours(&fq_codel([TcQdiscFqCodelOption::Flows(flows)])),
        sent(&format!("fq_codel flows {flows} ecn"))
    );
}
