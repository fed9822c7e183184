//! Loading, pinning and attaching of the classifier's programs.
//!
//! A program is attached by a pinned TCX link, where the kernel supports it, or by a filter of the clsact
//! qdisc. Other tools cannot remove a link by accident. A filter is attached in 0.3 ms instead of 13 ms,
//! because the kernel does not wait for an RCU grace period (`tcx_entry_sync`). So links are used on
//! interfaces that portmap did not create. Both kinds replace an attached program atomically: no packet
//! passes without one.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapInfo, MapType, ProgramArray},
    programs::{
        LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
    },
    sys::SyscallError,
};
use aya_obj::generated::bpf_cmd;
use nix::libc::{ENOENT, ENOLINK};
use portmap_common::names;

use super::{bpffs, btf, clsact, netlink::Netlink};
use crate::{
    failpoint,
    kernel::error::{Context as _, Error, Result},
    object,
    paths::Pins,
};

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// Pinned links (Linux 6.6 and later).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl AttachMode {
    /// Detects what the running kernel supports.
    pub fn detect() -> Self {
        // A query changes nothing, and fails on a kernel without TCX.
        if SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok() { Self::Tcx } else { Self::Clsact }
    }

    /// The name in the output of commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// An attach point of one of our programs.
#[derive(Clone, Debug)]
pub struct AttachPoint {
    /// Name of the interface in its namespace.
    pub interface: String,
    /// Whether it is the interface's ingress rather than its egress.
    pub ingress: bool,
    /// Name of the program.
    pub program: &'static str,
    /// Mode of the first attachment.
    pub attach_mode: AttachMode,
    /// Pin of the link, if there is one.
    pub link: PathBuf,
}

impl AttachPoint {
    /// The current mode. An existing link is kept, because to add a clsact qdisc the kernel stops the
    /// interface's queues for a moment (`qdisc_graft`), and loses the packets in them.
    fn attach_mode(&self) -> AttachMode {
        if self.link.exists() { AttachMode::Tcx } else { self.attach_mode }
    }

    const fn direction(&self) -> TcAttachType {
        if self.ingress { TcAttachType::Ingress } else { TcAttachType::Egress }
    }
}

/// Loads and pins the programs. They use the pinned maps, if there are any.
pub fn load(pins: &Pins) -> Result<()> {
    drop(load_object(pins, object::bytes())?);
    btf::give_memory_back();
    Ok(())
}

/// Loads and pins the programs of an object, as [`load`] does. Returns it with the maps that are not pinned.
pub fn load_object(pins: &Pins, bytes: &[u8]) -> Result<Ebpf> {
    bpffs::prepare(pins)?;
    check_pinned_maps(pins, bytes)?;
    let layout = btf::skb_layout()?.pack();
    let mut loader = loader(pins, &layout);
    let mut object: Ebpf = loader.load(bytes).context(|| "cannot load the BPF object")?;
    let tail_calls =
        MapData::from_pin(pins.map(names::MAP_TAIL_CALLS)).context(|| "cannot open the map of tail calls")?;
    let mut tail_calls = ProgramArray::try_from(Map::ProgramArray(tail_calls))
        .context(|| "cannot use the map of tail calls")?;
    for (index, name) in (0..).zip(names::TAIL_CALLS) {
        let program = load_program(&mut object, name)?;
        let fd = program.fd().context(|| format!("the program {name} is not loaded"))?;
        failpoint::hit("write a map")
            .context(|| format!("cannot write the map {}", names::MAP_TAIL_CALLS))?;
        tail_calls.set(index, fd, 0).context(|| format!("cannot write the map {}", names::MAP_TAIL_CALLS))?;
    }
    // Last, so that no program runs before its tail calls can succeed.
    for name in names::PROGRAMS {
        let program = load_program(&mut object, name)?;
        replace_pin(&pins.program(name), &pins.new_program(name), |new| program.pin(new))?;
    }
    Ok(object)
}

/// A loader that uses the pinned maps, for the running kernel's `sk_buff` layout.
fn loader<'a>(pins: &Pins, layout: &'a u64) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    for name in names::MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.override_global(names::SKB_LAYOUT, layout, true);
    loader
}

pub(super) fn load_program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let missing = || Error::failure(format!("the BPF object has no program {name}"));
    let program: &mut SchedClassifier = object
        .program_mut(name)
        .ok_or_else(missing)?
        .try_into()
        .context(|| format!("the program {name} has the wrong type"))?;
    let refused = || format!("the kernel rejects the program {name}");
    failpoint::hit("load a program").context(refused)?;
    program.load().context(refused)?;
    Ok(program)
}

/// Replaces a pin atomically, by way of a temporary pin `new`.
pub fn replace_pin<E: std::error::Error + Send + Sync + 'static>(
    path: &Path,
    new: &Path,
    pin: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<()> {
    bpffs::unpin(new)?;
    let doing = || format!("cannot pin {}", new.display());
    failpoint::hit("pin").context(doing)?;
    pin(new).context(doing)?;
    failpoint::hit("move a pin")
        .and_then(|()| fs::rename(new, path))
        .context(|| format!("cannot move {} to {}", new.display(), path.display()))
}

