//! The JSON forms of model values. The structs of [`api`](super) hold model values; how each is written is
//! decided here alone, so no change of the model changes the protocol by accident.

use std::{collections::BTreeMap, fmt::Display, marker::PhantomData, num::NonZeroU16, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::object;
use crate::model::{self, Cpus, mirror_enum, mirror_struct};

/// For `#[serde(with = "As::<F>")]`: a model value in the form `F`.
pub(super) struct As<F>(PhantomData<F>);

/// An optional model value in the form `F`, or null. A field that may be missing needs `#[serde(default)]`.
pub(super) struct AsOption<F>(PhantomData<F>);

/// A list of model values, each in the form `F`.
pub(super) struct AsList<F>(PhantomData<F>);

/// A model value in its text form.
pub(super) struct AsText;

impl<F> As<F> {
    pub(super) fn serialize<M, S>(value: &M, serializer: S) -> Result<S::Ok, S::Error>
    where
        M: Clone,
        F: From<M> + Serialize,
        S: Serializer,
    {
        F::from(value.clone()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, M, D>(deserializer: D) -> Result<M, D::Error>
    where
        F: Deserialize<'de> + TryInto<M, Error: Display>,
        D: Deserializer<'de>,
    {
        F::deserialize(deserializer)?.try_into().map_err(D::Error::custom)
    }

    /// The same, from nothing but a JSON object.
    pub(super) fn deserialize_object<'de, M, D>(deserializer: D) -> Result<M, D::Error>
    where
        F: Deserialize<'de> + TryInto<M, Error: Display>,
        D: Deserializer<'de>,
    {
        let form: F = object::deserialize(deserializer)?;
        form.try_into().map_err(D::Error::custom)
    }
}

impl<F> AsOption<F> {
    #[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
    pub(super) fn serialize<M, S>(value: &Option<M>, serializer: S) -> Result<S::Ok, S::Error>
    where
        M: Clone,
        F: From<M> + Serialize,
        S: Serializer,
    {
        value.clone().map(F::from).serialize(serializer)
    }

    pub(super) fn deserialize<'de, M, D>(deserializer: D) -> Result<Option<M>, D::Error>
    where
        F: Deserialize<'de> + TryInto<M, Error: Display>,
        D: Deserializer<'de>,
    {
        let form = Option::<F>::deserialize(deserializer)?;
        form.map(|form| form.try_into().map_err(D::Error::custom)).transpose()
    }
}

impl<F> AsList<F> {
    pub(super) fn serialize<M, S>(values: &[M], serializer: S) -> Result<S::Ok, S::Error>
    where
        M: Clone,
        F: From<M> + Serialize,
        S: Serializer,
    {
        serializer.collect_seq(values.iter().cloned().map(F::from))
    }

    pub(super) fn deserialize<'de, M, D>(deserializer: D) -> Result<Vec<M>, D::Error>
    where
        F: Deserialize<'de> + TryInto<M, Error: Display>,
        D: Deserializer<'de>,
    {
        let forms = Vec::<F>::deserialize(deserializer)?.into_iter();
        forms.map(|form| form.try_into().map_err(D::Error::custom)).collect()
    }
}

impl AsText {
    pub(super) fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, M, D>(deserializer: D) -> Result<M, D::Error>
    where
        M: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Ports as ranges of inclusive bounds.
pub(super) type Ports = Vec<(u16, u16)>;

/// Values by key.
pub(super) type Labels = BTreeMap<String, String>;

/// New values by key; null removes a label.
pub(super) type LabelChanges = BTreeMap<String, Option<String>>;

/// A range as its inclusive bounds.
pub(super) type Range = (u16, u16);

/// See [`model::AutomaticRange`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AutomaticRange {
    count: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    aligned: bool,
}

/// See [`model::TrafficSpec`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrafficSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    egress_rate: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ingress_rate: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "AsOption::<f64>")]
    cpus: Option<Cpus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loopback: Option<Loopback>,
}

/// See [`model::Loopback`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Loopback {
    Shared,
    Private,
}

/// See [`model::Limit`].
#[derive(Serialize, Deserialize)]
pub(super) struct Limit {
    rate: u64,
    ceil: u64,
    burst: u64,
    leaf: String,
}

/// See [`model::QueueStats`].
#[derive(Serialize, Deserialize)]
pub(super) struct QueueStats {
    kind: String,
    bytes: u64,
    packets: u64,
    drops: u64,
    overlimits: u64,
    requeues: u64,
    backlog: u64,
    qlen: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ecn_marks: Option<u64>,
}

/// See [`model::PortUse`].
#[derive(Serialize, Deserialize)]
pub(super) struct PortUse {
    in_use: u32,
    total: u32,
    peak: u32,
    exhausted: u64,
}

/// See [`model::RttPercentiles`].
#[derive(Serialize, Deserialize)]
pub(super) struct RttPercentiles {
    p50: u32,
    p90: u32,
    p95: u32,
    p99: u32,
}

mirror_struct!(PortUse { in_use, total, peak, exhausted });
mirror_struct!(RttPercentiles { p50, p90, p95, p99 });
mirror_enum!(Loopback { Shared, Private });
mirror_struct!(Limit { rate, ceil, burst, leaf });
mirror_struct!(QueueStats { kind, bytes, packets, drops, overlimits, requeues, backlog, qlen, ecn_marks });

impl From<model::AutomaticRange> for AutomaticRange {
    fn from(model::AutomaticRange { count, is_aligned }: model::AutomaticRange) -> Self {
        Self { count: u16::from(count).into(), aligned: is_aligned }
    }
}

impl TryFrom<AutomaticRange> for model::AutomaticRange {
    type Error = String;

    fn try_from(AutomaticRange { count, aligned }: AutomaticRange) -> Result<Self, String> {
        let valid = u16::try_from(count).ok().and_then(NonZeroU16::new);
        let count = valid.ok_or_else(|| {
            format!("an automatic range of {count} ports: expected a number between 1 and 65535")
        })?;
        Ok(Self { count, is_aligned: aligned })
    }
}

impl From<model::TrafficSpec> for TrafficSpec {
    fn from(model::TrafficSpec { egress_rate, ingress_rate, cpus, loopback }: model::TrafficSpec) -> Self {
        Self { egress_rate, ingress_rate, cpus, loopback: loopback.map(Loopback::from) }
    }
}

impl From<TrafficSpec> for model::TrafficSpec {
    fn from(TrafficSpec { egress_rate, ingress_rate, cpus, loopback }: TrafficSpec) -> Self {
        Self { egress_rate, ingress_rate, cpus, loopback: loopback.map(Into::into) }
    }
}
