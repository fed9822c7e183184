//! A sandbox: namespaces that play a host with an uplink, and the network outside.
//!
//! The host has network, mount and process namespaces of its own, with its own `/run` and its own bpffs. When
//! its first process ends, everything in it ends: processes, mounts, pins and interfaces. Nothing of the machine
//! is shared or changed but the CPU's time.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use portmap::kernel::namespace::Namespace;
use serde_json::{Value, json};

use crate::{
    cgroup::Cgroup,
    daemon::Daemon,
    faults::{self, sample},
    run, wait,
};

/// The host's address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The address outside, on the uplink's network and the host's gateway.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// An address outside that is reached through the gateway only.
pub const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The host's global IPv6 address.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
/// The IPv6 address outside, on the uplink's network and the host's gateway.
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);
/// An IPv6 address outside that is reached through the gateway only.
pub const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1);
/// MAC address of the host's uplink.
pub const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];
/// MAC address outside.
pub const OUTSIDE_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 2];
/// Flags of a daemon that suit the sandbox.
pub const DAEMON_FLAGS: [&str; 8] = [
    "--ports",
    "31000-32000",
    "--ephemeral-ports",
    "61440-65535",
    "--ephemeral-ports-quarantine",
    "0",
    "--listen",
    "none",
];

/// Makes the namespaces. The host's own ephemeral ports stay clear of the managed ones. What the machine has mounted where
/// the sandbox has its own is taken away first: a mount goes everywhere when somebody deletes the file it is on, and a
/// sandbox is not to see that.
const SET_UP: &str = r"
set -e
while read -r _ _ _ _ point _; do
  case $point in /run | /run/* | /sys/fs/bpf) umount -l $point 2>/dev/null || true ;; esac
done < /proc/self/mountinfo
mount -t tmpfs tmpfs /run
mkdir /run/netns
mount -t bpf bpf /sys/fs/bpf
ip netns add outside
ip link set lo up
ip link add uplink address 02:00:00:00:01:01 type veth peer name eth0 address 02:00:00:00:01:02 netns outside
ip address add 10.0.0.1/24 dev uplink
ip address add 2001:db8:0:1::1/64 dev uplink nodad
ip link set uplink up
ip -n outside link set lo up
ip -n outside address add 10.0.0.2/24 dev eth0
ip -n outside address add 2001:db8:0:1::2/64 dev eth0 nodad
ip -n outside address add 192.0.2.1/32 dev lo
ip -n outside address add 2001:db8:f::1/128 dev lo
ip -n outside link set eth0 up
ip route add default via 10.0.0.2
ip route add default via 2001:db8:0:1::2
echo 50000 60000 > /proc/sys/net/ipv4/ip_local_port_range
echo up
exec sleep infinity
";

/// A namespace of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// The host's.
    Host,
    /// The one outside.
    Outside,
    /// That of the container, or other named namespace, with this name.
    Container(&'a str),
}

/// A host and its surroundings.
#[derive(Debug)]
pub struct Sandbox {
    keeper: Child,
    /// The first process of the host's namespaces, as the machine numbers it.
    init: u32,
    files: tempfile::TempDir,
    /// Whether a daemon has been ready in it, which must be possible to remove without a trace.
    was_used: AtomicBool,
    /// More flags of every daemon.
    flags: Vec<String>,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// Makes a sandbox.
    ///
    /// # Panics
    ///
    /// If that fails, as it does without root.
    pub fn new() -> Self {
        // The keeper goes with this thread, the namespaces' first process with the keeper, and everything else in
        // the namespaces with that.
        Self::start(&["setpriv", "--pdeathsig", "KILL"])
    }

    /// Makes a sandbox that outlives this process, unless it is dropped. It ends with its first process.
    pub fn lasting() -> Self {
        Self::start(&["setsid"])
    }

    /// The first process of the host's namespaces, as the machine numbers it.
    pub fn init(&self) -> u32 {
        self.init
    }

    fn start(wrapper: &[&str]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the end-to-end tests make network namespaces: run them as root"
        );
        let mut keeper = Command::new(wrapper[0])
            .args(&wrapper[1..])
            .args(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "--propagation", "private", "sh", "-c", SET_UP])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv, setsid and unshare are part of util-linux");
        let mut line = String::new();
        let _ = BufReader::new(keeper.stdout.as_mut().expect("piped")).read_line(&mut line);
        if line != "up\n" {
            let mut errors = String::new();
            let _ = keeper.kill();
            let _ = keeper.stderr.as_mut().expect("piped").read_to_string(&mut errors);
            panic!("the sandbox cannot be made: {errors}");
        }
        let children = format!("/proc/{0}/task/{0}/children", keeper.id());
        let init = fs::read_to_string(children).expect("the keeper lives").trim().parse().expect("one child");
        Self {
            keeper,
            init,
            files: tempfile::tempdir().expect("a directory"),
            was_used: AtomicBool::new(false),
            flags: Vec::new(),
        }
    }

    /// Gives every daemon a bind guard for the processes of a cgroup that was made before.
    #[must_use]
    pub fn guarded(mut self, cgroup: &Cgroup) -> Self {
        self.flags.push(format!("--bind-guard={}", cgroup.path().display()));
        self
    }

    /// Where a path of the host is found from outside it.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        PathBuf::from(format!("/proc/{}/root", self.init)).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The network namespace of a place.
    pub fn namespace(&self, place: Place<'_>) -> Namespace {
        Namespace::open(&self.namespace_file(place)).unwrap_or_else(|error| panic!("{place:?}: {error}"))
    }

    /// Its file, as the machine sees it.
    fn namespace_file(&self, place: Place<'_>) -> PathBuf {
        match place {
            Place::Host => PathBuf::from(format!("/proc/{}/ns/net", self.init)),
            Place::Outside => self.path("/run/netns/outside"),
            Place::Container(name) => self.path(format!("/run/netns/{name}")),
        }
    }

    /// Does `work` in the network namespace of a place, usually opening a socket, which then stays there.
    pub fn inside<T: Send>(&self, place: Place<'_>, work: impl FnOnce() -> T + Send) -> T {
        self.namespace(place)
            .run(|| Ok::<_, portmap::kernel::Error>(work()))
            .expect("the namespace can be entered")
    }

    /// A command to be run in a place.
    pub fn command(&self, place: Place<'_>, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--pid"]);
        command.arg(format!("--net={}", self.namespace_file(place).display()));
        command.arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a shell script in a place and returns what it prints.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn sh(&self, place: Place<'_>, script: &str) -> String {
        let output = self.command(place, "sh").args(["-ec", script]).output().expect("a shell");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts a daemon with [`DAEMON_FLAGS`] and waits until it is ready.
    pub fn daemon(&self) -> Daemon {
        self.daemon_with(&DAEMON_FLAGS)
    }

    /// Starts a daemon and waits until it is ready, and has checked the containers that it found.
    ///
    /// # Panics
    ///
    /// If it ends instead; the message has its log.
    pub fn daemon_with(&self, flags: &[&str]) -> Daemon {
        let mut daemon = self.start_daemon(flags);
        assert!(daemon.is_ready(), "the daemon does not start: {}", daemon.log());
        daemon.has_checked();
        self.was_used.store(true, Ordering::Relaxed);
        run::note_programs(self);
        daemon
    }

    /// Starts a daemon that is expected to refuse, and returns its exit code and its log.
    pub fn refused_daemon(&self, flags: &[&str]) -> (i32, String) {
        let mut daemon = self.start_daemon(flags);
        let mut output = String::new();
        let _ = daemon.process.stdout.as_mut().expect("piped").read_to_string(&mut output);
        let status = daemon.process.wait().expect("it ends");
        assert_eq!(output, "", "it was not to become ready");
        (status.code().expect("it is not killed"), daemon.log())
    }

    /// Starts a daemon that may or may not become ready.
    pub fn start_daemon(&self, flags: &[&str]) -> Daemon {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let log = self.files.path().join(format!("log-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let process = self
            .command(Place::Host, binary("portmapd"))
            .args(flags)
            .args(&self.flags)
            .env("NO_COLOR", "1")
            .env(portmap::failpoint::VARIABLE, faults::ORDER)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("nsenter is part of util-linux");
        Daemon { process, log, files: None }
    }

    /// Runs the command line on the host.
    pub fn portmap(&self, arguments: &[&str]) -> Output {
        self.portmap_command(arguments).output().expect("the command runs")
    }

    /// The command line, to be run on the host.
    pub fn portmap_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(Place::Host, binary("portmap"));
        command.args(arguments).env(portmap::failpoint::VARIABLE, faults::ORDER);
        command
    }

    /// Runs the command line on the host and returns what it prints.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.portmap(arguments);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let printed = || text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "portmap {}: {}: {}", arguments.join(" "), output.status, printed());
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs the command line on the host and returns the JSON that it prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.ok(&all)).expect("JSON")
    }

    /// Changes a file in the state directory, and returns what it said.
    pub fn change_state(&self, file: &str, change: impl FnOnce(&mut Value)) -> Value {
        let path = self.path("/run/portmap").join(file);
        let mut now = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
        let before = Value::clone(&now);
        change(&mut now);
        fs::write(&path, serde_json::to_vec(&now).expect("JSON")).expect("written");
        before
    }

    /// Has the state that was kept in a directory be there again, as if the machine had been started meanwhile and had given
    /// the numbers of a container's namespace to another one with its name.
    pub fn reboot(&self, kept: &str, name: &str) {
        self.sh(Place::Host, &format!("cp -r {kept} /run/portmap"));
        self.change_state("host.json", |file| file["record"]["boot"] = "another".into());
        let id = self.namespace(Place::Container(name)).id().expect("a namespace");
        let id = json!({ "device": id.device, "inode": id.inode, "cookie": id.cookie });
        self.change_state(&format!("containers/{name}.json"), |file| file["record"]["namespace"] = id);
    }

    /// Runs the command line on the host; it must fail with this exit code and one line, which is returned.
    pub fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.portmap(arguments);
        let errors = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(code), "portmap {}: {errors}", arguments.join(" "));
        assert_eq!(errors.lines().count(), 1, "portmap {}: {errors}", arguments.join(" "));
        errors
    }

    /// Number of packets that the slot `name` sent and that were dropped for `reason`.
    pub fn dropped(&self, name: &str, reason: &str) -> u64 {
        self.json(&["stats", name])["drops"]["tx"][reason].as_u64().unwrap_or_default()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // On emulated machines there is no time for it.
        if self.was_used.load(Ordering::Relaxed) && sample() == 1 && !std::thread::panicking() {
            self.expect_no_trace();
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        // The next test may look for leftovers.
        let init = format!("/proc/{}", self.init);
        if !std::thread::panicking() {
            wait::until("the sandbox's first process to end", || !Path::new(&init).exists());
        }
    }
}

/// A binary of the same build as the running one.
///
/// # Panics
///
/// If it is not built.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("an executable");
    let directory = own.ancestors().skip(1).find(|path| path.join(name).exists());
    directory.unwrap_or_else(|| panic!("{name} is not built: run this with `cargo xtask test`")).join(name)
}
