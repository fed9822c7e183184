//! Programs of Prometheus, and files of this repository.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use portmap_tests::cache;

/// Finds a program of Prometheus: on the search path, or where `cargo xtask setup` unpacks it.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let cache = cache::file("tools/prometheus/usr/bin");
    let found = env::split_paths(&path).chain(cache).map(|directory| directory.join(name));
    let found = found.into_iter().find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: run `cargo xtask setup run`"))
}

/// The path of a file of this repository.
pub(crate) fn file(path: &str) -> PathBuf {
    let tests = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests"));
    tests.parent().expect("the workspace").join(path)
}

/// The text of a file of this repository.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a command in `directory` with this input, and asserts that it succeeds. Returns its output.
pub(crate) fn succeed(program: &Path, arguments: &[&str], directory: &Path, input: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads its input");
    let output = child.wait_with_output().expect("it ends");
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{} {}: {text}", program.display(), arguments.join(" "));
    text
}

/// The types of all metrics in the classic format, by name.
pub(crate) fn types(text: &str) -> BTreeMap<String, String> {
    let of_line = |line: &str| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some((name.to_owned(), kind.to_owned()))
    };
    text.lines().filter_map(of_line).collect()
}

/// The names of metrics in an expression of Prometheus.
pub(crate) fn named_metrics(expression: &str) -> Vec<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = expression.split(|letter| !is_part(letter));
    let is_metric = |word: &&str| word.starts_with("portmap_") || word.starts_with("process_");
    words.filter(is_metric).map(str::to_owned).collect()
}
