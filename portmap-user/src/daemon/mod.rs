//! The daemon. Each directory below is a wing with one job; this file contains the facade that delegates to
//! them.
//!
//! | wing | job |
//! |---|---|
//! | `registry` | owns the containers' entries, the pool of ephemeral ports, and the table of ports |
//! | `container` | adds, changes and removes one container |
//! | `host` | the state of the host, and what the daemon changes there |
//! | `reconcile` | makes the kernel agree with the records: start, events, resyncs, `doctor` |
//! | `observe` | statistics, metrics, capacity, drops, `explain` |
//! | [`http`] | the daemon's interface |

mod container;
mod env;
mod events;
mod host;
pub mod http;
mod journal;
mod keyed_lock;
mod leftovers;
mod observe;
mod operations;
mod preconditions;
mod reconcile;
mod registry;
pub mod shutdown;
pub mod teardown;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use tokio::sync::watch;

use self::{
    container::{Containers, add, limits},
    env::Env,
    events::Subscription,
    host::Host,
    observe::{
        capacity,
        collect::Collector,
        containers::describe,
        drops,
        explain::Explainer,
        flows,
        metrics::{self, encode::Format, operations::Meter},
        monitor::{self, rates::Rates},
        stats,
    },
    operations::Operations,
    reconcile::{Reconciler, events::HostEvents, startup},
    registry::{Refusal, Registry},
};
use crate::{
    api::{
        AddRequest, Capacity, Changed, Container, ContainerStats, DropCount, ExplainRequest, Explanation,
        Finding, Flows, FlowsRequest, HOST, OUTSIDE, Stats, UpdateRequest, monitor::MonitoredContainer,
    },
    error::{Context as _, Result},
    failpoint,
    kernel::{link, netlink::Netlink},
    model::Process,
    paths::Pins,
    settings::Settings,
};

/// A running daemon, with its operations. All of them block.
///
/// [`crate::locks::Rank`] defines the order of the locks.
pub struct Daemon {
    env: Arc<Env>,
    registry: Arc<Registry>,
    host: Arc<Host>,
    containers: Arc<Containers>,
    operations: Arc<Operations>,
    reconciler: Arc<Reconciler>,
    collector: Arc<Collector>,
    /// Samples of the containers' rates, if they are wanted.
    rates: Option<Arc<Rates>>,
    /// Measures the operations.
    meter: Meter,
}

impl Daemon {
    /// Starts a daemon: checks the preconditions, takes over the state of an earlier daemon, sets up the
    /// host.
    ///
    /// # Errors
    ///
    /// The first failure. Containers in service stay in service; a first start is rolled back.
    pub fn start(settings: Settings) -> Result<Self> {
        let startup::Started { env, registry, host, containers, operations, reconciler } =
            startup::start(settings)?;
        let collector = Arc::new(Collector::new(env.clone(), registry.clone())?);
        collector.watch();
        let window = env.settings.monitor.rates;
        let rates = window.map(|window| Rates::watch(window, env.clone(), registry.clone())).transpose()?;
        Ok(Self {
            env,
            registry,
            host,
            containers,
            operations,
            reconciler,
            collector,
            rates,
            meter: Meter::default(),
        })
    }

    /// Adds a container. A failure is rolled back.
    ///
    /// # Errors
    ///
    /// If the request is invalid, the host or other containers own a resource that it needs, or a step fails.
    pub fn add(&self, request: &AddRequest) -> Result<Changed> {
        let checked =
            add::check_request(request).and_then(|()| limits::check_allowed(&self.env, &request.traffic));
        let added = checked
            .and_then(|()| self.on_container(&request.name, || self.containers.add(request.clone())))
            .map(|changed| self.changed(changed));
        journal::note(&self.env.events, &request.name, "added", added, |added| {
            journal::form("added", &added.container)
        })
    }

    /// Changes a container's static ports and its limits. A failure is rolled back.
    ///
    /// # Errors
    ///
    /// If there is no such container, the host or other containers own one of the ports, or a step fails.
    pub fn update(&self, name: &str, request: &UpdateRequest) -> Result<Changed> {
        let updated = limits::check_allowed(&self.env, &request.traffic)
            .and_then(|()| self.on_container(name, || self.containers.update(name, request.clone())))
            .map(|changed| self.changed(changed));
        journal::note(&self.env.events, name, "updated", updated, |updated| {
            journal::form("updated", &updated.container)
        })
    }

