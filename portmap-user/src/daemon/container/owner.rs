//! Containers that end with a process: `portmap run`. The process removes its container itself; the daemon
//! removes it if the process is killed. The record names the owner, so the next daemon watches it, too.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
    task, time,
};
use tracing::{info, warn};

use crate::{
    daemon::shutdown::Shutdown,
    error::{Context as _, Error, Result},
    kernel::process::Pidfd,
    model::Process,
};

/// Interval of retries.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Finds the process with this pid, as the owner of a container.
///
/// # Errors
///
/// If there is no such process.
pub(in crate::daemon) fn find(pid: u32) -> Result<Process> {
    let found = Process::find(pid)?;
    found.ok_or_else(|| Error::usage(format!("process {pid}, the owner of the new container, has ended")))
}

/// Removes the container `name` when its owner has ended. `delete` must remove it only if `owner` still owns
/// it, and returns false otherwise.
pub(in crate::daemon) fn watch(
    shutdown: &Shutdown,
    name: String,
    owner: Process,
    delete: impl Fn(&str, Process) -> Result<bool> + Send + Sync + 'static,
) {
    let (shutdown, delete) = (shutdown.clone(), Arc::new(delete));
    // `Handle::current` also works on the threads of the blocking pool.
    Handle::current().spawn(async move {
        while !has_ended(owner).await {}
        loop {
            let running = shutdown.operation(format!("del {name:?}, whose owner has ended"));
            let removing = {
                let (delete, name) = (delete.clone(), name.clone());
                task::spawn_blocking(move || {
                    let _until_done = running;
                    delete(&name, owner)
                })
            };
            match removing.await.context(|| "the removal failed unexpectedly".to_owned()).flatten() {
                Ok(true) => {
                    info!("container {name:?} removed: process {}, its owner, has ended", owner.pid);
                    return;
                }
                Ok(false) => return,
                Err(error) => {
                    warn!(
                        "container {name:?}: its owner has ended, but it cannot be removed: {error}; retrying"
                    );
                    time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    });
}

/// Waits until the process has ended. Returns false if the wait failed and must be retried.
async fn has_ended(process: Process) -> bool {
    let waiting = async {
        let Some(pidfd) = process.open()? else { return Ok(()) };
        // SAFETY: the value owns its descriptor, which does not change while the value lives.
        let pidfd = unsafe { AsyncFd::<Pidfd>::register_with_interest(pidfd, Interest::READABLE) };
        let pidfd = pidfd.context(|| format!("cannot wait for process {}", process.pid))?;
        pidfd.readable().await.map(drop).context(|| format!("cannot wait for process {}", process.pid))
    };
    let waited: Result<()> = waiting.await;
    if let Err(error) = waited {
        warn!("{error}; retrying");
        time::sleep(RETRY_INTERVAL).await;
        return false;
    }
    true
}
