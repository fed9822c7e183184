//! The graph of imports between files: counts, circles, and the picture in ARCHITECTURE.md.

use std::{fmt::Write as _, fs, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::workspace;

mod circles;
mod groups;
mod imports;
mod items;
mod layers;
mod layout;
mod modules;
mod picture;
mod reduction;

use self::{groups::Groups, imports::Imports};

/// The package that the picture shows.
const DRAWN: &str = "portmap-user";
/// Packages that must have no circle.
const PACKAGES: [&str; 2] = [DRAWN, "portmap-ebpf"];
/// The picture, from the workspace's directory.
const PICTURE: &str = "docs/images/modules.svg";

/// What to do with the picture.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Write nothing; fail if the picture is not up to date, or if files or groups of files import in a
    /// circle.
    #[arg(long)]
    check: bool,
}

/// Prints counts and circles, and draws the picture or compares it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.check {
        check()?;
        return Ok(ExitCode::SUCCESS);
    }
    for package in read()? {
        print!("{}", package.report());
        if package.name == DRAWN {
            let file = workspace::root().join(PICTURE);
            let directory = file.parent().context("the picture is in a directory")?;
            fs::create_dir_all(directory)
                .and_then(|()| fs::write(&file, picture::draw(DRAWN, &package.groups)))
                .with_context(|| format!("cannot write {}", file.display()))?;
            println!("drawn: {PICTURE}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails if the picture is stale, or if there is a circle.
pub(crate) fn check() -> Result<()> {
    let mut failures = Vec::new();
    for package in read()? {
        failures.extend(package.circles());
        if package.name == DRAWN {
            let drawn = fs::read_to_string(workspace::root().join(PICTURE)).unwrap_or_default();
            if drawn != picture::draw(DRAWN, &package.groups) {
                failures.push(format!("{PICTURE} is not up to date: run `cargo xtask graph` and commit it"));
            }
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("\n"))
}

/// A package with its imports.
struct Package {
    name: &'static str,
    imports: Imports,
    groups: Groups,
}

fn read() -> Result<Vec<Package>> {
    let metadata = workspace::metadata()?;
    PACKAGES
        .into_iter()
        .map(|name| {
            let package = metadata.packages.iter().find(|package| package.name == name);
            let package = package.with_context(|| format!("the workspace has no package {name}"))?;
            let imports = imports::read(package)?;
            let groups = Groups::new(&imports);
            Ok(Package { name, imports, groups })
        })
        .collect()
}

impl Package {
    /// The counts, and the circles.
    fn report(&self) -> String {
        let Self { name, imports, groups } = self;
        let is_daemon = |file: &str| file.starts_with("daemon/");
        let inside = imports.edges.keys().filter(|(from, to)| is_daemon(from) && is_daemon(to)).count();
        let circles = self.circles();
        let mut text = format!(
            "{name}: {} modules in {} groups; {} imports between modules, of these {} between groups",
            groups.members.values().map(Vec::len).sum::<usize>(),
            groups.members.len(),
            imports.edges.len(),
            groups.imports(),
        );
        // Writing to a string does not fail.
        if inside > 0 {
            let _ = write!(text, ", {inside} inside the daemon");
        }
        let _ = writeln!(text, "; {} circles", circles.len());
        for circle in circles {
            let _ = writeln!(text, "  {circle}");
        }
        text
    }

    /// A line for each circle: between files with the lines of its imports, and between groups.
    fn circles(&self) -> Vec<String> {
        let Imports { files: _, edges } = &self.imports;
        let graph = circles::graph(edges.keys().map(|(from, to)| (&**from, &**to)));
        let of_files = circles::circles(&graph).into_iter().map(|circle| {
            let steps = circle.iter().zip(circle.iter().cycle().skip(1)).map(|(from, to)| {
                let line = edges.get(&(from.clone(), to.clone())).copied().unwrap_or_default();
                format!("{from}:{line} imports {to}")
            });
            format!("{}: circle between files: {}", self.name, steps.collect::<Vec<_>>().join(", "))
        });
        let of_groups = self.groups.circles().into_iter().map(|circle| {
            format!(
                "{}: circle between groups: {} imports {}",
                self.name,
                circle.join(" imports "),
                circle[0]
            )
        });
        of_files.chain(of_groups).collect()
    }
}
