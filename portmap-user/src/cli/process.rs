//! Commands inside containers.

use std::{
    ffi::OsString,
    io::ErrorKind,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Command, ExitCode, ExitStatus},
};

use nix::{sys::signal, unistd::Pid};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal as on_signal},
};

use super::print;
use crate::{
    api::{AddRequest, Container},
    client::Client,
    error::{Context as _, Error, Result},
    kernel::namespace::Namespace,
};

/// Exit codes that shells use for a command that cannot be run, and for one that is not there.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Becomes a command in a container; returns only if that fails.
pub(super) fn exec(container: &Container, command: &[OsString]) -> Error {
    let entered = enter(&container.netns);
    if let Err(error) = entered {
        error
    } else {
        let error = command_of(command).exec();
        Error::failure(format!("cannot run {}: {error}", name_of(command)))
    }
}

/// Adds a container, runs a command in it, and removes it again; the exit code is the command's.
pub(super) fn run(client: &Client, request: &AddRequest, command: &[OsString]) -> Result<ExitCode> {
    let added = client.add(request)?;
    print::warnings(&added);
    let container = added.container;
    let ended = enter(&container.netns).and_then(|()| wait_for(command));
    // The socket is reached from inside the container just as well: it is a file.
    let removed = client.delete(&container.name);
    let code = ended?;
    if let Err(error) = removed {
        print::error(&error);
    }
    Ok(code)
}

/// Moves this thread, the only one, into the container.
fn enter(netns: &Path) -> Result<()> {
    Namespace::open(netns)?.enter()
}

fn command_of(words: &[OsString]) -> Command {
    let (program, arguments) =
        words.split_first().map_or((OsString::new(), &[][..]), |(first, rest)| (first.clone(), rest));
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn name_of(words: &[OsString]) -> String {
    words.first().map(|word| format!("{:?}", word.to_string_lossy())).unwrap_or_default()
}

/// Runs a command to its end. What is asked of this process by a signal is asked of the command.
fn wait_for(command: &[OsString]) -> Result<ExitCode> {
    let doing = || format!("cannot run {}", name_of(command));
    let runtime = Builder::new_current_thread().enable_io().build().context(doing)?;
    runtime.block_on(async {
        let mut terminate = on_signal(SignalKind::terminate()).context(doing)?;
        let mut hangup = on_signal(SignalKind::hangup()).context(doing)?;
        // A terminal sends these to the command as well; this process only has to outlive them.
        let _interrupt = on_signal(SignalKind::interrupt()).context(doing)?;
        let _quit = on_signal(SignalKind::quit()).context(doing)?;
        let mut child = match tokio::process::Command::from(command_of(command)).spawn() {
            Ok(child) => child,
            Err(error) => {
                let code = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
                print::error(&Error::failure(format!("{}: {error}", doing())));
                return Ok(ExitCode::from(code));
            }
        };
        loop {
            let forward = tokio::select! {
                status = child.wait() => return Ok(exit_code(status.context(doing)?)),
                _ = terminate.recv() => signal::Signal::SIGTERM,
                _ = hangup.recv() => signal::Signal::SIGHUP,
            };
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
            if let Some(pid) = pid {
                signal::kill(Pid::from_raw(pid), forward).context(doing)?;
            }
        }
    })
}

/// A command's exit code, or that of a shell whose command was ended by a signal.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
