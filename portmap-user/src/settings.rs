//! The daemon's settings: flags, the configuration file, and the checks that concern nothing but themselves.

use std::{fs, net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::{
    ephemeral,
    error::{Context as _, Error, Result},
    paths::{DEFAULT_BPFFS_DIR, DEFAULT_STATE_DIR, Pins, STATE_DIR_VARIABLE, StateDir},
    ports::PortSet,
    resources::{self, Resources},
};

/// Default of `--ephemeral-ports-per-container`.
const DEFAULT_BLOCK: u16 = 1024;
/// Default of `--listen`.
const DEFAULT_LISTEN: &str = "127.0.0.1:5051";
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
    /// Both kinds of ports in Mesos' form: ports:[31000-32000];`ephemeral_ports`:[32768-57344]
    #[arg(long, value_name = "RESOURCES")]
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
    /// Address for reading by HTTP, or none [default: 127.0.0.1:5051]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
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
    /// The state directory.
    pub state_dir: StateDir,
    /// The pins.
    pub pins: Pins,
    /// Whether containers have IPv6 if the uplink has a global address.
    pub ipv6: bool,
    /// Address of the read-only HTTP server.
    pub listen: Option<SocketAddr>,
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

    /// These settings, completed by others.
    fn over(self, other: Self) -> Self {
        Self {
            uplink: self.uplink.or(other.uplink),
            ports: self.ports.or(other.ports),
            ephemeral_ports: self.ephemeral_ports.or(other.ephemeral_ports),
            ephemeral_ports_per_container: self
                .ephemeral_ports_per_container
                .or(other.ephemeral_ports_per_container),
            resources: self.resources.or(other.resources),
            state_dir: self.state_dir.or(other.state_dir),
            bpffs_dir: self.bpffs_dir.or(other.bpffs_dir),
            ipv6: self.ipv6.or(other.ipv6),
            listen: self.listen.or(other.listen),
            config: self.config,
        }
    }

    fn check(self) -> Result<Settings> {
        let resources = match &self.resources {
            Some(text) => resources::parse(text)?,
            None => Resources::default(),
        };
        let given = |flag: &Option<String>| flag.as_deref().map(str::parse::<PortSet>).transpose();
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
        Ok(Settings {
            uplink: self.uplink,
            ports,
            ephemeral_ports,
            block,
            state_dir: StateDir::new(self.state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into())),
            pins: Pins::new(self.bpffs_dir.unwrap_or_else(|| DEFAULT_BPFFS_DIR.into())),
            ipv6: self.ipv6.unwrap_or_default() == Ipv6::Auto,
            listen,
        })
    }
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
            (format!("{ephemeral} --ports 5000-6000"), "127.0.0.1:5051"),
            (format!("{ephemeral} --config /does/not/exist"), "/does/not/exist"),
        ] {
            let error = settings(&arguments).expect_err(&arguments);
            assert!(error.message.contains(expected), "{arguments}: {error}");
        }
    }

    #[test]
    fn an_unknown_key_in_the_file_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(&file, "port = \"100-200\"\n").expect("written");
        let error = settings(&format!("--config {}", file.path().display())).expect_err("unknown key");
        assert!(error.message.contains("port"), "{error}");
    }
}
