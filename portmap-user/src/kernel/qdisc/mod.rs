//! Qdiscs: HTB, which limits an interface's rate, and `fq_codel`, which shares the uplink.

#[cfg(test)]
mod as_tc;
pub mod htb;
mod list;
mod stats;

use std::io;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption, TcQdiscFqCodelOption},
};
use nix::libc::{EINVAL, ENODEV, ENOENT};
use portmap_common::queue;

use self::list::{classes, handle, is_limiter, message, minor};
pub use self::{
    htb::Class,
    list::{Qdisc, of_interface},
    stats::stats_of,
};
use super::{
    namespace::Namespace,
    netlink::{Netlink, Request},
};
use crate::kernel::error::{Context as _, Result};

/// `TCA_OPTIONS`, for qdiscs whose options are a C structure.
const TCA_OPTIONS: u16 = 2;

/// Minor number of the limited class, `1:1`.
const LIMITED: u16 = minor(queue::LIMITED);
/// Minor number of the unlimited class for local traffic, `1:2`.
const LOCAL: u16 = minor(queue::LOCAL);
/// Handles of their leaf qdiscs, `2:` and `3:`.
const LEAF: u16 = 2;
const LOCAL_LEAF: u16 = 3;

/// Leaf qdisc of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// Flow queues with `CoDel`, which bounds their delay by ECN marks or drops.
    FqCodel,
    /// A single FIFO of 100 ms at the class's rate: the fallback for a kernel without `fq_codel`.
    Bfifo,
}

impl Leaf {
    /// The kernel's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FqCodel => "fq_codel",
            Self::Bfifo => "bfifo",
        }
    }

    /// Probes for the best leaf that the kernel supports, in a scratch namespace.
    pub fn best() -> Result<Self> {
        Namespace::scratch(|session| {
            let root = add_leaf(super::link::LOOPBACK, TcHandle::ROOT, LEAF, Self::FqCodel, u64::MAX);
            match session.netlink.request_at_once(vec![root]) {
                Ok(()) => Ok(Self::FqCodel),
                Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(Self::Bfifo),
                Err(error) => Err(error).context(|| "cannot probe for fq_codel"),
            }
        })
    }
}

/// Configuration of an interface's rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The limited class.
    pub class: Class,
    /// Whether local packets use the unlimited class.
    pub local_is_free: bool,
    /// Leaf of both classes.
    pub leaf: Leaf,
}

/// A class that does not limit in practice.
const FREE: Class = Class {
    rate: portmap_common::gcra::MAX_RATE,
    ceil: portmap_common::gcra::MAX_RATE,
    burst: 1 << 30,
    ceil_burst: 1 << 30,
    quantum: 60_000,
};

/// Limits what an interface sends. An existing limit is changed in place, and loses neither packets nor
/// counters. The first limit replaces the root qdisc: if the interface is up, the packets in the former one
/// are lost.
pub fn shape(netlink: &Netlink, index: u32, shape: &Shape) -> Result<()> {
    let doing = || format!("cannot limit the rate of interface {index}");
    let existing = of_interface(netlink, index)?;
    let mut requests = Vec::new();
    // In one batch with its class, because the root qdisc drops all packets until it has one.
    if !existing.iter().any(is_limiter) {
        let mut root = message(index);
        root.header.parent = TcHandle::ROOT;
        root.header.handle = handle(queue::ROOT);
        root.attributes = vec![TcAttribute::Kind(htb::KIND.to_owned()), htb::qdisc(LIMITED.into())];
        requests.push((RouteNetlinkMessage::NewQueueDiscipline(root), NLM_F_CREATE | NLM_F_REPLACE));
    } else if !shape.local_is_free {
        delete_class(netlink, index, LOCAL).context(doing)?;
    }
    requests.push(set_class(index, LIMITED, &shape.class));
    if shape.local_is_free {
        requests.push(set_class(index, LOCAL, &FREE));
        requests.push(set_leaf(index, (LOCAL, LOCAL_LEAF), shape.leaf, FREE.rate));
    }
    requests.push(set_leaf(index, (LIMITED, LEAF), shape.leaf, shape.class.rate));
    netlink.request_at_once(requests).context(doing)
}

