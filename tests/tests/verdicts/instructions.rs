//! How long the programs are, and how long the verifier takes over them, against what is on record.

use std::{fmt::Write as _, fs};

use aya::{EbpfLoader, programs::SchedClassifier};
use portmap::object;
use portmap_common::names;

/// The record.
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/instructions.md");

/// A line of the record's table for one program on one kernel.
fn line(kernel: &str, program: &str, translated: u32, verified: u32) -> String {
    format!("| {kernel} | `{program}` | {translated} | {verified} |")
}

/// The numbers of this kernel, in the record's form.
fn measure(kernel: &str) -> Vec<String> {
    let mut loaded = EbpfLoader::new().load(object::bytes()).expect("an object");
    let programs = names::PROGRAMS.iter().chain(&names::REST);
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

#[test]
fn the_programs_are_as_long_as_on_record() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("every kernel has a version");
    let kernel = release.split('-').next().unwrap_or_default().trim();
    let record = fs::read_to_string(RECORD).expect("the record");
    let measured = measure(kernel);
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
    let mut text = String::new();
    for line in &measured {
        let _ = writeln!(text, "{line}");
    }
    assert_eq!(measured, recorded, "put these lines into docs/instructions.md:\n{text}");
}
