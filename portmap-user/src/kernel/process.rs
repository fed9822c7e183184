//! Processes: their identity, and notification of their end.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use procfs::{ProcError, process};

use crate::{
    kernel::error::{Context as _, Result},
    model::Process,
};

/// A pidfd, which becomes readable when the process ends.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Process {
    /// Finds the process with this pid, if there is one.
    pub fn find(pid: u32) -> Result<Option<Self>> {
        let doing = || format!("cannot read /proc/{pid}");
        let number = i32::try_from(pid).context(doing)?;
        match process::Process::new(number).and_then(|process| process.stat()) {
            Ok(stat) => Ok(Some(Self { pid, started: stat.starttime })),
            Err(ProcError::NotFound(_)) => Ok(None),
            // It is ending.
            Err(ProcError::Io(error, _)) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error).context(doing),
        }
    }

    /// Opens its pidfd; `None` if it has ended.
    pub fn open(self) -> Result<Option<Pidfd>> {
        let doing = || format!("cannot wait for process {}", self.pid);
        let pidfd = match pidfd_open(libc::pid_t::try_from(self.pid).context(doing)?) {
            Ok(pidfd) => Pidfd(pidfd),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error).context(doing),
        };
        // The pidfd is bound to one process now, so this check cannot race.
        Ok(Self::find(self.pid)?.filter(|found| *found == self).map(|_same| pidfd))
    }
}

fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: the call has no pointers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let file = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the call has just returned the descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

impl AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tokio::io::{Interest, unix::AsyncFd};

    use super::*;

    #[tokio::test]
    async fn process_pidfd_is_readable_at_its_end() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("sleep is part of coreutils");
        let process = Process::find(child.id()).expect("found").expect("it lives");
        let pidfd = process.open().expect("opened").expect("it lives");
        let other = Process { started: process.started + 1, ..process };
        assert!(other.open().expect("no error").is_none(), "an earlier process had this number");
        child.kill().expect("killed");
        // SAFETY: the value owns its descriptor, which is the same as long as the value lives.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        let _ended = pidfd.expect("it can be waited for").readable().await.expect("it ends");
        child.wait().expect("ended");
        assert_eq!(Process::find(process.pid).expect("no error").filter(|found| *found == process), None);
        assert!(process.open().expect("no error").is_none());
    }
}
