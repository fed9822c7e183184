//! The log of verdicts that programs with the feature `datapath-log` write.

use std::{
    fmt,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError, ProgramArray},
};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portmap_common::{
    names,
    verdict_log::{LogFilter, LogLimiter, VerdictRecord},
};

use super::{
    error::{Context as _, Error, Result},
    programs,
};

/// The log. The programs stop logging when it is dropped, because the kernel empties a program array without
/// users.
pub struct VerdictLog {
    filter: Array<MapData, LogFilter>,
    limiter: Array<MapData, LogLimiter>,
    _program: ProgramArray<MapData>,
    records: EbpfLogger<Receiver>,
    received: Arc<AtomicU64>,
}

impl VerdictLog {
    /// Starts the log of loaded programs, without a filter: nothing is logged yet. `each` is called with each
    /// record.
    pub fn start(object: &mut Ebpf, each: impl Fn(&VerdictRecord) + Send + Sync + 'static) -> Result<Self> {
        let filter = take(object, names::MAP_LOG_FILTER)?;
        let limiter = take(object, names::MAP_LOG_LIMITER)?;
        let mut program: ProgramArray<MapData> = take(object, names::MAP_LOG_PROGRAM)?;
        let logging = programs::load_program(object, names::PROG_LOG)?;
        let fd = logging.fd().context(|| format!("the program {} is not loaded", names::PROG_LOG))?;
        program.set(0, fd, 0).context(|| format!("cannot write the map {}", names::MAP_LOG_PROGRAM))?;
        let received = Arc::new(AtomicU64::new(0));
        let logger = Receiver { received: received.clone(), each: Box::new(each) };
        let records = EbpfLogger::init_with_logger(object, logger)
            .context(|| "cannot open the log of the programs".to_owned())?;
        Ok(Self { filter, limiter, _program: program, records, received })
    }

    /// Selects the verdicts that are logged from now on.
    pub fn set_filter(&mut self, filter: LogFilter) -> Result<()> {
        self.filter.set(0, filter, 0).context(|| format!("cannot write the map {}", names::MAP_LOG_FILTER))
    }

    /// Waits for records for at most this time and hands them over. Returns the number of selected verdicts,
    /// since the start, that have no record.
    pub fn wait(&mut self, most: Duration) -> Result<u64> {
        let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        // An error is a signal, or a wait that is over at once.
        let _ = poll(&mut [PollFd::new(self.records.as_fd(), PollFlags::POLLIN)], timeout);
        let reading = || format!("cannot read the map {}", names::MAP_LOG_LIMITER);
        // Read first: a program counts a verdict after its record is in the ring buffer.
        let LogLimiter { selected, .. } = self.limiter.get(&0, 0).context(reading)?;
        self.records.flush();
        Ok(selected.saturating_sub(self.received.load(Ordering::Relaxed)))
    }
}

fn take<M: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &str) -> Result<M> {
    let map =
        object.take_map(name).ok_or_else(|| Error::failure(format!("the BPF object has no map {name}")))?;
    M::try_from(map).context(|| format!("cannot use the map {name}"))
}

/// Receives log records from aya-log.
struct Receiver {
    received: Arc<AtomicU64>,
    each: Box<dyn Fn(&VerdictRecord) + Send + Sync>,
}

impl Log for Receiver {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // One that cannot be decoded counts as lost.
        if let Some(record) = decode(record.args()) {
            self.received.fetch_add(1, Ordering::Relaxed);
            (self.each)(&record);
        }
    }

    fn flush(&self) {}
}

/// Decodes a record, which aya-log hands over as hexadecimal digits.
fn decode(message: &fmt::Arguments<'_>) -> Option<VerdictRecord> {
    let digits = message.to_string();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = digits.as_bytes().chunks(2).map(byte).collect::<Option<_>>()?;
    let bytes: &[u8; size_of::<VerdictRecord>()] = bytes.as_slice().try_into().ok()?;
    // SAFETY: the pointer is to as many bytes as the type has, and every bit pattern is a valid value.
    Some(unsafe { bytes.as_ptr().cast::<VerdictRecord>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_record_is_decoded_from_digits() {
        let zeros = "00".repeat(size_of::<VerdictRecord>() - 4);
        let record = decode(&format_args!("{zeros}05000000")).expect("decoded");
        assert_eq!(record, VerdictRecord { program: 5, ..VerdictRecord::default() });
        for other in ["", "0", "zz", "00000000"] {
            assert_eq!(decode(&format_args!("{other}")), None, "{other:?}");
        }
    }
}
