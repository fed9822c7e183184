//! Lists the qdiscs and classes of an interface.

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use portmap_common::queue;

use super::htb;
use crate::kernel::{
    error::{Context as _, Result},
    netlink::Netlink,
};

/// A qdisc of an interface.
#[derive(Clone, Debug)]
pub struct Qdisc {
    /// Its kind, `htb` for example.
    pub kind: String,
    /// Its handle; 0 for the kernel's default qdisc.
    pub handle: TcHandle,
    /// Handle of its parent.
    pub parent: TcHandle,
    pub(super) message: TcMessage,
}

impl Qdisc {
    /// Whether it is the interface's root qdisc.
    pub fn is_root(&self) -> bool {
        self.parent == TcHandle::ROOT
    }
}

pub(super) const fn minor(handle: u32) -> u16 {
    (handle & 0xffff) as u16
}

pub(super) const fn handle(handle: u32) -> TcHandle {
    TcHandle { major: (handle >> 16) as u16, minor: minor(handle) }
}

pub(super) fn message(index: u32) -> TcMessage {
    TcMessage::with_index(index.cast_signed())
}

/// Lists the qdiscs of an interface.
pub fn of_interface(netlink: &Netlink, index: u32) -> Result<Vec<Qdisc>> {
    let messages = netlink
        .list(&RouteNetlinkMessage::GetQueueDiscipline(message(index)), |answer| match answer {
            // Older kernels list the qdiscs of all interfaces.
            RouteNetlinkMessage::NewQueueDiscipline(message)
                if message.header.index == index.cast_signed() =>
            {
                Some(message)
            }
            _ => None,
        })
        .context(|| format!("cannot list the qdiscs of interface {index}"))?;
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

pub(super) fn kind(message: &TcMessage) -> &str {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    kind.unwrap_or_default()
}

/// Lists the classes of an interface.
pub(super) fn classes(netlink: &Netlink, index: u32) -> Result<Vec<TcMessage>> {
    netlink
        .list(&RouteNetlinkMessage::GetTrafficClass(message(index)), |answer| match answer {
            RouteNetlinkMessage::NewTrafficClass(message) => Some(message),
            _ => None,
        })
        .context(|| format!("cannot list the classes of interface {index}"))
}

/// Whether a qdisc is the root qdisc that [`shape`](super::shape) installs.
pub(super) fn is_limiter(qdisc: &Qdisc) -> bool {
    qdisc.is_root() && qdisc.kind == htb::KIND && qdisc.handle == handle(queue::ROOT)
}
