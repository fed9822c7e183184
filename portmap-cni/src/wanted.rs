//! What an invocation asks for: port mappings, limits, and other properties of the container.
//!
//! The same setting can come by several ways; a later one of these counts: the network's configuration, the `bandwidth`
//! capability, annotations of the pod (or Mesos' labels), `CNI_ARGS`. Static ports add up instead.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use portmap::{
    api::AddRequest,
    model::{AutomaticRange, Labels, Loopback, PortRequest, PortSet, TrafficSpec},
    sizes::HumanBytes,
};
use serde_json::Value;

use crate::{
    config::Config,
    error::{CniError, Result},
    grant::{self, Mapping},
    invocation::Args,
    keys::{self, Object},
};

/// Label with the name of the network, by which the plugin knows its own containers.
pub(crate) const NETWORK_LABEL: &str = "cni.network";
/// Annotations of pods, and labels of Mesos, that start with this are the plugin's own.
const OWN_ANNOTATIONS: &str = "portmap.";
/// Key of the runtime's configuration with the annotations of the pod (containerd, cri-o).
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// Transport protocols of port mappings. They are accepted and not distinguished, because a port has one owner.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// A setting that annotations and `CNI_ARGS` can have. The configuration can have all but the ports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Setting {
    Ports,
    Egress,
    Ingress,
    EphemeralPorts,
    Loopback,
}

/// Each setting with its key in the configuration, in annotations and in `CNI_ARGS`.
const SETTINGS: [(Setting, &str, &str, &str); 5] = [
    (Setting::Ports, "", "ports", "PORTS"),
    (Setting::Egress, "egress", "egress", "EGRESS"),
    (Setting::Ingress, "ingress", "ingress", "INGRESS"),
    (Setting::EphemeralPorts, "ephemeralPorts", "ephemeral-ports", "EPHEMERAL_PORTS"),
    (Setting::Loopback, "loopback", "loopback", "LOOPBACK"),
];

/// What an invocation asks for.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Static ports.
    pub(crate) ports: PortSet,
    /// Ranges of static ports that the daemon chooses.
    pub(crate) automatic: Vec<AutomaticRange>,
    /// Addresses that the container must have.
    addresses: Vec<IpAddr>,
    /// The MAC address that it must have.
    mac: Option<String>,
    ephemeral_ports: Option<u16>,
    traffic: TrafficSpec,
    labels: BTreeMap<String, String>,
}

impl Wanted {
    /// Reads it from the configuration and `CNI_ARGS`.
    ///
    /// # Errors
    ///
    /// The first value that is not valid, or that the daemon cannot serve.
    pub(crate) fn read(config: &Config, args: &Args<'_>) -> Result<Self> {
        let mut wanted = Self {
            // What runs in a container expects a loopback device of its own.
            traffic: TrafficSpec { loopback: Some(Loopback::Private), ..TrafficSpec::default() },
            ..Self::default()
        };
        wanted.read_config(&config.object)?;
        let mut mappings = Vec::new();
        if let Some(runtime) = config.runtime()? {
            mappings.extend(mappings_of(runtime, "portMappings")?);
            if let Some(bandwidth) = keys::object(runtime, "bandwidth")? {
                wanted.read_bandwidth(bandwidth)?;
            }
            wanted.addresses.extend(addresses(&keys::texts(runtime, "ips")?)?);
            wanted.mac = keys::text(runtime, "mac")?.map(str::to_owned);
            if let Some(annotations) = keys::object(runtime, ANNOTATIONS)? {
                let texts =
                    annotations.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
                wanted.read_annotations(texts)?;
            }
        }
        if let Some(network) = config.mesos()? {
            mappings.extend(mappings_of(network, "portMappings")?);
            wanted.read_annotations(mesos_labels(network)?.into_iter())?;
        }
        if let Some(cni) = config.cni_args()? {
            wanted.addresses.extend(addresses(&keys::texts(cni, "ips")?)?);
            wanted.mac = keys::text(cni, "mac")?.map(str::to_owned).or(wanted.mac);
        }
        wanted.read_args(args)?;
        let granted = grant::ports(&mappings)?;
        wanted.ports = wanted.ports.union(&granted.ports);
        wanted.addresses.extend(granted.addresses);
        wanted.labels = labels(config.network()?, args);
        Ok(wanted)
    }

