//! Watching the host: the kernel tells of changes to interfaces, addresses, routes, qdiscs and filters.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::{
    sync::RwLock,
    task,
    time::{self, Instant},
};
use tracing::{error, info, warn};

use super::Daemon;
use crate::{
    error::{Context as _, Result},
    fault,
};

/// What can change that concerns containers.
const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Tc,
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

/// How long changes may go on before somebody looks: they come in groups.
const SETTLING: Duration = Duration::from_millis(50);
/// How much longer than a look took nobody looks again. What a container's root does to its end of a veth pair is told
/// here, too; it cannot have the daemon take more than a tenth of a CPU by that.
const REST: u32 = 9;
/// How often everything is looked at, told or not.
const PERIOD: Duration = Duration::from_secs(10);

/// What the kernel has told.
#[derive(Default)]
struct News {
    /// Interfaces that have lost a filter or a qdisc.
    suspects: BTreeSet<u32>,
    /// It has told more than there was room for.
    is_incomplete: bool,
}

impl News {
    fn add(&mut self, change: &NetlinkPayload<RouteNetlinkMessage>) {
        match change {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::DelTrafficFilter(message)
                | RouteNetlinkMessage::DelQueueDiscipline(message),
            ) => self.suspects.extend(u32::try_from(message.header.index)),
            NetlinkPayload::Overrun(_) => self.is_incomplete = true,
            _ => {}
        }
    }
}

/// Watches until the daemon ends, again if that cannot go on.
pub(super) async fn watch_host(daemon: Arc<Daemon>, busy: Arc<RwLock<()>>) {
    loop {
        let ended = watch(daemon.clone(), &busy).await;
        let why = ended
            .err()
            .map_or_else(|| "the kernel has closed the connection".to_owned(), |error| error.message);
        error!("for {PERIOD:?}, changes of the host, and containers that end, go unnoticed: {why}");
        time::sleep(PERIOD).await;
    }
}

async fn watch(daemon: Arc<Daemon>, busy: &RwLock<()>) -> Result<()> {
    let opening = || "cannot watch the host's interfaces".to_owned();
    let (connection, _handle, mut changes) = new_multicast_connection(&GROUPS).context(opening)?;
    task::spawn(connection);
    let (mut told, mut rested_at) = (None, Instant::now());
    let mut thoroughly_at = Instant::now() + PERIOD;
    loop {
        let mut news = News::default();
        tokio::select! {
            change = changes.next() => {
                let Some((change, _)) = change else { return Ok(()) };
                news.add(&change.payload);
                time::sleep_until(rested_at.max(Instant::now() + SETTLING)).await;
                while let Some(Some((change, _))) = changes.next().now_or_never() {
                    news.add(&change.payload);
                }
            }
            () = time::sleep_until(thoroughly_at) => {}
        }
        if news.is_incomplete {
            info!("the kernel had more to tell than there was room for: looking at everything");
        }
        let thoroughly = news.is_incomplete || Instant::now() >= thoroughly_at;
        if thoroughly {
            thoroughly_at = Instant::now() + PERIOD;
        }
        let (daemon, started) = (daemon.clone(), Instant::now());
        let _busy = busy.read().await;
        let looked =
            task::spawn_blocking(move || fault::aside(|| daemon.look_after(thoroughly, &news.suspects)));
        let trouble = looked.await.context(opening)?.err();
        rested_at = Instant::now() + (started.elapsed() * REST).min(PERIOD);
        // The same trouble is told once.
        if let Some(trouble) = trouble.as_ref().filter(|trouble| told.as_ref() != Some(*trouble)) {
            warn!("{trouble}");
        }
        told = trouble;
    }
}
