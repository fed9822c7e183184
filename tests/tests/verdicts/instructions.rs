//! The programs' sizes, and the instructions that the verifier processes for them, compared with the record.

use std::fs;

use aya::{EbpfLoader, programs::SchedClassifier};
use portmap::{kernel::btf, object};
use portmap_common::names;
use portmap_tests::not_run;

/// The record.
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/instructions.md");

/// Formats a row of the record's table for one program on one kernel.
fn line(kernel: &str, program: &str, translated: u32, verified: u32) -> String {
    format!("| {kernel} | `{program}` | {translated} | {verified} |")
}

/// Measures the programs on this kernel and returns rows in the record's format.
fn measure(kernel: &str) -> Vec<String> {
    let layout = btf::skb_layout().expect("the kernel has type information").pack();
    let mut loaded = EbpfLoader::new()
        .override_global(names::SKB_LAYOUT, &layout, true)
        .load(object::bytes())
        .expect("an object");
    let programs = names::PROGRAMS.iter().chain(&names::TAIL_CALLS);
    programs
        .map(|name| {
            let program: &mut SchedClassifier =
                loaded.program_mut(name).expect("it is in the object").try_into().expect("a classifier");
            program.load().unwrap_or_else(|error| panic!("the kernel refuses {name}: {error}"));
            let info = program.info().expect("it is loaded");
            // Eight bytes each.
            let translated = info.size_translated().expect("root may see it") / 8;
            let verified = info.verified_instruction_count().expect("Linux 5.16 and later report it");
            line(kernel, name, translated, verified)
        })
        .collect()
}

/// Returns the version of the running kernel, and for Debian's kernels that of the package: their release
/// strings stay the same from one update to the next.
fn kernel_version() -> String {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/sys/kernel/{name}")).expect("every kernel has its version there")
    };
    let build = read("version");
    let package = build.split_once(" Debian ").and_then(|(_, rest)| rest.split_whitespace().next());
    package.map_or_else(
        || read("osrelease").split('-').next().unwrap_or_default().trim().to_owned(),
        str::to_owned,
    )
}

#[test]
fn instructions_are_as_many_as_on_record() {
    let kernel = &kernel_version();
    let record = fs::read_to_string(RECORD).expect("the record");
    let measured = measure(kernel);
    let text = measured.join("\n");
    println!("measured:\n{text}");
    if !record.contains(&format!("Compiled by {}.", object::COMPILER)) {
        not_run(format_args!("the programs are compiled by {}, which is not on record", object::COMPILER));
        return;
    }
    if !record.contains(&format!("| {kernel} |")) {
        not_run(format_args!("Linux {kernel} is not on record"));
        return;
    }
    let recorded: Vec<&str> =
        record.lines().filter(|line| line.starts_with(&format!("| {kernel} |"))).collect();
    assert_eq!(measured, recorded, "put the measured lines into docs/instructions.md");
}
