//! What a whole run of the tests is told of, so that it can look for what they leave behind.

use std::{env, fs, io::Write as _, path::Path};

use aya::programs::ProgramInfo;

use crate::sandbox::Sandbox;

/// Names the directory that is the run's own; without it, nobody looks for anything.
const VARIABLE: &str = "PORTMAP_TEST_RUN";

/// Notes the numbers of the BPF programs that a sandbox's daemon has pinned: nothing else tells them from those of another
/// portmap on the machine.
pub(crate) fn note_programs(sandbox: &Sandbox) {
    let Some(run) = env::var_os(VARIABLE) else { return };
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let layouts = entries(&sandbox.path("/sys/fs/bpf/portmap"));
    let pins = layouts.flat_map(|layout| entries(&layout.path().join("progs")));
    let programs = pins.filter_map(|pin| ProgramInfo::from_pin(pin.path()).ok());
    let lines: Vec<String> = programs.map(|program| program.id().to_string() + "\n").collect();
    let file = fs::File::options().create(true).append(true).open(Path::new(&run).join("programs"));
    // One call, so that no other test's lines come in between.
    file.and_then(|mut file| file.write_all(lines.concat().as_bytes())).expect("the run has a directory");
}
