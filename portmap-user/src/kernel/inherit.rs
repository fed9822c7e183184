//! Inheritance of sysctls: a new network namespace has the kernel's defaults, not the host's values, so
//! portmap copies those that matter to processes in it.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

use super::namespace::Namespace;
use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
    model::SavedSysctl,
};

const ROOT: &str = "/proc/sys/net";

/// Directories of sysctls that apply to the namespace as a whole. Their subdirectories have sysctls of
/// interfaces, routes and neighbours, which portmap sets itself.
const DIRECTORIES: [&str; 9] =
    ["bridge", "core", "ipv4", "ipv6", "ipv6/icmp", "mptcp", "netfilter", "sctp", "unix"];

/// Sysctls that a container does not inherit: port ranges and reserved ports, forwarding, keys, hash table
/// sizes for namespaces created inside it, and CPU masks for future devices.
const NOT_INHERITED: [&str; 10] = [
    "ipv4/ip_local_port_range",
    "ipv4/ip_local_reserved_ports",
    "ipv4/ip_forward",
    "ipv4/ip_forward_use_pmtu",
    "ipv4/ip_forward_update_priority",
    "ipv4/tcp_fastopen_key",
    "ipv4/tcp_child_ehash_entries",
    "ipv4/udp_child_hash_entries",
    "core/rps_default_mask",
    "sctp/cookie_hmac_alg",
];

/// The sysctl that must not be above the first port of `ip_local_port_range`.
const UNPRIVILEGED_START: &str = "ipv4/ip_unprivileged_port_start";

/// Maximum length of an inherited value in bytes.
const LONGEST: usize = 4096;

/// The host's inheritable sysctls, and their defaults in a new namespace.
pub struct Inheritance {
    directories: Vec<(&'static str, OwnedFd)>,
    /// Each sysctl with its default in a new namespace.
    new: Vec<(String, String)>,
}

impl Inheritance {
    /// Reads the defaults from a scratch namespace. Containers inherit from the calling thread's namespace.
    pub fn probe() -> Result<Self> {
        failpoint::hit("look at settings").context(|| format!("cannot read {ROOT}"))?;
        let mut directories = Vec::new();
        for name in DIRECTORIES {
            directories.extend(directory(name)?.map(|opened| (name, opened)));
        }
        // In a namespace other than the initial one, machine-wide sysctls are hidden or read-only.
        let new = Namespace::scratch(|_session| -> Result<_> {
            let mut all = Vec::new();
            for name in DIRECTORIES {
                let Some(opened) = directory(name)? else { continue };
                let path = format!("{ROOT}/{name}");
                for entry in fs::read_dir(&path).context(|| format!("cannot read {path}"))?.flatten() {
                    let setting = format!("{name}/{}", entry.file_name().to_string_lossy());
                    let is_own = entry
                        .metadata()
                        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o600 == 0o600);
                    if is_own
                        && !NOT_INHERITED.contains(&setting.as_str())
                        && let Ok(value) = read(&opened, &entry.file_name().to_string_lossy())
                    {
                        all.push((setting, value));
                    }
                }
            }
            Ok(all)
        })?;
        Ok(Self { directories, new })
    }

    /// Returns the sysctls whose defaults differ from the host's values, with those values. `first_port` is
    /// the first port of the namespace's `ip_local_port_range`: the kernel rejects an
    /// `ip_unprivileged_port_start` above it.
    pub fn differing(&self, first_port: u16) -> Vec<(String, String)> {
        let differs = |(setting, new): &(String, String)| {
            let (directory, file) = split(setting)?;
            let (_, opened) = self.directories.iter().find(|(name, _)| *name == directory)?;
            let mut value = read(opened, file).ok()?;
            if setting == UNPRIVILEGED_START && value.parse::<u16>().is_ok_and(|start| start > first_port) {
                value = first_port.to_string();
            }
            (value != *new).then(|| (setting.clone(), value))
        };
        self.new.iter().filter_map(differs).collect()
    }
}

