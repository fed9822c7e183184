//! The daemon's settings: flags, the configuration file, and the checks that concern nothing but themselves.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgAction, Args, ValueEnum, builder::PossibleValue};
use netlink_packet_route::tc::TcHandle;
use serde::{Deserialize, Deserializer, de::Error as _};

use tracing::warn;

use crate::{
    durations::Length,
    error::{Context as _, Error, Result},
    model::{
        Direction, HostAccess, Loopback, PerCpu, Policy, PortSet, Reach, Resources, ephemeral, resources,
    },
    paths::{DEFAULT_BPFFS_DIR, DEFAULT_STATE_DIR, Pins, STATE_DIR_VARIABLE, StateDir},
    sizes::Size,
};

/// Default of `--ephemeral-ports-per-container`.
const DEFAULT_BLOCK: u16 = 1024;
/// Default of `--ephemeral-ports-rest`: as long as Linux remembers the end of a connection.
const DEFAULT_REST: Duration = Duration::from_mins(1);
/// Default of `--listen`.
const DEFAULT_LISTEN: &str = "127.0.0.1:5051";
/// What `--help` says of `--resources`.
const RESOURCES_HELP: &str = "Both kinds of ports in Mesos' form: ports:[31000-32000];ephemeral_ports:[61440-65535] \
                              (quoted, in a shell); cpus, mem, disk and gpus may be among them";
/// Ports below this one have well-known uses and are never given out as ephemeral ports.
const FIRST_UNPRIVILEGED: u16 = 1024;

