//! Queues of interfaces: what limits a rate, and what shares the uplink.

#[cfg(test)]
mod as_tc;
pub mod htb;
mod stats;

use std::io;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption, TcQdiscFqCodelOption},
};
use nix::libc::{EINVAL, ENODEV, ENOENT};
use portmap_common::queue;

pub use self::{
    htb::Class,
    stats::{Stats, stats_of},
};
use super::{
    namespace::Namespace,
    netlink::{Netlink, Request},
};
use crate::error::{Context as _, Result};

/// `TCA_OPTIONS`, for qdiscs whose options are a plain structure.
const TCA_OPTIONS: u16 = 2;

/// The class that is limited, by its minor number: `1:1`.
const LIMITED: u16 = minor(queue::LIMITED);
/// The class that is not: `1:2`.
const LOCAL: u16 = minor(queue::LOCAL);
/// Handle of the queue of the limited class, `2:`, and of the other one, `3:`.
const LEAF: u16 = 2;
const LOCAL_LEAF: u16 = 3;

const fn minor(handle: u32) -> u16 {
    (handle & 0xffff) as u16
}

const fn handle(handle: u32) -> TcHandle {
    TcHandle { major: (handle >> 16) as u16, minor: minor(handle) }
}

/// A qdisc of an interface.
#[derive(Clone, Debug)]
pub struct Qdisc {
    /// Its kind, `htb` for example.
    pub kind: String,
    /// Its own handle; 0 for those that nobody has asked for.
    pub handle: TcHandle,
    /// What it hangs from.
    pub parent: TcHandle,
    message: TcMessage,
}

impl Qdisc {
    /// Whether it is what the interface sends by.
    pub fn is_root(&self) -> bool {
        self.parent == TcHandle::ROOT
    }
}

/// What the packets of a class wait in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// A queue for each flow, none of which stands for long, by marking (ECN) or dropping.
    FqCodel,
    /// One queue for all, as long as a tenth of a second takes: the best that a kernel without the former has.
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

    /// The best leaf that the kernel has. It is asked in a namespace of its own, where nothing is disturbed.
    pub fn best() -> Result<Self> {
        Namespace::scratch(|| {
            let root = add_leaf(super::link::LOOPBACK, TcHandle::ROOT, LEAF, Self::FqCodel, u64::MAX);
            match Netlink::open()?.request_at_once(vec![root]) {
                Ok(()) => Ok(Self::FqCodel),
                Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(Self::Bfifo),
                Err(error) => {
                    Err(error).context(|| "cannot find out whether the kernel has fq_codel".to_owned())
                }
            }
        })
    }
}

/// How an interface is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What may be sent.
    pub class: Class,
    /// Whether local packets have a class of their own, which is not limited.
    pub local_is_free: bool,
    /// What packets wait in.
    pub leaf: Leaf,
}

/// A class that is as good as none.
const FREE: Class = Class {
    rate: portmap_common::gcra::MAX_RATE,
    ceil: portmap_common::gcra::MAX_RATE,
    burst: 1 << 30,
    ceil_burst: 1 << 30,
    quantum: 60_000,
};

fn message(index: u32) -> TcMessage {
    TcMessage::with_index(index.cast_signed())
}

/// The qdiscs of an interface.
pub fn of_interface(netlink: &Netlink, index: u32) -> Result<Vec<Qdisc>> {
    let messages = netlink
        .list(&RouteNetlinkMessage::GetQueueDiscipline(message(index)), |answer| match answer {
            // Older kernels answer with the qdiscs of all interfaces.
            RouteNetlinkMessage::NewQueueDiscipline(message)
                if message.header.index == index.cast_signed() =>
            {
                Some(message)
            }
            _ => None,
        })
        .context(|| format!("cannot look at the qdiscs of interface {index}"))?;
    Ok(messages
        .into_iter()
        .map(|message| Qdisc {
            kind: kind(&message).to_owned(),
            handle: message.header.handle,
            parent: message.header.parent,
            message,
        })
        .collect())
}

fn kind(message: &TcMessage) -> &str {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    kind.unwrap_or_default()
}

