//! A first start that fails is rolled back, and leaves the host as it was.

use std::{fs, path::PathBuf};

use crate::{
    daemon::teardown::teardown_but,
    error::Error,
    kernel::pin_migration,
    paths::{Pins, StateDir},
    settings::Settings,
};

/// A start on a host without anything of an earlier daemon.
pub(super) struct FirstStart {
    state_dir: StateDir,
    bpffs: PathBuf,
    /// Whether the state directory existed, perhaps empty.
    had_directory: bool,
}

impl FirstStart {
    /// None if an earlier daemon has left anything, which then stays as it is.
    pub(super) fn detect(settings: &Settings) -> Option<Self> {
        let (state_dir, bpffs) = (settings.state_dir.clone(), settings.pins.bpffs().to_owned());
        let is_empty =
            |path: PathBuf| fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
        let is_first = !state_dir.host().exists()
            && is_empty(state_dir.containers())
            && !Pins::new(&bpffs).root().exists()
            && pin_migration::earlier(&bpffs).is_ok_and(|earlier| earlier.is_empty());
        let had_directory = state_dir.path().exists();
        is_first.then_some(Self { state_dir, bpffs, had_directory })
    }

    /// Removes whatever the failed start has made. Returns its error, with that of the roll-back if anything is left.
    pub(super) fn roll_back(&self, error: Error) -> Error {
        let rolled_back = teardown_but(&self.state_dir, &self.bpffs, self.had_directory);
        let is_left = self.state_dir.host().exists() || Pins::new(&self.bpffs).root().exists();
        match rolled_back {
            // The same obstacle, such as another daemon, is named once.
            Err(left) if is_left && error.message != left.message => {
                Error::new(error.kind, format!("{error}; and undoing it failed: {left}"))
            }
            _ => error,
        }
    }
}
