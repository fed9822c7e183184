//! Flags and the configuration file, before they are validated.

use std::{ffi::OsString, fs, path::PathBuf};

use clap::{Arg, ArgAction, Args, Command, ValueEnum, builder::PossibleValue};
use serde::{Deserialize, Deserializer, de::Error as _};
use toml::{Table, Value};

use crate::{
    durations::HumanDuration,
    error::{Context as _, Error, Result},
    model::{LogTarget, Loopback, PerCpu},
    paths::STATE_DIR_VARIABLE,
    sizes::HumanBytes,
};

/// Help of `--resources`; not a doc comment, because `--help` would print its backticks, which a shell
/// executes.
pub(super) const RESOURCES_HELP: &str = "Both kinds of ports in Mesos' syntax: \
    ports:[31000-32000];ephemeral_ports:[61440-65535] (quote it in a shell), or in its JSON; cpus:8 are the CPUs \
    for auto; mem, disk and gpus are ignored";

/// Value name of flags that are true or false.
const BOOL: &str = "BOOL";

/// Help of `--uplink`; not a doc comment, because the patterns are not Markdown.
const UPLINK_HELP: &str = "Interface that leads outside: a name, a pattern such as eth* or bond?, or auto for those of \
    default routes; may be repeated, the first one is preferred as the main uplink [default: auto]";

/// Help of `--isolation`; not a doc comment, because the isolator's name would need backticks.
const ISOLATION_HELP: &str = "Mesos' list of isolators; portmap is network/port_mapping and refuses others";

/// Help of `--bind-guard`.
const BIND_GUARD_HELP: &str = "Fail bind() in containers with EADDRINUSE for ports that are not the container's, for \
    processes of this cgroup (version 2), or none [default: none; without a value: all processes]";

