//! Start of the daemon: sets up the host and restores the registry from the records of an earlier daemon.

use std::sync::Arc;

use tracing::{info, warn};

use super::{first_start::FirstStart, progress::Progress, reconciler::Reconciler};
use crate::{
    api::Health,
    daemon::{
        container::{Containers, limits},
        env::Env,
        events::Events,
        host::{
            Host, HostState, Ownership, ipsec,
            nat::Nat,
            setup::{self, Setup},
            sockets, uplink_qdisc,
        },
        operations::Operations,
        preconditions::{check_loopback, check_namespace, check_root},
        registry::Registry,
    },
    error::{Error, Result},
    kernel::{
        bpffs, cgroup, clock,
        guard::{self, Guard},
        inherit::Inheritance,
        maps::Maps,
        netlink::Netlink,
        pin_migration,
        pins::OpenPins,
        port_table::PortTable,
        programs::{self, AttachMode},
        qdisc::Leaf,
        sysctl::Sysctls,
    },
    model::{ContainerRecord, EphemeralPool, Phase},
    settings::Settings,
    state::Store,
};
#[cfg(feature = "datapath-log")]
use crate::{daemon::observe::verdict_log, object};

/// The parts of a started daemon.
pub(in crate::daemon) struct Started {
    pub(in crate::daemon) env: Arc<Env>,
    pub(in crate::daemon) registry: Arc<Registry>,
    pub(in crate::daemon) host: Arc<Host>,
    pub(in crate::daemon) containers: Arc<Containers>,
    pub(in crate::daemon) operations: Arc<Operations>,
    pub(in crate::daemon) reconciler: Arc<Reconciler>,
}

/// Starts a daemon: checks the preconditions, takes over the state of an earlier daemon, sets up the host. If
/// it fails, containers in service stay in service, and a first start is rolled back.
///
/// # Errors
///
/// The first failure.
pub(in crate::daemon) fn start(settings: Settings) -> Result<Started> {
    check_root()?;
    let netlink = Netlink::open()?;
    check_namespace(&netlink)?;
    check_loopback(&netlink, settings.lo_name.as_deref())?;
    let first = FirstStart::detect(&settings);
    start_over(&netlink, settings).map_err(|error| match first {
        Some(first) => first.roll_back(error),
        None => error,
    })
}

fn start_over(netlink: &Netlink, settings: Settings) -> Result<Started> {
    bpffs::check_mounted(settings.pins.bpffs())?;
    let state = HostState::discover(netlink, &settings)?;
    limits::check_link_speed(&settings.shaping, &state)?;
    let bind_guard = settings.bind_guard.as_ref().map(|guard| cgroup::resolve(guard.path())).transpose()?;
    let sysctls = Sysctls::open()?;
    setup::check_ports(&settings, &sysctls)?;
    pin_migration::refuse_later(settings.pins.bpffs())?;
    let store = Store::lock(&settings.state_dir)?;
    let mut ownership = Ownership::take(state.namespace, &settings.state_dir)?;
    ownership.take_pins(settings.pins.bpffs())?;
    let known = store.host()?.or_else(|| ownership.host().cloned());
    let state = state.with_known_primaries(netlink, &settings, known.map(|known| known.primaries))?;
    let attach_mode = AttachMode::detect();
    let records = store.containers()?;
    let pool = restored_pool(&settings, &store, &records)?;
    let setup = Setup { netlink, settings: &settings, sysctls: &sysctls, state: &state, attach_mode };
    let mut host_record = setup.record(&store, &mut ownership)?;
    let leaf = Leaf::best()?;
    limits::warn_of_degraded_limits(&settings.shaping, leaf, &state);
    let is_upgrade = !pin_migration::earlier(settings.pins.bpffs())?.is_empty();
    bpffs::prepare(&settings.pins)?;
    ownership.take_pins(settings.pins.bpffs())?;
    pin_migration::migrate(&settings.pins)?;
    #[cfg(feature = "datapath-log")]
    let mut object = programs::load_object(&settings.pins, object::bytes())?;
    #[cfg(not(feature = "datapath-log"))]
    programs::load(&settings.pins)?;
    let maps = Maps::open(&settings.pins)?;
    let guard = match &bind_guard {
        Some(cgroup) => Some(Guard::load(&settings.pins, cgroup)?),
        None => None,
    };
    uplink_qdisc::install(netlink, &store, &mut host_record, &settings, &state, leaf)?;
    ownership.note(&host_record);
    bpffs::permit(&settings.pins, settings.socket_group)?;
    let pins = OpenPins::open(&settings.pins)?;
    let inheritance = Inheritance::probe()?;
    let env = Arc::new(Env {
        settings,
        attach_mode,
        leaf,
        inheritance,
        store,
        maps,
        guard,
        pins,
        events: Events::default(),
    });
    // The maps must be complete before the first program is replaced.
    env.maps.set_host_ports(&env.settings.reach)?;
    env.maps.set_broadcasts(&state.broadcasts)?;
    env.maps.set_addresses(&state.more_addresses())?;
    env.maps.set_config(&env.config(&state))?;
    let progress = Progress::new(records.len());
    let ports = PortTable::open(&env.settings.pins)?;
    let registry = Arc::new(Registry::new(env.clone(), ports, pool, records));
    #[cfg(feature = "datapath-log")]
    if let Some(target) = &env.settings.datapath_log {
        let registry = registry.clone();
        let names = Arc::new(move || registry.snapshot().names_by_slot());
        verdict_log::start(&mut object, target.clone(), names)?;
    }
    let host = Arc::new(Host::new(sysctls, state, ownership));
    let containers = Arc::new(Containers::new(env.clone(), registry.clone(), host.clone()));
    let operations = Arc::<Operations>::default();
    let reconciler = Arc::new(Reconciler {
        env: env.clone(),
        registry: registry.clone(),
        host: host.clone(),
        containers: containers.clone(),
        operations: operations.clone(),
        progress,
    });
    registry.publish_all();
    if is_upgrade {
        // Programs of the earlier layout read maps that this daemon does not write, so all are replaced
        // before it is ready.
        reconciler.take_over_all(|| false);
    }
    reconciler.remove_orphans(netlink)?;
    let state = host.state();
    let settings = &env.settings;
    Setup { netlink, settings, sysctls: &host.sysctls, state: &state, attach_mode }.apply()?;
    containers.reconcile_reservations()?;
    attach_guard(&env, &registry)?;
    pin_migration::remove_earlier(settings.pins.bpffs())?;
    info!(
        "ready: {}; attach mode {}, taking over {} containers",
        state.describe_sharing(),
        attach_mode.name(),
        registry.snapshot().len()
    );
    warn_of_host(&env, &registry, &state);
    Ok(Started { env, registry, host, containers, operations, reconciler })
}

