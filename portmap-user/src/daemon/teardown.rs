//! Teardown: removes everything that a daemon has made, with or without a running daemon.

use std::path::Path;

use super::{
    container::deprovision,
    host::{Ownership, setup},
    leftovers,
    preconditions::{check_namespace, check_root},
};
use crate::{
    error::{Error, Failures, Result},
    kernel::{bpffs, namespace::Namespace, netlink::Netlink, pin_migration, pins, programs::AttachMode},
    paths::{Pins, StateDir},
    state::Store,
};

/// The result of a teardown.
#[derive(Debug, Default)]
pub struct TornDown {
    /// Whether anything had to be removed.
    pub anything: bool,
    /// Leftovers that were removed although they had no record, and settings that cannot be restored without
    /// one.
    pub notices: Vec<String>,
}

/// Removes everything that a daemon with this state directory has made. `bpffs_dir` is the directory of its
/// pins, for the case that its records are lost.
///
/// # Errors
///
/// If a daemon still uses the state directory; all failures of the removal, which does not stop at a failure.
pub fn teardown(state_dir: &StateDir, bpffs_dir: &Path) -> Result<TornDown> {
    teardown_but(state_dir, bpffs_dir, false)
}

/// Like [`teardown`], but can keep the empty state directory.
pub(super) fn teardown_but(state_dir: &StateDir, bpffs_dir: &Path, keep_directory: bool) -> Result<TornDown> {
    check_root()?;
    check_namespace(&Netlink::open()?)?;
    let keep_directory = keep_directory && state_dir.path().exists();
    let store = Store::lock(state_dir)?;
    let namespace = Namespace::current().and_then(|current| current.id());
    let ownership = namespace.map_err(Error::from).and_then(|namespace| {
        let mut ownership = Ownership::take(namespace, state_dir)?;
        let host = store.host()?.or_else(|| ownership.host().cloned());
        ownership.take_pins(host.as_ref().map_or(bpffs_dir, |host| &host.bpffs_dir))?;
        Ok(ownership)
    });
    let ownership = ownership.inspect_err(|_| {
        // The state of another daemon stays, and this attempt must leave nothing behind.
        if store.host() == Ok(None) && store.containers() == Ok(Vec::new()) {
            let _ = store.remove_files(keep_directory);
        }
    })?;
    let torn_down = teardown_locked(&store, &ownership, bpffs_dir)?;
    store.remove_files(keep_directory)?;
    Ok(torn_down)
}

/// Removes everything except the state directory, which the caller has locked.
pub(super) fn teardown_locked(store: &Store, ownership: &Ownership, bpffs_dir: &Path) -> Result<TornDown> {
    let (netlink, mut failures) = (Netlink::open()?, Failures::default());
    let host = store.host()?.or_else(|| ownership.host().cloned());
    let containers = store.containers()?;
    let pins = Pins::new(host.as_ref().map_or(bpffs_dir, |host| &host.bpffs_dir));
    pin_migration::refuse_later(pins.bpffs())?;
    let mut anything = host.is_some()
        || !containers.is_empty()
        || pins.root().exists()
        || !pin_migration::earlier(pins.bpffs())?.is_empty();
    let attach_mode = AttachMode::detect();
    if let Some(host) = &host {
        setup::check_same_namespace(host, Namespace::current()?.id()?)?;
        failures.note(setup::undo(&netlink, &pins, attach_mode, host));
    }
    // Deleting all veths in one request takes hardly longer than deleting one. The loop below removes the
    // rest.
    failures.note(deprovision::delete_veths(&netlink, &containers));
    for record in &containers {
        match deprovision::deprovision(&netlink, attach_mode, &pins, record) {
            Ok(()) => failures.note(store.remove_container(&record.name)),
            failed => failures.note(failed),
        }
    }
    let mut notices = Vec::new();
    failures.note(leftovers::remove_interfaces(&netlink, &mut notices));
    if host.is_none() {
        failures.note(leftovers::remove_filters(&netlink));
        if anything || !notices.is_empty() {
            failures.note(leftovers::name_settings(&mut notices));
        }
    }
    anything |= !notices.is_empty();
    failures.note(remove_pins(&pins));
    failures.note(pin_migration::remove_earlier(pins.bpffs()));
    failures.into_result()?;
    // The ownership file must be removed first, because its record replaces a missing one in the state
    // directory.
    ownership.remove()?;
    store.remove_host()?;
    Ok(TornDown { anything, notices })
}

fn remove_pins(directories: &Pins) -> Result<()> {
    let mut failures = Failures::default();
    for link in pins::links(directories) {
        failures.note(pins::detach_link(&link));
    }
    for pin in directories.fixed() {
        failures.note(bpffs::unpin(&pin));
    }
    failures.into_result()?;
    Ok(bpffs::remove_directories(directories)?)
}