/// Settings as they are given: on the command line, or in a TOML file whose keys are the flags' names.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawSettings {
    /// The host's public interface [default: that of the default route]
    #[arg(long, value_name = "IF", alias = "eth0-name", alias = "eth0_name")]
    #[serde(alias = "eth0_name")]
    uplink: Option<String>,
    /// Ports that containers can ask for, such as 31000-32000,33000
    #[arg(long, value_name = "RANGES", allow_hyphen_values = true)]
    ports: Option<String>,
    /// Ports that are divided among the containers for their outgoing connections
    #[arg(long, value_name = "RANGES", alias = "ephemeral_ports", allow_hyphen_values = true)]
    #[serde(alias = "ephemeral_ports")]
    ephemeral_ports: Option<String>,
    /// Number of ephemeral ports of each container, a power of two [default: 1024]
    #[arg(long, value_name = "N", alias = "ephemeral_ports_per_container")]
    #[serde(alias = "ephemeral_ports_per_container")]
    ephemeral_ports_per_container: Option<u16>,
    /// How long the ephemeral ports of a removed container rest before another one has them, such as 5secs; 0: not
    /// at all [default: 60secs]
    #[arg(long, value_name = "DURATION", alias = "ephemeral_ports_rest")]
    #[serde(alias = "ephemeral_ports_rest")]
    ephemeral_ports_rest: Option<Length>,
    // What is in a help text can be pasted, so there is no mark-up in it.
    #[arg(long, value_name = "RESOURCES", help = RESOURCES_HELP)]
    resources: Option<String>,
    /// Where the socket and the state are [default: /run/portmap]
    #[arg(long, value_name = "DIR", alias = "state_dir", env = STATE_DIR_VARIABLE)]
    #[serde(alias = "state_dir")]
    state_dir: Option<PathBuf>,
    /// Where maps, programs and links are pinned [default: /sys/fs/bpf/portmap]
    #[arg(long, value_name = "DIR", alias = "bpffs_dir")]
    #[serde(alias = "bpffs_dir")]
    bpffs_dir: Option<PathBuf>,
    /// Whether containers share the uplink's IPv6 address if it has one [default: auto]
    #[arg(long, value_enum)]
    ipv6: Option<Ipv6>,
    /// Limit on what every container sends, per second, such as 37500KB or 300mbit; 0: none
    #[arg(long, value_name = "B", alias = "egress_rate_limit_per_container")]
    #[serde(alias = "egress_rate_limit_per_container")]
    egress_rate_limit_per_container: Option<Size>,
    /// The same for each whole CPU of a container, or auto: by the link's speed
    #[arg(long, value_name = "B|auto", alias = "egress_rate_per_cpu")]
    #[serde(alias = "egress_rate_per_cpu")]
    egress_rate_per_cpu: Option<PerCpu>,
    /// Least of what is computed from CPUs [default: 1mbit]
    #[arg(long, value_name = "B", alias = "minimum_egress_rate_limit")]
    #[serde(alias = "minimum_egress_rate_limit")]
    minimum_egress_rate_limit: Option<Size>,
    /// Most that any container sends
    #[arg(long, value_name = "B", alias = "maximum_egress_rate_limit")]
    #[serde(alias = "maximum_egress_rate_limit")]
    maximum_egress_rate_limit: Option<Size>,
    /// Rate while the burst lasts, if that is more
    #[arg(long, value_name = "B", alias = "egress_ceil_limit")]
    #[serde(alias = "egress_ceil_limit")]
    egress_ceil_limit: Option<Size>,
    /// Bytes that may exceed the rate at once [default: those of 2 ms]
    #[arg(long, value_name = "B", alias = "egress_burst")]
    #[serde(alias = "egress_burst")]
    egress_burst: Option<Size>,
    /// Limit on what every container receives, per second, such as 37500KB or 300mbit; 0: none
    #[arg(long, value_name = "B", alias = "ingress_rate_limit_per_container")]
    #[serde(alias = "ingress_rate_limit_per_container")]
    ingress_rate_limit_per_container: Option<Size>,
    /// The same for each whole CPU of a container, or auto: by the link's speed
    #[arg(long, value_name = "B|auto", alias = "ingress_rate_per_cpu")]
    #[serde(alias = "ingress_rate_per_cpu")]
    ingress_rate_per_cpu: Option<PerCpu>,
    /// Least of what is computed from CPUs [default: 1mbit]
    #[arg(long, value_name = "B", alias = "minimum_ingress_rate_limit")]
    #[serde(alias = "minimum_ingress_rate_limit")]
    minimum_ingress_rate_limit: Option<Size>,
    /// Most that any container receives
    #[arg(long, value_name = "B", alias = "maximum_ingress_rate_limit")]
    #[serde(alias = "maximum_ingress_rate_limit")]
    maximum_ingress_rate_limit: Option<Size>,
    /// Rate while the burst lasts, if that is more
    #[arg(long, value_name = "B", alias = "ingress_ceil_limit")]
    #[serde(alias = "ingress_ceil_limit")]
    ingress_ceil_limit: Option<Size>,
    /// Bytes that may exceed the rate at once [default: those of 2 ms]
    #[arg(long, value_name = "B", alias = "ingress_burst")]
    #[serde(alias = "ingress_burst")]
    ingress_burst: Option<Size>,
    /// Whether limits on receiving also come to containers that were there without one [default: true]
    #[arg(long, value_name = "BOOL", alias = "ingress_isolate_existing_containers", num_args = 0..=1, default_missing_value = "true")]
    #[serde(alias = "ingress_isolate_existing_containers")]
    ingress_isolate_existing_containers: Option<bool>,
    /// Give every container a flow of its own in a fair queue at the uplink
    #[arg(long, value_name = "BOOL", alias = "egress_unique_flow_per_container", num_args = 0..=1, default_missing_value = "true")]
    #[serde(alias = "egress_unique_flow_per_container")]
    egress_unique_flow_per_container: Option<bool>,
    /// Where that queue hangs: root, or a class MAJOR:MINOR of another qdisc [default: root]
    #[arg(long, value_name = "PARENT", alias = "egress_flow_classifier_parent")]
    #[serde(alias = "egress_flow_classifier_parent")]
    egress_flow_classifier_parent: Option<String>,
    /// Speed of the uplink, for auto [default: what the interface says]
    #[arg(long, value_name = "B", alias = "network_link_speed")]
    #[serde(alias = "network_link_speed")]
    network_link_speed: Option<Size>,
    /// Whether limits count traffic between containers and with the host, too [default: true]
    #[arg(long, value_name = "BOOL", alias = "limit_local_traffic", num_args = 0..=1, default_missing_value = "true")]
    #[serde(alias = "limit_local_traffic")]
    limit_local_traffic: Option<bool>,
    /// Whether the daemon puts back by itself what somebody has changed of its programs, interfaces and settings [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    reconcile: Option<bool>,
    /// Have `bind()` fail with EACCES in containers for ports that are not theirs, for processes of this cgroup (version 2),
    /// or none [default: none; without a value: all processes]
    #[arg(long, value_name = "CGROUP", alias = "bind_guard", num_args = 0..=1, default_missing_value = "all")]
    #[serde(alias = "bind_guard")]
    bind_guard: Option<String>,
    /// Address for monitoring by HTTP (/healthz, /metrics), or none [default: 127.0.0.1:5051]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Serve containers by HTTP, too; otherwise what they send to the daemon's port is dropped
    #[arg(long, value_name = "BOOL", alias = "listen_to_containers", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(alias = "listen_to_containers")]
    listen_to_containers: Option<bool>,
    /// Whose loopback addresses are in containers: everybody's on the host, or each one's own [default: shared]
    #[arg(long, value_enum)]
    loopback: Option<Loopback>,
    /// Which of the host's ports containers may reach: all, none, or ports such as 53,8080-8090 [default: all]
    #[arg(long, value_name = "all|none|[ports] RANGES", alias = "host_access", num_args = 1..=2, action = ArgAction::Set)]
    #[serde(default, alias = "host_access", deserialize_with = "one_text")]
    host_access: Option<Vec<String>>,
    /// File with settings, in TOML; flags win over it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
}