/// Lifts an interface's limit. The qdisc stays, at the maximum rate, because removing it would lose packets.
pub fn unshape(netlink: &Netlink, index: u32, leaf: Leaf) -> Result<()> {
    if !of_interface(netlink, index)?.iter().any(is_limiter) {
        return Ok(());
    }
    shape(netlink, index, &Shape { class: FREE, local_is_free: false, leaf })
}

/// Removes an interface's root qdisc with its queued packets; the kernel installs its default. Idempotent.
pub fn clear(netlink: &Netlink, index: u32) -> Result<()> {
    let mut request = message(index);
    request.header.parent = TcHandle::ROOT;
    match netlink.request(RouteNetlinkMessage::DelQueueDiscipline(request), 0) {
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | EINVAL)) => Ok(()),
        other => other.context(|| format!("cannot remove the qdisc of interface {index}")),
    }
}

/// Returns the limited class and the kind of its leaf; `None` if [`shape`] has not limited the interface.
pub fn shape_of(netlink: &Netlink, index: u32) -> Result<Option<(Class, String)>> {
    let existing = of_interface(netlink, index)?;
    if !existing.iter().any(is_limiter) {
        return Ok(None);
    }
    let limited = handle(queue::LIMITED);
    let class = classes(netlink, index)?.into_iter().find(|class| class.header.handle == limited);
    let Some(class) = class.as_ref().and_then(options).and_then(htb::read_class) else { return Ok(None) };
    let leaf = existing.into_iter().find(|qdisc| qdisc.parent == limited).map(|leaf| leaf.kind);
    Ok(Some((class, leaf.unwrap_or_else(|| "pfifo".to_owned()))))
}

fn options(message: &TcMessage) -> Option<&[TcOption]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options.as_slice()),
        _ => None,
    })
}

/// Request that creates or changes a class. Changing one loses no packets.
fn set_class(index: u32, minor: u16, class: &Class) -> Request {
    let mut request = message(index);
    request.header.parent = handle(queue::ROOT);
    request.header.handle = TcHandle { major: handle(queue::ROOT).major, minor };
    request.attributes = vec![TcAttribute::Kind(htb::KIND.to_owned()), htb::class(class)];
    (RouteNetlinkMessage::NewTrafficClass(request), NLM_F_CREATE)
}

/// Deletes a class. Idempotent.
fn delete_class(netlink: &Netlink, index: u32, minor: u16) -> io::Result<()> {
    let mut request = message(index);
    request.header.parent = handle(queue::ROOT);
    request.header.handle = TcHandle { major: handle(queue::ROOT).major, minor };
    match netlink.request(RouteNetlinkMessage::DelTrafficClass(request), 0) {
        Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(()),
        other => other,
    }
}

/// Request that gives a class its leaf, or changes it. The length of a bfifo and the target of an `fq_codel`
/// depend on the rate. A change loses no packets.
fn set_leaf(index: u32, (class, own): (u16, u16), leaf: Leaf, rate: u64) -> Request {
    let parent = TcHandle { major: handle(queue::ROOT).major, minor: class };
    add_leaf(index, parent, own, leaf, rate)
}

fn add_leaf(index: u32, parent: TcHandle, own: u16, leaf: Leaf, rate: u64) -> Request {
    let mut request = message(index);
    request.header.parent = parent;
    request.header.handle = TcHandle { major: own, minor: 0 };
    request.attributes = vec![TcAttribute::Kind(leaf.name().to_owned()), leaf_options(leaf, rate)];
    (RouteNetlinkMessage::NewQueueDiscipline(request), NLM_F_CREATE | NLM_F_REPLACE)
}

fn leaf_options(leaf: Leaf, rate: u64) -> TcAttribute {
    match leaf {
        Leaf::FqCodel => {
            let (target, interval) = codel_times(rate);
            fq_codel([TcQdiscFqCodelOption::Interval(interval), TcQdiscFqCodelOption::Target(target)])
        }
        Leaf::Bfifo => {
            TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, fifo_bytes(rate).to_ne_bytes().to_vec()))
        }
    }
}

