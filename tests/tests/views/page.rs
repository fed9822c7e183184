//! Pages of the documentation whose examples are real output.

use std::{fs, path::PathBuf};

/// Whether to write the examples into the pages instead of comparing them.
pub(super) fn is_written() -> bool {
    std::env::var_os("PORTMAP_WRITE_DOCS").is_some_and(|value| value == "1")
}

/// A page in `docs`.
pub(super) struct Page {
    path: PathBuf,
    pub(super) text: String,
}

impl Page {
    pub(super) fn open(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    pub(super) fn write(&self, text: &str) {
        fs::write(&self.path, text).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
    }
}

/// The form of an output: the same for outputs that differ only in numbers, identifiers, column widths and empty
/// lines.
pub(super) fn form(text: &str) -> Vec<String> {
    let word = |word: &str| {
        let is_identifier = word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut form = String::new();
        // A queue may owe tokens.
        let word = word
            .strip_prefix('-')
            .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            .unwrap_or(word);
        for character in if is_identifier { "0" } else { word }.chars() {
            let character = if character.is_ascii_digit() { '0' } else { character };
            if !(character == '0' && form.ends_with('0')) {
                form.push(character);
            }
        }
        form
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).filter(|line| !line.is_empty()).collect()
}