/// Fails if a pinned map is not what the object expects, because the kernel and aya would use it unchecked.
///
/// # Errors
///
/// [`Error::MapMismatch`]
pub fn check_pinned_maps(pins: &Pins, object: &[u8]) -> Result<()> {
    for expected in specs(object)? {
        let path = pins.map(&expected.name);
        if !path.exists() {
            continue;
        }
        let found = spec_of_pin(&expected.name, &path)?;
        if found != expected {
            return Err(Error::MapMismatch {
                pin: path,
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
    }
    Ok(())
}

/// Returns the specifications of an object's pinned maps.
pub fn specs(object: &[u8]) -> Result<Vec<object::MapSpec>> {
    object::maps(object).context(|| "cannot read the embedded BPF object")
}

/// Returns the specification of a pinned map, with its expected name.
pub fn spec_of_pin(name: &str, path: &Path) -> Result<object::MapSpec> {
    let info =
        MapInfo::from_pin(path).context(|| format!("cannot query the pinned map {}", path.display()))?;
    Ok(object::MapSpec {
        name: name.to_owned(),
        map_type: info.map_type().unwrap_or(MapType::Unspecified) as u32,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        flags: info.map_flags(),
    })
}

/// Attaches a program in the calling thread's namespace, replacing an earlier one.
pub fn attach(netlink: &Netlink, pins: &Pins, hook: &AttachPoint) -> Result<()> {
    let doing = || format!("cannot attach {} to {}", hook.program, hook.interface);
    let mut program = SchedClassifier::from_pin(pins.program(hook.program)).context(doing)?;
    match hook.attach_mode() {
        AttachMode::Tcx => attach_tcx(&mut program, hook),
        AttachMode::Clsact => attach_clsact(netlink, &program, hook),
    }
}

fn attach_tcx(program: &mut SchedClassifier, hook: &AttachPoint) -> Result<()> {
    let doing = || format!("cannot attach {} to {}", hook.program, hook.interface);
    failpoint::hit("attach a program").context(doing)?;
    if let Some(link) = pinned_link(&hook.link)? {
        let link = SchedClassifierLink::try_from(FdLink::from(link)).context(doing)?;
        match program.attach_to_link(link) {
            Ok(_replaced) => return Ok(()),
            // The link's interface was deleted, and this is another one with its name.
            Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
                if io_error.raw_os_error() == Some(ENOLINK) =>
            {
                bpffs::unpin(&hook.link)?;
            }
            Err(error) => return Err(error).context(doing),
        }
    }
    let link = link_in_front(program, hook)?;
    failpoint::hit("pin a link").context(|| format!("cannot pin {}", hook.link.display()))?;
    link.pin(&hook.link).context(|| format!("cannot pin {}", hook.link.display()))?;
    Ok(())
}

/// Attaches a program before all others, because one that ends the chain with `TCX_PASS` would hide packets
/// from it. Packets that are not portmap's continue to the others.
fn link_in_front(program: &mut SchedClassifier, hook: &AttachPoint) -> Result<FdLink> {
    let doing = || format!("cannot attach {} to {}", hook.program, hook.interface);
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&hook.interface, hook.direction(), order).context(doing)?;
    FdLink::try_from(program.take_link(id).context(doing)?).context(doing)
}

/// Opens the link pinned at `path`, if there is one.
fn pinned_link(path: &Path) -> Result<Option<PinnedLink>> {
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(link)),
        Err(LinkError::SyscallError(error)) if error.io_error.raw_os_error() == Some(ENOENT) => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot open the pinned link {}", path.display())),
    }
}

fn attach_clsact(netlink: &Netlink, program: &SchedClassifier, hook: &AttachPoint) -> Result<()> {
    let doing = || format!("cannot attach {} to {}", hook.program, hook.interface);
    let fd = program.fd().context(doing)?.as_fd().as_raw_fd();
    clsact::replace_filter(netlink, &hook.interface, hook.ingress, hook.program, fd)
}

/// Detaches our program in the calling thread's namespace. Idempotent, also if the interface does not exist.
pub fn detach(netlink: &Netlink, hook: &AttachPoint) -> Result<()> {
    match hook.attach_mode() {
        AttachMode::Tcx => super::pins::detach_link(&hook.link),
        AttachMode::Clsact => clsact::delete_filter(netlink, &hook.interface, hook.ingress),
    }
}

/// Attaches a program unless it is attached. Returns true if it was not.
pub fn ensure(netlink: &Netlink, pins: &Pins, hook: &AttachPoint) -> Result<bool> {
    if is_attached(netlink, pins, hook)? {
        return Ok(false);
    }
    attach(netlink, pins, hook)?;
    Ok(true)
}

