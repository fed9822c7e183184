//! Files of `/proc` and `/sys`. Some of the kernel's handlers support a single read or write only.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
};

/// First buffer size in bytes, which is enough for nearly every file. The standard library starts with 32
/// bytes, which would truncate the result of a handler that supports a single read (`proc_do_large_bitmap`).
const USUAL: usize = 4096;

/// Reads a file by a single read, reopening it for each attempt. `longest` is its maximum length in bytes.
pub fn read(longest: usize, open: impl Fn() -> io::Result<File>) -> io::Result<String> {
    for room in [USUAL.min(longest), longest] {
        // One byte more than the maximum, to detect truncation.
        let mut text = vec![0; room + 1];
        let length = retrying(|| open()?.read(&mut text))?;
        if length <= room {
            text.truncate(length);
            return String::from_utf8(text)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
        }
    }
    Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {longest} bytes")))
}

/// Reads a file of a line or two.
pub fn read_short(path: impl AsRef<Path>) -> io::Result<String> {
    read(USUAL, || File::open(path.as_ref()))
}

/// Writes a value by a single write, because the handler would take the rest for another value.
pub fn write(mut file: &File, value: &str) -> io::Result<()> {
    let taken = retrying(|| file.write(value.as_bytes()))?;
    if taken == value.len() {
        return Ok(());
    }
    let error = format!("the kernel took {taken} of {} bytes", value.len());
    Err(io::Error::new(io::ErrorKind::WriteZero, error))
}

/// Retries what a signal interrupts.
fn retrying<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    #[test]
    fn proc_file_is_read_completely_or_not_at_all() {
        for length in [0, 1, 33, USUAL - 1, USUAL, USUAL + 1, 3 * USUAL] {
            let text = "x".repeat(length);
            let file = file(&text);
            let open = || File::open(file.path());
            assert_eq!(read(3 * USUAL, open).expect("read"), text);
            assert_eq!(read(length, open).expect("read"), text);
            if length > 0 {
                let error = read(length - 1, open).expect_err("it is longer");
                assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            }
        }
    }
}