    /// The request that adds a container with all that.
    pub(crate) fn into_request(self, name: &str, netns: &Path, interface: &str) -> Result<AddRequest> {
        Ok(AddRequest {
            name: name.to_owned(),
            netns: Some(netns.to_owned()),
            container_interface: Some(interface.to_owned()),
            ports: self.ports,
            automatic_ports: self.automatic,
            addresses: self.addresses,
            mac: self.mac,
            ephemeral_ports_per_container: self.ephemeral_ports,
            traffic: self.traffic,
            labels: Labels::try_from(self.labels)?,
            ..AddRequest::default()
        })
    }

    fn read_config(&mut self, object: &Object) -> Result<()> {
        // The keys of the reference plugin `bandwidth`.
        self.read_bandwidth(object)?;
        for (setting, key, _, _) in SETTINGS.into_iter().filter(|(setting, ..)| *setting != Setting::Ports) {
            match keys::value(object, key)? {
                None => {}
                Some(Value::String(text)) => self.set(setting, key, text)?,
                Some(Value::Number(number)) => self.set(setting, key, &number.to_string())?,
                Some(_other) => {
                    return Err(CniError::config(format!("the key {key} is neither a text nor a number")));
                }
            }
        }
        Ok(())
    }

    /// Reads rates in bits per second, as CNI has them. 0 is no limit. Bursts are the daemon's: podman sends none,
    /// containerd the largest 32-bit number.
    fn read_bandwidth(&mut self, object: &Object) -> Result<()> {
        let rate = |key| -> Result<Option<u64>> {
            // Rounded up, because 0 bytes per second would be no limit.
            Ok(keys::number(object, key)?.filter(|bits| *bits != 0).map(|bits| bits.div_ceil(8)))
        };
        self.traffic.egress_rate = rate("egressRate")?.or(self.traffic.egress_rate);
        self.traffic.ingress_rate = rate("ingressRate")?.or(self.traffic.ingress_rate);
        Ok(())
    }

    fn read_annotations<'a>(&mut self, all: impl Iterator<Item = (&'a str, &'a str)>) -> Result<()> {
        for (key, text) in all {
            let Some(own) = key.strip_prefix(OWN_ANNOTATIONS) else { continue };
            let found = SETTINGS.into_iter().find(|(_, _, annotation, _)| *annotation == own);
            let Some((setting, ..)) = found else {
                let known = SETTINGS.map(|(_, _, annotation, _)| format!("{OWN_ANNOTATIONS}{annotation}"));
                let message =
                    format!("the annotation {key:?} is unknown: expected one of {}", known.join(", "));
                return Err(CniError::config(message));
            };
            self.set(setting, key, text)?;
        }
        Ok(())
    }

    fn read_args(&mut self, args: &Args<'_>) -> Result<()> {
        for (own, text) in args.own() {
            let key = format!("PORTMAP_{own}");
            let Some((setting, ..)) = SETTINGS.into_iter().find(|(_, _, _, arg)| *arg == own) else {
                let known = SETTINGS.map(|(_, _, _, arg)| format!("PORTMAP_{arg}"));
                return Err(CniError::environment(format!(
                    "the key {key:?} of CNI_ARGS is unknown: expected one of {}",
                    known.join(", ")
                )));
            };
            self.set(setting, &key, text)?;
        }
        // podman passes one static address like this, several as a capability.
        self.addresses.extend(addresses(&args.get("IP").into_iter().collect::<Vec<_>>())?);
        self.mac = args.get("MAC").map(str::to_owned).or(self.mac.take());
        Ok(())
    }

    fn set(&mut self, setting: Setting, key: &str, text: &str) -> Result<()> {
        let wrong = |error: &dyn std::fmt::Display| CniError::config(format!("{key}: {error}"));
        let rate = || text.parse::<HumanBytes>().map(|rate| Some(rate.0)).map_err(|error| wrong(&error));
        match setting {
            Setting::Ports => {
                let ports: PortRequest = text.parse().map_err(|error| wrong(&error))?;
                self.ports = self.ports.union(&ports.numbered());
                self.automatic.extend(ports.automatic());
            }
            Setting::Egress => self.traffic.egress_rate = rate()?,
            Setting::Ingress => self.traffic.ingress_rate = rate()?,
            Setting::EphemeralPorts => {
                let count = text.parse().map_err(|_invalid| {
                    wrong(&format!("{text:?} is not a number of ephemeral ports: expected a power of two"))
                })?;
                self.ephemeral_ports = Some(count);
            }
            Setting::Loopback => {
                self.traffic.loopback = Some(match text {
                    "shared" => Loopback::Shared,
                    "private" => Loopback::Private,
                    _ => return Err(wrong(&format!("{text:?}: expected shared or private"))),
                });
            }
        }
        Ok(())
    }
}

