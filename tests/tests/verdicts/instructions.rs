//! How long the programs are, and how long the verifier takes over them, against what is on record.

use std::fs;

use aya::{EbpfLoader, programs::SchedClassifier};
use portmap::{kernel::btf, object};
use portmap_common::names;

/// The record.
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/instructions.md");

/// A line of the record's table for one program on one kernel.
fn line(kernel: &str, program: &str, translated: u32, verified: u32) -> String {
    format!("| {kernel} | `{program}` | {translated} | {verified} |")
}

/// The numbers of this kernel, in the record's form.
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
            let verified = info.verified_instruction_count().expect("Linux 5.16 and later say it");
            line(kernel, name, translated, verified)
        })
        .collect()
}

/// The version of the running kernel's sources, and of the package if it is Debian's: the releases of those
/// do not tell one from the next.
fn kernel_version() -> String {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/sys/kernel/{name}")).expect("every kernel says what it is")
    };
    let build = read("version");
    let package = build.split_once(" Debian ").and_then(|(_, rest)| rest.split_whitespace().next());
    package.map_or_else(
        || read("osrelease").split('-').next().unwrap_or_default().trim().to_owned(),
        str::to_owned,
    )
}

#[test]
fn the_programs_are_as_long_as_on_record() {
    let kernel = &kernel_version();
    let record = fs::read_to_string(RECORD).expect("the record");
    let measured = measure(kernel);
    let text = measured.join("\n");
    println!("measured:\n{text}");
    if !record.contains(&format!("Compiled by {}.", object::COMPILER)) {
        println!("not compared: the record is of another compiler than {}", object::COMPILER);
        return;
    }
    if !record.contains(&format!("| {kernel} |")) {
        println!("not compared: Linux {kernel} is not on record");
        return;
    }
    let recorded: Vec<&str> =
        record.lines().filter(|line| line.starts_with(&format!("| {kernel} |"))).collect();
    assert_eq!(measured, recorded, "put the measured lines into docs/instructions.md");
}