/// The pool of ephemeral ports, with the blocks of recorded containers reserved and those in quarantine.
fn restored_pool(settings: &Settings, store: &Store, records: &[ContainerRecord]) -> Result<EphemeralPool> {
    let mut pool = EphemeralPool::new(settings.ephemeral_ports.clone(), settings.quarantine);
    for record in records.iter().filter(|record| record.phase == Phase::Ready) {
        check_still_managed(settings, record, &mut pool)?;
    }
    for record in records.iter().filter(|record| record.phase != Phase::Ready) {
        // No other container may get the block before this one is removed. An error means that the block is
        // not managed any more, so no container can get it.
        for ports in record.draining.iter().map(|draining| draining.ports).chain([record.ephemeral_ports]) {
            let _ = pool.reserve(ports);
        }
    }
    let now = clock::since_boot()?;
    for quarantined in store.quarantine()? {
        pool.continue_quarantine(quarantined, now);
    }
    Ok(pool)
}

/// Refuses settings that exclude ports of a container in service.
fn check_still_managed(
    settings: &Settings,
    record: &ContainerRecord,
    pool: &mut EphemeralPool,
) -> Result<()> {
    let advice = "start with ranges that include them, or delete the container with the old settings first";
    let lost = record.ports.difference(&settings.ports).difference(&settings.published);
    if !lost.is_empty() {
        return Err(Error::conflict(format!(
            "container {:?} owns the ports {lost}, which --ports and --published-ports lack: {advice}",
            record.name
        )));
    }
    let draining = record.draining.iter().map(|draining| draining.ports);
    draining.chain([record.ephemeral_ports]).try_for_each(|ports| {
        pool.reserve(ports)
            .map_err(|error| Error::conflict(format!("container {:?}: {error}: {advice}", record.name)))
    })
}

/// Attaches the bind guard, or removes the one of an earlier daemon.
fn attach_guard(env: &Env, registry: &Registry) -> Result<()> {
    let Some(guard) = &env.guard else { return Ok(guard::remove(&env.settings.pins)?) };
    let slots = registry.snapshot().slots();
    guard.retain(|slot| slots.contains(&slot))?;
    Ok(guard.attach()?)
}

/// Warns of the host's processes that use managed ports, and of its NAT rules and IPsec policies that cannot work with
/// containers.
fn warn_of_host(env: &Env, registry: &Registry, state: &HostState) {
    let owned = registry.snapshot().owned_ports();
    let managed = env.managed_ports().union(&owned);
    let mut findings = sockets::findings(state, &managed, &owned);
    findings.extend(Nat { state, managed: &managed }.findings());
    findings.push(ipsec::finding());
    for finding in findings.iter().filter(|finding| finding.health != Health::Ok) {
        warn!("{}: {}", finding.subject, finding.text);
    }
}
