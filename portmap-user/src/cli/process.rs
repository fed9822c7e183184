//! Commands inside containers.

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

use super::print;
use crate::{
    api::{AddRequest, Container},
    client::Client,
    error::{Context as _, Error, Kind, Result},
    kernel::namespace::Namespace,
};

/// Exit codes that shells use for a command that cannot be run, and for one that is not there.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// What shells add to the number of a signal that has ended a command.
const BY_SIGNAL: i32 = 128;

/// What is asked of a command by a signal to the process that runs it.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// Becomes a command in a container; returns only if that fails.
pub(super) fn exec(container: &Container, command: &[OsString]) -> Result<ExitCode> {
    enter(&container.netns)?;
    let error = command_of(command).exec();
    Ok(cannot_run(command, &error))
}

/// Adds a container, runs a command in it, and removes it again; the exit code is the command's.
///
/// If this process is killed, the command is, too, and the daemon removes the container.
pub(super) fn run(client: &Client, request: AddRequest, command: &[OsString]) -> Result<ExitCode> {
    let added = client.add(&AddRequest { ends_with_asker: true, ..request })?;
    print::warnings(&added);
    let container = added.container;
    let ended = enter(&container.netns).and_then(|()| wait_for(command));
    // The socket is reached from inside the container just as well: it is a file.
    if let Err(error) = client.delete(&container.name)
        // A teardown has removed it with everything else, the daemon included.
        && (error.kind != Kind::Unreachable || container.netns.exists())
    {
        print::error(&Error::new(
            error.kind,
            format!(
                "container {name:?} stays until portmapd runs and removes it, or `portmap del {name}` does: {error}",
                name = container.name
            ),
        ));
    }
    ended
}

/// Moves this thread, the only one, into the container.
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

/// Says why a command cannot be run, and returns the exit code that shells have for it.
fn cannot_run(command: &[OsString], error: &io::Error) -> ExitCode {
    print::error(&Error::failure(format!("cannot run {}: {error}", name_of(command))));
    ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN })
}

/// Runs a command to its end. What is asked of this process by a signal is asked of the command.
fn wait_for(words: &[OsString]) -> Result<ExitCode> {
    let doing = || format!("cannot run {}", name_of(words));
    let mut awaited: SigSet = PASSED_ON.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    // Whoever ignores it is not told of children that end, and cannot ask what became of them.
    // SAFETY: it sets no handler.
    unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }.context(doing)?;
    // They are read from a file, one by one.
    let before = awaited.thread_swap_mask(SigmaskHow::SIG_BLOCK).context(doing)?;
    let signals = SignalFd::new(&awaited).context(doing)?;
    let mut command = command_of(words);
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
            // One that this process has a handler for, such as the runtime's for a full stack.
            Ok(None) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context(doing),
        };
        // A terminal sends to the command as well.
        let by_process = signal.ssi_code <= 0;
        let number = i32::try_from(signal.ssi_signo).context(doing)?;
        match Signal::try_from(number).context(doing)? {
            Signal::SIGCHLD => {}
            signal if by_process => pass_on(&child, signal),
            _ => {}
        }
    }
}

/// Has the command see signals as this process did before, and be killed when this process ends before it.
fn prepare(command: &mut Command, signals: SigSet) {
    let parent = getpid();
    let ask = move || {
        signals.thread_set_mask()?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended already.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from(ErrorKind::Interrupted)) }
    };
    // SAFETY: it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

fn pass_on(child: &Child, signal: Signal) {
    // It has not been waited for, so the number is still its own. What it has become, it may not be sent everything.
    if let Ok(pid) = i32::try_from(child.id())
        && let Err(error) = kill(Pid::from_raw(pid), signal)
    {
        print::error(&Error::failure(format!("cannot pass {signal} on to the command: {error}")));
    }
}

/// A command's exit code, or that of a shell whose command was ended by a signal.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| BY_SIGNAL + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
