//! A first start that fails leaves the host as it was.

use std::{fs, path::PathBuf};

use super::host;
use crate::{
    error::{Error, Result},
    kernel::pin_migration,
    paths::{Pins, StateDir},
    settings::Settings,
};

/// That nothing of an earlier daemon is there when one starts.
pub(super) struct FirstStart {
    state_dir: StateDir,
    bpffs: PathBuf,
    /// Whether somebody has made the state directory before.
    had_directory: bool,
}

impl FirstStart {
    /// Nothing if there is something of an earlier daemon, which is left as it is.
    pub(super) fn look(settings: &Settings) -> Option<Self> {
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

    /// Removes what a start has made that has failed.
    pub(super) fn undo(&self, error: Error) -> Error {
        let undone = self.remove();
        let is_left = self.state_dir.host().exists() || Pins::new(&self.bpffs).root().exists();
        match undone {
            // Where nothing has been made, what would be removed may be another's, or out of reach.
            Err(left) if is_left && error.kind != left.kind => {
                Error::new(error.kind, format!("{error}; and undoing it failed: {left}"))
            }
            _ => error,
        }
    }

    fn remove(&self) -> Result<()> {
        host::teardown_but(&self.state_dir, &self.bpffs, self.had_directory).map(drop)
    }
}