/// Options of `fq_codel`: these, ECN on, and the kernel's defaults otherwise.
fn fq_codel(options: impl IntoIterator<Item = TcQdiscFqCodelOption>) -> TcAttribute {
    let options = options.into_iter().chain([TcQdiscFqCodelOption::Ecn(1)]);
    TcAttribute::Options(options.map(TcOption::FqCodel).collect())
}

/// Target and interval of an `fq_codel` behind a rate, in microseconds: the kernel's defaults, or the time of
/// two full-size frames if that is longer, and the interval longer by as much.
///
/// A target below the time of one frame would make `CoDel` drop or mark whatever the senders do, because no
/// queue can be that short (RFC 8289, section 4.4).
fn codel_times(rate: u64) -> (u32, u32) {
    const TARGET: u64 = 5_000;
    const INTERVAL: u64 = 100_000;
    const FRAMES: u64 = 2 * 1514;
    let target = (FRAMES * 1_000_000 / rate.max(1)).max(TARGET);
    let short = |time: u64| u32::try_from(time).unwrap_or(u32::MAX);
    (short(target), short(INTERVAL - TARGET + target))
}

/// Length of a bfifo in bytes: 100 ms at the rate, but at least two maximum-size GSO packets, and at most 64
/// MiB.
fn fifo_bytes(rate: u64) -> u32 {
    const MIN: u64 = 2 * 65_536;
    const MAX: u64 = 64 << 20;
    u32::try_from((rate / 10).clamp(MIN, MAX)).unwrap_or(u32::MAX)
}

/// The qdisc at a parent, from portmap's point of view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootQdisc {
    /// The kernel's default, by its kind.
    Default(String),
    /// The `fq_codel` of [`install_uplink_fq`].
    Ours,
    /// Another tool's qdisc, with its kind and handle.
    Foreign(String),
}

/// Returns the qdisc below `parent`: the root, or a class of another tool's qdisc.
pub fn at_parent(netlink: &Netlink, index: u32, parent: TcHandle) -> Result<RootQdisc> {
    let existing = of_interface(netlink, index)?.into_iter().find(|qdisc| qdisc.parent == parent);
    Ok(match existing {
        None => RootQdisc::Default("none".to_owned()),
        Some(qdisc) if qdisc.handle == handle(queue::UPLINK) && qdisc.kind == Leaf::FqCodel.name() => {
            RootQdisc::Ours
        }
        Some(qdisc) if qdisc.handle.major == 0 => RootQdisc::Default(qdisc.kind),
        Some(qdisc) => RootQdisc::Foreign(format!("{} {:x}:", qdisc.kind, qdisc.handle.major)),
    })
}

/// Installs an `fq_codel` in which each container has a flow of its own.
pub fn install_uplink_fq(netlink: &Netlink, index: u32, parent: TcHandle) -> Result<()> {
    let mut request = message(index);
    request.header.parent = parent;
    request.header.handle = handle(queue::UPLINK);
    request.attributes = vec![
        TcAttribute::Kind(Leaf::FqCodel.name().to_owned()),
        fq_codel([TcQdiscFqCodelOption::Flows(queue::UPLINK_FLOWS)]),
    ];
    netlink
        .request(RouteNetlinkMessage::NewQueueDiscipline(request), NLM_F_CREATE | NLM_F_REPLACE)
        .context(|| format!("cannot install fq_codel on interface {index}"))
}

/// Removes that `fq_codel`; the kernel installs its default. Idempotent.
pub fn remove_uplink_fq(netlink: &Netlink, index: u32, parent: TcHandle) -> Result<()> {
    if at_parent(netlink, index, parent)? != RootQdisc::Ours {
        return Ok(());
    }
    let mut request = message(index);
    request.header.parent = parent;
    request.header.handle = handle(queue::UPLINK);
    match netlink.request(RouteNetlinkMessage::DelQueueDiscipline(request), 0) {
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ENODEV | EINVAL)) => Ok(()),
        other => other.context(|| format!("cannot remove the qdisc of interface {index}")),
    }
}
