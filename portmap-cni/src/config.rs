//! The network's configuration, from standard input.

use std::io::Read;

use serde_json::{Map, Value};

use crate::{
    error::{CniError, Code, Result},
    keys::{self, Object},
    version::Version,
};

/// Longest configuration in bytes. One with mappings of all 65,535 ports has 4 MB.
const LONGEST: u64 = 32 << 20;
/// Longest name of a network: the value of a label.
const LONGEST_NAME: usize = 255;

/// The configuration of one network, as one invocation gets it.
#[derive(Debug)]
pub(crate) struct Config {
    /// The version of CNI that the runtime speaks.
    pub(crate) version: Version,
    /// All of it.
    pub(crate) object: Object,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    ///
    /// If it is too long, no JSON object, or of another version.
    pub(crate) fn read(input: impl Read) -> Result<Self> {
        let mut text = Vec::new();
        input.take(LONGEST + 1).read_to_end(&mut text).map_err(|error| {
            CniError::new(Code::Io, format!("cannot read the configuration on standard input: {error}"))
        })?;
        if u64::try_from(text.len()).is_ok_and(|length| length > LONGEST) {
            return Err(CniError::new(
                Code::Decoding,
                format!("the configuration is longer than {LONGEST} bytes"),
            ));
        }
        Self::parse(&text)
    }

    /// The configuration with this text.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let object: Map<_, _> = serde_json::from_slice(text).map_err(|error| {
            CniError::new(
                Code::Decoding,
                format!("the configuration on standard input is not a JSON object: {error}"),
            )
        })?;
        let version = Version::parse(keys::text(&object, "cniVersion")?.unwrap_or_default())?;
        Ok(Self { version, object })
    }

    /// The network's name.
    pub(crate) fn network(&self) -> Result<&str> {
        let name = keys::text(&self.object, "name")?.unwrap_or_default();
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if starts_well && name.len() <= LONGEST_NAME && name.bytes().all(is_allowed) {
            return Ok(name);
        }
        let name: String = name.chars().take(80).collect();
        Err(CniError::config(format!(
            "the network's name is {name:?}: expected a letter or digit followed by letters, digits, '_', '.' or '-', \
             at most {LONGEST_NAME} characters"
        )))
    }

    /// The daemon's state directory, if the configuration names one.
    pub(crate) fn state_dir(&self) -> Result<Option<&str>> {
        keys::text(&self.object, "stateDir")
    }

    /// What the runtime adds for this container.
    pub(crate) fn runtime(&self) -> Result<Option<&Object>> {
        keys::object(&self.object, "runtimeConfig")
    }

    /// The result of an earlier ADD, or of the plugins before this one.
    pub(crate) fn previous(&self) -> Result<Option<&Object>> {
        keys::object(&self.object, "prevResult")
    }

    /// The arguments of Mesos' isolator.
    pub(crate) fn mesos(&self) -> Result<Option<&Object>> {
        let Some(args) = keys::object(&self.object, "args")? else { return Ok(None) };
        let Some(mesos) = keys::object(args, "org.apache.mesos")? else { return Ok(None) };
        keys::object(mesos, "networkInfo")
    }

    /// The arguments by which the CNI conventions pass addresses.
    pub(crate) fn cni_args(&self) -> Result<Option<&Object>> {
        let Some(args) = keys::object(&self.object, "args")? else { return Ok(None) };
        keys::object(args, "cni")
    }

    /// The attachments of this network that GC keeps: container ids and interfaces.
    ///
    /// # Errors
    ///
    /// If the list is missing, because GC would then remove every container of the network.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<(&str, &str)>> {
        let key = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let key = key.into_iter().find(|key| self.object.get(*key).is_some_and(Value::is_array));
        let Some(key) = key else {
            return Err(CniError::config("GC needs the key cni.dev/valid-attachments: expected a list"));
        };
        keys::objects(&self.object, key)?
            .into_iter()
            .map(|object| {
                let text = |key| keys::text(object, key).map(Option::unwrap_or_default);
                Ok((text("containerID")?, text("ifname")?))
            })
            .collect()
    }
}
