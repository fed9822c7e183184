//! The guest's initramfs: a shell, the modules that mount the host's files, and the job.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{Image, Job};
use crate::process;

/// Modules that mounting the root needs.
const ROOT_MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Modules that portmap and its tests use; the guest prints those that the kernel lacks.
const JOB_MODULES: [&str; 32] = [
    "veth",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "sch_htb",
    "sch_fq_codel",
    "sch_tbf",
    "cls_u32",
    "act_mirred",
    "ifb",
    "sctp",
    // Kinds of uplinks.
    "8021q",
    "bonding",
    "dummy",
    "macvlan",
    "vrf",
    "wireguard",
    // The firewalls and NAT of other programs.
    "bridge",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_fib_inet",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_reject_inet",
    "xt_MASQUERADE",
    "xt_REDIRECT",
    "xt_multiport",
    "xt_nat",
];

/// An initramfs, and the guest's marker of the end of the job.
pub(super) struct Initramfs {
    /// The archive.
    pub file: PathBuf,
    /// Precedes the exit status in the output; no job prints it.
    pub marker: String,
}

/// Builds an initramfs in the working directory.
pub(super) fn build<P: AsRef<Path>>(image: &Image, job: &Job<P>, work: &Path) -> Result<Initramfs> {
    let marker = marker(work);
    let tree = work.join("initramfs");
    for directory in ["bin", "dev", "guest", "kernel", "lower", "modules", "proc", "rw", "system"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    let busybox = process::find("busybox").context("busybox is missing: run `cargo xtask setup vm`")?;
    fs::copy(&busybox, tree.join("bin/busybox"))
        .with_context(|| format!("cannot copy {}", busybox.display()))?;
    let order = add_modules(image, &tree.join("modules"))?;

    let keep_run = job.used.iter().any(|directory| directory.as_ref().starts_with("/run"));
    let texts = [
        ("init", Some(include_str!("init.sh"))),
        ("modules/order", Some(order.as_str())),
        ("guest/main", Some(include_str!("guest.sh"))),
        ("guest/modules", Some(&format!("{}\n", JOB_MODULES.join("\n")))),
        ("guest/marker", Some(&marker)),
        ("guest/job", Some(&job.script)),
        ("guest/keep-run", keep_run.then_some("")),
    ];
    for (path, text) in texts {
        if let Some(text) = text {
            fs::write(tree.join(path), text)?;
        }
    }
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;

    let file = work.join("initramfs.cpio");
    pack(&tree, &file)?;
    Ok(Initramfs { file, marker })
}

/// Returns a marker that no job prints by chance, because it contains the random name of the working
/// directory.
fn marker(work: &Path) -> String {
    let name = work.file_name().unwrap_or(work.as_os_str()).to_string_lossy();
    format!("@@{name}:exit@@")
}

/// Unpacks the root's modules and their dependencies, and returns the order of loading.
fn add_modules(image: &Image, directory: &Path) -> Result<String> {
    let mut order = String::new();
    let mut seen = HashSet::new();
    for module in ROOT_MODULES {
        let plan = process::read(process::command("modprobe").arg("--dirname").arg(&image.root).args([
            "--set-version",
            &image.release,
            "--show-depends",
            module,
        ]))
        .with_context(|| {
            format!("kernel {} cannot boot over the host's files: it has no module {module}", image.release)
        })?;
        // A line is `insmod FILE` or, for built-in modules, `builtin NAME`.
        for file in plan.lines().filter_map(|line| line.strip_prefix("insmod ")).map(str::trim) {
            if seen.insert(file.to_owned()) {
                let name = add_module(Path::new(file), directory)?;
                order.push_str(&name);
                order.push('\n');
            }
        }
    }
    Ok(order)
}

/// Copies a module, decompressed, and returns its file name.
fn add_module(file: &Path, directory: &Path) -> Result<String> {
    let name = file.file_name().context("a module has a file name")?.to_string_lossy().into_owned();
    let Some(plain) = name.strip_suffix(".xz") else {
        fs::copy(file, directory.join(&name)).with_context(|| format!("cannot copy {}", file.display()))?;
        return Ok(name);
    };
    let target = File::create(directory.join(plain))?;
    process::run(Command::new("xz").args(["--decompress", "--stdout"]).arg(file).stdout(target))?;
    Ok(plain.to_owned())
}

/// Packs the tree into an archive in the kernel's format.
fn pack(tree: &Path, file: &Path) -> Result<()> {
    let mut list = Command::new("find").arg(".").current_dir(tree).stdout(Stdio::piped()).spawn()?;
    let names = list.stdout.take().context("find has a pipe for its output")?;
    let mut pack = Command::new("cpio");
    pack.args(["--create", "--format=newc", "--quiet"]).current_dir(tree);
    process::run(pack.stdin(names).stdout(File::create(file)?))?;
    if !list.wait()?.success() {
        bail!("`find .` failed in {}", tree.display());
    }
    Ok(())
}
