//! A thread that visits network namespaces one after the other.

use std::path::Path;

use tracing::warn;

use super::{error::Error, namespace::Namespace, session::NetSession};
use crate::model::NetnsId;

/// Brings the calling thread into namespaces and back, without a new thread for each visit. Only for threads
/// that do nothing else.
#[derive(Debug)]
pub struct Visitor {
    home: Namespace,
}

/// Returns home when dropped.
struct Return<'a>(&'a Namespace);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        // The thread would keep the namespace that it visited. The next visit tries again.
        if let Err(error) = self.0.enter() {
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
