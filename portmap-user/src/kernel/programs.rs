//! Loading, pinning and attaching the programs.
//!
//! A hook is held by a pinned TCX link, where the kernel has those, or by a filter of the clsact qdisc. The former cannot
//! be removed by other tools; the latter is there twenty times sooner, because the kernel need not wait until all CPUs have
//! seen the change (`tcx_entry_sync`, 10 ms). So links are for interfaces that are not our own. Either way a program that is there already is replaced in one step: no packet passes a hook without one.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapInfo, MapType, ProgramArray},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
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
    fault,
    kernel::error::{Context as _, Error, Result},
    object,
    paths::Pins,
};

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Pinned links (Linux 6.6 and later).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl Mechanism {
    /// What the running kernel has.
    pub fn detect() -> Self {
        // Asking for the programs of the loopback device changes nothing and fails where there is no TCX.
        if SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok() { Self::Tcx } else { Self::Clsact }
    }

    /// The name that users know.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// A place where one of our programs belongs.
#[derive(Clone, Debug)]
pub struct Hook {
    /// The interface, by its name in its own namespace.
    pub interface: String,
    /// Whether the program is at the interface's ingress rather than its egress.
    pub ingress: bool,
    /// The program.
    pub program: &'static str,
    /// How it gets there for the first time.
    pub mechanism: Mechanism,
    /// The pin of the link, if it is one.
    pub link: PathBuf,
}

impl Hook {
    /// How it is there. Where there is a link, it stays: for a clsact qdisc to come, the kernel stops the queues of an
    /// interface for a moment (`qdisc_graft`), and loses what is sent by them.
    fn mechanism(&self) -> Mechanism {
        if self.link.exists() { Mechanism::Tcx } else { self.mechanism }
    }

    const fn direction(&self) -> TcAttachType {
        if self.ingress { TcAttachType::Ingress } else { TcAttachType::Egress }
    }
}

/// Loads the programs into the kernel and pins them, with the maps that are pinned already if there are any.
pub fn load(pins: &Pins) -> Result<()> {
    bpffs::prepare(pins)?;
    check_pinned_maps(pins, object::bytes())?;
    let layout = btf::skb_layout()?.pack();
    let mut loader = loader(pins, &layout);
    let mut object: Ebpf = loader.load(object::bytes()).context(|| "cannot load the BPF object")?;
    let rest = MapData::from_pin(pins.map(names::MAP_TAIL_CALLS)).context(|| "cannot open a map")?;
    let mut rest = ProgramArray::try_from(Map::ProgramArray(rest)).context(|| "cannot use a map")?;
    for (place, name) in (0..).zip(names::TAIL_CALLS) {
        let program = load_program(&mut object, name)?;
        let fd = program.fd().context(|| format!("the program {name} is not loaded"))?;
        fault::step("write a map").context(|| format!("cannot write the map {}", names::MAP_TAIL_CALLS))?;
        rest.set(place, fd, 0).context(|| format!("cannot write the map {}", names::MAP_TAIL_CALLS))?;
    }
    // Those that leave to them are not there before them.
    for name in names::PROGRAMS {
        let program = load_program(&mut object, name)?;
        replace_pin(&pins.program(name), &pins.new_program(name), |new| program.pin(new))?;
    }
    drop(object);
    btf::give_memory_back();
    Ok(())
}

/// Loads the object with what is pinned, for packets that are as the layout says.
fn loader<'a>(pins: &Pins, layout: &'a u64) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    for name in names::MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.override_global(names::SKB_LAYOUT, layout, true);
    loader
}

fn load_program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let missing = || Error::failure(format!("the BPF object has no program {name}"));
    let program: &mut SchedClassifier = object
        .program_mut(name)
        .ok_or_else(missing)?
        .try_into()
        .context(|| format!("the program {name} is of the wrong kind"))?;
    let refused = || format!("the kernel refuses the program {name}");
    fault::step("load a program").context(refused)?;
    program.load().context(refused)?;
    Ok(program)
}

