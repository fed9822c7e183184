//! The daemon `portmapd`.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::Parser;
use portmap::{
    daemon::{Daemon, http, shutdown::Shutdown},
    error::{Context as _, Result},
    journald::{self, Prioritised},
    log::Lines,
    settings::{self, RawSettings},
};
use tracing::error;
use tracing_subscriber::{EnvFilter, fmt};

/// End of `--help`.
const AFTER_HELP: &str = "Flags are also accepted with underscores, as Mesos spells them, and those with BOOL as \
    --no-FLAG. A flag that is given twice has its last value.";

/// Lets many containers share this host's IP address, each with ports of its own.
#[derive(Parser)]
#[command(name = "portmapd", version, args_override_self = true, after_help = AFTER_HELP)]
struct Command {
    #[command(flatten)]
    settings: RawSettings,
}

fn main() -> ExitCode {
    let command = Command::parse_from(settings::normalized(env::args_os()));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info"));
    let log = fmt()
        .with_env_filter(filter)
        .with_writer(Lines::on_standard_error())
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    if journald::reads_standard_error() {
        log.event_format(Prioritised::default()).init();
    } else {
        log.init();
    }
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
    let runtime = runtime.context(|| "cannot start the async runtime")?;
    let served = runtime.block_on(http::serve(daemon, listeners, &shutdown, || {
        // Errors are ignored, because the reader of either may have exited.
        let _ = writeln!(io::stdout(), "ready");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }));
    // A health check may hang, and nothing waits for it.
    runtime.shutdown_background();
    served
}