/// The port mappings of a list. Entries without a host port publish nothing.
fn mappings_of(object: &Object, key: &str) -> Result<Vec<Mapping>> {
    let mut mappings = Vec::new();
    for entry in keys::objects(object, key)? {
        let protocol = keys::text(entry, "protocol")?.unwrap_or(PROTOCOLS[0]);
        if !PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(protocol)) {
            let protocol: String = protocol.chars().take(40).collect();
            let message =
                format!("a port mapping has the protocol {protocol:?}: expected {}", PROTOCOLS.join(", "));
            return Err(CniError::config(message));
        }
        let host_ip = keys::text(entry, "hostIP")?.map(address).transpose()?;
        let container_port = keys::port(entry, "containerPort")?;
        if let Some(host_port) = keys::port(entry, "hostPort")? {
            mappings.push(Mapping { host_port, container_port, host_ip });
        }
    }
    Ok(mappings)
}

/// Keys and values of the labels of Mesos' network.
fn mesos_labels(network: &Object) -> Result<Vec<(&str, &str)>> {
    let Some(labels) = keys::object(network, "labels")? else { return Ok(Vec::new()) };
    let labels = keys::objects(labels, "labels")?.into_iter();
    let label = |label| -> Result<_> {
        let text = |key| keys::text(label, key).map(Option::unwrap_or_default);
        Ok((text("key")?, text("value")?))
    };
    labels.map(label).collect()
}

fn addresses(texts: &[&str]) -> Result<Vec<IpAddr>> {
    texts.iter().map(|text| address(text)).collect()
}

/// An address, with or without a prefix length.
fn address(text: &str) -> Result<IpAddr> {
    let plain = text.split_once('/').map_or(text, |(address, _length)| address);
    plain.parse().map_err(|_invalid| {
        let text: String = text.chars().take(80).collect();
        CniError::config(format!("{text:?} is not an IP address"))
    })
}

/// The labels of a container: its network, and the names that people know it by.
fn labels(network: &str, args: &Args<'_>) -> BTreeMap<String, String> {
    let job = args.get("NOMAD_JOB_ID").zip(args.get("NOMAD_GROUP_NAME"));
    let name = args.get("K8S_POD_NAME").map(str::to_owned);
    let name = name.or_else(|| job.map(|(job, group)| format!("{job}/{group}")));
    let namespace = args.get("K8S_POD_NAMESPACE").or_else(|| args.get("NOMAD_NAMESPACE")).map(str::to_owned);
    let all = [(NETWORK_LABEL, Some(network.to_owned())), ("name", name), ("namespace", namespace)];
    let known = all.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    // A name that cannot be a label is left out: the container has its id as well.
    known
        .filter(|(key, value)| Labels::try_from(BTreeMap::from([(key.clone(), value.clone())])).is_ok())
        .collect()
}
