//! The environment of an invocation.

use std::path::{Path, PathBuf};

use portmap::{
    model::name,
    paths::{DEFAULT_STATE_DIR, STATE_DIR_VARIABLE},
};

use crate::error::{CniError, Result};

/// Keys of `CNI_ARGS` that start with this are the plugin's own.
const OWN_ARGS: &str = "PORTMAP_";

/// The environment variables of an invocation. Commands check those that they need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invocation {
    /// `CNI_COMMAND`.
    pub(crate) command: String,
    container: String,
    netns: String,
    interface: String,
    args: String,
    state_dir: String,
}

impl Invocation {
    /// The invocation with these environment variables; `None` if they have no `CNI_COMMAND`, so that no runtime has
    /// started the plugin. Missing variables are empty.
    pub fn new(variable: impl Fn(&str) -> String) -> Option<Self> {
        let command = variable("CNI_COMMAND");
        (!command.is_empty()).then(|| Self {
            command,
            container: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS"),
            interface: variable("CNI_IFNAME"),
            args: variable("CNI_ARGS"),
            state_dir: variable(STATE_DIR_VARIABLE),
        })
    }

    /// The container's id, which the daemon takes for its name.
    pub(crate) fn container(&self) -> Result<&str> {
        if self.container.is_empty() {
            return Err(CniError::environment("CNI_CONTAINERID is empty: expected the container's id"));
        }
        name::check(&self.container)
            .map_err(|error| CniError::environment(format!("CNI_CONTAINERID: {error}")))?;
        Ok(&self.container)
    }

    /// The path of the container's network namespace; `None` if the runtime no longer knows it.
    pub(crate) fn known_netns(&self) -> Option<&Path> {
        (!self.netns.is_empty()).then(|| Path::new(&self.netns))
    }

    /// The same, for commands that need it.
    pub(crate) fn netns(&self) -> Result<&Path> {
        self.known_netns().filter(|path| path.is_absolute()).ok_or_else(|| {
            CniError::environment(format!(
                "CNI_NETNS is {:?}: expected the absolute path of a network namespace",
                self.netns
            ))
        })
    }

    /// The name of the container's interface; `None` if the runtime does not say.
    pub(crate) fn known_interface(&self) -> Option<&str> {
        (!self.interface.is_empty()).then_some(self.interface.as_str())
    }

    /// The same, for commands that need it.
    pub(crate) fn interface(&self) -> Result<&str> {
        self.known_interface()
            .ok_or_else(|| CniError::environment("CNI_IFNAME is empty: expected the interface's name"))
    }

    /// The daemon's state directory: that of the configuration, else of the environment, else the default.
    pub(crate) fn state_dir(&self, configured: Option<&str>) -> PathBuf {
        let of_environment = Some(self.state_dir.as_str()).filter(|path| !path.is_empty());
        PathBuf::from(configured.or(of_environment).unwrap_or(DEFAULT_STATE_DIR))
    }

    /// The keys and values of `CNI_ARGS`. Keys of others are ignored, whether or not `IgnoreUnknown` is among them: the
    /// plugin sees the arguments for all plugins of the list.
    pub(crate) fn args(&self) -> Result<Args<'_>> {
        let mut pairs = Vec::new();
        for pair in self.args.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                let pair: String = pair.chars().take(80).collect();
                return Err(CniError::environment(format!(
                    "CNI_ARGS contains {pair:?}: expected KEY=VALUE, separated by semicolons"
                )));
            };
            pairs.push((key, value));
        }
        Ok(Args(pairs))
    }
}

/// The keys and values of `CNI_ARGS`.
pub(crate) struct Args<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Args<'a> {
    /// The value of a key; `None` if it is missing or empty. The last one counts.
    pub(crate) fn get(&self, key: &str) -> Option<&'a str> {
        let found = self.0.iter().rev().find(|(name, _)| *name == key);
        found.map(|(_, value)| *value).filter(|value| !value.is_empty())
    }

    /// The plugin's own keys, without their prefix, with their values.
    pub(crate) fn own(&self) -> impl Iterator<Item = (&'a str, &'a str)> + '_ {
        self.0.iter().filter_map(|(key, value)| Some((key.strip_prefix(OWN_ARGS)?, *value)))
    }
}