/// Whether containers have IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Ipv6 {
    /// If the uplink has a global address
    #[default]
    Auto,
    /// Never
    Off,
}

/// Settings that make sense.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The uplink's name; that of the default route's interface if there is none.
    pub uplink: Option<String>,
    /// The managed static ports.
    pub ports: PortSet,
    /// The managed ephemeral ports.
    pub ephemeral_ports: PortSet,
    /// Number of ephemeral ports of a container that asks for no other.
    pub block: u16,
    /// How long a block rests before it is given out again.
    pub rest: Duration,
    /// The state directory.
    pub state_dir: StateDir,
    /// The pins.
    pub pins: Pins,
    /// Whether containers have IPv6 if the uplink has a global address.
    pub ipv6: bool,
    /// Address of the read-only HTTP server.
    pub listen: Option<SocketAddr>,
    /// Whether the daemon puts back by itself what somebody has changed.
    pub reconcile: bool,
    /// For which processes `bind()` is guarded, if for any.
    pub bind_guard: Option<BindGuard>,
    /// What limits containers' traffic.
    pub shaping: Shaping,
    /// What containers may reach of the host and of each other.
    pub reach: Reach,
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

/// What limits containers' traffic.
#[derive(Clone, Debug)]
pub struct Shaping {
    /// Limits on what containers send.
    pub egress: Policy,
    /// Limits on what they receive.
    pub ingress: Policy,
    /// Whether limits on receiving also come to containers that were there without one.
    pub ingress_for_existing: bool,
    /// Whether limits count local traffic, too.
    pub limits_local: bool,
    /// Speed of the uplink in bytes per second, if it is given.
    pub link_speed: Option<u64>,
    /// Where the queue hangs in which each container has a flow; none for no such queue.
    pub flows: Option<TcHandle>,
}

impl RawSettings {
    /// Reads the configuration file, if one is named, and checks everything.
    pub fn resolve(self) -> Result<Settings> {
        let file = match &self.config {
            Some(path) => {
                let reading = || format!("cannot read the configuration file {}", path.display());
                let text = fs::read_to_string(path).context(reading)?;
                toml::from_str(&text).map_err(|error| {
                    Error::usage(format!("the configuration file {} is wrong: {error}", path.display()))
                })?
            }
            None => Self::default(),
        };
        self.over(file).check()
    }

