//! Pages of the documentation whose examples are real output.

use std::{collections::BTreeMap, fs, path::PathBuf};

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

/// A command of a page, and the output that the page shows.
pub(super) struct Example {
    pub(super) command: String,
    pub(super) output: String,
}

/// The examples: lines that begin with `# `, with those that continue them, in fenced blocks.
pub(super) fn examples(text: &str) -> Vec<Example> {
    let mut all: Vec<Example> = Vec::new();
    let blocks = text.split("```").skip(1).step_by(2);
    for line in blocks.flat_map(str::lines) {
        match all.last_mut() {
            Some(Example { command, output }) if command.ends_with('|') && output.is_empty() => {
                command.push('\n');
                command.push_str(line);
            }
            _ if line.starts_with("# ") => {
                all.push(Example { command: line[2..].to_owned(), output: String::new() });
            }
            Some(Example { output, .. }) if !line.is_empty() => {
                output.push_str(line);
                output.push('\n');
            }
            _ => {}
        }
    }
    all
}

/// The page with these outputs.
pub(super) fn with_outputs(text: &str, outputs: &BTreeMap<String, String>) -> String {
    let mut new = String::new();
    for (number, part) in text.split("```").enumerate() {
        if number > 0 {
            new.push_str("```");
        }
        let block = examples(&format!("```{part}```"));
        if number % 2 == 0 || block.is_empty() {
            new.push_str(part);
            continue;
        }
        new.push('\n');
        for Example { command, .. } in block {
            new.extend(["# ", command.as_str(), "\n"]);
            for line in outputs[&command].trim_end().lines() {
                new.extend([line.trim_end(), "\n"]);
            }
        }
    }
    new
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
