//! Clocks: the monotonic one, which the programs use, and the wall clock.

use std::{
    mem::MaybeUninit,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

use super::pseudo;
use crate::{
    failpoint,
    kernel::error::{Context as _, Error, Result},
};

const SECONDS_PER_MINUTE: i64 = 60;

/// Returns the boot id, which is unique to each boot.
pub fn boot() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let read = failpoint::hit("read the boot's identifier").and_then(|()| pseudo::read_short(path));
    Ok(read.context(|| format!("cannot read {path}"))?.trim_end().to_owned())
}

/// Returns the monotonic clock in nanoseconds.
pub fn monotonic() -> Result<u64> {
    u64::try_from(since_boot()?.as_nanos()).context(|| "the clock is out of range")
}

/// Returns the monotonic clock as a duration.
pub fn since_boot() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context(|| "cannot read the clock")?;
    Ok(now.into())
}

/// Converts a past time of the monotonic clock to wall-clock time.
pub fn wall_time(moment: u64) -> Result<SystemTime> {
    let ago = Duration::from_nanos(monotonic()?.saturating_sub(moment));
    SystemTime::now().checked_sub(ago).ok_or_else(|| Error::failure("the clock is out of range"))
}

/// Formats a time in the host's time zone with milliseconds and UTC offset (RFC 3339).
pub fn local(time: SystemTime) -> Result<String> {
    let since_epoch = time.duration_since(UNIX_EPOCH).context(|| "the clock is out of range")?;
    let seconds = libc::time_t::try_from(since_epoch.as_secs()).context(|| "the clock is out of range")?;
    let mut fields = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are to locals of the right type; the function writes all fields or returns null.
    let written = unsafe { libc::localtime_r(&raw const seconds, fields.as_mut_ptr()) };
    if written.is_null() {
        return Err(Error::failure(format!("the time {seconds} is out of range")));
    }
    // SAFETY: it is initialised, see above.
    let fields = unsafe { fields.assume_init() };
    let sign = if fields.tm_gmtoff < 0 { '-' } else { '+' };
    let minutes = fields.tm_gmtoff.abs() / SECONDS_PER_MINUTE;
    Ok(format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}{sign}{:02}:{:02}",
        fields.tm_year + 1900,
        fields.tm_mon + 1,
        fields.tm_mday,
        fields.tm_hour,
        fields.tm_min,
        fields.tm_sec,
        since_epoch.subsec_millis(),
        minutes / 60,
        minutes % 60,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_monotonic_time_converts_to_wall_time() {
        let before = SystemTime::now();
        let moment = monotonic().expect("a clock");
        let time = wall_time(moment).expect("a clock");
        let after = SystemTime::now();
        // The wall clock may be adjusted during the test, but not by a minute.
        let slack = Duration::from_mins(1);
        assert!(before - slack <= time && time <= after + slack, "{before:?} {time:?} {after:?}");
    }

    #[test]
    fn clock_local_time_has_its_utc_offset() {
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_007);
        let text = local(time).expect("a time");
        assert_eq!(text.len(), "2023-11-14T22:13:20.007+00:00".len());
        assert!(text.starts_with("2023-11-1") && text.contains(".007"), "{text}");
    }
}
