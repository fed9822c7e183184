//! The files of the tree that the checks of text read.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// A file of the tree.
pub(super) struct File {
    /// Its path from the workspace's directory.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// The form of a file's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Rust,
    Markdown,
    Toml,
    Script,
}

/// The format of a file by its path; none if no check of text reads it.
pub(super) fn format(path: &str) -> Option<Format> {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("rs") => Some(Format::Rust),
        Some("md") => Some(Format::Markdown),
        Some("toml") => Some(Format::Toml),
        Some("sh" | "yml" | "py") => Some(Format::Script),
        None if path.starts_with(".ci/") => Some(Format::Script),
        _ => None,
    }
}

/// Reads the files that git tracks, or would track, and that have a [`Format`].
pub(super) fn read() -> Result<Vec<File>> {
    let root = workspace::root();
    let mut git = Command::new("git");
    git.current_dir(&root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let list = process::read(&mut git)?;
    let paths = list.split('\0').filter(|path| format(path).is_some());
    // Git still lists a file that was removed but not committed.
    let files: Vec<(&str, PathBuf)> =
        paths.map(|path| (path, root.join(path))).filter(|(_, file)| file.exists()).collect();
    files
        .into_iter()
        .map(|(path, file)| {
            let text =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            Ok(File { path: path.to_owned(), text })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_a_format_by_their_names() {
        for (path, expected) in [
            ("a/b.rs", Some(Format::Rust)),
            ("README.md", Some(Format::Markdown)),
            ("x/Cargo.toml", Some(Format::Toml)),
            (".ci/run", Some(Format::Script)),
            (".github/workflows/ci.yml", Some(Format::Script)),
            ("LICENSE-MIT", None),
            ("a/b.svg", None),
        ] {
            assert_eq!(format(path), expected, "{path}");
        }
    }
}