    /// Removes a container with everything that portmap made for it.
    ///
    /// # Errors
    ///
    /// If there is no such container, or a step fails; then the container stays in state `deleting`.
    pub fn delete(&self, name: &str) -> Result<()> {
        let removed = self.operations.begin().and_then(|_operation| {
            self.operations.on(name, || {
                self.reconciler.take_over_first(name)?;
                self.containers.delete(&Netlink::open()?, name)
            })
        });
        journal::note(&self.env.events, name, "removed", removed, |()| "removed".to_owned())
    }

    /// Removes a container if this process owns it. Returns false if it does not, or if there is no such
    /// container.
    fn delete_owned(&self, name: &str, owner: Process) -> Result<bool> {
        let is_owned =
            || self.registry.snapshot().get(name).is_some_and(|entry| entry.record.owner == Some(owner));
        if !is_owned() {
            return Ok(false);
        }
        let _operation = self.operations.begin()?;
        self.operations.on(name, || {
            self.reconciler.take_over_first(name)?;
            if !is_owned() {
                return Ok(false);
            }
            self.containers.delete(&Netlink::open()?, name)?;
            Ok(true)
        })
    }

    /// The containers that a process owns, each with its owner.
    fn owned(&self) -> Vec<(String, Process)> {
        let containers = self.registry.snapshot();
        containers.records().filter_map(|record| Some((record.name.clone(), record.owner?))).collect()
    }

    /// Removes all containers and restores the host. The daemon accepts no operation afterwards.
    ///
    /// # Errors
    ///
    /// All failures. A failure does not stop the teardown.
    pub fn teardown(&self) -> Result<bool> {
        self.operations.stop_accepting();
        let ownership = self.host.ownership();
        let bpffs = self.env.settings.pins.bpffs();
        Ok(teardown::teardown_locked(&self.env.store, &ownership, bpffs)?.anything)
    }

    /// Removes the state directory after a teardown, as the daemon's last step.
    fn finish_teardown(&self) -> Result<()> {
        if self.operations.has_stopped() { self.env.store.remove() } else { Ok(()) }
    }

    /// All containers, by name.
    pub fn list(&self) -> Vec<Container> {
        let (containers, state) = (self.registry.snapshot(), self.host.state());
        containers.entries().map(|entry| describe(&self.env, &state, entry)).collect()
    }

    /// One container. Takes it over first if it is not checked yet.
    ///
    /// # Errors
    ///
    /// If there is no such container, or its takeover fails.
    pub fn show(&self, name: &str) -> Result<Container> {
        self.take_over_first(name)?;
        let containers = self.registry.snapshot();
        Ok(describe(&self.env, &self.host.state(), containers.entry(name)?))
    }

    /// One container as it is known now: unlike [`Self::show`], this changes nothing.
    ///
    /// # Errors
    ///
    /// If there is no such container.
    fn peek(&self, name: &str) -> Result<Container> {
        let containers = self.registry.snapshot();
        Ok(describe(&self.env, &self.host.state(), containers.entry(name)?))
    }

    /// The statistics of one container as it is known now.
    ///
    /// # Errors
    ///
    /// If there is no such container, or a map cannot be read.
    fn peek_stats(&self, name: &str) -> Result<ContainerStats> {
        let containers = self.registry.snapshot();
        stats::one(&self.env, &containers, &self.collector.newest(&containers), name)
    }

