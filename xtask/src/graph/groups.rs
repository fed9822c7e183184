//! Groups of files: a directory of the source tree, or a single file of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{circles, imports::Imports};

/// Directories whose subdirectories are groups of their own.
const WINGED: [&str; 1] = ["daemon"];

/// The files of a package by group, and the imports between groups.
pub(super) struct Groups {
    /// Names of groups with the files of each.
    pub members: BTreeMap<String, Vec<String>>,
    /// Importing group, imported group, and how many pairs of files that is.
    pub edges: BTreeMap<(String, String), usize>,
}

impl Groups {
    /// Groups files by directory. Single files that import only one another are one group, named after their
    /// directory.
    pub(super) fn new(imports: &Imports) -> Self {
        let mut groups: BTreeMap<&str, String> =
            imports.files.iter().map(|file| (&**file, group(file))).collect();
        for directory in std::iter::once("").chain(WINGED) {
            let shared = shared(imports, &groups, directory);
            // One file needs no name but its own.
            if shared.len() > 1 {
                let name = if directory.is_empty() { "base".to_owned() } else { format!("{directory}/base") };
                groups.extend(shared.into_iter().map(|file| (file, name.clone())));
            }
        }
        let mut edges = BTreeMap::new();
        for (from, to) in imports.edges.keys() {
            let (from, to) = (&groups[&**from], &groups[&**to]);
            if from != to {
                *edges.entry((from.clone(), to.clone())).or_default() += 1;
            }
        }
        let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (file, group) in groups {
            members.entry(group).or_default().push(file.to_owned());
        }
        // A root that only declares modules takes part in nothing.
        members.retain(|name, _| edges.keys().any(|(from, to)| from == name || to == name));
        Self { members, edges }
    }

    /// How many pairs of files import across groups.
    pub(super) fn imports(&self) -> usize {
        self.edges.values().sum()
    }

    /// Circles between groups.
    pub(super) fn circles(&self) -> Vec<Vec<String>> {
        circles::circles(&circles::graph(self.edges.keys().map(|(from, to)| (&**from, &**to))))
    }
}

/// The group of a file by its path: its directory, or for a file of the root or of a winged directory its own
/// name.
fn group(file: &str) -> String {
    let parts: Vec<&str> = file.split('/').collect();
    match parts[..] {
        [file] => stem(file).to_owned(),
        [winged, file] if WINGED.contains(&winged) => {
            if file == "mod.rs" {
                winged.to_owned()
            } else {
                format!("{winged}/{}", stem(file))
            }
        }
        [winged, wing, ..] if WINGED.contains(&winged) => format!("{winged}/{wing}"),
        [directory, ..] => directory.to_owned(),
        [] => String::new(),
    }
}

fn stem(file: &str) -> &str {
    file.strip_suffix(".rs").unwrap_or(file)
}

/// The single files of a directory that import none of the package's files but one another, or, in a winged
/// directory, none of that directory's.
fn shared<'a>(imports: &'a Imports, groups: &BTreeMap<&str, String>, directory: &str) -> BTreeSet<&'a str> {
    let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    let is_single = |file: &str| {
        let Some(name) = file.strip_prefix(&*prefix) else { return false };
        !name.contains('/')
            && !matches!(name, "lib.rs" | "main.rs" | "mod.rs")
            // `x.rs` with a directory `x` is that group's.
            && groups.values().filter(|group| **group == groups[file]).count() == 1
    };
    let mut shared: BTreeSet<&str> =
        imports.files.iter().map(String::as_str).filter(|file| is_single(file)).collect();
    loop {
        let before = shared.len();
        let outside: BTreeSet<&str> = imports
            .edges
            .keys()
            .filter(|(_, to)| to.starts_with(&prefix) && !shared.contains(&**to))
            .map(|(from, _)| &**from)
            .collect();
        shared.retain(|file| !outside.contains(file));
        if shared.len() == before {
            return shared;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(edges: &[(&str, &str)]) -> Groups {
        let mut files: Vec<String> =
            edges.iter().flat_map(|(from, to)| [(*from).to_owned(), (*to).to_owned()]).collect();
        files.sort();
        files.dedup();
        let edges = edges.iter().map(|(from, to)| (((*from).to_owned(), (*to).to_owned()), 1)).collect();
        Groups::new(&Imports { files, edges })
    }

    #[test]
    fn groups_are_directories_wings_and_single_files() {
        let groups = groups(&[
            ("daemon/mod.rs", "daemon/host/state.rs"),
            ("daemon/host/state.rs", "kernel/link.rs"),
            ("daemon/host/state.rs", "kernel/maps.rs"),
            ("kernel/link.rs", "kernel/maps.rs"),
            ("cli/mod.rs", "api.rs"),
            ("api/drops.rs", "api.rs"),
            ("settings.rs", "kernel/link.rs"),
        ]);
        let names: Vec<_> = groups.members.keys().map(String::as_str).collect();
        assert_eq!(names, ["api", "cli", "daemon", "daemon/host", "kernel", "settings"]);
        assert_eq!(groups.edges[&("daemon/host".to_owned(), "kernel".to_owned())], 2);
        assert_eq!(groups.imports(), 5);
    }

    #[test]
    fn groups_of_single_files_that_import_nothing_else_are_one() {
        let groups = groups(&[
            ("error.rs", "fault.rs"),
            ("log.rs", "error.rs"),
            ("state.rs", "log.rs"),
            ("state.rs", "kernel/maps.rs"),
            ("daemon/mod.rs", "daemon/lock.rs"),
            ("daemon/lock.rs", "daemon/journal.rs"),
            ("daemon/journal.rs", "kernel/maps.rs"),
        ]);
        assert_eq!(groups.members["base"], ["error.rs", "fault.rs", "log.rs"]);
        assert_eq!(groups.members["daemon/base"], ["daemon/journal.rs", "daemon/lock.rs"]);
        assert_eq!(groups.members["state"], ["state.rs"]);
    }

    #[test]
    fn groups_may_be_in_a_circle_where_files_are_not() {
        let groups = groups(&[("a/x.rs", "b/x.rs"), ("b/y.rs", "a/y.rs")]);
        assert_eq!(groups.circles(), [["a", "b"]]);
    }
}
