//! Where lines for people go: standard error, which may have lost its reader, or have one that does not read (a terminal that is
//! held, a pager). Nothing waits for it for good, and nothing fails because of it.

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

/// How long a reader may be behind before lines are lost, in milliseconds. Only the first line that finds no room waits.
const PATIENCE: u16 = 250;
/// So much a pipe takes at once if it takes anything (`PIPE_BUF`).
const PIECE: usize = 4096;

/// Writes one line on standard error, whether or not anybody reads it.
pub fn line(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Lines for a file that nobody may read.
#[derive(Debug)]
pub struct Lines<F> {
    file: F,
    state: Ranked<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Lines that have been lost since the last one that was written.
    lost: u64,
}

impl Lines<io::Stderr> {
    /// Those of a log on standard error.
    pub fn on_standard_error() -> Self {
        Self::new(io::stderr())
    }
}

impl<F: AsFd> Lines<F> {
    fn new(file: F) -> Self {
        Self { file, state: Ranked::new(Rank::Log, State::default()) }
    }

    /// Writes a line, or counts it as lost.
    fn put(&self, line: &[u8]) {
        let mut state = self.state.lock();
        let patience = if state.lost > 0 { 0 } else { PATIENCE };
        if state.lost > 0 {
            let told = format!("{} lines of the log are lost here, nobody read them\n", state.lost);
            if write(self.file.as_fd(), told.as_bytes(), 0) {
                state.lost = 0;
            }
        }
        if state.lost > 0 || !write(self.file.as_fd(), line, patience) {
            state.lost += 1;
        }
    }
}

/// Writes everything; false if there is no room for it. What nobody can read any more counts as written.
fn write(file: BorrowedFd<'_>, mut text: &[u8], patience: u16) -> bool {
    while !text.is_empty() {
        let mut ready = [PollFd::new(file, PollFlags::POLLOUT)];
        match poll(&mut ready, PollTimeout::from(patience)) {
            Ok(0) => return false,
            Err(Errno::EINTR) => continue,
            _ => {}
        }
        match unistd::write(file, &text[..text.len().min(PIECE)]) {
            Ok(written) => text = &text[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return false,
            // Its reader has gone, or the disk is full.
            Err(_) => return true,
        }
    }
    true
}

/// One event's text.
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
    fn who_does_not_read_holds_nobody_up_and_is_told() {
        let (reader, writer) = unistd::pipe().expect("a pipe");
        let lines = Lines::new(writer);
        let long = [b'x'; 1000];
        // More than any pipe has room for.
        for _ in 0..2000 {
            lines.put(&long);
        }
        let lost = lines.state.lock().lost;
        assert!(lost > 0 && lost < 2000, "{lost}");
        // SAFETY: the descriptor is this value's own from here on.
        let mut reader = unsafe { File::from_raw_fd(reader.into_raw_fd()) };
        let mut some = vec![0; 64 << 10];
        let read = reader.read(&mut some).expect("it is full");
        assert!(read > 0);
        lines.put(b"at last\n");
        drop(lines);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("text");
        let told = format!("{lost} lines of the log are lost here, nobody read them\nat last\n");
        assert!(rest.ends_with(&told), "{}", &rest[rest.len().saturating_sub(200)..]);
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        let (reader, writer) = unistd::pipe().expect("a pipe");
        drop(reader);
        let lines = Lines::new(writer);
        Writer(&lines).write_all(b"nobody reads this\n").expect("no error");
        assert_eq!(lines.state.lock().lost, 0);
    }
}