/// Settings as given: on the command line, or in a TOML file whose keys are the flags' names. `None`: not
/// given.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawSettings {
    #[arg(long, value_name = "IF|PATTERN|auto", visible_alias = "eth0-name", help = UPLINK_HELP)]
    #[serde(default, alias = "eth0-name", deserialize_with = "one_or_several")]
    pub(super) uplink: Option<Vec<String>>,
    /// The host's loopback interface; only checked, because Linux has one [default: lo]
    #[arg(long, value_name = "IF")]
    pub(super) lo_name: Option<String>,
    #[arg(long, value_name = "ISOLATORS", help = ISOLATION_HELP)]
    pub(super) isolation: Option<String>,
    /// Static ports that containers can request, such as 31000-32000,33000
    #[arg(long, value_name = "RANGES", allow_hyphen_values = true)]
    pub(super) ports: Option<String>,
    /// Ports outside these pools that containers can request by number, such as 80,443 [default: none]
    #[arg(long, value_name = "RANGES", allow_hyphen_values = true)]
    pub(super) published_ports: Option<String>,
    /// Ports that are divided among the containers for their outgoing connections
    #[arg(long, value_name = "RANGES", allow_hyphen_values = true)]
    pub(super) ephemeral_ports: Option<String>,
    /// Number of ephemeral ports per container, a power of two [default: 1024]
    #[arg(long, value_name = "N")]
    pub(super) ephemeral_ports_per_container: Option<u16>,
    /// Quarantine of a removed container's ephemeral ports before another container gets them, such as 5secs;
    /// 0: none [default: 60secs]
    #[arg(long, value_name = "DURATION", alias = "ephemeral-ports-rest")]
    #[serde(alias = "ephemeral-ports-rest")]
    pub(super) ephemeral_ports_quarantine: Option<HumanDuration>,
    /// Time for which a container whose block `portmap update` has changed keeps former ports that its sockets
    /// use [default: 1days]
    #[arg(long, value_name = "DURATION")]
    pub(super) ephemeral_ports_drain: Option<HumanDuration>,
    #[arg(long, value_name = "RESOURCES", help = RESOURCES_HELP)]
    pub(super) resources: Option<String>,
    /// Directory of the socket and the state [default: /run/portmap]
    #[arg(long, value_name = "DIR", env = STATE_DIR_VARIABLE)]
    pub(super) state_dir: Option<PathBuf>,
    /// Directory of pinned maps, programs and links [default: /sys/fs/bpf/portmap]
    #[arg(long, value_name = "DIR")]
    pub(super) bpffs_dir: Option<PathBuf>,
    /// Whether containers share the host's IPv6 addresses [default: auto]
    #[arg(long, value_enum)]
    pub(super) ipv6: Option<Ipv6>,
    /// The only addresses of the host that containers share, separated by commas; may be repeated [default: all
    /// global ones]
    #[arg(long, value_name = "ADDRESSES")]
    #[serde(default, deserialize_with = "one_or_several")]
    pub(super) address: Option<Vec<String>>,
    /// Addresses of the host that containers do not share, separated by commas; may be repeated
    #[arg(long, value_name = "ADDRESSES")]
    #[serde(default, deserialize_with = "one_or_several")]
    pub(super) exclude_address: Option<Vec<String>>,
    /// Limit on what each container sends, such as 37500KB (per second) or 300mbit; 0: unlimited
    #[arg(long, value_name = "RATE")]
    pub(super) egress_rate_limit_per_container: Option<HumanBytes>,
    /// Limit on what a container sends per whole CPU that it has, or auto: the speed of the fastest uplink divided
    /// by the host's CPUs
    #[arg(long, value_name = "RATE|auto")]
    pub(super) egress_rate_per_cpu: Option<PerCpu>,
    /// Lower bound for per-CPU limits [default: 1mbit]
    #[arg(long, value_name = "RATE")]
    pub(super) minimum_egress_rate_limit: Option<HumanBytes>,
    /// Upper bound for every container's limit on sending
    #[arg(long, value_name = "RATE")]
    pub(super) maximum_egress_rate_limit: Option<HumanBytes>,
    /// Rate while the burst lasts, if it is above the limit
    #[arg(long, value_name = "RATE")]
    pub(super) egress_ceil_limit: Option<HumanBytes>,
    /// Bytes that may exceed the rate at once [default: what the rate sends in 2 ms]
    #[arg(long, value_name = "BYTES")]
    pub(super) egress_burst: Option<HumanBytes>,
    /// Limit on what each container receives, such as 37500KB (per second) or 300mbit; 0: unlimited
    #[arg(long, value_name = "RATE")]
    pub(super) ingress_rate_limit_per_container: Option<HumanBytes>,
    /// Limit on what a container receives per whole CPU that it has, or auto: the speed of the fastest uplink
    /// divided by the host's CPUs
    #[arg(long, value_name = "RATE|auto")]
    pub(super) ingress_rate_per_cpu: Option<PerCpu>,
    /// Lower bound for per-CPU limits [default: 1mbit]
    #[arg(long, value_name = "RATE")]
    pub(super) minimum_ingress_rate_limit: Option<HumanBytes>,
    /// Upper bound for every container's limit on receiving
    #[arg(long, value_name = "RATE")]
    pub(super) maximum_ingress_rate_limit: Option<HumanBytes>,
    /// Rate while the burst lasts, if it is above the limit
    #[arg(long, value_name = "RATE")]
    pub(super) ingress_ceil_limit: Option<HumanBytes>,
    /// Bytes that may exceed the rate at once [default: what the rate sends in 2 ms]
    #[arg(long, value_name = "BYTES")]
    pub(super) ingress_burst: Option<HumanBytes>,
    /// Whether limits on receiving also apply to existing containers that have none [default: true]
    #[arg(long, value_name = BOOL, num_args = 0..=1, default_missing_value = "true")]
    pub(super) ingress_isolate_existing_containers: Option<bool>,
    /// Give each container a flow of its own in a fair-queueing qdisc at each uplink
    #[arg(long, value_name = BOOL, num_args = 0..=1, default_missing_value = "true")]
    pub(super) egress_unique_flow_per_container: Option<bool>,
    /// Parent of these qdiscs: root, or a class MAJOR:MINOR of another qdisc [default: root]
    #[arg(long, value_name = "PARENT")]
    pub(super) egress_flow_classifier_parent: Option<String>,
    /// Speed of the uplinks, for auto [default: that of the fastest one, as the interfaces report it]
    #[arg(long, value_name = "RATE")]
    pub(super) network_link_speed: Option<HumanBytes>,
    /// Count each container's TCP sockets in /monitor/statistics
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(super) network_enable_socket_statistics_summary: Option<bool>,
    /// Report percentiles of the round-trip times of each container's TCP connections
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(super) network_enable_socket_statistics_details: Option<bool>,
    /// Report each container's protocol counters (/proc/net/snmp)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(super) network_enable_snmp_statistics: Option<bool>,
    /// Report percentiles of each container's rates; needs the next two flags
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(super) network_enable_rate_statistics: Option<bool>,
    /// How long a sample of the rates counts, such as 60secs
    #[arg(long, value_name = "DURATION")]
    pub(super) network_rate_statistics_window: Option<HumanDuration>,
    /// Time between two samples of the rates, at least 20ms
    #[arg(long, value_name = "DURATION")]
    pub(super) network_rate_statistics_interval: Option<HumanDuration>,
    /// Whether limits also count traffic between containers and with the host [default: true]
    #[arg(long, value_name = BOOL, num_args = 0..=1, default_missing_value = "true")]
    pub(super) limit_local_traffic: Option<bool>,
    /// Automatically repair drift of programs, interfaces and sysctls [default: true]
    #[arg(long, value_name = BOOL, num_args = 0..=1, default_missing_value = "true")]
    pub(super) reconcile: Option<bool>,
    #[arg(long, value_name = "CGROUP", num_args = 0..=1, default_missing_value = "all", help = BIND_GUARD_HELP)]
    pub(super) bind_guard: Option<String>,
    /// Group whose members have full access to the daemon by its socket, which amounts to root, and may read the
    /// pinned maps [default: none]
    #[arg(long, value_name = "GROUP")]
    pub(super) socket_group: Option<String>,
    /// Who may ask questions by the read-only socket [default: everyone]
    #[arg(long, value_enum)]
    pub(super) readonly_socket: Option<Readers>,
    /// Address of the HTTP listener for monitoring (/healthz, /metrics, /monitor), or none [default: 127.0.0.1:5051]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) listen: Option<String>,
    /// Serve containers at the HTTP listener, too; otherwise packets from containers to it are dropped
    #[arg(long, value_name = BOOL, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) listen_to_containers: Option<bool>,
    /// Key of a label of containers that /metrics contains; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(super) metrics_label: Option<Vec<String>>,
    /// Scope of the loopback addresses in containers: shared with the host, or private [default: shared]
    #[arg(long, value_enum)]
    pub(super) loopback: Option<Loopback>,
    /// Which of the host's ports containers may reach: all, none, or ports such as 53,8080-8090 [default:
    /// all]
    #[arg(long, value_name = "all|none|[ports] RANGES", num_args = 1..=2, action = ArgAction::Set)]
    #[serde(default, deserialize_with = "one_text")]
    pub(super) host_access: Option<Vec<String>>,
    /// Log verdicts of the programs for a container or a port, in builds with the feature datapath-log
    #[arg(long, value_name = "NAME|PORT")]
    pub(super) datapath_log: Option<LogTarget>,
    /// Configuration file in TOML; flags override it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
}

