//! The bind guard: cgroup programs that refuse `bind()` to ports that the container does not own.
//!
//! They identify a container by the cookie of its network namespace.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    EbpfLoader,
    maps::{HashMap, Map, MapData},
    programs::{
        CgroupAttachMode, CgroupSockAddr,
        cgroup_sock_addr::CgroupSockAddrAttachType::{self, Bind4, Bind6},
        links::FdLink,
    },
};
use portmap_common::{
    names::{GUARDS, MAP_GUARDED, MAP_PORTS},
    tables::NetnsOwner,
};

use super::{bpffs, cgroup, pins::detach_link, programs};
use crate::{
    failpoint,
    kernel::error::{Context as _, Error, Result},
    object,
    paths::Pins,
};

/// Attach types of the programs, in the order of [`GUARDS`].
const CALLS: [CgroupSockAddrAttachType; 2] = [Bind4, Bind6];

/// The bind guard of a daemon.
pub struct Guard {
    /// The cgroup whose processes are guarded.
    cgroup: PathBuf,
    pins: Pins,
    known: Mutex<Known>,
}

/// The guarded namespaces.
struct Known {
    map: HashMap<MapData, u64, NetnsOwner>,
    /// The cookies in the map, by slot.
    cookies: BTreeMap<u16, u64>,
}

impl Guard {
    /// Loads the programs, reusing the map of an earlier daemon. They are not attached yet.
    pub fn load(pins: &Pins, cgroup: &Path) -> Result<Self> {
        programs::check_pinned_maps(pins, object::guard())?;
        let mut loader = EbpfLoader::new();
        for name in [MAP_PORTS, MAP_GUARDED] {
            loader.map_pin_path(name, pins.map(name));
        }
        failpoint::hit("load the bind guard").context(|| "cannot load the bind guard")?;
        let mut object = loader.load(object::guard()).context(|| "cannot load the bind guard")?;
        for name in GUARDS {
            let refused =
                || format!("the kernel rejects the program {name}: --bind-guard requires Linux 5.18");
            let program = object.program_mut(name).ok_or_else(|| Error::failure(refused()))?;
            let program: &mut CgroupSockAddr = program.try_into().context(refused)?;
            failpoint::hit("load a program").context(refused)?;
            program.load().context(refused)?;
            programs::replace_pin(&pins.program(name), &pins.new_program(name), |new| program.pin(new))?;
        }
        let opening = || format!("cannot open the map {MAP_GUARDED}");
        let map = MapData::from_pin(pins.map(MAP_GUARDED)).context(opening)?;
        let map: HashMap<_, u64, NetnsOwner> = Map::HashMap(map).try_into().context(opening)?;
        let mut cookies = BTreeMap::new();
        for entry in &map {
            let (cookie, guarded) = entry.context(opening)?;
            cookies.insert(u16::try_from(guarded.slot).unwrap_or_default(), cookie);
        }
        let known = Mutex::new(Known { map, cookies });
        Ok(Self { cgroup: cgroup.to_owned(), pins: pins.clone(), known })
    }

    /// Attaches the loaded programs, and then detaches those of an earlier daemon, so that there is no gap.
    pub fn attach(&self) -> Result<()> {
        GUARDS.into_iter().zip(CALLS).try_for_each(|(name, call)| self.attach_one(name, call))
    }

    fn attach_one(&self, name: &str, call: CgroupSockAddrAttachType) -> Result<()> {
        let doing = || format!("cannot attach {name} to the cgroup {}", self.cgroup.display());
        let cgroup = File::open(&self.cgroup).context(doing)?;
        let mut program = CgroupSockAddr::from_pin(self.pins.program(name), call).context(doing)?;
        failpoint::hit("attach a program").context(doing)?;
        // A link always allows other programs, and rejects the flag for it (`cgroup_bpf_link_attach`).
        let id = program.attach(cgroup, CgroupAttachMode::Single).context(doing)?;
        let link = FdLink::try_from(program.take_link(id).context(doing)?).context(doing)?;
        let before = self.pins.link(name);
        programs::replace_pin(&before, &new_link(&self.pins, name), |new| {
            link.pin(new).context(doing)?;
            // Detached explicitly, because a link that only loses its pin stays in effect for a moment.
            detach_link(&before)
        })
    }

