//! The log's format when systemd's journal reads it.
//!
//! journald takes the priority of a line from a prefix such as `<4>` (sd-daemon(3)), and adds time and unit by
//! itself. Its native socket would also take fields, but a send to it can block, and nothing that reads the log
//! may hold the daemon up ([`crate::log`]).

use std::{env, fmt};

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Full, Writer},
    },
    registry::LookupSpan,
};

/// Whether standard error is connected to the journal (`$JOURNAL_STREAM`, systemd.exec(5)).
pub fn reads_standard_error() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    fstat(std::io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes each event with its priority in front, without time and level.
#[derive(Debug)]
pub struct Prioritised(Format<Full, ()>);

impl Default for Prioritised {
    fn default() -> Self {
        Self(Format::default().without_time().with_level(false).with_target(false).with_ansi(false))
    }
}

impl<S, N> FormatEvent<S, N> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// The priority of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