    /// The statistics of all containers and of the host.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        let containers = self.registry.snapshot();
        stats::all(&self.env, &containers, &self.collector.newest(&containers))
    }

    /// The statistics of one container. Takes it over first if it is not checked yet.
    ///
    /// # Errors
    ///
    /// If there is no such container, its takeover fails, or a map cannot be read.
    pub fn container_stats(&self, name: &str) -> Result<ContainerStats> {
        self.take_over_first(name)?;
        let containers = self.registry.snapshot();
        stats::one(&self.env, &containers, &self.collector.newest(&containers), name)
    }

    /// The open connections of a container, by peer and service. Takes it over first if it is not checked yet.
    ///
    /// # Errors
    ///
    /// If there is no such container, its takeover fails, or its namespace cannot be visited.
    pub fn flows(&self, name: &str, request: FlowsRequest) -> Result<Flows> {
        self.take_over_first(name)?;
        flows::of(&self.env, &self.host.state(), &self.registry.snapshot(), name, request)
    }

    /// All metrics, as text.
    fn metrics(&self, format: Format) -> Result<String> {
        let published = self.registry.published();
        let readings = self.collector.newest(&published.containers);
        metrics::all(&self.env, &self.host.state(), &published, &readings, &self.meter, format)
    }

    /// The statistics of all containers in service, in the form of a Mesos agent.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn monitor(&self) -> Result<Vec<MonitoredContainer>> {
        let containers = self.registry.snapshot();
        let readings = self.collector.newest(&containers);
        monitor::all(&self.env, &containers, &readings, self.rates.as_deref())
    }

    /// What containers can still get.
    ///
    /// # Errors
    ///
    /// If the monotonic clock cannot be read.
    pub fn capacity(&self) -> Result<Capacity> {
        capacity::of(&self.env, &self.host.state(), &self.registry.published())
    }

    /// The drops, by container, direction and reason; with a name, only those of that container.
    ///
    /// # Errors
    ///
    /// If there is no such container, or a map cannot be read.
    pub fn drops(&self, name: Option<&str>) -> Result<Vec<DropCount>> {
        drops::all(&self.env, &self.registry.snapshot(), name)
    }

    /// Fails unless `name` is a container, or [`OUTSIDE`].
    fn check_drops_of(&self, name: &str) -> Result<()> {
        drops::slot_of(&self.registry.snapshot(), name).map(drop)
    }

    /// Subscribes to events, until `ending`; with a name, to those of that container and of none.
    fn subscribe(&self, name: Option<String>, ending: watch::Receiver<bool>) -> Subscription {
        self.env.events.subscribe(name, ending)
    }

    /// The names of all containers, by slot.
    fn names_by_slot(&self) -> BTreeMap<u16, String> {
        self.registry.snapshot().names_by_slot()
    }

    /// The paths of the pins.
    fn pins(&self) -> &Pins {
        &self.env.settings.pins
    }

    /// The verdicts on a packet at each hook, by dry runs. Takes its sender over first if that is not checked
    /// yet.
    ///
    /// # Errors
    ///
    /// If the request is invalid, its sender is not in service, or the sender's takeover fails.
    pub fn explain(&self, request: &ExplainRequest) -> Result<Explanation> {
        if ![HOST, OUTSIDE].contains(&request.from.as_str()) {
            self.take_over_first(&request.from)?;
        }
        Explainer { env: &self.env, registry: &self.registry, host: &self.host }.explain(request)
    }

    /// Compares the actual state with the desired one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a netlink socket.
    pub fn doctor(&self) -> Result<Vec<Finding>> {
        self.reconciler.doctor()
    }

    /// Repairs all drift that can be repaired, then compares the actual state with the desired one.
    ///
    /// # Errors
    ///
    /// After a teardown, or if the kernel refuses a netlink socket.
    pub fn repair(&self) -> Result<Vec<Finding>> {
        self.reconciler.repair()?;
        self.reconciler.doctor()
    }

    /// The gateways whose neighbour entries concern the state of the host.
    fn gateways(&self) -> Vec<IpAddr> {
        self.host.state().gateways().collect()
    }

    /// Reconciles the host and the containers that these events concern.
    fn reconcile(&self, events: &HostEvents) -> Result<()> {
        self.meter.reconciliation(|| self.reconciler.reconcile(events))
    }

    /// Waits for each part that commands depend on, one after the other. Passes the name of each to `step`
    /// first, so that `/healthz` can report the part that hangs.
    fn probe(&self, step: impl Fn(&'static str)) -> Result<()> {
        step("the registry of containers");
        self.registry.probe();
        step("the state of the host");
        let _state = self.host.state();
        step("the BPF maps");
        let _config = self.env.maps.config()?;
        step("the kernel's netlink");
        failpoint::hit("ask whether the kernel answers")
            .context(|| "the kernel does not respond".to_owned())?;
        link::find(&Netlink::open()?, "lo")?;
        Ok(())
    }

    /// Runs a command on a container under its lock, after the takeover of that container. Retries the
    /// command if it needs a resource of containers that have ended in the meantime.
    fn on_container<T>(&self, name: &str, work: impl Fn() -> Result<T, Refusal>) -> Result<T> {
        let _operation = self.operations.begin()?;
        self.reconciler.after_takeover(|| {
            self.operations.on(name, || {
                self.reconciler.take_over_first(name)?;
                work()
            })
        })
    }

    /// Takes over the container `name` unless that has been done, for a query about it.
    fn take_over_first(&self, name: &str) -> Result<()> {
        if self.registry.snapshot().get(name).is_none_or(|entry| !entry.is_unchecked) {
            return Ok(());
        }
        let _operation = self.operations.begin()?;
        self.reconciler.take_over_if_unchecked(name)
    }

    fn changed(&self, changed: add::Changed) -> Changed {
        let add::Changed { entry, warnings } = changed;
        Changed { container: describe(&self.env, &self.host.state(), &entry), warnings }
    }
}
