//! Citations in Markdown: links, headings, paths, tests and identifiers must exist.
//!
//! A column of a table with the heading `test` or `tests` contains citations of tests only, as `program: test` or
//! `program.rs: test`. A test without a program belongs to the program before it in the same table.

use std::collections::HashSet;

use anyhow::Result;

use super::{
    files::{self, File, Format},
    hits::{self, Hit},
};
use crate::workspace;

/// Identifiers of the kernel that no source file contains.
const FOREIGN: &[&str] = &["CAP_NET_ADMIN", "IFLA_TARGET_NETNSID", "__bpf_redirect", "bpf_skb_change_tail"];

/// The page whose tables list all metrics. A test compares them with the daemon's output, whose names are composed
/// of parts, so no source file contains them.
const METRICS: &str = "docs/metrics.md";

/// Fails if a document cites something that does not exist, and lists all of those citations.
pub(super) fn check() -> Result<()> {
    let files = files::read()?;
    let root = workspace::root();
    let exists = |path: &str| root.join(path).exists();
    let tree = Tree::new(&files, &exists);
    let documents = files.iter().filter(|file| files::format(&file.path) == Some(Format::Markdown));
    let hits: Vec<Hit> = documents.flat_map(|file| tree.hits(file)).collect();
    hits::none("citations of things that do not exist", &hits)
}

/// The files of the tree, as the targets of citations.
struct Tree<'a> {
    files: &'a [File],
    /// Every word of every file that is not a document.
    words: HashSet<&'a str>,
    /// Whether a path exists, also one that has no [`Format`].
    exists: &'a dyn Fn(&str) -> bool,
}

impl<'a> Tree<'a> {
    fn new(files: &'a [File], exists: &'a dyn Fn(&str) -> bool) -> Self {
        let sources = files.iter().filter(|file| files::format(&file.path) != Some(Format::Markdown));
        Self { files, words: sources.flat_map(|file| words(&file.text)).collect(), exists }
    }

    /// The citations of a document whose target does not exist.
    fn hits(&self, document: &File) -> Vec<Hit> {
        let mut hits = Vec::new();
        let mut table = Table::default();
        for (line, text) in prose(&document.text) {
            let cells = table.cells(text);
            let mut broken: Vec<String> =
                links(text).filter_map(|link| self.broken_link(&document.path, link)).collect();
            for (cell, is_of_tests) in cells {
                for span in spans(cell) {
                    let found =
                        if is_of_tests { table.check_test(self, span) } else { self.check_span(span) };
                    broken.extend(found.err().map(|expected| format!("`{span}`: {expected}")));
                }
            }
            hits.extend(broken.into_iter().map(|message| Hit { file: document.path.clone(), line, message }));
        }
        hits
    }

    /// Describes a link whose file or heading does not exist.
    fn broken_link(&self, document: &str, link: &str) -> Option<String> {
        if link.contains("://") || link.starts_with("mailto:") {
            return None;
        }
        let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
        let target = if path.is_empty() { document.to_owned() } else { resolve(document, path) };
        if !(self.exists)(&target) {
            return Some(format!("link to {link}: no file {target}"));
        }
        let anchor = anchor?;
        let file = self.files.iter().find(|file| file.path == target)?;
        let has_heading = headings(&file.text).any(|heading| slug(heading) == anchor);
        (!has_heading).then(|| format!("link to {link}: {target} has no heading of this name"))
    }

