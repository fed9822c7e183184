//! A scratch network and mount namespace for privileged work.

use std::{fs, path::Path, process::Command, thread};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// Runs `work` on a thread with network and mount namespaces of its own, so that interfaces and pins
/// disappear with the thread. `work` gets the path of a BPF file system.
///
/// # Panics
///
/// Panics if `work` does, or if the caller is not root.
pub fn in_namespaces<T: Send>(work: impl FnOnce(&Path) -> T + Send) -> T {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("root may");
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("a private mount");
            mount(none, path, Some("bpf"), MsFlags::empty(), none).expect("a bpffs");
            let result = work(path);
            umount2(path, MntFlags::MNT_DETACH).expect("unmounted");
            result
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Adds routes in the calling thread's namespace, each in the words of `ip route add` behind `-4` or `-6`, and
/// lets the programs ask for them.
///
/// # Panics
///
/// Panics if the kernel refuses a route.
pub fn add_routes(routes: &[(&str, &str)]) {
    for (version, route) in routes {
        let arguments = [*version, "route", "add"].into_iter().chain(route.split(' '));
        let added = Command::new("ip").args(arguments).status().expect("ip runs");
        assert!(added.success(), "cannot add the route {route}");
    }
    for version in ["ipv4", "ipv6"] {
        fs::write(format!("/proc/sys/net/{version}/conf/lo/forwarding"), "1").expect("written");
    }
}
