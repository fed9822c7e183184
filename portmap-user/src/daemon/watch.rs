//! Watching the host: the kernel tells of changes to interfaces, addresses, routes, qdiscs and filters.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use portmap_common::slot::{HOST_SLOT, slot_of_veth};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::{
    task,
    time::{self, Instant},
};
use tracing::{error, info, warn};

use super::{Daemon, end::End};
use crate::{
    error::{Context as _, Result},
    failpoint,
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

/// What is to be looked at.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Everything: it is time for that, or the kernel had more to tell than there was room for.
    pub(super) all: bool,
    /// Something of the host other than its ends of containers' veth pairs has changed.
    pub(super) host: bool,
    /// Host veths that have changed or gone, by their index.
    pub(super) veths: BTreeSet<u32>,
    /// Interfaces that have lost a filter or a qdisc.
    pub(super) suspects: BTreeSet<u32>,
}

impl News {
    fn add(&mut self, change: &NetlinkPayload<RouteNetlinkMessage>) {
        match change {
            NetlinkPayload::Overrun(_) => {
                info!("the kernel had more to tell than there was room for: looking at everything");
                self.all = true;
            }
            NetlinkPayload::InnerMessage(message) => self.add_message(message),
            _ => {}
        }
    }

    fn add_message(&mut self, message: &RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)
                if slot_of_veth(message.header.index) != HOST_SLOT =>
            {
                self.veths.insert(message.header.index);
            }
            RouteNetlinkMessage::DelTrafficFilter(message)
            | RouteNetlinkMessage::DelQueueDiscipline(message) => {
                self.suspects.extend(u32::try_from(message.header.index));
            }
            RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_)
            | RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_) => self.host = true,
            // Qdiscs, classes and filters that are new.
            _ => {}
        }
    }
}

/// Watches until the daemon ends, again if that cannot go on.
pub(super) async fn watch_host(daemon: Arc<Daemon>, end: End) {
    loop {
        let ended = watch(daemon.clone(), &end).await;
        let why = ended
            .err()
            .map_or_else(|| "the kernel has closed the connection".to_owned(), |error| error.message);
        error!("for {PERIOD:?}, changes of the host, and containers that end, go unnoticed: {why}");
        time::sleep(PERIOD).await;
    }
}

async fn watch(daemon: Arc<Daemon>, end: &End) -> Result<()> {
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
        news.all |= Instant::now() >= thoroughly_at;
        if news.all {
            thoroughly_at = Instant::now() + PERIOD;
        }
        let (daemon, started) = (daemon.clone(), Instant::now());
        let running = end.operation("looking after the host");
        let looked = task::spawn_blocking(move || {
            let _until_done = running;
            failpoint::suppressed(|| daemon.look_after(&news))
        });
        let trouble = looked.await.context(opening)?.err();
        rested_at = Instant::now() + (started.elapsed() * REST).min(PERIOD);
        // The same trouble is told once.
        if let Some(trouble) = trouble.as_ref().filter(|trouble| told.as_ref() != Some(*trouble)) {
            warn!("{trouble}");
        }
        told = trouble;
    }
}
