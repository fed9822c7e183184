//! The state files' form: what [`crate::state`] serialises, with conversions from and to the
//! [`crate::model`].
//!
//! These types are the files' only definition. Their fields have plain types, and the conversions destructure
//! exhaustively, so no change of the model changes a file by accident. A new field needs `#[serde(default)]`,
//! and the files a new version; see [`crate::state`].

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{
    error::{Error, Result},
    model::{self, Cpus, ephemeral::Quarantined, mirror_enum, mirror_struct},
};

/// A value with a form of its own in the state files.
pub trait Recorded: Sized {
    /// That form.
    type Form: Serialize + for<'de> Deserialize<'de>;

    /// Returns the form of this value.
    fn to_form(&self) -> Self::Form;

    /// Reads a value. An error names the field's value that is not valid.
    fn from_form(form: Self::Form) -> Result<Self>;
}

/// For `#[serde(with = "optional")]`: an optional value in its form, or null.
pub mod optional {
    use super::*;

    /// Serialises the value's form.
    pub fn serialize<S: Serializer>(
        value: &Option<impl Recorded>,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        value.as_ref().map(Recorded::to_form).serialize(serializer)
    }

    /// Deserialises the value's form.
    pub fn deserialize<'de, T: Recorded, D: Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Option<T>, D::Error> {
        let form = Option::<T::Form>::deserialize(deserializer)?;
        form.map(T::from_form).transpose().map_err(D::Error::custom)
    }
}

/// `host.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    #[serde(default)]
    boot: Option<String>,
    namespace: NetnsId,
    bpffs_dir: PathBuf,
    uplink: String,
    #[serde(default)]
    interfaces: BTreeMap<u32, String>,
    #[serde(default)]
    reserved: Vec<(u16, u16)>,
    sysctls: Vec<SavedSysctl>,
    clsact: Vec<String>,
    #[serde(default)]
    queues: BTreeMap<u32, u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uplink_queue: Option<u32>,
    #[serde(default)]
    primaries: Vec<IpAddr>,
}

/// `containers/NAME.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    name: String,
    slot: u16,
    netns: PathBuf,
    namespace: Option<NetnsId>,
    owns_netns: bool,
    pid: Option<u32>,
    #[serde(default)]
    owner: Option<Process>,
    #[serde(default)]
    interface: Option<String>,
    ports: Vec<(u16, u16)>,
    #[serde(default)]
    automatic_ports: Vec<(u16, u16)>,
    ephemeral_ports: (u16, u16),
    #[serde(default)]
    draining: Vec<Draining>,
    ipv6: bool,
    #[serde(rename = "wishes")]
    traffic: TrafficSpec,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    egress: Option<Limit>,
    ingress: Option<Limit>,
    #[serde(default)]
    inherit_sysctls: bool,
    before: Option<SavedNetns>,
    phase: Phase,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Draining {
    ports: (u16, u16),
    until: Duration,
}

/// An element of the file [`crate::paths::StateDir::quarantine`]: a block of ephemeral ports in quarantine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuarantinedBlock {
    #[serde(default)]
    name: Option<String>,
    block: (u16, u16),
    since: Duration,
}