    /// What limits traffic.
    fn shaping(&self) -> Result<Shaping> {
        let bytes = |size: Option<Size>| size.map(|size| size.0);
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
            flows: self.egress_unique_flow_per_container.unwrap_or(false).then_some(parent),
        })
    }

    /// These settings, completed by others.
    fn over(self, other: Self) -> Self {
        Self {
            uplink: self.uplink.or(other.uplink),
            ports: self.ports.or(other.ports),
            ephemeral_ports: self.ephemeral_ports.or(other.ephemeral_ports),
            ephemeral_ports_per_container: self
                .ephemeral_ports_per_container
                .or(other.ephemeral_ports_per_container),
            ephemeral_ports_rest: self.ephemeral_ports_rest.or(other.ephemeral_ports_rest),
            resources: self.resources.or(other.resources),
            state_dir: self.state_dir.or(other.state_dir),
            bpffs_dir: self.bpffs_dir.or(other.bpffs_dir),
            ipv6: self.ipv6.or(other.ipv6),
            listen: self.listen.or(other.listen),
            egress_rate_limit_per_container: self
                .egress_rate_limit_per_container
                .or(other.egress_rate_limit_per_container),
            egress_rate_per_cpu: self.egress_rate_per_cpu.or(other.egress_rate_per_cpu),
            minimum_egress_rate_limit: self.minimum_egress_rate_limit.or(other.minimum_egress_rate_limit),
            maximum_egress_rate_limit: self.maximum_egress_rate_limit.or(other.maximum_egress_rate_limit),
            egress_ceil_limit: self.egress_ceil_limit.or(other.egress_ceil_limit),
            egress_burst: self.egress_burst.or(other.egress_burst),
            ingress_rate_limit_per_container: self
                .ingress_rate_limit_per_container
                .or(other.ingress_rate_limit_per_container),
            ingress_rate_per_cpu: self.ingress_rate_per_cpu.or(other.ingress_rate_per_cpu),
            minimum_ingress_rate_limit: self.minimum_ingress_rate_limit.or(other.minimum_ingress_rate_limit),
            maximum_ingress_rate_limit: self.maximum_ingress_rate_limit.or(other.maximum_ingress_rate_limit),
            ingress_ceil_limit: self.ingress_ceil_limit.or(other.ingress_ceil_limit),
            ingress_burst: self.ingress_burst.or(other.ingress_burst),
            ingress_isolate_existing_containers: self
                .ingress_isolate_existing_containers
                .or(other.ingress_isolate_existing_containers),
            egress_unique_flow_per_container: self
                .egress_unique_flow_per_container
                .or(other.egress_unique_flow_per_container),
            egress_flow_classifier_parent: self
                .egress_flow_classifier_parent
                .or(other.egress_flow_classifier_parent),
            network_link_speed: self.network_link_speed.or(other.network_link_speed),
            limit_local_traffic: self.limit_local_traffic.or(other.limit_local_traffic),
            reconcile: self.reconcile.or(other.reconcile),
            bind_guard: self.bind_guard.or(other.bind_guard),
            listen_to_containers: self.listen_to_containers.or(other.listen_to_containers),
            loopback: self.loopback.or(other.loopback),
            host_access: self.host_access.or(other.host_access),
            config: self.config,
        }
    }

    fn check(self) -> Result<Settings> {
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
                warn!("{flag} {value} is used, and not what --resources has of these ports, {other}");
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
                "--listen {address}: the daemon's own port is among those for containers"
            )));
        }
        let shaping = self.shaping()?;
        let reach = Reach {
            loopback: self.loopback.unwrap_or_default(),
            host: self.host_access.map_or(Ok(HostAccess::All), |words| words.join(" ").parse())?,
            listener: listen.filter(|_| !self.listen_to_containers.unwrap_or(false)),
        };
        Ok(Settings {
            shaping,
            reach,
            uplink: self.uplink,
            ports,
            ephemeral_ports,
            block,
            rest: self.ephemeral_ports_rest.map_or(DEFAULT_REST, |length| length.0),
            state_dir: StateDir::new(self.state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into())),
            pins: Pins::new(self.bpffs_dir.unwrap_or_else(|| DEFAULT_BPFFS_DIR.into())),
            ipv6: self.ipv6.unwrap_or_default() == Ipv6::Auto,
            listen,
            reconcile: self.reconcile.unwrap_or(true),
            bind_guard: bind_guard(self.bind_guard.as_deref())?,
        })
    }
}

