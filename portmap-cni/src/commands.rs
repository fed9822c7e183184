//! The commands of CNI.

use std::{fs, io::Read, os::unix::fs::MetadataExt as _, path::Path};

use portmap::{
    api::{Changed, Container, ContainerState},
    error::{Error, Kind},
    model::PortSet,
};
use serde_json::{Value, json};

use crate::{
    config::Config,
    conmon,
    daemon::Daemon,
    error::{CniError, Code, Result},
    invocation::Invocation,
    keys, result,
    version::{self, Version},
    wanted::{NETWORK_LABEL, Wanted},
};

/// What the plugin prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its standard output: a result, an error, or nothing.
    pub output: Vec<u8>,
    /// Whether it fails.
    pub is_error: bool,
}

/// Executes a command with this configuration.
pub fn run(invocation: &Invocation, input: impl Read) -> Answer {
    match invocation.command.as_str() {
        "VERSION" => return Answer::of(Ok(Some(version_of(input))), Version::LATEST),
        // A container must always be removable.
        "DEL" => {
            if let Err(error) = delete(invocation, &Config::read(input)) {
                eprintln!("portmap-bpf: DEL: {error}");
            }
            return Answer::of(Ok(None), Version::LATEST);
        }
        _ => {}
    }
    let config = match Config::read(input) {
        Ok(config) => config,
        Err(error) => return Answer::of(Err(error), Version::LATEST),
    };
    let done = match invocation.command.as_str() {
        "ADD" => add(invocation, &config).map(Some),
        "CHECK" => check(invocation, &config).map(|()| None),
        "GC" => collect(invocation, &config).map(|()| None),
        "STATUS" => status(invocation, &config).map(|()| None),
        other => Err(CniError::environment(format!(
            "CNI_COMMAND is {other:?}: expected ADD, DEL, CHECK, GC, STATUS or VERSION"
        ))),
    };
    Answer::of(done, config.version)
}

impl Answer {
    fn of(outcome: Result<Option<Value>>, version: Version) -> Self {
        let is_error = outcome.is_err();
        let json = outcome.unwrap_or_else(|error| Some(error.to_json(version)));
        Self { output: json.map_or_else(Vec::new, |json| format!("{json}\n").into_bytes()), is_error }
    }
}

/// Runtimes ask for the versions each time that they read the network's configuration.
fn version_of(input: impl Read) -> Value {
    let asked = Config::read(input).map_or(Version::LATEST, |config| config.version);
    json!({ "cniVersion": asked.text(), "supportedVersions": version::ALL })
}

fn add(invocation: &Invocation, config: &Config) -> Result<Value> {
    let (name, netns, interface) = (invocation.container()?, invocation.netns()?, invocation.interface()?);
    if config.previous()?.is_some() {
        return Err(CniError::config(
            "portmap-bpf is not the first plugin of the network's list: expected it first, without another one that \
             creates an interface",
        ));
    }
    let wanted = Wanted::read(config, &invocation.args()?)?;
    let mut request = wanted.into_request(name, netns, interface)?;
    let daemon = Daemon::restarting(&invocation.state_dir(config.state_dir()?));
    if let Some(existing) = daemon.container(name)? {
        if existing.labels.get(NETWORK_LABEL).is_none() {
            return Err(CniError::from(Error::conflict(format!(
                "a container is already called {name:?}, and no CNI network has added it: remove it by \
                 `portmap del {name}`"
            ))));
        }
        // The container is in two networks of portmap. It has all ports and addresses already.
        if existing.interface != interface
            && is_in(&existing, netns)
            && existing.state == ContainerState::Ready
        {
            return result::of_add(config, &existing, &netns.to_string_lossy());
        }
        request.replace = true;
    }
    let mut added = daemon.add(&request);
    if added.as_ref().is_err_and(|error| error.code == Code::Daemon(Kind::Conflict)) && conmon::watches(name)
    {
        request.take = true;
        added = daemon.add(&request);
    }
    let Changed { container, warnings } = added?;
    for warning in warnings {
        eprintln!("portmap-bpf: ADD of {name}: {warning}");
    }
    result::of_add(config, &container, &netns.to_string_lossy())
}

/// Removes a container, if this is about it: a late DEL must not remove a container that has been added again.
fn delete(invocation: &Invocation, config: &Result<Config>) -> Result<()> {
    let name = invocation.container()?;
    let configured = config.as_ref().ok().and_then(|config| config.state_dir().ok().flatten());
    let daemon = Daemon::running(&invocation.state_dir(configured));
    let Some(container) = daemon.container(name)? else { return Ok(()) };
    let is_of_cni = container.labels.get(NETWORK_LABEL).is_some();
    let is_interface = invocation.known_interface().is_none_or(|interface| interface == container.interface);
    let is_netns =
        invocation.known_netns().is_none_or(|netns| netns == container.netns || is_in(&container, netns));
    if is_of_cni && is_interface && is_netns {
        daemon.delete(name)?;
    }
    Ok(())
}