/// The classes of an interface's qdiscs.
fn classes(netlink: &Netlink, index: u32) -> Result<Vec<TcMessage>> {
    netlink
        .list(&RouteNetlinkMessage::GetTrafficClass(message(index)), |answer| match answer {
            RouteNetlinkMessage::NewTrafficClass(message) => Some(message),
            _ => None,
        })
        .context(|| format!("cannot look at the classes of interface {index}"))
}

/// Whether a qdisc is what [`shape`] puts at an interface's root.
fn is_limiter(qdisc: &Qdisc) -> bool {
    qdisc.is_root() && qdisc.kind == htb::KIND && qdisc.handle == handle(queue::ROOT)
}

/// Limits what an interface sends. What is there already is changed in place: no packet is lost, no counter lost. Where
/// there is nothing yet, and the interface is up, packets are lost for the moment in which the kernel changes its root.
pub fn shape(netlink: &Netlink, index: u32, shape: &Shape) -> Result<()> {
    let doing = || format!("cannot limit the rate of interface {index}");
    let there = of_interface(netlink, index)?;
    let mut requests = Vec::new();
    // At once, because the root has no way for packets before it has its class.
    if !there.iter().any(is_limiter) {
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
        requests.extend(set_leaf(index, &there, (LOCAL, LOCAL_LEAF), shape.leaf, FREE.rate));
    }
    requests.extend(set_leaf(index, &there, (LIMITED, LEAF), shape.leaf, shape.class.rate));
    netlink.request_at_once(requests).context(doing)
}

/// Lets an interface send as fast as it can. What limited it stays, without effect: to take it away would lose packets.
pub fn unshape(netlink: &Netlink, index: u32, leaf: Leaf) -> Result<()> {
    if !of_interface(netlink, index)?.iter().any(is_limiter) {
        return Ok(());
    }
    shape(netlink, index, &Shape { class: FREE, local_is_free: false, leaf })
}

/// Takes away what an interface sends by, with all that waits in it; the kernel puts its default there. It is no error if
/// that is what is there.
pub fn clear(netlink: &Netlink, index: u32) -> Result<()> {
    let mut request = message(index);
    request.header.parent = TcHandle::ROOT;
    match netlink.request(RouteNetlinkMessage::DelQueueDiscipline(request), 0) {
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | EINVAL)) => Ok(()),
        other => other.context(|| format!("cannot remove the queue of interface {index}")),
    }
}

/// What an interface is limited to, and what packets wait in; none if it is not limited by [`shape`].
pub fn shape_of(netlink: &Netlink, index: u32) -> Result<Option<(Class, String)>> {
    let there = of_interface(netlink, index)?;
    if !there.iter().any(is_limiter) {
        return Ok(None);
    }
    let limited = handle(queue::LIMITED);
    let class = classes(netlink, index)?.into_iter().find(|class| class.header.handle == limited);
    let Some(class) = class.as_ref().and_then(options).and_then(htb::read_class) else { return Ok(None) };
    let leaf = there.into_iter().find(|qdisc| qdisc.parent == limited).map(|leaf| leaf.kind);
    Ok(Some((class, leaf.unwrap_or_else(|| "pfifo".to_owned()))))
}

fn options(message: &TcMessage) -> Option<&[TcOption]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options.as_slice()),
        _ => None,
    })
}

/// Makes or changes a class, without loss.
fn set_class(index: u32, minor: u16, class: &Class) -> Request {
    let mut request = message(index);
    request.header.parent = handle(queue::ROOT);
    request.header.handle = TcHandle { major: handle(queue::ROOT).major, minor };
    request.attributes = vec![TcAttribute::Kind(htb::KIND.to_owned()), htb::class(class)];
    (RouteNetlinkMessage::NewTrafficClass(request), NLM_F_CREATE)
}

/// Deletes a class. It is no error if there is none.
fn delete_class(netlink: &Netlink, index: u32, minor: u16) -> io::Result<()> {
    let mut request = message(index);
    request.header.parent = handle(queue::ROOT);
    request.header.handle = TcHandle { major: handle(queue::ROOT).major, minor };
    match netlink.request(RouteNetlinkMessage::DelTrafficClass(request), 0) {
        Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(()),
        other => other,
    }
}