    /// Attaches the programs that are not attached. Returns true if there were any.
    pub fn ensure(&self) -> Result<bool> {
        let mut is_missing = false;
        for (name, call) in GUARDS.into_iter().zip(CALLS) {
            if !self.is_attached(name, call)? {
                self.attach_one(name, call)?;
                is_missing = true;
            }
        }
        Ok(is_missing)
    }

    /// Whether a program is attached to the cgroup by a pinned link. A pinned link may be detached: by
    /// another tool, or because its cgroup was deleted, even if another one has the name now.
    fn is_attached(&self, name: &str, call: CgroupSockAddrAttachType) -> Result<bool> {
        let doing = || format!("cannot query the program {name}");
        let id = CgroupSockAddr::from_pin(self.pins.program(name), call)
            .and_then(|program| program.info())
            .context(doing)?
            .id();
        Ok(self.pins.link(name).exists() && cgroup::programs(&self.cgroup, call)?.contains(&id))
    }

    /// Guards the network namespace with this cookie, a container's. Returns true if it was not guarded.
    pub fn add(&self, slot: u16, cookie: u64) -> Result<bool> {
        let mut known = self.known();
        if known.cookies.get(&slot) == Some(&cookie) && known.map.get(&cookie, 0).is_ok() {
            return Ok(false);
        }
        known.remove(slot)?;
        let doing = || format!("cannot write the map {MAP_GUARDED}");
        failpoint::hit("write a map").context(doing)?;
        known.map.insert(cookie, NetnsOwner { slot: slot.into() }, 0).context(doing)?;
        known.cookies.insert(slot, cookie);
        Ok(true)
    }

    /// Removes a container. Idempotent.
    pub fn remove(&self, slot: u16) -> Result<()> {
        self.known().remove(slot)
    }

    /// Removes all containers whose slots are not in use.
    pub fn retain(&self, is_in_use: impl Fn(u16) -> bool) -> Result<()> {
        let mut known = self.known();
        let unused: Vec<u16> = known.cookies.keys().copied().filter(|slot| !is_in_use(*slot)).collect();
        unused.into_iter().try_for_each(|slot| known.remove(slot))
    }

    /// Fails unless the cgroup is there and the programs are attached.
    pub fn check(&self) -> Result<()> {
        cgroup::check(&self.cgroup)?;
        for (name, call) in GUARDS.into_iter().zip(CALLS) {
            if !self.is_attached(name, call)? {
                return Err(Error::failure(format!(
                    "{name} is not attached to the cgroup {}",
                    self.cgroup.display()
                )));
            }
        }
        Ok(())
    }

    /// Whether a container's network namespace, by its cookie, is guarded.
    pub fn knows(&self, slot: u16, cookie: u64) -> bool {
        self.known().map.get(&cookie, 0).is_ok_and(|guarded| guarded.slot == u32::from(slot))
    }

    /// The cgroup whose processes are guarded.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    // A poisoned lock is safe to use, because every change is a single step.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn remove(&mut self, slot: u16) -> Result<()> {
        let Some(cookie) = self.cookies.get(&slot) else { return Ok(()) };
        let doing = || format!("cannot write the map {MAP_GUARDED}");
        failpoint::hit("write a map").context(doing)?;
        if self.map.get(cookie, 0).is_ok() {
            self.map.remove(cookie).context(doing)?;
        }
        self.cookies.remove(&slot);
        Ok(())
    }
}

/// The temporary pin of a link that is about to replace another.
fn new_link(pins: &Pins, name: &str) -> PathBuf {
    pins.link(&format!("{name}_new"))
}

/// Removes the guard of an earlier daemon, complete or not, if there is one.
pub fn remove(pins: &Pins) -> Result<()> {
    // Detached explicitly, so that the guard has no effect once this returns.
    GUARDS
        .iter()
        .flat_map(|name| [pins.link(name), new_link(pins, name)])
        .try_for_each(|link| detach_link(&link))?;
    let all = GUARDS.map(|name| [pins.program(name), pins.new_program(name)]);
    let all = all.into_iter().flatten().chain([pins.map(MAP_GUARDED)]);
    all.filter(|pin| pin.exists()).try_for_each(|pin| bpffs::unpin(&pin))
}
