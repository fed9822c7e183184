//! The rules by which the host translates addresses and ports (NAT), in the calling thread's network namespace.
//!
//! The kernel is asked; no other program runs, and no kernel module is loaded. Rules of `nf_tables` are read, which
//! iptables writes, too (`iptables --version` says `nf_tables`). The older tables of iptables are only named.

mod interpreter;
mod nftables;
mod rule;
mod xtables;

use std::{
    fs,
    io::{self, ErrorKind},
    sync::OnceLock,
};

pub use self::rule::{NatRule, NewAddress, Translation};
use super::btf;
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
