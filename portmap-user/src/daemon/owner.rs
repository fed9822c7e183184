//! Containers that end with a process: that of `portmap run`. It removes its container itself; if it is killed, the
//! daemon does. Who it is is on record, so a daemon that starts knows, too.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
    task, time,
};
use tracing::{info, warn};

use super::{Daemon, end::End};
use crate::{
    error::{Context as _, Error, Result},
    kernel::process::Pidfd,
    model::Process,
};

/// How long until something is tried again that has failed.
const AGAIN: Duration = Duration::from_secs(5);

/// The process with this number, as an owner.
pub(super) fn of(pid: u32) -> Result<Process> {
    let found = Process::find(pid)?;
    found.ok_or_else(|| {
        Error::usage(format!("the process {pid}, with which the container is to end, has ended"))
    })
}

/// Removes the container when its owner has ended, unless that has been done by then.
pub(super) fn watch(daemon: &Arc<Daemon>, end: &End, name: String, owner: Process) {
    let (daemon, end) = (daemon.clone(), end.clone());
    // The caller may be on a thread for operations.
    Handle::current().spawn(async move {
        while !has_ended(owner).await {}
        let is_left = {
            let (daemon, name) = (daemon.clone(), name.clone());
            move || daemon.owned().contains(&(name.clone(), owner))
        };
        while task::spawn_blocking(is_left.clone()).await.unwrap_or(false) {
            let running = end.operation(format!("del {name:?}, whose owner has ended"));
            let removing = {
                let (daemon, name) = (daemon.clone(), name.clone());
                task::spawn_blocking(move || {
                    let _until_done = running;
                    daemon.delete_owned(&name, owner)
                })
            };
            match removing.await.context(|| "it failed unexpectedly".to_owned()).flatten() {
                Ok(true) => info!(
                    "container {name:?} is removed: process {}, which it belonged to, has ended",
                    owner.pid
                ),
                Ok(false) => {}
                Err(error) => {
                    warn!(
                        "container {name:?}, whose owner has ended, cannot be removed: {error}: trying again"
                    );
                    time::sleep(AGAIN).await;
                }
            }
        }
    });
}

/// Watches the owners of all containers that there are.
pub(super) fn watch_all(daemon: &Arc<Daemon>, end: &End) {
    for (name, owner) in daemon.owned() {
        watch(daemon, end, name, owner);
    }
}

/// Waits until the process has ended; false if it cannot be waited for now.
async fn has_ended(process: Process) -> bool {
    let waiting = async {
        let Some(pidfd) = process.open()? else { return Ok(()) };
        // SAFETY: the value owns its descriptor, which is the same as long as the value lives.
        let pidfd = unsafe { AsyncFd::<Pidfd>::register_with_interest(pidfd, Interest::READABLE) };
        let pidfd = pidfd.context(|| format!("cannot wait for process {}", process.pid))?;
        pidfd.readable().await.map(drop).context(|| format!("cannot wait for process {}", process.pid))
    };
    let waited: Result<()> = waiting.await;
    if let Err(error) = waited {
        warn!("{error}: trying again");
        time::sleep(AGAIN).await;
        return false;
    }
    true
}

impl Daemon {
    /// All containers that end with a process.
    fn owned(&self) -> Vec<(String, Process)> {
        let registry = self.registry();
        registry
            .containers
            .values()
            .filter_map(|entry| Some((entry.record.name.clone(), entry.record.owner?)))
            .collect()
    }

    /// Removes a container if it belongs to this process; false if it does not, or is not there.
    fn delete_owned(&self, name: &str, owner: Process) -> Result<bool> {
        let _open = self.open()?;
        self.turns.take(name, || {
            self.check_first(name)?;
            let is_owned = {
                let registry = self.registry();
                registry.containers.get(name).is_some_and(|entry| entry.record.owner == Some(owner))
            };
            if is_owned { self.delete_in_turn(name).map(|()| true) } else { Ok(false) }
        })
    }
}
