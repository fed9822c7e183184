//! The bind guard: programs at a cgroup that refuse `bind()` to ports which are not the container's.
//!
//! A container is known by the cookie of its network namespace.

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

use super::{bpffs, cgroup, namespace::Namespace, pins::end_link, programs};
use crate::{
    error::{Context as _, Error, Result},
    fault, object,
    paths::Pins,
};

/// Which calls the programs are for, in the order of [`GUARDS`].
const CALLS: [CgroupSockAddrAttachType; 2] = [Bind4, Bind6];

/// The bind guard of a daemon.
pub struct Guard {
    /// The cgroup for whose processes it is.
    cgroup: PathBuf,
    pins: Pins,
    known: Mutex<Known>,
}

/// Which namespaces are guarded.
struct Known {
    map: HashMap<MapData, u64, NetnsOwner>,
    /// The cookies in the map, by slot.
    cookies: BTreeMap<u16, u64>,
}

impl Guard {
    /// Loads the programs, which go on with what an earlier daemon's had in their map. They are not attached yet.
    pub fn load(pins: &Pins, cgroup: &Path) -> Result<Self> {
        programs::check_pinned_maps(pins, object::guard())?;
        let mut loader = EbpfLoader::new();
        for name in [MAP_PORTS, MAP_GUARDED] {
            loader.map_pin_path(name, pins.map(name));
        }
        fault::step("load the bind guard").context(|| "cannot load the bind guard".to_owned())?;
        let mut object = loader.load(object::guard()).context(|| "cannot load the bind guard".to_owned())?;
        for name in GUARDS {
            let refused = || format!("the kernel refuses the program {name}: --bind-guard needs Linux 5.18");
            let program = object.program_mut(name).ok_or_else(|| Error::failure(refused()))?;
            let program: &mut CgroupSockAddr = program.try_into().context(refused)?;
            fault::step("load a program").context(refused)?;
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

    /// Attaches the programs that have been loaded, then those of an earlier daemon go: there is no moment without.
    pub fn attach(&self) -> Result<()> {
        GUARDS.into_iter().zip(CALLS).try_for_each(|(name, call)| self.attach_one(name, call))
    }

    fn attach_one(&self, name: &str, call: CgroupSockAddrAttachType) -> Result<()> {
        let doing = || format!("cannot attach {name} to the cgroup {}", self.cgroup.display());
        let cgroup = File::open(&self.cgroup).context(doing)?;
        let mut program = CgroupSockAddr::from_pin(self.pins.program(name), call).context(doing)?;
        fault::step("attach a program").context(doing)?;
        // A link leaves room for others' without being told to, and takes no such flag (`cgroup_bpf_link_attach`).
        let id = program.attach(cgroup, CgroupAttachMode::Single).context(doing)?;
        let link = FdLink::try_from(program.take_link(id).context(doing)?).context(doing)?;
        let before = self.pins.link(name);
        programs::replace_pin(&before, &new_link(&self.pins, name), |new| {
            link.pin(new).context(doing)?;
            // What it refuses, at another cgroup perhaps, is refused no more when this has been done. One that only loses its pin
            // goes on for a moment.
            end_link(&before)
        })
    }

    /// Attaches the programs that are not attached. Returns whether there were any.
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

    /// Whether a program is at the cgroup, by a link that stays. A link ends with its cgroup, even if another one has the
    /// name afterwards, and can be detached where it is pinned.
    fn is_attached(&self, name: &str, call: CgroupSockAddrAttachType) -> Result<bool> {
        let doing = || format!("cannot look at the program {name}");
        let id = CgroupSockAddr::from_pin(self.pins.program(name), call)
            .and_then(|program| program.info())
            .context(doing)?
            .id();
        Ok(self.pins.link(name).exists() && cgroup::programs(&self.cgroup, call)?.contains(&id))
    }

    /// Guards a container's namespace. Returns whether it was not guarded.
    pub fn add(&self, slot: u16, namespace: &Namespace) -> Result<bool> {
        let cookie = namespace.cookie()?;
        let mut known = self.known();
        if known.cookies.get(&slot) == Some(&cookie) && known.map.get(&cookie, 0).is_ok() {
            return Ok(false);
        }
        known.remove(slot)?;
        let doing = || format!("cannot write the map {MAP_GUARDED}");
        fault::step("write a map").context(doing)?;
        known.map.insert(cookie, NetnsOwner { slot: slot.into() }, 0).context(doing)?;
        known.cookies.insert(slot, cookie);
        Ok(true)
    }

    /// Forgets a container. It is no error if it is not known.
    pub fn remove(&self, slot: u16) -> Result<()> {
        self.known().remove(slot)
    }

    /// Forgets all containers but those in these slots.
    pub fn retain(&self, is_in_use: impl Fn(u16) -> bool) -> Result<()> {
        let mut known = self.known();
        let gone: Vec<u16> = known.cookies.keys().copied().filter(|slot| !is_in_use(*slot)).collect();
        gone.into_iter().try_for_each(|slot| known.remove(slot))
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

    /// Whether a container's namespace is guarded.
    pub fn knows(&self, slot: u16, namespace: &Namespace) -> Result<bool> {
        let (cookie, known) = (namespace.cookie()?, self.known());
        Ok(known.map.get(&cookie, 0).is_ok_and(|guarded| guarded.slot == u32::from(slot)))
    }

    /// The cgroup for whose processes it is.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    // Every change is a single step, so a panic while this is held leaves none half-done.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn remove(&mut self, slot: u16) -> Result<()> {
        let Some(cookie) = self.cookies.get(&slot) else { return Ok(()) };
        let doing = || format!("cannot write the map {MAP_GUARDED}");
        fault::step("write a map").context(doing)?;
        if self.map.get(cookie, 0).is_ok() {
            self.map.remove(cookie).context(doing)?;
        }
        self.cookies.remove(&slot);
        Ok(())
    }
}

/// The pin of a link that is about to take the place of another.
fn new_link(pins: &Pins, name: &str) -> PathBuf {
    pins.link(&format!("{name}_new"))
}

/// Removes a guard that an earlier daemon has left, complete or not, if there is one.
pub fn remove(pins: &Pins) -> Result<()> {
    // What is refused is refused no more when this has been done.
    GUARDS
        .iter()
        .flat_map(|name| [pins.link(name), new_link(pins, name)])
        .try_for_each(|link| end_link(&link))?;
    let all = GUARDS.map(|name| [pins.program(name), pins.new_program(name)]);
    let all = all.into_iter().flatten().chain([pins.map(MAP_GUARDED)]);
    all.filter(|pin| pin.exists()).try_for_each(|pin| bpffs::unpin(&pin))
}
