//! Sysctls below `/proc/sys/net`, of one network namespace.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

use super::pseudo;
use crate::{
    failpoint,
    kernel::error::{Context as _, Error, Result},
    model::{PortRange, PortSet},
};

const ROOT: &str = "/proc/sys/net";

/// The directories that contain our sysctls.
const DIRECTORIES: [&str; 3] = ["core", "ipv4", "ipv6"];

/// The sysctls of the namespace of the thread that opened them.
///
/// The kernel hashes the directories of all namespaces by name, so a lookup takes time linear in the number
/// of namespaces. Each directory is therefore opened once, here.
pub struct Sysctls([Option<OwnedFd>; DIRECTORIES.len()]);

impl Sysctls {
    /// Opens the sysctls of the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let [core, ipv4, ipv6] = DIRECTORIES.map(|name| {
            let path = format!("{ROOT}/{name}");
            let opened = open(path.as_str(), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
            // A kernel without IPv6 lacks its directory.
            if_present(opened.map_err(io::Error::from)).context(|| format!("cannot open {path}"))
        });
        Ok(Self([core?, ipv4?, ipv6?]))
    }

    /// Opens the file of a sysctl.
    fn file(&self, name: &str, how: OFlag) -> io::Result<File> {
        let (directory, file) = name.split_once('/').ok_or(Errno::ENOENT)?;
        let found = DIRECTORIES.into_iter().zip(&self.0).find(|(known, _)| *known == directory);
        let directory = found.and_then(|(_, opened)| opened.as_ref()).ok_or(Errno::ENOENT)?;
        Ok(openat(directory.as_fd(), file, how | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    fn value(&self, name: &str) -> io::Result<String> {
        failpoint::hit("read a setting")?;
        Ok(pseudo::read(LONGEST, || self.file(name, OFlag::O_RDONLY))?.trim().to_owned())
    }

    fn set(&self, name: &str, value: &str) -> io::Result<()> {
        failpoint::hit("write a setting")?;
        pseudo::write(&self.file(name, OFlag::O_WRONLY)?, value)
    }

    /// Reads a sysctl, without surrounding white space.
    pub fn read(&self, name: &str) -> Result<String> {
        self.value(name).context(|| format!("cannot read {ROOT}/{name}"))
    }

    /// Reads a sysctl; `None` if the kernel does not have it.
    pub fn read_if_present(&self, name: &str) -> Result<Option<String>> {
        if_present(self.value(name)).context(|| format!("cannot read {ROOT}/{name}"))
    }

    /// Writes a sysctl.
    pub fn write(&self, name: &str, value: &str) -> Result<()> {
        self.set(name, value).context(|| format!("cannot set {ROOT}/{name} to {value}"))
    }

    /// Writes a sysctl, if the kernel has it.
    pub fn write_if_present(&self, name: &str, value: &str) -> Result<()> {
        let set = if_present(self.set(name, value));
        set.map(|_there| ()).context(|| format!("cannot set {ROOT}/{name} to {value}"))
    }

    /// Reads `ip_local_reserved_ports`, which the kernel does not assign automatically.
    pub fn reserved_ports(&self) -> Result<PortSet> {
        let value = self.read(RESERVED_PORTS)?;
        value.parse().context(|| format!("cannot parse {ROOT}/{RESERVED_PORTS}"))
    }

    /// Adds ports to `ip_local_reserved_ports`, without a moment in which others are missing from it.
    pub fn reserve_ports(&self, ports: &PortSet) -> Result<()> {
        // At an offset other than 0 the kernel adds to the list instead of replacing it.
        self.write_ports(&ports.to_string(), 1, ports)
    }

    /// Sets `ip_local_reserved_ports`.
    pub fn set_reserved_ports(&self, ports: &PortSet) -> Result<()> {
        // With a newline, because a write of 0 bytes would not clear the list.
        self.write_ports(&format!("{ports}\n"), 0, ports)
    }

    /// Writes a list of ports. The kernel accepts at most a page per write, up to the end of a range, and
    /// adds further writes to the list.
    fn write_ports(&self, list: &str, from: u64, ports: &PortSet) -> Result<()> {
        let doing = || {
            let (lists, count) = (ports.ranges().len(), ports.count());
            format!("cannot set {ROOT}/{RESERVED_PORTS} to {count} ports in {lists} ranges")
        };
        failpoint::hit("write a setting").context(doing)?;
        let file = self.file(RESERVED_PORTS, OFlag::O_WRONLY).context(doing)?;
        let (mut remaining, mut offset) = (list.as_bytes(), from);
        while !remaining.is_empty() {
            match file.write_at(remaining, offset) {
                Ok(0) => {
                    return Err(Error::failure(format!(
                        "{}: the kernel does not accept the rest of the list",
                        doing()
                    )));
                }
                Ok(taken) => {
                    remaining = remaining.get(taken..).unwrap_or_default();
                    offset += taken as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(doing),
            }
        }
        Ok(())
    }

    /// Reads `ip_local_port_range`.
    pub fn local_port_range(&self) -> Result<PortRange> {
        let value = self.read(LOCAL_PORT_RANGE)?;
        let mut bounds = value.split_whitespace().map(str::parse::<u16>);
        let range = match (bounds.next(), bounds.next(), bounds.next()) {
            (Some(Ok(first)), Some(Ok(last)), None) => PortRange::new(first, last),
            _ => None,
        };
        range.ok_or_else(|| {
            Error::failure(format!("{ROOT}/{LOCAL_PORT_RANGE} is {value:?}: expected two ports"))
        })
    }

    /// Sets `ip_local_port_range`.
    pub fn set_local_port_range(&self, range: PortRange) -> Result<()> {
        self.write(LOCAL_PORT_RANGE, &format!("{} {}", range.first(), range.last()))
    }
}

/// Maximum length of a value in bytes: a list of all ports, each with five digits and a separator.
const LONGEST: usize = 6 * (1 << 16);

const RESERVED_PORTS: &str = "ipv4/ip_local_reserved_ports";
const LOCAL_PORT_RANGE: &str = "ipv4/ip_local_port_range";

/// Maps the error that there is no such file to `None`.
fn if_present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Name of a sysctl of one interface, or of `all`.
pub fn of_interface(family: &str, interface: &str, setting: &str) -> String {
    format!("{family}/conf/{interface}/{setting}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::namespace::Namespace;

    /// Lists of any length are read, extended and restored without loss.
    #[test]
    fn sysctl_reserved_ports_of_any_length_round_trip() {
        let every = |step: usize, length: u16| -> PortSet {
            let ports =
                (1..=u16::MAX - length).step_by(step).map(|first| PortRange::new(first, first + length - 1));
            let text: Vec<String> = ports.flatten().map(|range| range.to_string()).collect();
            text.join(",").parse().expect("ports")
        };
        let lists = [
            PortSet::default(),
            "8080,9090".parse().expect("ports"),
            every(100, 1),
            every(2, 1),
            every(3, 2),
        ];
        let ours: PortSet = "31000-32000,61440-65535".parse().expect("ports");
        let done = Namespace::scratch(|_session| -> Result<_> {
            let sysctls = Sysctls::open()?;
            for list in &lists {
                sysctls.set_reserved_ports(list)?;
                assert_eq!(sysctls.reserved_ports()?, *list);
                sysctls.reserve_ports(&ours)?;
                assert_eq!(sysctls.reserved_ports()?, list.union(&ours));
                sysctls.reserve_ports(list)?;
                assert_eq!(sysctls.reserved_ports()?, list.union(&ours));
                sysctls.set_reserved_ports(list)?;
                assert_eq!(sysctls.reserved_ports()?, *list);
            }
            Ok(())
        });
        if nix::unistd::geteuid().is_root() {
            done.expect("a namespace");
        }
    }
}
