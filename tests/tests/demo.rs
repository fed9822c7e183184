//! The demonstration must run to completion and show what it announces.

use std::process::{Command, Stdio};

use portmap_tests::sandbox::binary;

#[test]
fn demo_runs_to_completion() {
    let output = Command::new(binary("portmap-demo")).stdin(Stdio::null()).output().expect("it runs");
    let (shown, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}{errors}");
    for expected in ["web answers", "dropped: source_port", "many answers", "everything is removed"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
}