/// Sees to it that a class has a leaf. One of the right kind stays; of a queue for all, the length follows the rate.
fn set_leaf(index: u32, there: &[Qdisc], (class, own): (u16, u16), leaf: Leaf, rate: u64) -> Option<Request> {
    let parent = TcHandle { major: handle(queue::ROOT).major, minor: class };
    let is_there = there.iter().any(|qdisc| qdisc.parent == parent && qdisc.kind == leaf.name());
    if is_there && leaf == Leaf::FqCodel {
        return None;
    }
    Some(add_leaf(index, parent, own, leaf, rate))
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
        Leaf::FqCodel => fq_codel(None),
        Leaf::Bfifo => {
            TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, fifo_bytes(rate).to_ne_bytes().to_vec()))
        }
    }
}

/// Options of `fq_codel`: it marks rather than drops where both ends agree; the kernel's defaults are fine for the rest.
fn fq_codel(flows: Option<u32>) -> TcAttribute {
    let flows = flows.map(TcQdiscFqCodelOption::Flows);
    let options = flows.into_iter().chain([TcQdiscFqCodelOption::Ecn(1)]);
    TcAttribute::Options(options.map(TcOption::FqCodel).collect())
}

/// Bytes of a queue for all: what the rate sends in a tenth of a second, but at least two of the largest packets that
/// the kernel makes, and no more than anybody has use for.
fn fifo_bytes(rate: u64) -> u32 {
    const LEAST: u64 = 2 * 65_536;
    const MOST: u64 = 64 << 20;
    u32::try_from((rate / 10).clamp(LEAST, MOST)).unwrap_or(u32::MAX)
}

/// What is at the place where the uplink's queue would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Nothing that anybody has asked for; the kernel's default, by its name.
    Default(String),
    /// The queue that [`share`] makes.
    Ours,
    /// Somebody else's qdisc.
    Foreign(String),
}

/// Looks at the place of the uplink's queue: below `parent`, the root or a class of somebody else's qdisc.
pub fn occupant(netlink: &Netlink, index: u32, parent: TcHandle) -> Result<Occupant> {
    let there = of_interface(netlink, index)?.into_iter().find(|qdisc| qdisc.parent == parent);
    Ok(match there {
        None => Occupant::Default("none".to_owned()),
        Some(qdisc) if qdisc.handle == handle(queue::UPLINK) && qdisc.kind == Leaf::FqCodel.name() => {
            Occupant::Ours
        }
        Some(qdisc) if qdisc.handle.major == 0 => Occupant::Default(qdisc.kind),
        Some(qdisc) => Occupant::Foreign(format!("{} {:x}:", qdisc.kind, qdisc.handle.major)),
    })
}

/// Puts the queue there in which every container has a flow of its own.
pub fn share(netlink: &Netlink, index: u32, parent: TcHandle) -> Result<()> {
    let mut request = message(index);
    request.header.parent = parent;
    request.header.handle = handle(queue::UPLINK);
    request.attributes =
        vec![TcAttribute::Kind(Leaf::FqCodel.name().to_owned()), fq_codel(Some(queue::UPLINK_FLOWS))];
    netlink
        .request(RouteNetlinkMessage::NewQueueDiscipline(request), NLM_F_CREATE | NLM_F_REPLACE)
        .context(|| format!("cannot give interface {index} a queue with flows"))
}

/// Takes that queue away; the kernel puts its default there. It is no error if it is not there.
pub fn unshare(netlink: &Netlink, index: u32, parent: TcHandle) -> Result<()> {
    if occupant(netlink, index, parent)? != Occupant::Ours {
        return Ok(());
    }
    let mut request = message(index);
    request.header.parent = parent;
    request.header.handle = handle(queue::UPLINK);
    match netlink.request(RouteNetlinkMessage::DelQueueDiscipline(request), 0) {
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ENODEV | EINVAL)) => Ok(()),
        other => other.context(|| format!("cannot remove the queue of interface {index}")),
    }
}
