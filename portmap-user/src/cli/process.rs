//! Commands inside containers: `portmap run` and `portmap exec`.

use std::{
    ffi::OsString,
    io::{self, ErrorKind},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{self, SigHandler, SigSet, SigmaskHow, Signal, kill},
        signalfd::SignalFd,
    },
    unistd::{Pid, getpid, getppid},
};

use super::{
    output,
    port_variables::{self, Variable},
    print,
};
use crate::{
    api::{AddRequest, Container},
    client::{CallError, Client},
    error::{Context as _, Error, Result},
    kernel::namespace::Namespace,
    model::PortRequest,
};

/// Exit codes of a shell for a command that cannot be executed, and for one that does not exist.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Offset of a shell's exit code for a command that a signal has killed.
const SIGNAL_BASE: i32 = 128;

/// Signals that are forwarded to the command.
const FORWARDED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// Replaces this process by a command in a container; returns only if that fails.
pub(super) fn exec(container: &Container, command: &[OsString]) -> Result<ExitCode> {
    enter(&container.netns)?;
    let error = command_of(command).exec();
    Ok(cannot_run(command, &error))
}

/// Adds a container, runs a command in it, and removes the container; returns the command's exit code.
///
/// If this process is killed, the kernel kills the command, and the daemon removes the container. The command's
/// environment names the `requested` static ports.
pub(super) fn run(
    client: &Client,
    request: AddRequest,
    requested: Option<&PortRequest>,
    command: &[OsString],
) -> Result<ExitCode> {
    let added = client.add(&AddRequest { remove_with_client: true, ..request })?;
    print::warnings(&added);
    let container = added.container;
    let variables = requested.map(|requested| port_variables::of(requested, &container.automatic_ports));
    let ended = enter(&container.netns).and_then(|()| wait_for(command, &variables.unwrap_or_default()));
    // The socket is a file, so it can be reached from inside the container.
    if let Err(error) = client.delete(&container.name) {
        // A teardown removes the container together with the daemon.
        let is_torn_down = matches!(error, CallError::Unreachable(_)) && !container.netns.exists();
        if !is_torn_down {
            let name = &container.name;
            output::error(&Error::failure(format!(
                "container {name:?} is not removed: {error}; portmapd removes it at its next start, and `portmap del \
                 {name}` at once"
            )));
        }
    }
    ended
}

/// Moves this thread, the process's only one, into the container.
fn enter(netns: &Path) -> Result<()> {
    Ok(Namespace::open(netns)?.enter()?)
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

/// Prints why a command cannot be run, and returns a shell's exit code for it.
fn cannot_run(command: &[OsString], error: &io::Error) -> ExitCode {
    output::error(&Error::failure(format!("cannot run {}: {error}", name_of(command))));
    ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN })
}

/// Runs a command to its end with changes of its environment, and forwards signals to it.
fn wait_for(words: &[OsString], variables: &[Variable]) -> Result<ExitCode> {
    let doing = || format!("cannot run {}", name_of(words));
    let mut awaited: SigSet = FORWARDED.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    // If SIGCHLD is ignored, the kernel reaps children itself, and their exit status is lost.
    // SAFETY: it installs no handler.
    unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }.context(doing)?;
    // Blocked, because they are read from a signalfd.
    let before = awaited.thread_swap_mask(SigmaskHow::SIG_BLOCK).context(doing)?;
    let signals = SignalFd::new(&awaited).context(doing)?;
    let mut command = command_of(words);
    for Variable { name, value } in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    prepare(&mut command, before);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(cannot_run(words, &error)),
    };
    loop {
        if let Some(status) = child.try_wait().context(doing)? {
            return Ok(exit_code(status));
        }
        let signal = match signals.read_signal() {
            Ok(Some(signal)) => signal,
            // Interrupted by a signal with a handler, such as the runtime's for stack overflows.
            Ok(None) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context(doing),
        };
        // A terminal signals the whole foreground process group, the command included.
        let by_process = signal.ssi_code <= 0;
        let number = i32::try_from(signal.ssi_signo).context(doing)?;
        match Signal::try_from(number).context(doing)? {
            Signal::SIGCHLD => {}
            signal if by_process => forward(&child, signal),
            _ => {}
        }
    }
}

/// Restores the command's signal mask, and has the kernel kill the command when this process ends.
fn prepare(command: &mut Command, signals: SigSet) {
    let parent = getpid();
    let configure = move || {
        signals.thread_set_mask()?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have ended before the request took effect.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from(ErrorKind::Interrupted)) }
    };
    // SAFETY: it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(configure) };
}

fn forward(child: &Child, signal: Signal) {
    // The child has not been reaped, so the pid is still its own. It may be setuid, and refuse the signal.
    if let Ok(pid) = i32::try_from(child.id())
        && let Err(error) = kill(Pid::from_raw(pid), signal)
    {
        output::error(&Error::failure(format!("cannot forward {signal} to the command: {error}")));
    }
}

/// A command's exit code, or a shell's if a signal killed it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| SIGNAL_BASE + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
