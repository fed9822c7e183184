//! Filters of the clsact qdisc, which attach programs where TCX is not supported, or too slow.

use std::os::fd::RawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use nix::libc::{EEXIST, EINVAL, ENODEV, ENOENT};

use super::{link, netlink::Netlink, qdisc};
use crate::kernel::error::{Context as _, Error, Result};

/// Priority of our filters: before those added without a priority, which get 49152 and lower.
pub const PRIORITY: u16 = 0x504d;
/// Handle of our filters, which identifies them together with the priority.
const HANDLE: TcHandle = TcHandle { major: 0, minor: 1 };
/// `ETH_P_ALL` in network byte order.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();

/// Parent of an interface's ingress or egress filters.
const fn hook(ingress: bool) -> TcHandle {
    let minor = if ingress { TcHandle::MIN_INGRESS } else { TcHandle::MIN_EGRESS };
    TcHandle { major: TcHandle::CLSACT.major, minor }
}

/// A message that identifies our filter.
fn filter(index: u32, ingress: bool) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.parent = hook(ingress);
    message.header.handle = HANDLE;
    message.header.info = TcHandle { major: PRIORITY, minor: ALL_PROTOCOLS }.into();
    message
}

fn interface(netlink: &Netlink, name: &str) -> Result<Option<u32>> {
    Ok(link::find(netlink, name)?.map(|interface| interface.index))
}

/// Attaches a program by our filter, replacing an earlier one atomically.
pub fn replace_filter(
    netlink: &Netlink,
    name: &str,
    ingress: bool,
    label: &str,
    program: RawFd,
) -> Result<()> {
    let index =
        interface(netlink, name)?.ok_or_else(|| Error::failure(format!("there is no interface {name}")))?;
    add_qdisc(netlink, index, name)?;
    let mut message = filter(index, ingress);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(label.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    netlink
        .request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_REPLACE)
        .context(|| format!("cannot attach {label} to {name}"))
}

/// Adds a clsact qdisc unless there is one.
///
/// # Errors
///
/// [`Error::IngressQdisc`], because the kernel would put egress filters among those of an ingress qdisc.
fn add_qdisc(netlink: &Netlink, index: u32, name: &str) -> Result<()> {
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    match netlink.request(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.raw_os_error() == Some(EEXIST) => {
            if has_kind(netlink, index, "ingress")? {
                return Err(Error::IngressQdisc { interface: name.to_owned() });
            }
            Ok(())
        }
        other => other.context(|| format!("cannot add a clsact qdisc to {name}")),
    }
}

/// Removes our filter. Idempotent, also if the interface does not exist.
pub fn delete_filter(netlink: &Netlink, name: &str, ingress: bool) -> Result<()> {
    let Some(index) = interface(netlink, name)? else { return Ok(()) };
    match netlink.request(RouteNetlinkMessage::DelTrafficFilter(filter(index, ingress)), 0) {
        // EINVAL: there is no clsact qdisc.
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ENODEV | EINVAL)) => Ok(()),
        other => other.context(|| format!("cannot remove the filter of {name}")),
    }
}

/// Removes a clsact qdisc that portmap added, unless other tools have added filters to it since.
pub fn delete_qdisc_if_empty(netlink: &Netlink, name: &str) -> Result<()> {
    let Some(index) = interface(netlink, name)? else { return Ok(()) };
    // An ingress qdisc of another tool would be in the same place.
    if !has_kind(netlink, index, "clsact")?
        || !filters(netlink, index, true)?.is_empty()
        || !filters(netlink, index, false)?.is_empty()
    {
        return Ok(());
    }
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.parent = TcHandle::CLSACT;
    match netlink.request(RouteNetlinkMessage::DelQueueDiscipline(message), 0) {
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ENODEV | EINVAL)) => Ok(()),
        other => other.context(|| format!("cannot remove the clsact qdisc of {name}")),
    }
}

/// Whether an interface has a clsact qdisc.
pub fn has_qdisc(netlink: &Netlink, name: &str) -> Result<bool> {
    interface(netlink, name)?.map_or(Ok(false), |index| has_kind(netlink, index, "clsact"))
}

/// Whether an interface has a qdisc of this kind.
fn has_kind(netlink: &Netlink, index: u32, kind: &str) -> Result<bool> {
    Ok(qdisc::of_interface(netlink, index)?.iter().any(|qdisc| qdisc.kind == kind))
}

/// All filters at a hook.
fn filters(netlink: &Netlink, index: u32, ingress: bool) -> Result<Vec<TcMessage>> {
    let mut question = TcMessage::with_index(index.cast_signed());
    question.header.parent = hook(ingress);
    let listed = netlink.list(&RouteNetlinkMessage::GetTrafficFilter(question), |answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(message) => Some(message),
        _ => None,
    });
    match listed {
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | EINVAL)) => Ok(Vec::new()),
        other => other.context(|| format!("cannot list the filters of interface {index}")),
    }
}

/// Whether our filter runs the program with this id.
pub fn has_program(netlink: &Netlink, name: &str, ingress: bool, id: u32) -> Result<bool> {
    let Some(index) = interface(netlink, name)? else { return Ok(false) };
    let wanted = TcOption::Bpf(TcFilterBpfOption::ProgId(id));
    Ok(filters(netlink, index, ingress)?.into_iter().flat_map(|message| message.attributes).any(
        |attribute| {
            if let TcAttribute::Options(options) = attribute { options.contains(&wanted) } else { false }
        },
    ))
}

/// Describes the filters before ours.
pub fn before_ours(netlink: &Netlink, name: &str, ingress: bool) -> Result<Vec<String>> {
    let Some(index) = interface(netlink, name)? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for message in filters(netlink, index, ingress)? {
        let preference = TcHandle::from(message.header.info).major;
        let kind = message.attributes.iter().find_map(|attribute| {
            if let TcAttribute::Kind(kind) = attribute { Some(kind.as_str()) } else { None }
        });
        let text = format!("the {} filter with preference {preference}", kind.unwrap_or("tc"));
        // The kernel dumps a filter's hash tables as filters, too.
        if preference < PRIORITY && !all.contains(&text) {
            all.push(text);
        }
    }
    Ok(all)
}
