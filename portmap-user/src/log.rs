//! Log output on standard error, whose reader may have exited, or may not read (a stopped terminal, a pager).
//! Neither blocks the daemon, nor is it an error: lines are dropped and counted.

use std::{
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd,
};
use tracing_subscriber::fmt::MakeWriter;

use crate::locks::{Rank, Ranked};

/// Time to wait for a slow reader before lines are dropped, in milliseconds. Only the first line of a gap
/// waits.
const TIMEOUT_MS: u16 = 250;
/// Bytes that a writable pipe accepts without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// Writes a line to standard error, and ignores errors.
pub fn line(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A line writer that drops lines if the reader does not keep up.
#[derive(Debug)]
pub struct Lines<F> {
    file: F,
    state: Ranked<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Lines dropped since the last one that was written.
    dropped: u64,
}

impl Lines<io::Stderr> {
    /// The writer of a log on standard error.
    pub fn on_standard_error() -> Self {
        Self::new(io::stderr())
    }
}

impl<F: AsFd> Lines<F> {
    fn new(file: F) -> Self {
        Self { file, state: Ranked::new(Rank::Log, State::default()) }
    }

    /// Writes a line, or counts it as dropped.
    fn put(&self, line: &[u8]) {
        let mut state = self.state.lock();
        let timeout = if state.dropped > 0 { 0 } else { TIMEOUT_MS };
        if state.dropped > 0 {
            let notice = gap(state.dropped);
            if write(self.file.as_fd(), notice.as_bytes(), 0) {
                state.dropped = 0;
            }
        }
        if state.dropped > 0 || !write(self.file.as_fd(), line, timeout) {
            state.dropped += 1;
        }
    }
}

/// The notice in place of dropped lines.
fn gap(dropped: u64) -> String {
    format!("{dropped} log lines dropped: the reader did not keep up\n")
}

/// Writes everything; false if the reader does not keep up. Without a reader it counts as written.
fn write(file: BorrowedFd<'_>, mut text: &[u8], timeout: u16) -> bool {
    while !text.is_empty() {
        let mut ready = [PollFd::new(file, PollFlags::POLLOUT)];
        match poll(&mut ready, PollTimeout::from(timeout)) {
            Ok(0) => return false,
            Err(Errno::EINTR) => continue,
            _ => {}
        }
        match unistd::write(file, &text[..text.len().min(CHUNK)]) {
            Ok(written) => text = &text[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return false,
            // The reader has exited, or the disk is full.
            Err(_) => return true,
        }
    }
    true
}

/// Writer of one event's text.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a, F>(&'a Lines<F>);

impl<F: AsFd> Write for Writer<'_, F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a, F: AsFd + 'a> MakeWriter<'a> for Lines<F> {
    type Writer = Writer<'a, F>;

    fn make_writer(&'a self) -> Self::Writer {
        Writer(self)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Read as _,
        os::fd::{FromRawFd as _, IntoRawFd as _},
    };

    use super::*;

    #[test]
    fn log_drops_lines_of_a_slow_reader_and_counts_them() {
        let (reader, writer) = unistd::pipe().expect("a pipe");
        let lines = Lines::new(writer);
        let long = [b'x'; 1000];
        // More than fits into any pipe.
        for _ in 0..2000 {
            lines.put(&long);
        }
        let dropped = lines.state.lock().dropped;
        assert!(dropped > 0 && dropped < 2000, "{dropped}");
        // SAFETY: the descriptor is owned by this value from here on.
        let mut reader = unsafe { File::from_raw_fd(reader.into_raw_fd()) };
        let mut some = vec![0; 64 << 10];
        let read = reader.read(&mut some).expect("it is full");
        assert!(read > 0);
        lines.put(b"at last\n");
        drop(lines);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("text");
        let end = gap(dropped) + "at last\n";
        assert!(rest.ends_with(&end), "{}", &rest[rest.len().saturating_sub(200)..]);
    }

    #[test]
    fn log_without_a_reader_is_no_error() {
        let (reader, writer) = unistd::pipe().expect("a pipe");
        drop(reader);
        let lines = Lines::new(writer);
        Writer(&lines).write_all(b"without a reader\n").expect("no error");
        assert_eq!(lines.state.lock().dropped, 0);
    }
}
