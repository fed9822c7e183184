//! How long a command waits for the daemon, and what it says meanwhile.
//!
//! A daemon that is there says so within milliseconds, whatever it is busy with: `/v1/alive` waits for nothing. So whoever
//! hears nothing gives up. What an operation itself takes is not limited, because it may be a lot of work; a command
//! that waits for one says so from time to time.

use std::{fmt::Display, pin::pin, time::Duration};

use tokio::time::{self, Instant};

use crate::{
    error::{Error, Kind, Result},
    log,
};

/// How long a daemon may be silent before a command says that it waits.
const SILENCE: Duration = Duration::from_secs(4);
/// How much longer before it gives up.
const MORE: Duration = Duration::from_secs(5);
/// How long an operation may take before a command says so; the next time is after twice as long.
const WORK: Duration = Duration::from_secs(10);

/// Waits for something that a daemon does at once, if it does anything; an error if it does not.
pub(super) async fn at_once<T>(daemon: &impl Display, answer: impl Future<Output = Result<T>>) -> Result<T> {
    let mut answer = pin!(answer);
    if let Ok(answer) = time::timeout(SILENCE, &mut answer).await {
        return answer;
    }
    tell(&format!("the daemon at {daemon} does not answer: waiting"));
    time::timeout(MORE, answer).await.unwrap_or_else(|_elapsed| {
        Err(Error::new(
            Kind::Unreachable,
            format!(
                "the daemon at {daemon} has not answered for {} s: it is stopped or hangs (its log, and \
                 /proc/PID/stack, say where); packets flow without it",
                (SILENCE + MORE).as_secs()
            ),
        ))
    })
}

/// Waits for an operation, however long it takes.
pub(super) async fn to_the_end<T>(daemon: &impl Display, answer: impl Future<Output = T>) -> T {
    let (mut answer, since, mut next) = (pin!(answer), Instant::now(), WORK);
    loop {
        if let Ok(answer) = time::timeout_at(since + next, &mut answer).await {
            return answer;
        }
        tell(&format!("still waiting for the daemon at {daemon}, {} s", next.as_secs()));
        next *= 2;
    }
}

/// One line on standard error, so that who waits knows for what.
fn tell(text: &str) {
    log::line(format_args!("portmap: {text}"));
}