    /// Checks a piece of code in prose, if it looks like a path, a test or an identifier of this project.
    fn check_span(&self, span: &str) -> Result<(), &'static str> {
        if let Some((program, test)) = test_of_program(span) {
            return self.check_test(program, test);
        }
        if looks_like_path(span, self) {
            return if self.has_path(span) { Ok(()) } else { Err("no such file or directory") };
        }
        let identifiers: Vec<&str> = span.split("::").collect();
        let is_path = identifiers.len() > 1 && identifiers.iter().all(|part| is_identifier(part));
        let is_long = is_identifier(span) && span.matches('_').count() > 1;
        let is_known = |part: &&str| self.words.contains(part) || FOREIGN.contains(part);
        if (is_path || is_long) && !identifiers.iter().all(is_known) && !self.is_metric(span) {
            return Err("no source file contains this identifier");
        }
        Ok(())
    }

    /// Whether the page of metrics has a row for this name.
    fn is_metric(&self, name: &str) -> bool {
        let row = format!("\n| `{name}` |");
        self.files.iter().any(|file| file.path == METRICS && file.text.contains(&row))
    }

    /// Checks that a test program, or a package, has a test or a module of this name.
    fn check_test(&self, program: &str, test: &str) -> Result<(), &'static str> {
        if program == "file" && test == "test" {
            // The form of a citation.
            return Ok(());
        }
        let sources = self.sources(program);
        if sources.is_empty() {
            return Err("no such test program or package");
        }
        let is_defined = sources.iter().any(|file| {
            let stem = file.path.trim_end_matches(".rs").trim_end_matches("/mod");
            stem.ends_with(&format!("/{test}")) || defines(&file.text, test)
        });
        if is_defined { Ok(()) } else { Err("no such test in this program") }
    }

    /// The source files of a test program, of a package, or of a directory. A name with `.rs` is a single file.
    fn sources(&self, program: &str) -> Vec<&File> {
        let files = [program.to_owned(), format!("{program}.rs"), format!("tests/tests/{program}.rs")];
        let directories = [format!("{program}/"), format!("tests/tests/{program}/")];
        let name = program.strip_suffix(".rs").map(|_| format!("tests/tests/{program}"));
        let is_source = |path: &str| match &name {
            Some(name) => path == name,
            None => {
                files.iter().any(|file| path == file) || directories.iter().any(|dir| path.starts_with(dir))
            }
        };
        let is_rust = |file: &&File| files::format(&file.path) == Some(Format::Rust);
        self.files.iter().filter(is_rust).filter(|file| is_source(&file.path)).collect()
    }

    /// Whether a file or directory has this path, or the end of its path is this one.
    fn has_path(&self, span: &str) -> bool {
        let part = span.trim_end_matches('/');
        let (at_end, inside) = (format!("/{part}"), format!("/{part}/"));
        let is_it = |path: &str| path.ends_with(&at_end) || format!("/{path}").contains(&inside);
        (self.exists)(part) || self.files.iter().any(|file| is_it(&file.path))
    }
}

/// The table that is being read.
#[derive(Default)]
struct Table<'a> {
    /// For each column, whether it cites tests. Empty outside a table.
    of_tests: Vec<bool>,
    /// The program of the last citation.
    program: Option<&'a str>,
}

impl<'a> Table<'a> {
    /// Splits a line into cells, each with whether its column cites tests. A line outside a table is one cell.
    fn cells(&mut self, line: &'a str) -> Vec<(&'a str, bool)> {
        let Some(row) = line.trim().strip_prefix('|') else {
            *self = Self::default();
            return vec![(line, false)];
        };
        let cells: Vec<&str> = row.trim_end_matches('|').split('|').collect();
        if self.of_tests.is_empty() {
            self.of_tests = cells.iter().map(|cell| matches!(cell.trim(), "test" | "tests")).collect();
        }
        let is_of_tests = |column: usize| self.of_tests.get(column).copied().unwrap_or(false);
        cells.into_iter().enumerate().map(|(column, cell)| (cell, is_of_tests(column))).collect()
    }

    /// Checks a citation in a column of tests.
    fn check_test(&mut self, tree: &Tree<'_>, span: &'a str) -> Result<(), &'static str> {
        if let Some((program, test)) = test_of_program(span) {
            self.program = Some(program);
            return tree.check_test(program, test);
        }
        // A whole program, module or file, or a test of the last program.
        let is_module = || span.contains("::") && tree.check_span(span).is_ok();
        if !tree.sources(span).is_empty() || tree.has_path(span) || is_module() {
            return Ok(());
        }
        match self.program {
            Some(program) => tree.check_test(program, span),
            None => Err("expected `program: test`"),
        }
    }
}

/// The lines outside fenced code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_fenced = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        !is_fenced && !is_fence
    })
}

/// The code between single backticks.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|span| !span.is_empty())
}

/// The targets of Markdown links and images.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// The headings of a document.
fn headings(text: &str) -> impl Iterator<Item = &str> {
    let headings = prose(text).filter_map(|(_, line)| line.strip_prefix('#'));
    headings.map(|heading| heading.trim_start_matches('#').trim())
}

