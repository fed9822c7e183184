//! Ends the drains of ephemeral ports: no event tells that a container has closed a socket.

use std::{sync::Arc, time::Duration};

use tokio::{
    task,
    time::{self, Instant},
};
use tracing::warn;

use super::reconciler::Reconciler;
use crate::{daemon::shutdown::Shutdown, failpoint};

/// Interval of the checks while ports drain.
const INTERVAL: Duration = Duration::from_secs(1);
/// A round waits this many times the duration of the last one, because a container can have any number of
/// sockets. It bounds the checks to a tenth of a CPU.
const BACKOFF_FACTOR: u32 = 9;

/// Releases draining ports when their sockets are closed or their time is over, while the daemon runs.
pub(in crate::daemon) async fn watch(reconciler: Arc<Reconciler>, shutdown: Shutdown) {
    let mut pause = INTERVAL;
    while !shutdown.has_begun() {
        time::sleep(pause).await;
        pause = INTERVAL;
        let draining = reconciler.registry.draining();
        if draining.is_empty() {
            continue;
        }
        let (reconciler, started) = (reconciler.clone(), Instant::now());
        let (running, ending) = (shutdown.operation("releasing ephemeral ports"), shutdown.clone());
        let round = task::spawn_blocking(move || {
            let _until_done = running;
            let names = draining.iter().take_while(|_| !ending.has_begun());
            failpoint::suppressed(|| names.for_each(|name| reconciler.drain(name)));
        });
        if let Err(panic) = round.await {
            warn!("ephemeral ports are not released: {panic}");
        }
        pause = (started.elapsed() * BACKOFF_FACTOR).max(INTERVAL);
    }
}

impl Reconciler {
    fn drain(&self, name: &str) {
        // After a teardown there is nothing to release.
        let Ok(_operation) = self.operations.begin() else { return };
        if let Err(error) = self.operations.on(name, || self.containers.drain(name)) {
            tracing::debug!("container {name:?}: cannot release ephemeral ports yet: {error}");
        }
    }
}
