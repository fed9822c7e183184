//! Many commands of `tc` or `ip` in one process.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Executes commands, one a line. Fails with the program's errors if one is refused.
pub(crate) fn batch(program: &str, commands: &str) -> Result<()> {
    let mut process = Command::new(program)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}, which is part of iproute2"))?;
    let input = process.stdin.take().with_context(|| format!("{program} has an input"))?;
    { input }.write_all(commands.as_bytes()).with_context(|| format!("cannot write to {program}"))?;
    let output = process.wait_with_output().with_context(|| format!("cannot wait for {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} refuses the commands: {}", errors.trim());
    Ok(())
}