/// Describes the programs before ours at an attach point in the calling thread's namespace; empty if ours is
/// the first, or not attached.
pub fn before_ours(netlink: &Netlink, pins: &Pins, hook: &AttachPoint) -> Result<Vec<String>> {
    match hook.attach_mode() {
        AttachMode::Tcx => {
            let (chain, id) = (tcx_chain(hook)?, pinned_id(pins, hook)?);
            let position = chain.iter().position(|program| program.id() == id).unwrap_or(0);
            Ok(chain.iter().take(position).map(describe).collect())
        }
        AttachMode::Clsact => {
            // Links run before filters, where the kernel has both.
            let links = if AttachMode::detect() == AttachMode::Tcx { tcx_chain(hook)? } else { Vec::new() };
            let mut before: Vec<String> = links.iter().map(describe).collect();
            before.extend(clsact::before_ours(netlink, &hook.interface, hook.ingress)?);
            Ok(before)
        }
    }
}

/// The programs that are attached by links, in the order in which they run.
fn tcx_chain(hook: &AttachPoint) -> Result<Vec<ProgramInfo>> {
    let doing = || format!("cannot query the programs of {}", hook.interface);
    let (_revision, chain) = SchedClassifier::query_tcx(&hook.interface, hook.direction()).context(doing)?;
    Ok(chain)
}

fn describe(program: &ProgramInfo) -> String {
    format!("{} (id {})", program.name_as_str().unwrap_or("?"), program.id())
}

/// Moves our program before all others, where it is attached by a link. Returns true if it was not the first.
///
/// The kernel neither reorders links nor attaches a program twice. So a second instance is attached in front,
/// the old link is detached, and the pinned program replaces the second instance in the new link. Meanwhile
/// packets that are not portmap's pass both and are counted twice; none passes without a program.
pub fn move_to_front(netlink: &Netlink, pins: &Pins, hook: &AttachPoint) -> Result<bool> {
    if hook.attach_mode() != AttachMode::Tcx || before_ours(netlink, pins, hook)?.is_empty() {
        return Ok(false);
    }
    let doing = || format!("cannot move {} to the front at {}", hook.program, hook.interface);
    let layout = btf::skb_layout()?.pack();
    let mut object: Ebpf = loader(pins, &layout).load(object::bytes()).context(doing)?;
    // The loader has read the kernel's BTF, which is large.
    btf::give_memory_back();
    let link = link_in_front(load_program(&mut object, hook.program)?, hook)?;
    let old = bpffs::open(&hook.link).context(doing)?;
    let new = hook.link.with_file_name(format!("{}_new", hook.program));
    let mut pinned = None;
    replace_pin(&hook.link, &new, |new| link.pin(new).map(|link| pinned = Some(link)))?;
    detach_link(&old).context(doing)?;
    let Some(pinned) = pinned else { return Err(Error::failure(doing())) };
    let mut program = SchedClassifier::from_pin(pins.program(hook.program)).context(doing)?;
    let link = SchedClassifierLink::try_from(FdLink::from(pinned)).context(doing)?;
    program.attach_to_link(link).context(doing)?;
    Ok(true)
}

/// Detaches a link synchronously. The kernel releases a closed link only after some time.
fn detach_link(link: &OwnedFd) -> io::Result<()> {
    failpoint::hit("detach a link")?;
    // `link_detach` of `union bpf_attr`.
    let descriptor: u32 = link.as_raw_fd().cast_unsigned();
    // SAFETY: the attributes are those of the command and have its size; the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_LINK_DETACH as libc::c_long,
            &raw const descriptor,
            size_of::<u32>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Replaces the program of a pinned link, wherever it is attached. Idempotent, also if there is no link.
pub fn replace_by_link(pins: &Pins, hook: &AttachPoint) -> Result<()> {
    let doing = || format!("cannot replace {} at {}", hook.program, hook.interface);
    let Some(link) = pinned_link(&hook.link)? else { return Ok(()) };
    let mut program = SchedClassifier::from_pin(pins.program(hook.program)).context(doing)?;
    let link = SchedClassifierLink::try_from(FdLink::from(link)).context(doing)?;
    program.attach_to_link(link).context(doing)?;
    Ok(())
}

/// Whether our program is attached in the calling thread's namespace.
pub fn is_attached(netlink: &Netlink, pins: &Pins, hook: &AttachPoint) -> Result<bool> {
    let id = pinned_id(pins, hook)?;
    match hook.attach_mode() {
        AttachMode::Tcx => Ok(tcx_chain(hook)?.iter().any(|program| program.id() == id)),
        AttachMode::Clsact => clsact::has_program(netlink, &hook.interface, hook.ingress, id),
    }
}

/// Returns the id of an attach point's pinned program.
fn pinned_id(pins: &Pins, hook: &AttachPoint) -> Result<u32> {
    let doing = || format!("cannot query the program {}", hook.program);
    let pinned = SchedClassifier::from_pin(pins.program(hook.program)).context(doing)?;
    Ok(pinned.info().context(doing)?.id())
}
