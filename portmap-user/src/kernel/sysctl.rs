//! Network settings below `/proc/sys/net`, those of the calling thread's namespace.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

use crate::{
    error::{Context as _, Result},
    fault,
    ports::{PortRange, PortSet},
};

const ROOT: &str = "/proc/sys/net";

/// The directories in which our settings are.
const DIRECTORIES: [&str; 3] = ["core", "ipv4", "ipv6"];

/// The settings of a namespace, that of the thread which opened them.
///
/// The kernel keeps the directories of all namespaces under the same names, and takes the longer to find one by its name the
/// more namespaces there are; so each is looked up once, here.
pub struct Sysctls([Option<OwnedFd>; DIRECTORIES.len()]);

impl Sysctls {
    /// Opens the settings of the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let [core, ipv4, ipv6] = DIRECTORIES.map(|name| {
            let path = format!("{ROOT}/{name}");
            let opened = open(path.as_str(), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
            // Kernels without IPv6 lack its directory.
            if_present(opened.map_err(io::Error::from)).context(|| format!("cannot open {path}"))
        });
        Ok(Self([core?, ipv4?, ipv6?]))
    }

    /// Opens the file of a setting.
    fn file(&self, name: &str, how: OFlag) -> io::Result<File> {
        let (directory, file) = name.split_once('/').ok_or(Errno::ENOENT)?;
        let found = DIRECTORIES.into_iter().zip(&self.0).find(|(known, _)| *known == directory);
        let directory = found.and_then(|(_, opened)| opened.as_ref()).ok_or(Errno::ENOENT)?;
        Ok(openat(directory.as_fd(), file, how | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    fn value(&self, name: &str) -> io::Result<String> {
        fault::step("read a setting")?;
        let mut value = String::new();
        self.file(name, OFlag::O_RDONLY)?.read_to_string(&mut value)?;
        Ok(value.trim().to_owned())
    }

    fn set(&self, name: &str, value: &str) -> io::Result<()> {
        fault::step("write a setting")?;
        self.file(name, OFlag::O_WRONLY)?.write_all(value.as_bytes())
    }

    /// The value of a setting, without white space around it.
    pub fn read(&self, name: &str) -> Result<String> {
        self.value(name).context(|| format!("cannot read {ROOT}/{name}"))
    }

    /// The value of a setting that not every kernel has.
    pub fn read_if_present(&self, name: &str) -> Result<Option<String>> {
        if_present(self.value(name)).context(|| format!("cannot read {ROOT}/{name}"))
    }

    /// Changes a setting.
    pub fn write(&self, name: &str, value: &str) -> Result<()> {
        self.set(name, value).context(|| format!("cannot set {ROOT}/{name} to {value}"))
    }

    /// Changes a setting that not every kernel has.
    pub fn write_if_present(&self, name: &str, value: &str) -> Result<()> {
        let set = if_present(self.set(name, value));
        set.map(|_there| ()).context(|| format!("cannot set {ROOT}/{name} to {value}"))
    }

    /// The ports that the namespace does not give out by itself although its range has them.
    pub fn reserved_ports(&self) -> Result<PortSet> {
        let value = self.read(RESERVED_PORTS)?;
        value.parse().map_err(|error| {
            crate::error::Error::failure(format!("{ROOT}/{RESERVED_PORTS} makes no sense: {error}"))
        })
    }

    /// Sets the ports that the namespace does not give out by itself.
    pub fn set_reserved_ports(&self, ports: &PortSet) -> Result<()> {
        // Without the end of the line, an empty list would not even be written.
        self.write(RESERVED_PORTS, &format!("{ports}\n"))
    }

    /// The ports that the namespace gives out by itself.
    pub fn local_port_range(&self) -> Result<PortRange> {
        let value = self.read(LOCAL_PORT_RANGE)?;
        let mut bounds = value.split_whitespace().map(str::parse::<u16>);
        let range = match (bounds.next(), bounds.next(), bounds.next()) {
            (Some(Ok(first)), Some(Ok(last)), None) => PortRange::new(first, last),
            _ => None,
        };
        range.ok_or_else(|| {
            crate::error::Error::failure(format!(
                "{ROOT}/{LOCAL_PORT_RANGE} is {value:?}: expected two ports"
            ))
        })
    }

    /// Sets the ports that the namespace gives out by itself.
    pub fn set_local_port_range(&self, range: PortRange) -> Result<()> {
        self.write(LOCAL_PORT_RANGE, &format!("{} {}", range.first(), range.last()))
    }
}

const RESERVED_PORTS: &str = "ipv4/ip_local_reserved_ports";
const LOCAL_PORT_RANGE: &str = "ipv4/ip_local_port_range";

/// Nothing instead of the error that there is no such file.
fn if_present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Name of a setting of one interface, or of `all` of them.
pub fn of_interface(family: &str, interface: &str, setting: &str) -> String {
    format!("{family}/conf/{interface}/{setting}")
}
