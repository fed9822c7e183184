//! Rollback of a first start that fails.

use std::{fs, path::PathBuf};

use crate::{
    daemon::teardown::teardown_but,
    error::Error,
    kernel::pin_migration,
    paths::{Pins, StateDir},
    settings::Settings,
};

/// A start on a host without any state of an earlier daemon.
pub(super) struct FirstStart {
    state_dir: StateDir,
    bpffs: PathBuf,
    /// Whether the state directory existed. If so, the rollback keeps it.
    had_directory: bool,
}

impl FirstStart {
    /// Returns `None` if an earlier daemon has left any state, which a failed start must not remove.
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

    /// Rolls back the failed start. Returns its error, together with that of the rollback if anything is
    /// left.
    pub(super) fn roll_back(&self, error: Error) -> Error {
        let rolled_back = teardown_but(&self.state_dir, &self.bpffs, self.had_directory);
        let is_left = self.state_dir.host().exists() || Pins::new(&self.bpffs).root().exists();
        match rolled_back {
            // Start and rollback can fail for the same reason, such as another daemon, which is reported
            // once.
            Err(left) if is_left && error.message != left.message => {
                Error::new(error.kind, format!("{error}; and the rollback failed: {left}"))
            }
            _ => error,
        }
    }
}
