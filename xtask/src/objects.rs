//! The committed BPF objects: made from their sources, and compared with them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

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

/// Names of the program that takes debug information out of an object, of which the kernel needs none but BTF.
const STRIP: [&str; 2] = ["/usr/lib/llvm-22/bin/llvm-objcopy", "llvm-objcopy"];

/// Names and contents of objects.
type Objects = Vec<(&'static str, Vec<u8>)>;

/// Builds the objects from their sources and puts them where they are committed.
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

/// Whether this machine needs a compiler for BPF: the committed objects are of other sources, for other machines, or not
/// wanted.
pub(crate) fn must_be_built() -> bool {
    let root = workspace::root();
    let digest = committed::digest(&root).ok();
    env::var(VARIABLE).is_ok_and(|value| value == SOURCE)
        || env::consts::ARCH != committed::ARCHITECTURE
        || committed::Record::read(&root).is_none_or(|record| digest != Some(record.sources))
}

/// Compares the committed objects with what their sources make. Returns why that was not possible, if it was not.
pub(crate) fn check() -> Result<Option<String>> {
    const REMEDY: &str = "run `cargo xtask objects` and commit what it makes";
    let root = workspace::root();
    let recorded = committed::Record::read(&root)
        .with_context(|| format!("no record in {}: {REMEDY}", committed::DIRECTORY))?;
    let sources = committed::digest(&root).context("cannot read the programs' sources")?;
    if recorded.sources != sources {
        bail!(
            "{} is of other sources ({} instead of {sources}): {REMEDY}",
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
        return Ok(Some(format!("they were made by {there}, and here is {here}")));
    }
    for (name, bytes) in objects {
        let file = committed::file(&root, name);
        let found = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if found != bytes {
            bail!("{} is not what its sources make, byte for byte: {REMEDY}", file.display());
        }
    }
    Ok(None)
}

/// The objects as their sources make them here.
fn build(root: &Path) -> Result<(committed::Record, Objects)> {
    let toolchain = toolchain::find().context("no BPF toolchain: run `cargo xtask setup build`")?;
    let target = workspace::metadata()?.target_directory;
    let host = Host { architecture: committed::ARCHITECTURE, is_big_endian: false };
    let build =
        Build { toolchain: &toolchain, package: "portmap-ebpf", host, workspace: root, target: &target };
    process::run_silently(&mut build.command())?;
    let objects = committed::NAMES.iter().map(|name| Ok((*name, stripped(&build.object(name))?)));
    let objects = objects.collect::<Result<_>>()?;
    let sources = committed::digest(root).context("cannot read the programs' sources")?;
    Ok((committed::Record { sources, compiler: toolchain::compiler(&toolchain) }, objects))
}

/// An object without what only debuggers read.
fn stripped(object: &Path) -> Result<Vec<u8>> {
    let small: PathBuf = object.with_extension("stripped");
    let program = STRIP.iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    let program = program.with_context(|| format!("none of {STRIP:?} runs: install Debian's llvm-22"))?;
    process::run_silently(Command::new(program).arg("--strip-debug").arg(object).arg(&small))?;
    fs::read(&small).with_context(|| format!("cannot read {}", small.display()))
}