/// Completes settings by others, field by field.
macro_rules! merge {
    ($settings:ident, $other:ident: $($field:ident),+) => {
        Self { $($field: $settings.$field.or($other.$field),)+ config: $settings.config }
    };
}

impl RawSettings {
    /// Completes these settings with those of the configuration file, if one is named.
    pub(super) fn with_file(self) -> Result<Self> {
        let Some(path) = &self.config else { return Ok(self) };
        let text = fs::read_to_string(path)
            .context(|| format!("cannot read the configuration file {}", path.display()))?;
        let file = from_toml(&text)
            .map_err(|error| Error::usage(format!("the configuration file {}: {error}", path.display())))?;
        Ok(self.merged_with(file))
    }

    /// These settings, with those that are not given taken from `other`.
    fn merged_with(self, other: Self) -> Self {
        merge!(
            self,
            other:
            uplink, lo_name, isolation, ports, published_ports, ephemeral_ports,
            ephemeral_ports_per_container, ephemeral_ports_quarantine, ephemeral_ports_drain, resources,
            state_dir, bpffs_dir, ipv6, address, exclude_address,
            egress_rate_limit_per_container, egress_rate_per_cpu, minimum_egress_rate_limit,
            maximum_egress_rate_limit, egress_ceil_limit, egress_burst,
            ingress_rate_limit_per_container, ingress_rate_per_cpu, minimum_ingress_rate_limit,
            maximum_ingress_rate_limit, ingress_ceil_limit, ingress_burst,
            ingress_isolate_existing_containers, egress_unique_flow_per_container, egress_flow_classifier_parent,
            network_link_speed, limit_local_traffic, reconcile,
            network_enable_socket_statistics_summary, network_enable_socket_statistics_details,
            network_enable_snmp_statistics, network_enable_rate_statistics,
            network_rate_statistics_window, network_rate_statistics_interval,
            bind_guard, socket_group, readonly_socket, listen, listen_to_containers,
            loopback, host_access,
            metrics_label, datapath_log
        )
    }
}

