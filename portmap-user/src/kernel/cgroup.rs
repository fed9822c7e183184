//! cgroup v2: its mount point, and the BPF programs attached to a cgroup.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use aya::programs::cgroup_sock_addr::CgroupSockAddrAttachType;
use aya_obj::generated::{bpf_attach_type, bpf_cmd};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::kernel::error::{CgroupError, Context as _, Result};

/// Maximum number of programs of an attach type at a cgroup (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: u32 = 64;

/// `query` of `union bpf_attr` as of Linux 6.6. Older kernels accept it, because the fields that they lack
/// are zero. The kernel writes the result into some of its fields.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    id_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

/// Returns the cgroup whose processes the bind guard applies to: `given`, or the root. Fails if it is not a
/// cgroup.
pub fn resolve(given: Option<&Path>) -> Result<PathBuf> {
    let path = given.map_or_else(root, |path| Ok(path.to_owned()))?;
    check(&path).map(|()| path)
}

/// Returns the mount point of the cgroup v2 hierarchy.
pub fn root() -> Result<PathBuf> {
    let mounts = procfs::mounts().context(|| "cannot read /proc/mounts")?;
    let root = mounts.into_iter().find(|mount| mount.fs_vfstype == "cgroup2");
    Ok(root.map(|mount| mount.fs_file.into()).ok_or(CgroupError::NotMounted)?)
}

/// Fails unless a directory is a cgroup of version 2.
pub fn check(cgroup: &Path) -> Result<()> {
    if statfs(cgroup).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return Ok(());
    }
    Err(CgroupError::NotACgroup(cgroup.to_owned()).into())
}

/// Returns the ids of the programs attached to a cgroup for a call, without those inherited from its parents.
pub fn programs(cgroup: &Path, call: CgroupSockAddrAttachType) -> Result<Vec<u32>> {
    let asking = || format!("cannot query the programs of the cgroup {}", cgroup.display());
    let directory = File::open(cgroup).context(asking)?;
    let mut ids = [0; MAX_PROGRAMS as usize];
    let count = query(&directory, call, &mut ids).context(asking)?;
    Ok(ids.into_iter().take(count).collect())
}

/// Fills in the programs' ids, and returns their number.
fn query(
    cgroup: &File,
    call: CgroupSockAddrAttachType,
    ids: &mut [u32; MAX_PROGRAMS as usize],
) -> io::Result<usize> {
    let mut query = Query {
        target: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: bpf_attach_type::from(call) as u32,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: MAX_PROGRAMS,
        ..Query::default()
    };
    // SAFETY: the attributes are those of the command and have its size. The kernel writes to them and, no
    // further than the count says, to `ids`, which is borrowed for as long; it keeps neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_PROG_QUERY as libc::c_long,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    if result == 0 { Ok(query.count as usize) } else { Err(io::Error::last_os_error()) }
}
