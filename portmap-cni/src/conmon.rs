//! podman's placeholders for published ports.
//!
//! conmon, which watches one container of podman, holds a socket on each of the container's published ports, so that no
//! other program of the host binds it. It never accepts a connection. When podman connects a running container again
//! (`network reload`, `network connect`), that socket exists before the container's ports do.

use std::{fs, path::Path};

/// Whether a conmon for this container runs. Its command line has the container's id behind `-c`.
pub(crate) fn watches(container: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    pids.any(|process| fs::read(process.path().join("cmdline")).is_ok_and(|line| is_for(&line, container)))
}

/// Whether a command line, whose words end in zero bytes, is that of the container's conmon.
fn is_for(line: &[u8], container: &str) -> bool {
    let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let program =
        words.first().map(|word| Path::new(word.as_ref()).file_name().is_some_and(|name| name == "conmon"));
    program == Some(true) && words.windows(2).any(|pair| pair[0] == "-c" && pair[1] == container)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conmon_is_known_by_its_container() {
        let line = b"/usr/bin/conmon\0--api-version\x001\0-c\x0084e1\0-u\x0084e1\0";
        assert!(is_for(line, "84e1"));
        for (line, container) in [
            (&line[..], "84e"),
            (&b"/usr/bin/conmon\0-u\x0084e1\0"[..], "84e1"),
            (&b"/usr/bin/nginx\0-c\x0084e1\0"[..], "84e1"),
            (&b""[..], ""),
        ] {
            assert!(!is_for(line, container), "{container}");
        }
    }
}