/// Accepts Mesos' spelling of flags: `_` in their names is replaced by `-`, and `--no-FLAG` by `--FLAG=false`
/// if the flag is true or false.
pub fn normalized(arguments: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let flags = RawSettings::augment_args(Command::default());
    let is_bool = |flag: &Arg| flag.get_value_names().is_some_and(|names| names == [BOOL]);
    let booleans: Vec<String> = flags
        .get_arguments()
        .filter(|flag| is_bool(flag))
        .filter_map(Arg::get_long)
        .map(str::to_owned)
        .collect();
    arguments.into_iter().map(move |argument| match argument.to_str() {
        Some(text) if text.starts_with("--") => {
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            let name = name.replace('_', "-");
            match name.strip_prefix("--no-").filter(|flag| booleans.iter().any(|name| name == flag)) {
                Some(flag) if value.is_empty() => format!("--{flag}=false").into(),
                _ => (name + value).into(),
            }
        }
        _ => argument,
    })
}

/// Parses a configuration file. Its keys are normalised as the flags' names are.
fn from_toml(text: &str) -> Result<RawSettings, String> {
    let mut settings = Table::new();
    for (key, value) in text.parse::<Table>().map_err(|error| error.to_string())? {
        let name = key.replace('_', "-");
        if settings.insert(name.clone(), value).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    // Its second line names the key.
    Value::Table(settings).try_into().map_err(|error| error.to_string().trim_end().replace('\n', " "))
}

/// Whether containers have IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ipv6 {
    /// If the host has a global address
    #[default]
    Auto,
    /// Never
    Off,
}

/// Who may use the read-only socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Readers {
    /// Every user of this host
    #[default]
    Everyone,
    /// Root and the members of the group of --socket-group
    Group,
    /// There is no such socket
    None,
}

/// Reads the words of `--host-access` from the file, where they are one string.
fn one_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Vec<String>>, D::Error> {
    String::deserialize(deserializer).map(|text| Some(vec![text]))
}

/// Reads the values of a flag that may be repeated: one text, or a list of them.
fn one_or_several<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum Values {
        One(String),
        Several(Vec<String>),
    }
    Ok(Some(match Values::deserialize(deserializer)? {
        Values::One(text) => vec![text],
        Values::Several(texts) => texts,
    }))
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

deserialize_text!(HumanDuration, HumanBytes, PerCpu, Loopback, LogTarget);

impl ValueEnum for Loopback {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Shared, Self::Private]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Shared => "With the host and all containers: a packet reaches the owner of the port",
            Self::Private => "Packets from or to them neither leave nor enter the container",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}
