//! The daemon's settings: flags and the configuration file, validated as far as that needs no kernel.

mod addresses;
mod metrics_labels;
mod monitor;
mod raw;
mod uplinks;

use std::{
    net::SocketAddr,
    num::NonZero,
    path::{Path, PathBuf},
    time::Duration,
};

use netlink_packet_route::tc::TcHandle;
use nix::unistd::Group;
use tracing::warn;

pub use self::monitor::{Monitor, RateWindow};
use self::raw::Ipv6;
pub use self::{
    addresses::AddressFilter,
    metrics_labels::MetricsLabel,
    raw::{RawSettings, Readers, normalized},
    uplinks::UplinkChoice,
};
use crate::{
    error::{Context as _, Error, Result},
    model::{
        Cpus, Direction, HostAccess, LogTarget, Policy, PortRange, PortSet, Reach, Resources, ephemeral,
        resources,
    },
    paths::{DEFAULT_BPFFS_DIR, DEFAULT_STATE_DIR, Pins, StateDir},
    sizes::HumanBytes,
};

/// Default of `--ephemeral-ports-per-container`.
const DEFAULT_BLOCK: u16 = 1024;
/// Default of `--ephemeral-ports-quarantine`: as long as Linux' `TIME_WAIT`.
const DEFAULT_QUARANTINE: Duration = Duration::from_mins(1);
/// Default of `--ephemeral-ports-drain`: longer than most connections last.
const DEFAULT_DRAIN: Duration = Duration::from_hours(24);
/// Default of `--listen`.
const DEFAULT_LISTEN: &str = "127.0.0.1:5051";
/// The isolator of Mesos that portmap replaces.
const ISOLATOR: &str = "network/port_mapping";
/// Ports below this one have well-known uses, and are never ephemeral ports.
const FIRST_UNPRIVILEGED: u16 = 1024;

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which interfaces are uplinks, in the order of preference for the main one.
    pub uplinks: Vec<UplinkChoice>,
    /// The expected name of the host's loopback interface, if it is given.
    pub lo_name: Option<String>,
    /// Static ports that containers can request.
    pub ports: PortSet,
    /// Ports outside the pools that containers can request by number.
    pub published: PortSet,
    /// Ports of the pool of ephemeral ports.
    pub ephemeral_ports: PortSet,
    /// Default number of ephemeral ports per container.
    pub block: u16,
    /// Quarantine of a released block of ephemeral ports.
    pub quarantine: Duration,
    /// Longest time for which ports that a container has had before an update stay its own.
    pub drain: Duration,
    /// The state directory.
    pub state_dir: StateDir,
    /// The pins.
    pub pins: Pins,
    /// Whether containers have IPv6 if the host has a global address.
    pub ipv6: bool,
    /// Which of the host's addresses containers share.
    pub addresses: AddressFilter,
    /// Id of the group with full access to the daemon's socket, if there is one.
    pub socket_group: Option<u32>,
    /// Who may use the read-only socket.
    pub readers: Readers,
    /// Address of the read-only HTTP server.
    pub listen: Option<SocketAddr>,
    /// Whether the daemon repairs drift by itself.
    pub reconcile: bool,
    /// The processes whose `bind()` is guarded; `None`: no guard.
    pub bind_guard: Option<BindGuard>,
    /// Limits on the containers' traffic.
    pub shaping: Shaping,
    /// What containers may reach of the host and of each other.
    pub reach: Reach,
    /// Labels of containers that `/metrics` contains.
    pub metrics_labels: Vec<MetricsLabel>,
    /// Statistics besides the counters.
    pub monitor: Monitor,
    /// Whose verdicts are logged. Always `None` in builds without the feature `datapath-log`.
    pub datapath_log: Option<LogTarget>,
}

/// The processes whose `bind()` is guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindGuard {
    /// All processes of the host.
    All,
    /// The processes of the cgroup with this directory.
    Cgroup(PathBuf),
}

impl BindGuard {
    /// The directory of the cgroup; `None` for all processes.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::All => None,
            Self::Cgroup(path) => Some(path),
        }
    }
}

/// Settings of limits on the containers' traffic.
#[derive(Clone, Debug)]
pub struct Shaping {
    /// Limits on what containers send.
    pub egress: Policy,
    /// Limits on what they receive.
    pub ingress: Policy,
    /// Whether limits on receiving also apply to existing containers that have none.
    pub ingress_for_existing: bool,
    /// Whether limits also count local traffic.
    pub limits_local: bool,
    /// Speed of the uplinks in bytes per second, if it is given.
    pub link_speed: Option<u64>,
    /// The CPUs among which `auto` divides the link's speed, if they are given; otherwise the host's.
    pub cpus: Option<u64>,
    /// Parent of the uplinks' qdiscs in which each container has a flow; `None`: no such qdiscs.
    pub flows: Option<TcHandle>,
}

impl Shaping {
    /// The rate `auto`: a share of the link's speed for each CPU of `--resources`, or of the host.
    pub fn speed_per_cpu(&self, link_speed: Option<u64>) -> Option<u64> {
        let all = || std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
        Some(link_speed? / self.cpus.unwrap_or_else(all).max(1))
    }
}

