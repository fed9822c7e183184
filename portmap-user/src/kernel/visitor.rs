//! A thread that visits network namespaces one after the other.

use std::{cell::Cell, path::Path};

use tracing::warn;

use super::{error::Error, namespace::Namespace, session::NetSession};
use crate::model::NetnsId;

/// Brings the calling thread into namespaces and back, without a new thread for each visit. Only for threads
/// that do nothing else.
#[derive(Debug)]
pub struct Visitor {
    home: Namespace,
}

thread_local! {
    /// Whether this thread could not return from its last visit.
    static IS_AWAY: Cell<bool> = const { Cell::new(false) };
}

/// Returns home when dropped.
struct Return<'a>(&'a Namespace);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        // The thread keeps the namespace that it visited. `stay_home` tries again.
        if let Err(error) = self.0.enter() {
            IS_AWAY.set(true);
            warn!("a visit does not end: {error}");
        }
    }
}

impl Visitor {
    /// A visitor whose threads return to the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be opened.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { home: Namespace::current()? })
    }

    /// Brings this thread home if it could not return from its last visit.
    ///
    /// # Errors
    ///
    /// If it cannot; then nothing may be read, because it would be read from another namespace.
    pub fn stay_home(&self) -> Result<(), Error> {
        if IS_AWAY.get() {
            self.home.enter()?;
            IS_AWAY.set(false);
        }
        Ok(())
    }

    /// Runs `work` in the namespace at `path` if it is the `recorded` one; `None` if there is another or none.
    ///
    /// Everything that was opened inside must be dropped by `work`: an open socket keeps a namespace alive.
    ///
    /// # Errors
    ///
    /// Those of `work`, or if the namespace cannot be entered.
    pub fn visit<T, E: From<Error>>(
        &self,
        path: &Path,
        recorded: NetnsId,
        work: impl FnOnce(&NetSession) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        self.stay_home()?;
        let Some(namespace) = Namespace::try_open(path).map_err(Error::from)? else { return Ok(None) };
        let file = namespace.file_id()?;
        if !file.is_same(recorded) {
            return Ok(None);
        }
        let _return = Return(&self.home);
        namespace.enter()?;
        let session = NetSession::open()?;
        let id = NetnsId { cookie: Some(session.cookie()?), ..file };
        if id.is_same(recorded) { work(&session).map(Some) } else { Ok(None) }
    }
}
