//! The daemon.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::Parser;
use portmap::{
    daemon::{Daemon, http, shutdown::Shutdown},
    error::{Context as _, Result},
    log::Lines,
    settings::RawSettings,
};
use tracing::error;
use tracing_subscriber::{EnvFilter, fmt};

/// Lets many containers share this host's IP address, each with ports of its own.
#[derive(Parser)]
#[command(name = "portmapd", version, args_override_self = true)]
struct Command {
    #[command(flatten)]
    settings: RawSettings,
}

fn main() -> ExitCode {
    let command = Command::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info"));
    fmt()
        .with_env_filter(filter)
        .with_writer(Lines::on_standard_error())
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    match run(command.settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            error!("{failed}");
            ExitCode::from(failed.kind.exit_code())
        }
    }
}

fn run(settings: RawSettings) -> Result<()> {
    let shutdown = Shutdown::on_signals()?;
    let settings = settings.resolve()?;
    let listeners = http::bind(&settings)?;
    let starting = shutdown.operation("the start");
    let daemon = Daemon::start(settings)?;
    drop(starting);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context(|| "cannot start".to_owned())?;
    let served = runtime.block_on(http::serve(daemon, listeners, &shutdown, || {
        // The process that waits for either of these may have ended; the daemon goes on.
        let _ = writeln!(io::stdout(), "ready");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }));
    // A health probe may hang; it is not waited for.
    runtime.shutdown_background();
    served
}
