//! Imports between the files of a package.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use anyhow::Result;

use super::{
    items::{self, Item},
    modules::{self, Crate, ModulePath, Source},
};
use crate::workspace::Package;

/// Imports of a package: from a file to another one, with the line of the first.
pub(super) struct Imports {
    /// Files, relative to the package's `src`.
    pub files: Vec<String>,
    /// Importing file, imported file, and the line.
    pub edges: BTreeMap<(String, String), usize>,
}

/// Reads a package's library and binaries.
pub(super) fn read(package: &Package) -> Result<Imports> {
    let directory = package.manifest_path.parent().unwrap_or(Path::new("")).join("src");
    let mut crates = Vec::new();
    let mut sources = Vec::new();
    for target in &package.targets {
        let is_library = target.kind.iter().any(|kind| kind == "lib");
        if !is_library && !target.kind.iter().any(|kind| kind == "bin") {
            continue;
        }
        let name = is_library.then(|| target.name.replace('-', "_"));
        let (krate, files) = modules::read(crates.len(), name, &target.src_path)?;
        crates.push(krate);
        sources.extend(files);
    }
    let shown = |file: &Path| file.strip_prefix(&directory).unwrap_or(file).to_string_lossy().into_owned();
    let mut edges = BTreeMap::new();
    for source in &sources {
        for (file, line) in imported(source, &crates) {
            if file != source.file {
                edges.entry((shown(&source.file), shown(file))).or_insert(line);
            }
        }
    }
    let mut files: Vec<_> = sources.iter().map(|source| shown(&source.file)).collect();
    files.sort();
    files.dedup();
    Ok(Imports { files, edges })
}

/// The files that a file imports from, with lines.
fn imported<'a>(source: &Source, crates: &'a [Crate]) -> Vec<(&'a Path, usize)> {
    let mut paths = Vec::new();
    items::visit(&items::code(&source.text), &source.module, &mut |item| {
        if let Item::Path { module, segments, bound, line } = item {
            paths.push((module, segments, bound, line));
        }
    });
    // Names of modules that `use` declarations bring into scope: a path may begin with one.
    let mut scope: HashMap<(ModulePath, String), (usize, ModulePath)> = HashMap::new();
    for (module, segments, bound, _) in &paths {
        if let (Some(bound), Some((of, target, 0))) = (bound, resolve(source.of, module, segments, crates)) {
            scope.insert((module.clone(), bound.clone()), (of, target));
        }
    }
    let mut found = Vec::new();
    for (module, segments, _, line) in paths {
        let direct = resolve(source.of, &module, &segments, crates);
        let target = direct.map(|(of, target, _)| (of, target)).or_else(|| {
            let (of, start) = scope.get(&(module, segments[0].clone()))?;
            let (target, _) = descend(start.clone(), &segments[1..], &crates[*of]);
            Some((*of, target))
        });
        if let Some((of, target)) = target {
            found.push((&*crates[of].modules[&target], line));
        }
    }
    found
}

/// The crate and the module that a path leads to, and how many of its segments are items of that module.
fn resolve(
    of: usize,
    module: &ModulePath,
    segments: &[String],
    crates: &[Crate],
) -> Option<(usize, ModulePath, usize)> {
    let mut start = module.clone();
    let mut rest = segments;
    let mut of = of;
    match &*segments[0] {
        "crate" => {
            start.clear();
            rest = &rest[1..];
        }
        "self" | "super" => {
            while let Some((first, others)) = rest.split_first() {
                match &**first {
                    "self" => {}
                    "super" => drop(start.pop()),
                    _ => break,
                }
                rest = others;
            }
        }
        first => {
            let mut child = module.clone();
            child.push(first.to_owned());
            if !crates[of].modules.contains_key(&child) {
                of = crates.iter().position(|krate| krate.name.as_deref() == Some(first))?;
                start.clear();
                rest = &rest[1..];
            }
        }
    }
    let (target, left) = descend(start, rest, &crates[of]);
    Some((of, target, left))
}

/// Follows a path as long as it leads from module to module; also returns how many segments are left.
fn descend(start: ModulePath, segments: &[String], krate: &Crate) -> (ModulePath, usize) {
    let mut module = start;
    for (place, segment) in segments.iter().enumerate() {
        module.push(segment.clone());
        if !krate.modules.contains_key(&module) {
            module.pop();
            return (module, segments.len() - place);
        }
    }
    (module, 0)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The edges of a library with these files.
    fn edges(files: &[(&str, &str)]) -> Vec<String> {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let file = directory.path().join("src").join(name);
            std::fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
            std::fs::write(file, text).expect("a file");
        }
        let target = |name: &str, kind: &str, file: &str| {
            let src_path = directory.path().join("src").join(file);
            crate::workspace::Target { name: name.to_owned(), kind: vec![kind.to_owned()], src_path }
        };
        let mut targets = vec![target("lib-name", "lib", "lib.rs")];
        if files.iter().any(|(name, _)| *name == "main.rs") {
            targets.push(target("main", "bin", "main.rs"));
        }
        let manifest_path: PathBuf = directory.path().join("Cargo.toml");
        let imports = read(&Package { name: "p".to_owned(), manifest_path, targets }).expect("imports");
        imports.edges.into_iter().map(|((from, to), line)| format!("{from}:{line} {to}")).collect()
    }

    #[test]
    fn imports_lead_to_the_file_of_the_module_that_is_named() {
        let found = edges(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::{self, c, Item};\nfn f() { c::g(); b::d::h(); std::fs::read(); }"),
            ("b/mod.rs", "pub mod c; pub mod d; pub struct Item;"),
            ("b/c.rs", "\nuse super::Item;\nfn g() { super::d::h() }"),
            ("b/d.rs", ""),
        ]);
        let expected =
            ["a.rs:1 b/c.rs", "a.rs:2 b/d.rs", "a.rs:1 b/mod.rs", "b/c.rs:3 b/d.rs", "b/c.rs:2 b/mod.rs"];
        assert_eq!(found, expected);
    }

    #[test]
    fn imports_of_children_are_imports_but_their_declaration_is_none() {
        let files = [("lib.rs", "mod a;"), ("a.rs", "mod b;"), ("a/b.rs", "use super::X;")];
        assert_eq!(edges(&files), ["a/b.rs:1 a.rs"]);
        let files = [("lib.rs", "mod a;"), ("a.rs", "mod b;\nuse self::b::Y;"), ("a/b.rs", "use super::X;")];
        assert_eq!(edges(&files), ["a.rs:2 a/b.rs", "a/b.rs:1 a.rs"]);
        let files = [("lib.rs", "mod a;"), ("a.rs", "mod b;\nfn f() {\nb::g() }"), ("a/b.rs", "")];
        assert_eq!(edges(&files), ["a.rs:3 a/b.rs"]);
    }

    #[test]
    fn imports_of_a_binary_from_the_library_are_seen() {
        let found = edges(&[
            ("lib.rs", "pub mod a;"),
            ("a.rs", ""),
            ("main.rs", "mod own;\nuse lib_name::a::f;\n"),
            ("own.rs", "use crate::main_item;"),
        ]);
        assert_eq!(found, ["main.rs:2 a.rs", "own.rs:1 main.rs"]);
    }
}