/// The identity of a network namespace, in several files.
#[derive(Debug, Serialize, Deserialize)]
pub struct NetnsId {
    device: u64,
    inode: u64,
    #[serde(default)]
    cookie: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Process {
    pid: u32,
    started: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedSysctl {
    name: String,
    before: String,
    set: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrafficSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    egress_rate: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ingress_rate: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpus: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loopback: Option<Loopback>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Loopback {
    Shared,
    Private,
}

#[derive(Debug, Serialize, Deserialize)]
struct Limit {
    rate: u64,
    ceil: u64,
    burst: u64,
    leaf: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedNetns {
    lo_mac: [u8; 6],
    lo_mtu: u32,
    local_ports: (u16, u16),
    had_clsact: bool,
    #[serde(default)]
    lo_up: Option<bool>,
    #[serde(default)]
    lo_has_address: bool,
    #[serde(default)]
    sysctls: Vec<SavedSysctl>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Adding,
    Ready,
    Deleting,
}

impl Recorded for model::HostRecord {
    type Form = Host;

    fn to_form(&self) -> Host {
        let Self {
            boot,
            namespace,
            bpffs_dir,
            uplink,
            interfaces,
            primaries,
            reserved,
            sysctls,
            clsact,
            queues,
            uplink_queue,
        } = self.clone();
        Host {
            boot,
            namespace: namespace.into(),
            bpffs_dir,
            uplink,
            interfaces,
            reserved: reserved.into(),
            sysctls: sysctls.into_iter().map(SavedSysctl::from).collect(),
            clsact,
            queues,
            uplink_queue,
            primaries,
        }
    }

    fn from_form(form: Host) -> Result<Self> {
        let Host {
            boot,
            namespace,
            bpffs_dir,
            uplink,
            interfaces,
            primaries,
            reserved,
            sysctls,
            clsact,
            queues,
            uplink_queue,
        } = form;
        Ok(Self {
            boot,
            namespace: namespace.into(),
            bpffs_dir,
            uplink,
            interfaces,
            reserved: reserved.try_into()?,
            sysctls: sysctls.into_iter().map(Into::into).collect(),
            clsact,
            queues,
            uplink_queue,
            primaries,
        })
    }
}

impl Recorded for model::ContainerRecord {
    type Form = Container;

    fn to_form(&self) -> Container {
        let Self {
            name,
            slot,
            netns,
            namespace,
            owns_netns,
            pid,
            owner,
            interface,
            ports,
            automatic_ports,
            ephemeral_ports,
            draining,
            ipv6,
            traffic,
            labels,
            egress,
            ingress,
            inherit_sysctls,
            before,
            phase,
        } = self.clone();
        Container {
            name,
            slot,
            netns,
            namespace: namespace.map(NetnsId::from),
            owns_netns,
            pid,
            owner: owner.map(Process::from),
            interface: Some(interface.to_string()),
            ports: ports.into(),
            automatic_ports: automatic_ports.into_iter().map(Into::into).collect(),
            ephemeral_ports: ephemeral_ports.into(),
            draining: draining.into_iter().map(Draining::from).collect(),
            ipv6,
            traffic: traffic.into(),
            labels: labels.into(),
            egress: egress.map(Limit::from),
            ingress: ingress.map(Limit::from),
            inherit_sysctls,
            before: before.map(SavedNetns::from),
            phase: phase.into(),
        }
    }

    fn from_form(form: Container) -> Result<Self> {
        let Container {
            name,
            slot,
            netns,
            namespace,
            owns_netns,
            pid,
            owner,
            interface,
            ports,
            automatic_ports,
            ephemeral_ports,
            draining,
            ipv6,
            traffic,
            labels,
            egress,
            ingress,
            inherit_sysctls,
            before,
            phase,
        } = form;
        Ok(Self {
            name,
            slot,
            netns,
            namespace: namespace.map(Into::into),
            owns_netns,
            pid,
            owner: owner.map(Into::into),
            interface: interface.map_or_else(|| Ok(model::InterfaceName::default()), |name| name.parse())?,
            ports: ports.try_into()?,
            automatic_ports: automatic_ports.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
            ephemeral_ports: ephemeral_ports.try_into()?,
            draining: draining.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
            ipv6,
            traffic: traffic.try_into()?,
            labels: labels.try_into()?,
            egress: egress.map(Into::into),
            ingress: ingress.map(Into::into),
            inherit_sysctls,
            before: before.map(TryInto::try_into).transpose()?,
            phase: phase.into(),
        })
    }
}

impl Recorded for Vec<Quarantined> {
    type Form = Vec<QuarantinedBlock>;

    fn to_form(&self) -> Vec<QuarantinedBlock> {
        let form = |Quarantined { name, block, since }: Quarantined| QuarantinedBlock {
            name,
            block: block.into(),
            since,
        };
        self.iter().cloned().map(form).collect()
    }

    fn from_form(form: Vec<QuarantinedBlock>) -> Result<Self> {
        let quarantined = |QuarantinedBlock { name, block, since }: QuarantinedBlock| {
            Ok(Quarantined { name, block: block.try_into()?, since })
        };
        form.into_iter().map(quarantined).collect()
    }
}

mirror_struct!(NetnsId { device, inode, cookie });
mirror_struct!(Process { pid, started });
mirror_struct!(SavedSysctl { name, before, set });
mirror_struct!(Limit { rate, ceil, burst, leaf });
mirror_enum!(Loopback { Shared, Private });
mirror_enum!(Phase { Adding, Ready, Deleting });

impl From<model::Draining> for Draining {
    fn from(model::Draining { ports, until }: model::Draining) -> Self {
        Self { ports: ports.into(), until }
    }
}

impl TryFrom<Draining> for model::Draining {
    type Error = Error;

    fn try_from(Draining { ports, until }: Draining) -> Result<Self> {
        Ok(Self { ports: ports.try_into()?, until })
    }
}

impl From<model::TrafficSpec> for TrafficSpec {
    fn from(model::TrafficSpec { egress_rate, ingress_rate, cpus, loopback }: model::TrafficSpec) -> Self {
        let (cpus, loopback) = (cpus.map(f64::from), loopback.map(Loopback::from));
        Self { egress_rate, ingress_rate, cpus, loopback }
    }
}

impl TryFrom<TrafficSpec> for model::TrafficSpec {
    type Error = Error;

    fn try_from(TrafficSpec { egress_rate, ingress_rate, cpus, loopback }: TrafficSpec) -> Result<Self> {
        let (cpus, loopback) = (cpus.map(Cpus::try_from).transpose()?, loopback.map(Into::into));
        Ok(Self { egress_rate, ingress_rate, cpus, loopback })
    }
}

impl From<model::SavedNetns> for SavedNetns {
    fn from(before: model::SavedNetns) -> Self {
        let model::SavedNetns { lo_mac, lo_mtu, local_ports, had_clsact, lo_up, lo_has_address, sysctls } =
            before;
        let (local_ports, sysctls) = (local_ports.into(), sysctls.into_iter().map(Into::into).collect());
        Self { lo_mac, lo_mtu, local_ports, had_clsact, lo_up, lo_has_address, sysctls }
    }
}

impl TryFrom<SavedNetns> for model::SavedNetns {
    type Error = Error;

    fn try_from(before: SavedNetns) -> Result<Self> {
        let SavedNetns { lo_mac, lo_mtu, local_ports, had_clsact, lo_up, lo_has_address, sysctls } = before;
        let (local_ports, sysctls) = (local_ports.try_into()?, sysctls.into_iter().map(Into::into).collect());
        Ok(Self { lo_mac, lo_mtu, local_ports, had_clsact, lo_up, lo_has_address, sysctls })
    }
}

#[cfg(test)]
mod tests;