/// Whether a container's namespace is the one at this path.
fn is_in(container: &Container, netns: &Path) -> bool {
    let inode = fs::metadata(netns).ok().map(|found| found.ino());
    inode.is_some() && inode == container.netns_inode
}

fn check(invocation: &Invocation, config: &Config) -> Result<()> {
    require("CHECK", config, Version::V0_4_0)?;
    let (name, netns, interface) = (invocation.container()?, invocation.netns()?, invocation.interface()?);
    let Some(previous) = config.previous()? else {
        return Err(CniError::config("CHECK needs the result of ADD: expected the key prevResult"));
    };
    let wanted = Wanted::read(config, &invocation.args()?)?;
    let daemon = Daemon::restarting(&invocation.state_dir(config.state_dir()?));
    let differs =
        |what: String| Error::failure(format!("container {name:?} is not as ADD has left it: {what}"));
    let Some(container) = daemon.container(name)? else {
        return Err(differs("the daemon does not have it".to_owned()).into());
    };
    if !is_in(&container, netns) {
        let netns = netns.display();
        return Err(
            differs(format!("{netns} is not its network namespace, but another one or missing")).into()
        );
    }
    if container.state != ContainerState::Ready {
        return Err(differs(format!("it is {}", container.state.name())).into());
    }
    // In a second network of portmap, the result of ADD lists the interface of the first.
    let listed = keys::objects(previous, "interfaces")?;
    let mut names = listed.iter().map(|interface| keys::text(interface, "name"));
    if container.interface != interface && !names.any(|name| name == Ok(Some(container.interface.as_str()))) {
        return Err(differs(format!("its interface is {}, not {interface}", container.interface)).into());
    }
    let chosen = container.automatic_ports.iter().map(|range| range.count());
    if !chosen.eq(wanted.automatic.iter().map(|range| usize::from(range.count.get()))) {
        return Err(differs("it has other automatic ranges of ports".to_owned()).into());
    }
    let missing = wanted.ports.difference(&container.ports);
    if missing != PortSet::default() {
        return Err(differs(format!("it does not own the ports {missing}")).into());
    }
    let own = [Some(format!("{}/32", container.ip)), container.ip6.map(|address| format!("{address}/128"))];
    for ip in keys::objects(previous, "ips")? {
        let address = keys::text(ip, "address")?.unwrap_or_default();
        if !own.iter().flatten().any(|own| own == address) {
            return Err(differs(format!("it does not have the address {address}")).into());
        }
    }
    Ok(())
}

/// Removes the containers of this network that the runtime no longer has.
fn collect(invocation: &Invocation, config: &Config) -> Result<()> {
    require("GC", config, Version::V1_1_0)?;
    let (network, valid) = (config.network()?, config.valid_attachments()?);
    let daemon = Daemon::restarting(&invocation.state_dir(config.state_dir()?));
    let is_valid = |container: &Container| {
        valid.iter().any(|(id, interface)| {
            *id == container.name && (interface.is_empty() || *interface == container.interface)
        })
    };
    let own = daemon.containers()?.into_iter();
    let own = own.filter(|container| container.labels.get(NETWORK_LABEL) == Some(network));
    let stale = own.filter(|container| !is_valid(container));
    // One that cannot be removed must not keep the others.
    let failed: Vec<_> = stale.filter_map(|container| daemon.delete(&container.name).err()).collect();
    match failed.first() {
        None => Ok(()),
        Some(first) => {
            let texts: Vec<_> = failed.iter().map(|error| error.message.as_str()).collect();
            Err(CniError::new(first.code, texts.join("; ")))
        }
    }
}

fn status(invocation: &Invocation, config: &Config) -> Result<()> {
    require("STATUS", config, Version::V1_1_0)?;
    let daemon = Daemon::running(&invocation.state_dir(config.state_dir()?));
    daemon.check_health().map_err(|error| CniError::new(Code::NotAvailable, error.message))
}

/// Fails unless the runtime speaks a version that has the command.
fn require(command: &str, config: &Config, first: Version) -> Result<()> {
    if config.version >= first {
        return Ok(());
    }
    Err(CniError::new(
        Code::IncompatibleVersion,
        format!("cniVersion {} has no {command}: expected {} or later", config.version.text(), first.text()),
    ))
}
