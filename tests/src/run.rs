//! Records what a test run must look for when it checks for leftovers.

use std::{env, fs, io::Write as _, path::Path};

use aya::programs::ProgramInfo;

use crate::sandbox::Sandbox;

/// Environment variable with the run's own directory; unset means that leftovers are not checked.
const VARIABLE: &str = "PORTMAP_TEST_RUN";

/// Records the ids of the BPF programs that a sandbox's daemon has pinned. Only the id distinguishes them
/// from the programs of another portmap on the machine.
pub(crate) fn note_programs(sandbox: &Sandbox) {
    let Some(run) = env::var_os(VARIABLE) else { return };
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let layouts = entries(&sandbox.path("/sys/fs/bpf/portmap"));
    let pins = layouts.flat_map(|layout| entries(&layout.path().join("progs")));
    let programs = pins.filter_map(|pin| ProgramInfo::from_pin(pin.path()).ok());
    let lines: Vec<String> = programs.map(|program| program.id().to_string() + "\n").collect();
    let file = fs::File::options().create(true).append(true).open(Path::new(&run).join("programs"));
    // A single write, so that lines of other tests cannot interleave.
    file.and_then(|mut file| file.write_all(lines.concat().as_bytes())).expect("the run has a directory");
}