/// The id of a group that is named, or given as a number.
fn group_id(group: &str) -> Result<u32> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let found =
        Group::from_name(group).context(|| format!("cannot look up the group {group:?} (--socket-group)"))?;
    found.map(|found| found.gid.as_raw()).ok_or_else(|| {
        Error::usage(format!(
            "--socket-group {group:?}: there is no such group: expected a group of this host, or the number of one"
        ))
    })
}

impl RawSettings {
    /// Reads the configuration file, if one is named, and validates all settings.
    pub fn resolve(self) -> Result<Settings> {
        self.with_file()?.validate()
    }

    fn shaping(&self, cpus: Option<f64>) -> Result<Shaping> {
        let bytes = |size: Option<HumanBytes>| size.map(|size| size.0);
        let egress = Policy {
            fixed: bytes(self.egress_rate_limit_per_container),
            per_cpu: self.egress_rate_per_cpu,
            minimum: bytes(self.minimum_egress_rate_limit),
            maximum: bytes(self.maximum_egress_rate_limit),
            ceil: bytes(self.egress_ceil_limit),
            burst: bytes(self.egress_burst),
        };
        let ingress = Policy {
            fixed: bytes(self.ingress_rate_limit_per_container),
            per_cpu: self.ingress_rate_per_cpu,
            minimum: bytes(self.minimum_ingress_rate_limit),
            maximum: bytes(self.maximum_ingress_rate_limit),
            ceil: bytes(self.ingress_ceil_limit),
            burst: bytes(self.ingress_burst),
        };
        egress.check(Direction::Egress)?;
        ingress.check(Direction::Ingress)?;
        let parent = self.egress_flow_classifier_parent.as_deref().map_or(Ok(TcHandle::ROOT), parent)?;
        Ok(Shaping {
            egress,
            ingress,
            ingress_for_existing: self.ingress_isolate_existing_containers.unwrap_or(true),
            limits_local: self.limit_local_traffic.unwrap_or(true),
            link_speed: bytes(self.network_link_speed),
            cpus: cpus.map(whole_cpus),
            flows: self.egress_unique_flow_per_container.unwrap_or(false).then_some(parent),
        })
    }

    fn validate(self) -> Result<Settings> {
        check_isolation(self.isolation.as_deref().unwrap_or(ISOLATOR))?;
        let resources = match &self.resources {
            Some(text) => resources::parse(text)?,
            None => Resources::default(),
        };
        let given = |flag: &Option<String>| flag.as_deref().map(str::parse::<PortSet>).transpose();
        for (flag, value, other) in [
            ("--ports", &self.ports, &resources.ports),
            ("--ephemeral-ports", &self.ephemeral_ports, &resources.ephemeral_ports),
        ] {
            if let (Some(value), Some(other)) = (value, other) {
                warn!("{flag} {value} overrides these ports in --resources, {other}");
            }
        }
        let ports = given(&self.ports)?.or(resources.ports).unwrap_or_default();
        let ephemeral_ports = given(&self.ephemeral_ports)?.or(resources.ephemeral_ports).unwrap_or_default();
        let block = self.ephemeral_ports_per_container.unwrap_or(DEFAULT_BLOCK);
        check_ports(&ports, &ephemeral_ports, block)?;
        let listen = match self.listen.as_deref().unwrap_or(DEFAULT_LISTEN) {
            "none" => None,
            text => Some(text.parse::<SocketAddr>().map_err(|_invalid| {
                Error::usage(format!(
                    "--listen {text:?}: expected an address and a port such as {DEFAULT_LISTEN}, or none"
                ))
            })?),
        };
        if let Some(address) = listen
            && ports.union(&ephemeral_ports).contains(address.port())
        {
            return Err(Error::usage(format!(
                "--listen {address}: the daemon's own port must not be one of the containers' ports"
            )));
        }
        let published = given(&self.published_ports)?.unwrap_or_default();
        let in_pool = published.intersection(&ephemeral_ports);
        if !in_pool.is_empty() {
            return Err(Error::usage(format!(
                "the ports {in_pool} are in --published-ports and in --ephemeral-ports: expected in one"
            )));
        }
        // Like the ports of the pool, the daemon's own port can be no container's.
        let own = listen.and_then(|address| PortRange::new(address.port(), address.port()));
        let published = published.difference(&ports).difference(&own.into_iter().collect::<Vec<_>>().into());
        let shaping = self.shaping(resources.cpus)?;
        let is_on = |flag: Option<bool>| flag.unwrap_or(false);
        let monitor = Monitor {
            socket_summary: is_on(self.network_enable_socket_statistics_summary),
            socket_details: is_on(self.network_enable_socket_statistics_details),
            snmp: is_on(self.network_enable_snmp_statistics),
            rates: monitor::rates(
                is_on(self.network_enable_rate_statistics),
                self.network_rate_statistics_window,
                self.network_rate_statistics_interval,
            )?,
        };
        if let Some(target) = &self.datapath_log
            && !cfg!(feature = "datapath-log")
        {
            return Err(Error::usage(format!(
                "--datapath-log {target}: the programs of this portmapd cannot log; build it with `cargo xtask \
                 build --features datapath-log`"
            )));
        }
        let reach = Reach {
            loopback: self.loopback.unwrap_or_default(),
            host: self.host_access.map_or(Ok(HostAccess::All), |words| words.join(" ").parse())?,
            listener: listen.filter(|_| !self.listen_to_containers.unwrap_or(false)),
        };
        Ok(Settings {
            shaping,
            reach,
            monitor,
            uplinks: uplinks::parsed(self.uplink)?,
            lo_name: self.lo_name,
            ports,
            published,
            ephemeral_ports,
            block,
            quarantine: self.ephemeral_ports_quarantine.map_or(DEFAULT_QUARANTINE, |duration| duration.0),
            drain: self.ephemeral_ports_drain.map_or(DEFAULT_DRAIN, |duration| duration.0),
            state_dir: StateDir::new(self.state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into())),
            pins: Pins::new(self.bpffs_dir.unwrap_or_else(|| DEFAULT_BPFFS_DIR.into())),
            ipv6: self.ipv6.unwrap_or_default() == Ipv6::Auto,
            addresses: AddressFilter::new(self.address, self.exclude_address)?,
            socket_group: self.socket_group.as_deref().map(group_id).transpose()?,
            readers: self.readonly_socket.unwrap_or_default(),
            listen,
            reconcile: self.reconcile.unwrap_or(true),
            bind_guard: bind_guard(self.bind_guard.as_deref())?,
            metrics_labels: metrics_labels::validated(self.metrics_label.unwrap_or_default())?,
            datapath_log: self.datapath_log,
        })
    }
}