/// Pins something in place of what is pinned there, by way of another pin.
pub fn replace_pin<E: std::error::Error + Send + Sync + 'static>(
    path: &Path,
    new: &Path,
    pin: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<()> {
    bpffs::unpin(new)?;
    let doing = || format!("cannot pin {}", new.display());
    fault::step("pin").context(doing)?;
    pin(new).context(doing)?;
    fault::step("move a pin")
        .and_then(|()| fs::rename(new, path))
        .context(|| format!("cannot move {} to {}", new.display(), path.display()))
}

/// Refuses pinned maps that are not what the object expects: the kernel and aya would use them as they are.
pub fn check_pinned_maps(pins: &Pins, object: &[u8]) -> Result<()> {
    for expected in specs(object)? {
        let path = pins.map(&expected.name);
        if !path.exists() {
            continue;
        }
        let found = shape_of_pin(&expected.name, &path)?;
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

/// The pinned maps of an object.
pub fn specs(object: &[u8]) -> Result<Vec<object::MapShape>> {
    object::maps(object).context(|| "cannot read the embedded BPF object")
}

/// What a pinned map is like, under the name that it is expected to have.
pub fn shape_of_pin(name: &str, path: &Path) -> Result<object::MapShape> {
    let info = MapInfo::from_pin(path).context(|| format!("cannot look at the pin {}", path.display()))?;
    Ok(object::MapShape {
        name: name.to_owned(),
        map_type: info.map_type().unwrap_or(MapType::Unspecified) as u32,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        flags: info.map_flags(),
    })
}

/// Puts a program into a hook of an interface in the calling thread's namespace, in place of an earlier one.
pub fn attach(pins: &Pins, hook: &Hook) -> Result<()> {
    let doing = || format!("cannot attach {} to {}", hook.program, hook.interface);
    let mut program = SchedClassifier::from_pin(pins.program(hook.program)).context(doing)?;
    match hook.mechanism() {
        Mechanism::Tcx => attach_tcx(&mut program, hook),
        Mechanism::Clsact => attach_clsact(&program, hook),
    }
}

fn attach_tcx(program: &mut SchedClassifier, hook: &Hook) -> Result<()> {
    let doing = || format!("cannot attach {} to {}", hook.program, hook.interface);
    fault::step("attach a program").context(doing)?;
    if let Some(link) = pinned_link(&hook.link)? {
        let link = SchedClassifierLink::try_from(FdLink::from(link)).context(doing)?;
        match program.attach_to_link(link) {
            Ok(_replaced) => return Ok(()),
            // The interface of the link is gone, and another one has its name.
            Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
                if io_error.raw_os_error() == Some(ENOLINK) =>
            {
                bpffs::unpin(&hook.link)?;
            }
            Err(error) => return Err(error).context(doing),
        }
    }
    let link = link_in_front(program, hook)?;
    fault::step("pin a link").context(|| format!("cannot pin {}", hook.link.display()))?;
    link.pin(&hook.link).context(|| format!("cannot pin {}", hook.link.display()))?;
    Ok(())
}

/// Attaches a program before all others that are there: one that ends the chain with "ok" would keep packets from it. What is
/// not ours goes on to them.
fn link_in_front(program: &mut SchedClassifier, hook: &Hook) -> Result<FdLink> {
    let doing = || format!("cannot attach {} to {}", hook.program, hook.interface);
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&hook.interface, hook.direction(), order).context(doing)?;
    FdLink::try_from(program.take_link(id).context(doing)?).context(doing)
}

/// The link that is pinned at `path`, if there is one.
fn pinned_link(path: &Path) -> Result<Option<PinnedLink>> {
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(link)),
        Err(LinkError::SyscallError(error)) if error.io_error.raw_os_error() == Some(ENOENT) => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot open the pinned link {}", path.display())),
    }
}

fn attach_clsact(program: &SchedClassifier, hook: &Hook) -> Result<()> {
    let doing = || format!("cannot attach {} to {}", hook.program, hook.interface);
    let fd = program.fd().context(doing)?.as_fd().as_raw_fd();
    clsact::replace_filter(&Netlink::open()?, &hook.interface, hook.ingress, hook.program, fd)
}

