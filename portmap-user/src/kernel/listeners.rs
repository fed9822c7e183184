//! Sockets of the host that already use a port.

use std::collections::{BTreeMap, HashMap};

use procfs::{
    net::{TcpState, UdpState},
    process::{FDTarget, Process},
};

use crate::ports::PortSet;

/// Ports of `managed` that a process in the calling thread's namespace uses, each with a description of who.
///
/// What cannot be read is left out: this is for a warning.
pub fn in_use(managed: &PortSet) -> BTreeMap<u16, String> {
    let mut sockets: BTreeMap<u16, (&str, u64)> = BTreeMap::new();
    let mut found = |protocol, port: u16, inode| {
        if managed.contains(port) {
            sockets.entry(port).or_insert((protocol, inode));
        }
    };
    let tcp = [procfs::net::tcp(), procfs::net::tcp6()];
    for entry in tcp.into_iter().flatten().flatten().filter(|entry| entry.state == TcpState::Listen) {
        found("TCP", entry.local_address.port(), entry.inode);
    }
    let udp = [procfs::net::udp(), procfs::net::udp6()];
    for entry in udp.into_iter().flatten().flatten().filter(|entry| entry.state == UdpState::Close) {
        found("UDP", entry.local_address.port(), entry.inode);
    }
    if sockets.is_empty() {
        return BTreeMap::new();
    }
    let owners = owners();
    let describe = |(port, (protocol, inode)): (u16, (&str, u64))| {
        let owner = owners.get(&inode).map_or("a process that cannot be seen", String::as_str);
        (port, format!("{protocol} port {port} is used by {owner}"))
    };
    sockets.into_iter().map(describe).collect()
}

/// Who holds each socket, by inode.
fn owners() -> HashMap<u64, String> {
    let mut owners = HashMap::new();
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        let Ok(descriptors) = process.fd() else { continue };
        for descriptor in descriptors.flatten() {
            if let FDTarget::Socket(inode) = descriptor.target {
                owners.entry(inode).or_insert_with(|| describe(&process));
            }
        }
    }
    owners
}

fn describe(process: &Process) -> String {
    let name = process.stat().map_or_else(|_gone| "?".to_owned(), |stat| stat.comm);
    format!("{name} (pid {})", process.pid())
}
