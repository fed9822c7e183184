//! Programs from the distribution.

use std::{fs, path::Path};

use anyhow::Result;

use super::{Report, apt};
use crate::process;

/// A program and its Debian package.
pub(super) struct Tool {
    program: &'static str,
    package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// Programs that the demonstration, the benchmarks and the tests run.
pub(super) const RUN: [Tool; 33] = [
    tool("arping", "iputils-arping"),
    tool("bpftool", "bpftool"),
    // The file system of the containers in tests.
    tool(BUSYBOX, "busybox-static"),
    tool("conntrack", "conntrack"),
    tool("curl", "curl"),
    tool("dig", "bind9-dnsutils"),
    tool("dnsmasq", "dnsmasq-base"),
    tool("ethtool", "ethtool"),
    tool("host", "bind9-host"),
    tool("ip", "iproute2"),
    tool("iperf3", "iperf3"),
    tool("iptables", "iptables"),
    tool("jq", "jq"),
    tool("kill", "procps"),
    tool("nc", "netcat-openbsd"),
    tool("nft", "nftables"),
    tool("nsenter", "util-linux"),
    tool("nstat", "iproute2"),
    tool("pgrep", "procps"),
    tool("ping", "iputils-ping"),
    tool("python3", "python3"),
    // Its parser of OpenMetrics refuses what Prometheus tolerates.
    tool("/usr/lib/python3/dist-packages/prometheus_client/__init__.py", "python3-prometheus-client"),
    tool("scapy3", "python3-scapy"),
    tool("setpriv", "util-linux"),
    tool("setsid", "util-linux"),
    tool("ss", "iproute2"),
    tool("strace", "strace"),
    tool("tc", "iproute2"),
    tool("tcpdump", "tcpdump"),
    tool("tracepath", "iputils-tracepath"),
    tool("traceroute", "traceroute"),
    tool("unshare", "util-linux"),
    tool("wg", "wireguard-tools"),
];

/// Programs that boot another kernel.
pub(super) const VM: [Tool; 7] = [
    tool(BUSYBOX, "busybox-static"),
    tool("cpio", "cpio"),
    tool("depmod", "kmod"),
    tool("modprobe", "kmod"),
    tool("qemu-system-x86_64", "qemu-system-x86"),
    tool("setpriv", "util-linux"),
    tool("xz", "xz-utils"),
];

/// Programs that the benchmark of rate limits compares portmap with.
pub(super) const PEERS: [Tool; 1] = [tool("/usr/lib/cni/bandwidth", "containernetworking-plugins")];

/// Programs that build libFuzzer.
pub(super) const FUZZ: [Tool; 1] = [tool("c++", "g++")];

/// The program that a virtual machine runs before it has any library.
const BUSYBOX: &str = "busybox";

/// Ensures that all the tools are installed.
pub(super) fn ensure(tools: &[Tool], report: Report) -> Result<()> {
    let mut packages = Vec::new();
    for Tool { program, package } in tools {
        match process::find(program) {
            Some(file) if *program != BUSYBOX || is_static(&file) => report.found(file.display()),
            Some(_) | None => packages.push((*package).to_owned()),
        }
    }
    packages.sort();
    packages.dedup();
    apt::install(&packages, "running programs and tests")
}

/// Returns whether a program is linked statically: it does not name a dynamic loader.
fn is_static(program: &Path) -> bool {
    const LOADERS: [&[u8]; 2] = [b"/ld-linux", b"/ld-musl"];
    fs::read(program).is_ok_and(|content| {
        let head = &content[..content.len().min(4096)];
        !LOADERS.iter().any(|loader| head.windows(loader.len()).any(|window| window == *loader))
    })
}
