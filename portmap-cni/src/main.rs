//! The CNI plugin `portmap-bpf`.

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use portmap_cni::{Invocation, run};

fn main() -> ExitCode {
    let words: Vec<_> = env::args_os().skip(1).collect();
    let invocation = Invocation::new(|name| env::var(name).unwrap_or_default());
    if words.is_empty() || words.iter().all(|word| word == "--version" || word == "-V") {
        let Some(invocation) = invocation else {
            // Nomad takes the first word of this for the plugin's version.
            println!("v{}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        };
        let answer = run(&invocation, io::stdin().lock());
        // A runtime that has gone cannot be told so.
        let _ = io::stdout().write_all(&answer.output);
        return if answer.is_error { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    eprintln!(
        "portmap-bpf is a CNI plugin: container runtimes start it without arguments, with CNI_COMMAND and other \
         variables in its environment and the network's configuration on standard input"
    );
    ExitCode::from(2)
}