/// The anchor that GitHub gives a heading.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The path of a link in a document, from the workspace's directory.
fn resolve(document: &str, link: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// Splits `program: test`.
fn test_of_program(span: &str) -> Option<(&str, &str)> {
    let (program, test) = span.split_once(": ")?;
    let is_name =
        |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-/.".contains(c));
    (is_name(program) && is_identifier(test)).then_some((program, test))
}

/// Whether a piece of code looks like a path in this tree.
fn looks_like_path(span: &str, tree: &Tree<'_>) -> bool {
    let is_in_charset =
        span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-./".contains(c));
    if !is_in_charset || span.starts_with(['/', '.', '-']) {
        return false;
    }
    let is_source = span.strip_suffix(".rs").is_some_and(|stem| !stem.is_empty());
    let is_in_tree = span.split_once('/').is_some_and(|(first, _)| (tree.exists)(first) && first != "target");
    is_source || is_in_tree || span.ends_with('/')
}

fn is_identifier(text: &str) -> bool {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(is_start) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Whether Rust source defines a function of this name.
fn defines(text: &str, name: &str) -> bool {
    text.contains(&format!("fn {name}(")) || text.contains(&format!("fn {name}<"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(document: &str) -> Vec<(usize, String)> {
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let files = [
            file("docs/a.md", document),
            file("README.md", "# Title\n## Exit codes, and `more`\n```\n# no heading\n```\n"),
            file("tests/tests/paths/udp.rs", "#[test]\nfn udp_arrives() {}\n"),
            file("tests/tests/server.rs", "fn server_answers() {}"),
            file("portmap-ebpf/src/segments.rs", "const MAX_OF_SEGMENTS: u32 = 1;"),
        ];
        let exists = |path: &str| {
            let directories =
                ["docs", "tests", "tests/tests", "portmap-ebpf", "portmap-ebpf/src", "plot.svg"];
            directories.contains(&path) || files.iter().any(|file| file.path == path)
        };
        let tree = Tree::new(&files, &exists);
        tree.hits(&files[0]).into_iter().map(|hit| (hit.line, hit.message)).collect()
    }

    fn lines(document: &str) -> Vec<usize> {
        broken(document).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn citations_links_need_a_file_and_a_heading() {
        let right = "[r](../README.md#exit-codes-and-more) ![p](../plot.svg) [w](https://a.example/x) [h](#top)\n# Top";
        assert_eq!(broken(right), []);
        let wrong = "[r](../README.md#gone)\n[x](gone.md)\n[y](../README.md#no-heading)\n[s](#gone)";
        assert_eq!(lines(wrong), [1, 2, 3, 4]);
    }

    #[test]
    fn citations_paths_must_exist() {
        assert_eq!(
            broken("`portmap-ebpf/src/`, `segments.rs`, `src/segments.rs`, `tests/tests`, `paths/`"),
            []
        );
        assert_eq!(
            broken("`/run/x.rs`, `target/bpf`, `corpus/TARGET`, `network/port_mapping`, `a b.rs`"),
            []
        );
        assert_eq!(lines("`gone.rs`\n`portmap-ebpf/src/gone`\n`gone/`\n```\n`gone.rs`\n```\n"), [1, 2, 3]);
    }

    #[test]
    fn citations_of_tests_must_exist() {
        let right =
            "`server.rs: server_answers`, `paths: udp_arrives`, `portmap-ebpf: segments`, `file: test`";
        assert_eq!(broken(right), []);
        let wrong =
            "`server.rs: gone`\n`paths: server_answers`\n`gone: udp_arrives`\n`paths.rs: udp_arrives`";
        assert_eq!(lines(wrong), [1, 2, 3, 4]);
        assert_eq!(broken("`Oops: int3`, `area: what changed`"), []);
    }

    #[test]
    fn citations_in_a_column_of_tests_are_all_tests() {
        let head = "| fault | test |\n|---|---|\n";
        assert_eq!(
            broken(&format!("{head}| `x_y` | `paths: udp_arrives`, `udp_arrives`, `server`, `paths` |\n")),
            []
        );
        let wrong = format!("{head}| x | `udp_arrives` |\n| x | `paths: udp_arrives`, `server_answers` |\n");
        assert_eq!(lines(&wrong), [3, 4]);
    }

    #[test]
    fn citations_of_identifiers_must_be_in_a_source_file() {
        assert_eq!(broken("`MAX_OF_SEGMENTS`, `web`, `exit_code`, `server_answers`"), []);
        assert_eq!(lines("`MIN_OF_SEGMENTS`\n`hooks::decide`"), [1, 2]);
    }
}
