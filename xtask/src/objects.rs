//! The committed BPF objects: building them, and comparing them with their sources.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

#[path = "../../portmap-ebpf/objects.rs"]
mod committed;

pub(crate) use committed::{SOURCE, VARIABLE};

use crate::{
    process,
    setup::{self, Group, Report},
    toolchain::{self, Build, Host},
    workspace,
};

/// Names of the program that edits objects.
const OBJCOPY: [&str; 2] = ["/usr/lib/llvm-22/bin/llvm-objcopy", "llvm-objcopy"];

/// Section of a committed object that names its compiler: `readelf -p .comment` shows it, the kernel does not
/// load it.
const COMMENT: &str = ".comment";

/// Names and contents of objects.
type Objects = Vec<(&'static str, Vec<u8>)>;

/// Builds the objects from their sources and writes them to the directory that is committed.
pub(crate) fn make() -> Result<()> {
    setup::ensure(&[Group::Build], Report::Changes)?;
    let root = workspace::root();
    let (record, objects) = build(&root)?;
    let committed::Record { sources, compiler } = &record;
    let text = format!("sources: {sources}\ncompiler: {compiler}\n");
    let file = root.join(committed::DIRECTORY).join(committed::RECORD);
    fs::create_dir_all(root.join(committed::DIRECTORY)).context("cannot make the directory of objects")?;
    for (name, bytes) in objects {
        let file = committed::file(&root, name);
        fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
    }
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("made {} by {}", committed::DIRECTORY, record.compiler);
    Ok(())
}

/// Returns whether a build needs a BPF toolchain: the committed objects are out of date, for another
/// architecture, or the environment selects a build from source.
pub(crate) fn must_be_built() -> bool {
    let root = workspace::root();
    let digest = committed::digest(&root).ok();
    env::var(VARIABLE).is_ok_and(|value| value == SOURCE)
        || env::consts::ARCH != committed::ARCHITECTURE
        || committed::Record::read(&root).is_none_or(|record| digest != Some(record.sources))
}

/// Builds the objects and compares them with the committed ones, byte for byte. Returns the reason if that is
/// impossible on this machine.
pub(crate) fn check() -> Result<Option<String>> {
    const REMEDY: &str = "run `cargo xtask objects` and commit the objects";
    let root = workspace::root();
    let recorded = committed::Record::read(&root)
        .with_context(|| format!("no record in {}: {REMEDY}", committed::DIRECTORY))?;
    let sources = committed::digest(&root).context("cannot read the programs' sources")?;
    if recorded.sources != sources {
        bail!(
            "{} is out of date (sources {}, expected {sources}): {REMEDY}",
            committed::DIRECTORY,
            recorded.sources
        );
    }
    if env::consts::ARCH != committed::ARCHITECTURE {
        return Ok(Some(format!("they are for {}", committed::ARCHITECTURE)));
    }
    let (record, objects) = build(&root)?;
    if record.compiler != recorded.compiler {
        let (here, there) = (record.compiler, recorded.compiler);
        return Ok(Some(format!("compiled by {there}, but this machine has {here}")));
    }
    for (name, bytes) in objects {
        let file = committed::file(&root, name);
        let found = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if found != bytes {
            bail!("{} differs from a build of its sources: {REMEDY}", file.display());
        }
    }
    Ok(None)
}

/// Builds the objects on this machine.
fn build(root: &Path) -> Result<(committed::Record, Objects)> {
    let toolchain = toolchain::find().context("no BPF toolchain: run `cargo xtask setup build`")?;
    let target = workspace::metadata()?.target_directory;
    let host = Host { architecture: committed::ARCHITECTURE, is_big_endian: false };
    let build = Build {
        toolchain: &toolchain,
        package: "portmap-ebpf",
        feature: "",
        host,
        workspace: root,
        target: &target,
    };
    process::run_silently(&mut build.command())?;
    let compiler = toolchain::compiler(&toolchain);
    let objects = committed::NAMES.iter().map(|name| Ok((*name, finished(&build.object(name), &compiler)?)));
    let objects = objects.collect::<Result<_>>()?;
    let sources = committed::digest(root).context("cannot read the programs' sources")?;
    Ok((committed::Record { sources, compiler }, objects))
}

/// Returns an object without debug information, of which the kernel needs only BTF, and with its compiler's
/// name.
fn finished(object: &Path, compiler: &str) -> Result<Vec<u8>> {
    let (small, comment) = (object.with_extension("stripped"), object.with_extension("comment"));
    fs::write(&comment, format!("{compiler}\0"))
        .with_context(|| format!("cannot write {}", comment.display()))?;
    let program = OBJCOPY.iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    let program = program.with_context(|| format!("none of {OBJCOPY:?} runs: install Debian's llvm-22"))?;
    let section = format!("{COMMENT}={}", comment.display());
    process::run_silently(
        Command::new(program).args(["--strip-debug", "--add-section", &section]).args([object, &small]),
    )?;
    fs::read(&small).with_context(|| format!("cannot read {}", small.display()))
}