/// The CPUs of a Mesos agent as the divisor of the link's speed: whole ones, at least one.
fn whole_cpus(cpus: f64) -> u64 {
    Cpus::try_from(cpus).map_or(1, Cpus::whole).max(1)
}

/// Refuses isolators of a Mesos agent that portmap does not replace.
fn check_isolation(isolators: &str) -> Result<()> {
    match isolators.split(',').map(str::trim).find(|name| *name != ISOLATOR) {
        // As Mesos does.
        None if isolators.contains(',') => Err(Error::usage(format!(
            "--isolation names {ISOLATOR} more than once: expected {ISOLATOR} alone"
        ))),
        None => Ok(()),
        Some(other) => Err(Error::usage(format!(
            "--isolation names the unknown or unsupported isolator {other:?}: expected {ISOLATOR} alone; leave \
             the others to the program that provides them"
        ))),
    }
}

fn bind_guard(text: Option<&str>) -> Result<Option<BindGuard>> {
    match text {
        None | Some("none") => Ok(None),
        Some("all") => Ok(Some(BindGuard::All)),
        Some(path) if path.starts_with('/') => Ok(Some(BindGuard::Cgroup(path.into()))),
        Some(text) => Err(Error::usage(format!(
            "--bind-guard={text:?}: expected the directory of a cgroup such as /sys/fs/cgroup/system.slice, \
             all, or none"
        ))),
    }
}

/// Parses the parent of a qdisc: `root`, or a class with two hexadecimal numbers, as in tc.
fn parent(text: &str) -> Result<TcHandle> {
    if text == "root" {
        return Ok(TcHandle::ROOT);
    }
    let number = |text: &str| u16::from_str_radix(text, 16).ok().filter(|number| *number != 0);
    let class = text.split_once(':').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    class.map(|(major, minor)| TcHandle { major, minor }).ok_or_else(|| {
        Error::usage(format!(
            "--egress-flow-classifier-parent {text:?}: expected root, or a class such as 1:10 (hexadecimal)"
        ))
    })
}

fn check_ports(ports: &PortSet, ephemeral_ports: &PortSet, block: u16) -> Result<()> {
    if ephemeral_ports.is_empty() {
        return Err(Error::usage(
            "no ephemeral ports: give --ephemeral-ports (such as 61440-65535), outside the host's own range in \
             /proc/sys/net/ipv4/ip_local_port_range",
        ));
    }
    let both = ports.intersection(ephemeral_ports);
    if !both.is_empty() {
        return Err(Error::usage(format!(
            "the ports {both} are in --ports and in --ephemeral-ports: expected in one"
        )));
    }
    if let Some(range) = ephemeral_ports.ranges().first().filter(|range| range.first() < FIRST_UNPRIVILEGED) {
        return Err(Error::usage(format!(
            "--ephemeral-ports {range}: ports below {FIRST_UNPRIVILEGED} have well-known uses and cannot be ephemeral"
        )));
    }
    ephemeral::check_block_size(block)?;
    if ephemeral_ports.count() < usize::from(block) {
        return Err(Error::usage(format!(
            "--ephemeral-ports {ephemeral_ports} are {} ports: expected at least the {block} of one container \
             (--ephemeral-ports-per-container)",
            ephemeral_ports.count()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
