//! The port map, mapped into the daemon's memory.

use std::{
    num::NonZeroUsize,
    os::fd::AsFd as _,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use portmap_common::{
    names,
    tables::{HOST_CONNECTIONS, PORTS, PortEntry},
};

use super::maps;
use crate::{
    kernel::error::{Context as _, Result},
    paths::Pins,
};

/// The port map, mapped into memory: publishing a port is one store instead of a system call.
pub struct PortTable {
    words: NonNull<AtomicU64>,
}

const PORT_TABLE_BYTES: NonZeroUsize = NonZeroUsize::new(PORTS * size_of::<PortEntry>()).expect("not empty");

impl PortTable {
    /// Maps the pinned map into memory.
    ///
    /// # Errors
    ///
    /// If it is not pinned, or cannot be mapped.
    pub fn open(pins: &Pins) -> Result<Self> {
        let path = pins.map(names::MAP_PORTS);
        let map = maps::open(&path)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: without an address hint the kernel places the mapping in unused memory. The loader has
        // checked that the map has this size. The mapping outlives the descriptor.
        let address =
            unsafe { mmap(None, PORT_TABLE_BYTES, protection, MapFlags::MAP_SHARED, map.fd().as_fd(), 0) };
        let words = address.context(|| format!("cannot map {} into memory", path.display()))?.cast();
        Ok(Self { words })
    }

    fn word(&self, port: u16) -> &AtomicU64 {
        // SAFETY: the mapping has one word for each of the 65,536 ports.
        let word = unsafe { self.words.add(usize::from(port)) };
        // SAFETY: the mapping lives as long as `self` and is page-aligned, and this process as well as the
        // kernel access its words atomically.
        unsafe { word.as_ref() }
    }

    /// Returns the owner of a port.
    pub fn get(&self, port: u16) -> PortEntry {
        PortEntry::from_word(self.word(port).load(Ordering::Relaxed))
    }

    /// Gives a port to a container, or with the default entry to the host. Programs see either the old or the
    /// new owner. The flag that the host has connections from the port stays until the host owns the port.
    pub fn set(&self, port: u16, owner: PortEntry) {
        let word = self.word(port);
        if owner.is_host() {
            word.store(owner.to_word(), Ordering::Relaxed);
            return;
        }
        let kept = PortEntry { flags: HOST_CONNECTIONS, ..PortEntry::default() }.to_word();
        // Programs set the flag at any time. The closure always returns a value, so this cannot fail.
        let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
            Some(owner.to_word() | before & kept)
        });
    }

    /// Sets the flag that the host has connections from a port.
    pub fn flag_host_connections(&self, port: u16) {
        let flag = PortEntry { flags: HOST_CONNECTIONS, ..PortEntry::default() }.to_word();
        self.word(port).fetch_or(flag, Ordering::Relaxed);
    }
}

impl Drop for PortTable {
    fn drop(&mut self) {
        // SAFETY: `open` made the mapping with this size, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.words.cast(), PORT_TABLE_BYTES.get()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

// SAFETY: the words are atomics; any thread may use them.
unsafe impl Send for PortTable {}
// SAFETY: see above.
unsafe impl Sync for PortTable {}