/// Saves the values of sysctls in the calling thread's namespace before [`apply`] changes them. Missing ones
/// are omitted.
pub fn before(settings: &[(String, String)]) -> Result<Vec<SavedSysctl>> {
    let saved = |(name, set): &(String, String)| {
        let before = one(name, OFlag::O_RDONLY).and_then(value_of).ok()?;
        (before != *set).then(|| SavedSysctl { name: name.clone(), before, set: set.clone() })
    };
    Ok(settings.iter().filter_map(saved).collect())
}

/// Sets sysctls in the calling thread's namespace, if it has them. Rejected ones are retried after the
/// others, because a minimum and its maximum must be set in the right order.
pub fn apply(settings: &[(String, String)]) -> Result<()> {
    if settings.is_empty() {
        return Ok(());
    }
    let mut opened = Vec::new();
    for name in DIRECTORIES {
        if settings.iter().any(|(setting, _)| split(setting).is_some_and(|(directory, _)| directory == name))
        {
            opened.extend(directory(name)?.map(|directory| (name, directory)));
        }
    }
    let write = |setting: &str, value: &str| -> io::Result<()> {
        failpoint::hit("write a setting")?;
        let (directory, file) = split(setting).ok_or(Errno::ENOENT)?;
        let found = opened.iter().find(|(name, _)| *name == directory);
        let Some((_, directory)) = found else { return Ok(()) };
        match openat(directory.as_fd(), file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Err(Errno::ENOENT) => Ok(()),
            file => File::from(file?).write_all(value.as_bytes()),
        }
    };
    let refused: Vec<_> = settings.iter().filter(|(setting, value)| write(setting, value).is_err()).collect();
    for (setting, value) in refused {
        write(setting, value)
            .context(|| format!("cannot set {ROOT}/{setting} to {value:?}, the host's value"))?;
    }
    Ok(())
}

/// Restores what [`before`] has saved in the calling thread's namespace, unless another process has changed
/// it since.
pub fn restore(saved: &[SavedSysctl]) -> Result<()> {
    let is_ours = |saved: &&SavedSysctl| {
        one(&saved.name, OFlag::O_RDONLY).and_then(value_of).is_ok_and(|value| value == saved.set)
    };
    let settings: Vec<_> =
        saved.iter().filter(is_ours).map(|saved| (saved.name.clone(), saved.before.clone())).collect();
    apply(&settings)
}

/// The innermost of [`DIRECTORIES`] that contains a sysctl, and the name below it.
fn split(setting: &str) -> Option<(&'static str, &str)> {
    let inside = |name: &'static str| Some((name, setting.strip_prefix(name)?.strip_prefix('/')?));
    DIRECTORIES.iter().filter_map(|name| inside(name)).max_by_key(|(name, _)| name.len())
}

/// Opens one of the directories, if the kernel has it.
fn directory(name: &str) -> Result<Option<OwnedFd>> {
    let path = format!("{ROOT}/{name}");
    match open(path.as_str(), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT) => Ok(None),
        other => other.map(Some).context(|| format!("cannot open {path}")),
    }
}

fn read(directory: &OwnedFd, file: &str) -> io::Result<String> {
    value_of(openat(directory.as_fd(), file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

fn one(setting: &str, how: OFlag) -> io::Result<File> {
    Ok(open(format!("{ROOT}/{setting}").as_str(), how | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// Reads a sysctl's value in a single read.
fn value_of(mut file: File) -> io::Result<String> {
    let mut bytes = [0; LONGEST];
    let length = file.read(&mut bytes)?;
    let text = bytes.get(..length).filter(|_| length < LONGEST).ok_or(Errno::E2BIG)?;
    Ok(String::from_utf8_lossy(text).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{NOT_INHERITED, split};

    #[test]
    fn sysctl_is_split_at_its_innermost_directory() {
        assert_eq!(split("ipv6/icmp/ratelimit"), Some(("ipv6/icmp", "ratelimit")));
        assert_eq!(split("ipv6/bindv6only"), Some(("ipv6", "bindv6only")));
        assert_eq!(split("ipv4/conf/all/rp_filter"), Some(("ipv4", "conf/all/rp_filter")));
        assert_eq!(split("ipv4"), None);
        assert_eq!(split("netrom/a"), None);
    }

    #[test]
    fn sysctl_exclusions_have_valid_names() {
        for setting in NOT_INHERITED {
            assert_eq!(setting.split('/').count(), 2, "{setting}");
        }
    }
}
