//! The rules by which the host translates addresses and ports (NAT), in the calling thread's network namespace.
//!
//! With them come the connections to which they have been applied.
//!
//! The kernel is asked; no other program runs, and no kernel module is loaded. Rules of `nf_tables` are read, which
//! iptables writes, too (`iptables --version` says `nf_tables`). The older tables of iptables are only named.

mod conntrack;
mod interpreter;
mod nfnetlink;
mod nftables;
mod rule;
mod xtables;

use std::{
    fs,
    io::{self, ErrorKind},
    sync::OnceLock,
};

pub use self::{
    conntrack::TrackedConnection,
    rule::{NatRule, NewAddress, Translation},
};
use super::{btf, pseudo};
use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
};

/// Most rules that are kept. A host can have tens of thousands, of which few concern one port.
const MOST: usize = 64;

/// Number of attempts to read rules that do not change meanwhile.
const ATTEMPTS: u32 = 4;

/// The rules that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatRules {
    /// The first of them.
    pub rules: Vec<NatRule>,
    /// The number of the others.
    pub more: usize,
    /// The files that show that the older NAT tables of iptables exist, whose rules are not read.
    pub unread: Vec<&'static str>,
}

impl NatRules {
    fn add(&mut self, rule: NatRule) {
        if self.rules.len() < MOST { self.rules.push(rule) } else { self.more += 1 }
    }
}

/// Reads the rules that `matters` selects. The rules of chains at the output hook are left out: the kernel applies
/// them to the host's own packets before these reach an interface.
///
/// # Errors
///
/// If the kernel refuses a dump. Rules that keep changing are accepted as last read.
pub fn read(matters: impl Fn(&NatRule) -> bool) -> Result<NatRules> {
    let doing = || "cannot list the host's NAT rules";
    failpoint::hit("read NAT rules").context(doing)?;
    let mut found = NatRules { unread: older_tables().context(doing)?, ..NatRules::default() };
    if !has_nf_tables() {
        return Ok(found);
    }
    for _ in 0..ATTEMPTS {
        (found.rules, found.more) = (Vec::new(), 0);
        let visit = |rule| {
            if matters(&rule) {
                found.add(rule);
            }
        };
        if nftables::for_each_rule(visit).context(doing)? {
            break;
        }
    }
    Ok(found)
}

/// Returns the connections translated by NAT that `matters` selects. Without connection tracking there are none.
///
/// # Errors
///
/// If the kernel refuses the dump, or tracks connections and cannot list them, because no program has loaded the
/// module for that.
pub fn connections(matters: impl Fn(&TrackedConnection) -> bool) -> Result<Vec<TrackedConnection>> {
    let doing = || "cannot list the connections that the host tracks";
    failpoint::hit("list tracked connections").context(doing)?;
    let mut found = Vec::new();
    if !tracks_connections().context(doing)? {
        return Ok(found);
    }
    if !can_list_connections() {
        return Err(io::Error::other("the module nf_conntrack_netlink is not loaded")).context(doing);
    }
    conntrack::for_each(|connection| {
        if matters(&connection) {
            found.push(connection);
        }
    })
    .context(doing)?;
    Ok(found)
}

/// Whether connections are tracked in this namespace.
fn tracks_connections() -> io::Result<bool> {
    match pseudo::read_short("/proc/sys/net/netfilter/nf_conntrack_count") {
        Ok(count) => Ok(count.trim() != "0"),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the kernel can list them without loading a module.
fn can_list_connections() -> bool {
    static IS_BUILT_IN: OnceLock<bool> = OnceLock::new();
    fs::exists("/sys/module/nf_conntrack_netlink").unwrap_or(false)
        || *IS_BUILT_IN.get_or_init(|| btf::vmlinux_has_name("ctnetlink_dump_table").unwrap_or(false))
}

/// The lists of the older tables that contain the NAT table. The kernel creates a table when a program first uses
/// it.
fn older_tables() -> io::Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for file in ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"] {
        match fs::read_to_string(file) {
            Ok(names) if names.lines().any(|name| name == "nat") => found.push(file),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Whether the kernel has `nf_tables`, built in or as a loaded module: a request would load the module.
fn has_nf_tables() -> bool {
    static IS_BUILT_IN: OnceLock<bool> = OnceLock::new();
    fs::exists("/sys/module/nf_tables").unwrap_or(false)
        || *IS_BUILT_IN.get_or_init(|| btf::vmlinux_has_name("nf_tables_getrule").unwrap_or(false))
}
