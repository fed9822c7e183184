//! How long a command waits for the daemon, and what it prints meanwhile.
//!
//! A running daemon responds to `/v1/alive` within milliseconds, however busy it is, so a command gives up if
//! it does not. The duration of an operation itself is unlimited, because it may be a lot of work; a command
//! that waits for one says so from time to time.

use std::{fmt::Display, pin::pin, time::Duration};

use tokio::time::{self, Instant};

use super::error::{CallError, Result};
use crate::log;

/// Time without a response before a command says that it is waiting.
const NOTICE_AFTER: Duration = Duration::from_secs(4);
/// Further time until it gives up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(5);
/// Time of an operation until a command says that it is waiting; doubled for each further notice.
const FIRST_NOTICE: Duration = Duration::from_secs(10);

/// Waits for a response that a running daemon sends immediately; an error if there is none.
pub(super) async fn at_once<T>(daemon: &impl Display, answer: impl Future<Output = Result<T>>) -> Result<T> {
    let mut answer = pin!(answer);
    if let Ok(answer) = time::timeout(NOTICE_AFTER, &mut answer).await {
        return answer;
    }
    notice(&format!("the daemon at {daemon} does not respond: waiting"));
    time::timeout(GIVE_UP_AFTER, answer).await.unwrap_or_else(|_elapsed| {
        Err(CallError::Unreachable(format!(
            "the daemon at {daemon} has not responded for {} s: it is stopped or hangs (see its log and \
             /proc/PID/stack); packets flow without it",
            (NOTICE_AFTER + GIVE_UP_AFTER).as_secs()
        )))
    })
}

/// Waits for an operation without a limit.
pub(super) async fn to_the_end<T>(daemon: &impl Display, answer: impl Future<Output = T>) -> T {
    let (mut answer, since, mut next) = (pin!(answer), Instant::now(), FIRST_NOTICE);
    loop {
        if let Ok(answer) = time::timeout_at(since + next, &mut answer).await {
            return answer;
        }
        notice(&format!("still waiting for the daemon at {daemon}, {} s", next.as_secs()));
        next *= 2;
    }
}

/// Prints a line on standard error.
fn notice(text: &str) {
    log::line(format_args!("portmap: {text}"));
}