/// Takes our program out of a hook of an interface in the calling thread's namespace. It is no error if there is
/// none, or no such interface.
pub fn detach(hook: &Hook) -> Result<()> {
    match hook.mechanism() {
        // The pin is what keeps the link alive.
        Mechanism::Tcx => super::pins::end_link(&hook.link),
        Mechanism::Clsact => clsact::delete_filter(&Netlink::open()?, &hook.interface, hook.ingress),
    }
}

/// Puts a program into a hook unless it is there. Returns whether it was not.
pub fn ensure(pins: &Pins, hook: &Hook) -> Result<bool> {
    if is_attached(pins, hook)? {
        return Ok(false);
    }
    attach(pins, hook)?;
    Ok(true)
}

/// What is at a hook of an interface in the calling thread's namespace before our program, for people; nothing if ours is the
/// first, or not there.
pub fn ahead(pins: &Pins, hook: &Hook) -> Result<Vec<String>> {
    let doing = || format!("cannot look at the programs of {}", hook.interface);
    match hook.mechanism() {
        Mechanism::Tcx => {
            let id = pinned_id(pins, hook)?;
            let (_revision, chain) =
                SchedClassifier::query_tcx(&hook.interface, hook.direction()).context(doing)?;
            let Some(place) = chain.iter().position(|program| program.id() == id) else {
                return Ok(Vec::new());
            };
            let before = chain.into_iter().take(place);
            Ok(before
                .map(|program| format!("{} (id {})", program.name_as_str().unwrap_or("?"), program.id()))
                .collect())
        }
        Mechanism::Clsact => clsact::ahead(&Netlink::open()?, &hook.interface, hook.ingress),
    }
}

/// Puts our program before all others at a hook where there is a link. Returns whether it was not there.
///
/// The kernel does not change the order of links, nor take a program twice. So another instance of it goes to the front, the
/// old link is detached, and the pinned program takes the instance's place. For that moment packets that are not ours pass both,
/// and are counted twice; no packet passes neither.
pub fn go_in_front(pins: &Pins, hook: &Hook) -> Result<bool> {
    if hook.mechanism() != Mechanism::Tcx || ahead(pins, hook)?.is_empty() {
        return Ok(false);
    }
    let doing = || format!("cannot put {} first at {}", hook.program, hook.interface);
    let layout = btf::skb_layout()?.pack();
    let mut object: Ebpf = loader(pins, &layout).load(object::bytes()).context(doing)?;
    // The loader has read the kernel's type information, which is large.
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

/// Has a link let go of its interface now. Without that, the kernel does so some time after it is gone.
fn detach_link(link: &OwnedFd) -> io::Result<()> {
    fault::step("detach a link")?;
    // The part of `union bpf_attr` that names a link.
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

/// Puts a program where a pinned link is, wherever that is. It is no error if there is none.
pub fn replace_by_link(pins: &Pins, hook: &Hook) -> Result<()> {
    let doing = || format!("cannot replace {} at {}", hook.program, hook.interface);
    let Some(link) = pinned_link(&hook.link)? else { return Ok(()) };
    let mut program = SchedClassifier::from_pin(pins.program(hook.program)).context(doing)?;
    let link = SchedClassifierLink::try_from(FdLink::from(link)).context(doing)?;
    program.attach_to_link(link).context(doing)?;
    Ok(())
}

/// Whether our program is in a hook of an interface in the calling thread's namespace.
pub fn is_attached(pins: &Pins, hook: &Hook) -> Result<bool> {
    let doing = || format!("cannot look at the programs of {}", hook.interface);
    let id = pinned_id(pins, hook)?;
    match hook.mechanism() {
        Mechanism::Tcx => {
            let (_revision, programs) =
                SchedClassifier::query_tcx(&hook.interface, hook.direction()).context(doing)?;
            Ok(programs.iter().any(|program| program.id() == id))
        }
        Mechanism::Clsact => clsact::has_program(&Netlink::open()?, &hook.interface, hook.ingress, id),
    }
}

/// The number of a hook's program as it is pinned.
fn pinned_id(pins: &Pins, hook: &Hook) -> Result<u32> {
    let doing = || format!("cannot look at the program {}", hook.program);
    let pinned = SchedClassifier::from_pin(pins.program(hook.program)).context(doing)?;
    Ok(pinned.info().context(doing)?.id())
}
