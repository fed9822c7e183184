//! Lints are opted in by every manifest.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{fuzz, workspace};

/// Fails if a member of the workspace, or the fuzz targets, do without the workspace's lints.
pub(super) fn check() -> Result<()> {
    let mut without = Vec::new();
    for package in workspace::metadata()?.packages {
        let text = fs::read_to_string(&package.manifest_path)
            .with_context(|| format!("cannot read {}", package.manifest_path.display()))?;
        if !opts_in(&text) {
            without.push(package.manifest_path.display().to_string());
        }
    }
    if !without.is_empty() {
        bail!("expected `[lints]` with `workspace = true` in {}", without.join(", "));
    }
    let (here, there) = (workspace::root().join("Cargo.toml"), fuzz::manifest());
    let read =
        |file: &PathBuf| fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
    if !opts_in(&read(&there)?) {
        bail!("expected `[lints]` with `workspace = true` in {}", there.display());
    }
    if lints(&read(&here)?) != lints(&read(&there)?) {
        bail!("expected the lints of {} in {}, word for word", here.display(), there.display());
    }
    Ok(())
}

/// The lints that a workspace sets.
fn lints(manifest: &str) -> Vec<&str> {
    let mut is_inside = false;
    manifest
        .lines()
        .filter(|line| {
            if let Some(section) = line.strip_prefix('[') {
                is_inside = section.starts_with("workspace.lints.");
                return false;
            }
            is_inside && !line.starts_with('#') && !line.trim().is_empty()
        })
        .collect()
}

/// Whether a manifest takes its lints from the workspace.
fn opts_in(manifest: &str) -> bool {
    let mut section = "";
    manifest.lines().map(str::trim).any(|line| {
        if line.starts_with('[') {
            section = line;
        }
        let setting: String = line.split_whitespace().collect();
        match section {
            "[lints]" => setting == "workspace=true",
            "" => setting == "lints.workspace=true",
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opt_in_is_found_in_both_spellings() {
        assert!(opts_in("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"));
        assert!(opts_in("lints.workspace = true\n[package]\n"));
    }

    #[test]
    fn lints_are_the_same_wherever_they_are_listed() {
        let here =
            "[workspace.lints.rust]\na = 1\n# why\n\n[workspace.lints.clippy]\nb = 2\n[profile.dev]\nc = 3\n";
        assert_eq!(lints(here), ["a = 1", "b = 2"]);
    }

    #[test]
    fn other_sections_are_no_opt_in() {
        assert!(!opts_in("[dependencies]\nworkspace = true\n"));
        assert!(!opts_in("[lints]\n[lints.rust]\nworkspace = true\n"));
        assert!(!opts_in("[package]\nname = \"a\"\n"));
    }
}
