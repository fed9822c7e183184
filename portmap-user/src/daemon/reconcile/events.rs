//! Host events: the kernel notifies the daemon of changes to interfaces, addresses, routes, qdiscs and
//! filters.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

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

use crate::{
    daemon::shutdown::Shutdown,
    error::{Context as _, Result},
    failpoint,
    kernel::{
        neighbour,
        notifications::{Changes, Notifications},
    },
};

/// The netlink groups whose notifications can concern containers. [`Notifications`] has those that the library
/// cannot parse.
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Tc,
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Neigh,
];

/// Debounce: time in which the daemon collects notifications before it reconciles, because they arrive in
/// bursts.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Back-off: a reconciliation after events waits this many times the duration of the last one. Root in a
/// container can cause events at any rate by changing its end of the veth pair; the back-off limits their
/// cost to a tenth of a CPU. The bound holds for passes of up to 1.1 s, because no back-off is longer than
/// [`RESYNC_INTERVAL`].
const BACKOFF_FACTOR: u32 = 9;
/// Interval of full resyncs, because changes of pins and of most sysctls cause no events. Also the longest back-off.
const RESYNC_INTERVAL: Duration = Duration::from_secs(10);

/// The changes since the last reconciliation.
#[derive(Debug, Default)]
pub(in crate::daemon) struct HostEvents {
    /// Everything must be checked, because a resync is due or notifications were lost.
    pub(super) resync: bool,
    /// A link, address, route, next-hop object or rule of the host has changed, other than a host veth, or the
    /// neighbour entry of a gateway.
    pub(super) host_changed: bool,
    /// `forwarding` of the host's loopback device may have changed. Most often `ip_forward` was written, which
    /// writes `forwarding` of every interface.
    pub(super) loopback_settings_changed: bool,
    /// Host veths that have changed or have been deleted, by index.
    pub(super) veths: BTreeSet<u32>,
    /// Interfaces from which a filter or a qdisc has been removed, by index.
    pub(super) tc_removed_on: BTreeSet<u32>,
}

impl HostEvents {
    fn add(&mut self, change: &NetlinkPayload<RouteNetlinkMessage>, gateways: &[IpAddr]) {
        match change {
            NetlinkPayload::Overrun(_) => {
                info!("netlink event buffer overrun; resyncing");
                self.resync = true;
            }
            NetlinkPayload::InnerMessage(message) => self.add_message(message, gateways),
            _ => {}
        }
    }

    const fn add_changes(&mut self, changes: Changes) {
        self.host_changed |= changes.next_hops;
        self.loopback_settings_changed |= changes.loopback_settings;
    }

    fn add_message(&mut self, message: &RouteNetlinkMessage, gateways: &[IpAddr]) {
        match message {
            RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)
                if slot_of_veth(message.header.index) != HOST_SLOT =>
            {
                self.veths.insert(message.header.index);
            }
            RouteNetlinkMessage::DelTrafficFilter(message)
            | RouteNetlinkMessage::DelQueueDiscipline(message) => {
                self.tc_removed_on.extend(u32::try_from(message.header.index));
            }
            RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_)
            | RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_) => self.host_changed = true,
            // Other neighbours change all the time, and do not concern the state of the host.
            RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) => {
                self.host_changed |= neighbour::address(message).is_some_and(|own| gateways.contains(&own));
            }
            // Added qdiscs, classes and filters need no reconciliation.
            _ => {}
        }
    }
}

/// Watches the host while the daemon runs, and calls `reconcile` with the changes, among which are those of the
/// neighbour entries of `gateways`. Restarts a watch that
/// fails.
pub(in crate::daemon) async fn watch(
    shutdown: Shutdown,
    gateways: impl Fn() -> Vec<IpAddr> + Send,
    reconcile: impl Fn(&HostEvents) -> Result<()> + Send + Sync + 'static,
) {
    let reconcile = Arc::new(reconcile);
    loop {
        let ended = watch_once(&shutdown, &gateways, &reconcile).await;
        let why = ended
            .err()
            .map_or_else(|| "the kernel has closed the connection".to_owned(), |error| error.message);
        error!("cannot watch host events: {why}; retrying in {RESYNC_INTERVAL:?}");
        time::sleep(RESYNC_INTERVAL).await;
    }
}

async fn watch_once(
    shutdown: &Shutdown,
    gateways: &(impl Fn() -> Vec<IpAddr> + Send),
    reconcile: &Arc<impl Fn(&HostEvents) -> Result<()> + Send + Sync + 'static>,
) -> Result<()> {
    let opening = || "cannot watch the host's interfaces".to_owned();
    let (connection, _handle, mut changes) = new_multicast_connection(&GROUPS).context(opening)?;
    task::spawn(connection);
    let notifications = Notifications::subscribe()?;
    let (mut last_error, mut back_off_until) = (None, Instant::now());
    let mut resync_at = Instant::now() + RESYNC_INTERVAL;
    loop {
        let mut events = HostEvents::default();
        let known = gateways();
        let is_event = tokio::select! {
            change = changes.next() => {
                let Some((change, _)) = change else { return Ok(()) };
                events.add(&change.payload, &known);
                true
            }
            change = notifications.next() => {
                events.add_changes(change.context(opening)?);
                true
            }
            () = time::sleep_until(resync_at) => false,
        };
        if is_event {
            time::sleep_until(back_off_until.max(Instant::now() + DEBOUNCE)).await;
            while let Some(Some((change, _))) = changes.next().now_or_never() {
                events.add(&change.payload, &known);
            }
            while let Some(change) = notifications.next().now_or_never() {
                events.add_changes(change.context(opening)?);
            }
        }
        events.resync |= Instant::now() >= resync_at;
        if events.resync {
            resync_at = Instant::now() + RESYNC_INTERVAL;
        }
        let (reconcile, started) = (reconcile.clone(), Instant::now());
        let running = shutdown.operation("reconciling the host");
        let reconciled = task::spawn_blocking(move || {
            let _until_done = running;
            failpoint::suppressed(|| reconcile(&events))
        });
        let error = reconciled.await.context(opening)?.err();
        back_off_until = Instant::now() + (started.elapsed() * BACKOFF_FACTOR).min(RESYNC_INTERVAL);
        // A persistent error is logged once.
        if let Some(error) = error.as_ref().filter(|error| last_error.as_ref() != Some(*error)) {
            warn!("{error}");
        }
        last_error = error;
    }
}
