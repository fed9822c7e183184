//! The filters of Apache Mesos' `network/port_mapping` isolator at the ingress of the host's public
//! interface.
//!
//! Mesos installs one u32 filter for each power-of-two range of ports, all in one list that the kernel walks
//! from its start: five keys (a header without options, the MAC address in two parts, the host's address, the
//! masked port), priority 770, and a redirect to the container's veth. Filters with priorities 258 and 514
//! precede them, which copy ARP and ICMP to the containers. A UDP packet is matched against the ICMP filter
//! only.
//!
//! This benchmark differs in three points, none of which makes the list slower. Mesos installs filters one by
//! one through netlink and reads all of them back before each; `tc -batch` installs the same filters in less
//! time. Mesos has handles for 2,048 filters, so it could not install the longest list here. Mesos copies ARP
//! with a `basic` filter, which some kernels lack; a u32 filter without a condition replaces it, with at most
//! 32 copies, the kernel's limit for a list of actions.

use std::{
    fmt::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::classifier::{
    iproute2, layout,
    world::{HOST, HOST_MAC, host_veth},
};

/// Filters at one priority for which Mesos has handles (0x800 to 0xfff).
pub(crate) const MOST_FILTERS: usize = 2_048;
/// Limit of actions of one filter (`TCA_ACT_MAX_PRIO`).
const MOST_COPIES: u16 = 32;

/// Installs the list for the first `containers` containers.
pub(crate) fn install(interface: &str, containers: u16) -> Result<()> {
    iproute2::batch("tc", &commands(interface, containers))
        .with_context(|| format!("cannot install the filters of {interface}"))
}

fn commands(interface: &str, containers: u16) -> String {
    let [m0, m1, m2, m3, m4, m5] = HOST_MAC;
    let copies: String = layout::slots(containers.min(MOST_COPIES)).fold(String::new(), |mut text, slot| {
        let _ = write!(text, " action mirred egress mirror dev {}", host_veth(slot));
        text
    });
    let filter = format!("filter add dev {interface} parent ffff: protocol");
    let mut text = format!(
        "qdisc add dev {interface} ingress\n\
         {filter} arp prio 258 u32 match u32 0 0{copies}\n\
         {filter} ip prio 514 u32 match u32 0x00010000 0x00ff0000 at 8 match ip dst {HOST}/32{copies}\n"
    );
    for slot in layout::slots(containers) {
        for range in layout::ranges(slot) {
            let first = range.first();
            let mask = !(range.last() - first);
            let _ = writeln!(
                text,
                "{filter} ip prio 770 u32 match u32 0x05000000 0x0f000000 at 0 \
                 match u32 0x0000{m0:02x}{m1:02x} 0x0000ffff at -16 \
                 match u32 0x{m2:02x}{m3:02x}{m4:02x}{m5:02x} 0xffffffff at -12 \
                 match ip dst {HOST}/32 match u32 {first:#010x} {mask:#010x} at 20 \
                 action mirred egress redirect dev {}",
                host_veth(slot)
            );
        }
    }
    text
}

/// Returns the number of packets that the actions of an interface's filters have handled.
pub(crate) fn hits(interface: &str) -> Result<u64> {
    let output = Command::new("tc")
        .args(["-s", "filter", "show", "dev", interface, "ingress"])
        .stdin(Stdio::null())
        .output()
        .context("cannot run tc, which is part of iproute2")?;
    ensure!(
        output.status.success(),
        "tc does not show the filters of {interface}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let mut packets = 0;
    for line in text.lines().filter_map(|line| line.trim_start().strip_prefix("Sent ")) {
        let count = line.split(' ').nth(2).and_then(|word| word.parse::<u64>().ok());
        packets += count.with_context(|| format!("tc prints \"Sent {line}\": expected bytes and packets"))?;
    }
    Ok(packets)
}