fn bind_guard(text: Option<&str>) -> Result<Option<BindGuard>> {
    match text {
        None | Some("none") => Ok(None),
        Some("all") => Ok(Some(BindGuard::All)),
        Some(path) if path.starts_with('/') => Ok(Some(BindGuard::Cgroup(path.into()))),
        Some(text) => Err(Error::usage(format!(
            "--bind-guard={text:?}: expected the directory of a cgroup such as /sys/fs/cgroup/system.slice, all, or none"
        ))),
    }
}

/// Reads the words of `--host-access` from the file, where they are one string.
fn one_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Vec<String>>, D::Error> {
    String::deserialize(deserializer).map(|text| Some(vec![text]))
}

/// Deserialises values of the file from their text form.
macro_rules! deserialize_text {
    ($($value:ty),+) => {$(
        impl<'de> Deserialize<'de> for $value {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )+};
}

deserialize_text!(Length, Size, PerCpu, Loopback);

impl ValueEnum for Loopback {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Shared, Self::Private]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Shared => "Shared with the host and all containers: a packet reaches the owner of the port",
            Self::Private => "Private: packets from or to them neither leave nor enter the container",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

/// The place of a qdisc: `root`, or a class with two hexadecimal numbers, as tc has them.
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
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Command {
        #[command(flatten)]
        settings: RawSettings,
    }

    fn settings(arguments: &str) -> Result<Settings> {
        let arguments = std::iter::once("portmapd").chain(arguments.split_whitespace());
        Command::try_parse_from(arguments).expect("a command line").settings.resolve()
    }

    #[test]
    fn mesos_spelling_and_the_last_of_two() {
        let settings = settings(
            "--ephemeral_ports=61440-65535 --ephemeral-ports-per-container 64 --ephemeral_ports_per_container=32 \
             --resources ports:[31000-32000];ephemeral_ports:[40000-41000]",
        )
        .expect("settings");
        assert_eq!(settings.block, 32);
        assert_eq!(settings.ports.to_string(), "31000-32000");
        assert_eq!(settings.ephemeral_ports.to_string(), "61440-65535");
    }

    #[test]
    fn flags_are_understood_as_the_documents_write_them() {
        let of = |flags: &str| settings(&format!("--ephemeral-ports 61440-65535 {flags}")).expect(flags);
        for (flags, expected) in [
            ("", true),
            ("--reconcile", true),
            ("--reconcile true", true),
            ("--reconcile=true", true),
            ("--reconcile false", false),
            ("--reconcile=false", false),
            ("--reconcile false --reconcile", true),
            ("--reconcile --reconcile=false", false),
        ] {
            assert_eq!(of(flags).reconcile, expected, "{flags}");
        }
        assert!(!of("--limit-local-traffic false").shaping.limits_local);
        assert!(!of("--limit_local_traffic=false").shaping.limits_local);
        assert!(of("--ingress-isolate-existing-containers true").shaping.ingress_for_existing);
        assert!(!of("--ingress-isolate-existing-containers false").shaping.ingress_for_existing);
        assert!(of("--egress-unique-flow-per-container").shaping.flows.is_some());
        assert!(of("--egress-unique-flow-per-container true").shaping.flows.is_some());
        assert_eq!(of("--bind-guard").bind_guard, Some(BindGuard::All));
        for flag in ["--bind-guard /a/cgroup", "--bind-guard=/a/cgroup"] {
            assert_eq!(of(flag).bind_guard, Some(BindGuard::Cgroup("/a/cgroup".into())), "{flag}");
        }
        // The example in the help text.
        let example = RESOURCES_HELP.split_once("form: ").and_then(|(_, rest)| rest.split_once(' '));
        let (example, _) = example.expect("an example");
        assert_eq!(
            settings(&format!("--resources {example}")).expect(example).ports.to_string(),
            "31000-32000"
        );
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(&file, "ports = \"100-200\"\nephemeral-ports = \"61440-65535\"\nlisten = \"none\"\n")
            .expect("written");
        let settings =
            settings(&format!("--ports 300 --config {}", file.path().display())).expect("settings");
        assert_eq!(settings.ports.to_string(), "300");
        assert_eq!(settings.ephemeral_ports.to_string(), "61440-65535");
        assert_eq!(settings.listen, None);
    }

    #[test]
    fn mistakes_are_named() {
        let ephemeral = "--ephemeral-ports 61440-65535";
        for (arguments, expected) in [
            (String::new(), "no ephemeral ports"),
            (
                format!("{ephemeral} --ports 65000-65010"),
                "65000-65010 are in --ports and in --ephemeral-ports",
            ),
            ("--ephemeral-ports 512-2047".to_owned(), "512-2047"),
            (format!("{ephemeral} --ephemeral-ports-per-container 1000"), "power of two"),
            (format!("{ephemeral} --ephemeral-ports-per-container 8"), "at least 16"),
            ("--ephemeral-ports 61440-61500".to_owned(), "61 ports"),
            (format!("{ephemeral} --ports 31000-"), "\"31000-\""),
            (format!("{ephemeral} --resources ports"), "\"ports\""),
            (format!("{ephemeral} --listen here"), "\"here\""),
            (format!("{ephemeral} --bind-guard=here"), "\"here\""),
            (format!("{ephemeral} --ports 5000-6000"), "127.0.0.1:5051"),
            (format!("{ephemeral} --host-access some"), "\"some\""),
            (format!("{ephemeral} --config /does/not/exist"), "/does/not/exist"),
        ] {
            let error = settings(&arguments).expect_err(&arguments);
            assert!(error.message.contains(expected), "{arguments}: {error}");
        }
    }

    #[test]
    fn what_containers_may_reach() {
        let ephemeral = "--ephemeral-ports 61440-65535";
        let reach = |flags: &str| settings(&format!("{ephemeral} {flags}")).expect(flags).reach;
        let default = reach("");
        assert_eq!((default.loopback, &default.host), (Loopback::Shared, &HostAccess::All));
        assert_eq!(default.listener, Some("127.0.0.1:5051".parse().expect("an address")));
        assert_eq!(reach("--listen none").listener, None);
        assert_eq!(reach("--listen-to-containers").listener, None);
        assert_eq!(reach("--loopback=private").loopback, Loopback::Private);
        for (flags, host) in [
            ("--host-access none", "none"),
            ("--host-access=none --loopback private", "none"),
            ("--host-access ports 53", "53"),
            ("--host-access 53,8080-8090 --listen none", "53,8080-8090"),
            ("--host_access none --host-access ports 53", "53"),
        ] {
            assert_eq!(reach(flags).host.to_string(), host, "{flags}");
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "host-access = \"ports 53\"\nloopback = \"private\"\nlisten_to_containers = true\n";
        fs::write(&file, text).expect("written");
        let read = reach(&format!("--config {}", file.path().display()));
        assert_eq!(
            (read.loopback, read.host.to_string().as_str(), read.listener),
            (Loopback::Private, "53", None)
        );
    }

    #[test]
    fn an_unknown_key_in_the_file_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(&file, "port = \"100-200\"\n").expect("written");
        let error = settings(&format!("--config {}", file.path().display())).expect_err("unknown key");
        assert!(error.message.contains("port"), "{error}");
    }
}
