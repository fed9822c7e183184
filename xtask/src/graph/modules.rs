//! The module trees of a package's targets: which file holds which module.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::items::{self, Item, Location};
use crate::rust_source::Token;

/// A module's path within its crate: no segment is the root.
pub(super) type ModulePath = Vec<String>;

/// A crate: a library or a binary.
pub(super) struct Crate {
    /// The name by which the package's other targets import it; none for a binary.
    pub name: Option<String>,
    /// The file of each module. Inline modules share their parent's.
    pub modules: BTreeMap<ModulePath, PathBuf>,
}

/// A module with a file of its own.
pub(super) struct Source {
    /// Index of its crate.
    pub of: usize,
    /// Its path there.
    pub module: ModulePath,
    /// Its file.
    pub file: PathBuf,
    /// Its text.
    pub text: String,
}

/// Reads a crate from its root file on: every `mod name;` leads to another file.
pub(super) fn read(of: usize, name: Option<String>, root: &Path) -> Result<(Crate, Vec<Source>)> {
    let mut krate = Crate { name, modules: BTreeMap::new() };
    let mut sources = Vec::new();
    let mut pending = vec![(ModulePath::new(), root.to_owned())];
    while let Some((module, file)) = pending.pop() {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let directory = child_directory(&file, module.is_empty());
        for (child, location) in declared(&items::code(&text), &module) {
            let below: PathBuf = child[module.len()..].iter().collect();
            let candidates = match location {
                Location::Inline => {
                    krate.modules.insert(child, file.clone());
                    continue;
                }
                Location::Path(path) => vec![file.parent().unwrap_or(Path::new("")).join(path)],
                Location::File => {
                    vec![directory.join(&below).with_extension("rs"), directory.join(&below).join("mod.rs")]
                }
            };
            let found = candidates.into_iter().find(|candidate| candidate.is_file());
            let found = found
                .with_context(|| format!("{}: no file of module {}", file.display(), child.join("::")))?;
            pending.push((child, found));
        }
        krate.modules.insert(module.clone(), file.clone());
        sources.push(Source { of, module, file, text });
    }
    sources.sort_by(|one, other| one.file.cmp(&other.file));
    Ok((krate, sources))
}

/// Where the files of a module's children are.
fn child_directory(file: &Path, is_root: bool) -> PathBuf {
    let directory = file.parent().unwrap_or(Path::new(""));
    let stem = file.file_stem().unwrap_or_default();
    if is_root || stem == "mod" { directory.to_owned() } else { directory.join(stem) }
}

/// The modules that a file declares, inline ones included.
fn declared(code: &[Token<'_>], module: &ModulePath) -> Vec<(ModulePath, Location)> {
    let mut found = Vec::new();
    items::visit(code, module, &mut |item| match item {
        Item::Module { path, location } => found.push((path, location)),
        Item::Path { .. } => {}
    });
    let mut seen = BTreeSet::new();
    found.retain(|(path, _)| seen.insert(path.clone()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_in_both_layouts() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |file: &str, text: &str| {
            let file = directory.path().join(file);
            fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
            fs::write(file, text).expect("a file");
        };
        write("lib.rs", "mod a;\npub mod b;\n#[cfg(test)]\nmod absent;\nmod inline { mod inner {} }\n");
        write("a.rs", "mod c;");
        write("a/c.rs", "");
        write("b/mod.rs", "#[path = \"../elsewhere.rs\"]\nmod d;");
        write("elsewhere.rs", "");
        let (krate, sources) = read(0, None, &directory.path().join("lib.rs")).expect("a crate");
        let modules: Vec<_> = krate
            .modules
            .iter()
            .map(|(path, file)| (path.join("::"), file.canonicalize().expect("it exists")))
            .map(|(path, file)| {
                let root = directory.path().canonicalize().expect("it exists");
                (path, file.strip_prefix(root).expect("inside").display().to_string())
            })
            .collect();
        let expected = [
            ("", "lib.rs"),
            ("a", "a.rs"),
            ("a::c", "a/c.rs"),
            ("b", "b/mod.rs"),
            ("b::d", "elsewhere.rs"),
            ("inline", "lib.rs"),
            ("inline::inner", "lib.rs"),
        ];
        assert_eq!(modules, expected.map(|(path, file)| (path.to_owned(), file.to_owned())));
        assert_eq!(sources.len(), 5);
    }
}
