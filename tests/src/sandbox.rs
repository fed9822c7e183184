//! A sandbox: namespaces that simulate a host with an uplink, and the network outside.
//!
//! The host has its own network, mount and pid namespaces, with its own `/run` and bpffs. When its init
//! process exits, the kernel removes everything in it: processes, mounts, pins and interfaces. The sandbox
//! shares nothing with the machine but CPU time.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Instant,
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
/// The outside peer on the uplink's network, which is also the host's gateway.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// An outside address behind the gateway.
pub const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The host's global IPv6 address.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
/// IPv6 address of the outside peer, which is also the host's gateway.
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);
/// An outside IPv6 address behind the gateway.
pub const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1);
/// MAC address of the host's uplink.
pub const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];
/// MAC address of the outside peer.
pub const OUTSIDE_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 2];
/// Default flags of a daemon in a sandbox.
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

/// Creates the namespaces. The host's ephemeral ports do not overlap the managed ones. The machine's mounts
/// below the sandbox's mount points are unmounted first, because a mount disappears from all namespaces
/// when another process deletes its mount point, and a sandbox must not depend on that.
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
echo 0 > /proc/sys/net/ipv6/conf/uplink/accept_dad
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

/// A network namespace of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netns<'a> {
    /// The host.
    Host,
    /// The outside peer.
    Outside,
    /// The container, or other named namespace, with this name.
    Container(&'a str),
}

/// A simulated host and its network.
#[derive(Debug)]
pub struct Sandbox {
    /// The parent of the init process.
    unshare: Child,
    /// Pid of the sandbox's init process, in the machine's pid namespace.
    init: u32,
    files: tempfile::TempDir,
    /// Whether a daemon has become ready; the drop then checks that a teardown leaves no trace.
    was_used: AtomicBool,
    /// Additional flags of every daemon.
    flags: Vec<String>,
    /// The daemon's program.
    portmapd: &'static str,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// Creates a sandbox.
    ///
    /// # Panics
    ///
    /// Panics if that fails, for example without root.
    pub fn new() -> Self {
        // `unshare` is killed when this thread exits, the init process when `unshare` exits, and every
        // other process in the namespaces with the init process.
        Self::start(&["setpriv", "--pdeathsig", "KILL"])
    }

    /// Creates a sandbox that outlives this process unless it is dropped. It ends with its init process.
    pub fn lasting() -> Self {
        Self::start(&["setsid"])
    }

    /// Returns the pid of the sandbox's init process, in the machine's pid namespace.
    pub fn init(&self) -> u32 {
        self.init
    }

    fn start(wrapper: &[&str]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the end-to-end tests make network namespaces: run them as root"
        );
        let mut unshare = Command::new(wrapper[0])
            .args(&wrapper[1..])
            .args(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "--propagation", "private", "sh", "-c", SET_UP])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv, setsid and unshare are part of util-linux");
        let mut line = String::new();
        let _ = BufReader::new(unshare.stdout.as_mut().expect("piped")).read_line(&mut line);
        if line != "up\n" {
            let mut errors = String::new();
            let _ = unshare.kill();
            let _ = unshare.stderr.as_mut().expect("piped").read_to_string(&mut errors);
            panic!("cannot create the sandbox: {errors}");
        }
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init =
            fs::read_to_string(children).expect("unshare is running").trim().parse().expect("one child");
        Self {
            unshare,
            init,
            files: tempfile::tempdir().expect("a directory"),
            was_used: AtomicBool::new(false),
            flags: Vec::new(),
            portmapd: "portmapd",
        }
    }

    /// Runs every daemon with a bind guard for an existing cgroup.
    #[must_use]
    pub fn guarded(mut self, cgroup: &Cgroup) -> Self {
        self.flags.push(format!("--bind-guard={}", cgroup.path().display()));
        self
    }

    /// Runs every daemon with these published ports.
    #[must_use]
    pub fn publishing(mut self, ports: &str) -> Self {
        self.flags.push(format!("--published-ports={ports}"));
        self
    }

    /// Runs every daemon from another build, whose name is relative to the usual one's directory.
    #[must_use]
    pub fn with_portmapd(mut self, name: &'static str) -> Self {
        self.portmapd = name;
        self
    }

    /// Translates a path of the sandbox's host into a path of the machine.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        PathBuf::from(format!("/proc/{}/root", self.init)).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Opens a network namespace.
    pub fn namespace(&self, netns: Netns<'_>) -> Namespace {
        Namespace::open(&self.namespace_file(netns)).unwrap_or_else(|error| panic!("{netns:?}: {error}"))
    }

    /// Returns the path of the namespace file, as seen from the machine.
    fn namespace_file(&self, netns: Netns<'_>) -> PathBuf {
        match netns {
            Netns::Host => PathBuf::from(format!("/proc/{}/ns/net", self.init)),
            Netns::Outside => self.path("/run/netns/outside"),
            Netns::Container(name) => self.path(format!("/run/netns/{name}")),
        }
    }

    /// Runs `work` in a network namespace, usually to open a socket, which then belongs to that namespace.
    pub fn inside<T: Send>(&self, netns: Netns<'_>, work: impl FnOnce() -> T + Send) -> T {
        self.namespace(netns)
            .run(|_session| Ok::<_, portmap::kernel::Error>(work()))
            .expect("the namespace can be entered")
    }

    /// Prepares a command in a network namespace.
    pub fn command(&self, netns: Netns<'_>, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--pid"]);
        command.arg(format!("--net={}", self.namespace_file(netns).display()));
        command.arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a shell script in a network namespace and returns its output.
    ///
    /// # Panics
    ///
    /// Panics if it fails.
    pub fn sh(&self, netns: Netns<'_>, script: &str) -> String {
        let output = self.command(netns, "sh").args(["-ec", script]).output().expect("a shell");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The index of an interface of the host.
    pub fn index(&self, interface: &str) -> u32 {
        let text = self.sh(Netns::Host, &format!("ip -o link show {interface} | cut -d: -f1"));
        text.trim().parse().expect("a number")
    }

    /// Starts a daemon with [`DAEMON_FLAGS`] and waits until it is ready.
    pub fn daemon(&self) -> Daemon {
        self.daemon_with(&DAEMON_FLAGS)
    }

    /// Starts a daemon and waits until it is ready and has checked the containers that it found.
    ///
    /// # Panics
    ///
    /// Panics if the daemon exits instead; the message contains its log.
    pub fn daemon_with(&self, flags: &[&str]) -> Daemon {
        let mut daemon = self.start_daemon(flags);
        assert!(daemon.wait_ready(), "the daemon does not start: {}", daemon.log());
        daemon.wait_checked();
        self.was_used.store(true, Ordering::Relaxed);
        run::note_programs(self);
        daemon
    }

    /// Starts a daemon that must refuse to start, and returns its exit code and its log.
    pub fn refused_daemon(&self, flags: &[&str]) -> (i32, String) {
        let mut daemon = self.start_daemon(flags);
        let mut output = String::new();
        let _ = daemon.process.stdout.as_mut().expect("piped").read_to_string(&mut output);
        let status = daemon.process.wait().expect("the daemon exits");
        assert_eq!(output, "", "the daemon must not become ready");
        (status.code().expect("an exit code"), daemon.log())
    }

    /// Starts a daemon without waiting for it.
    pub fn start_daemon(&self, flags: &[&str]) -> Daemon {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let log = self.files.path().join(format!("log-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let process = self
            .command(Netns::Host, binary(self.portmapd))
            .args(flags)
            .args(&self.flags)
            .env("NO_COLOR", "1")
            .env(portmap::failpoint::VARIABLE, faults::FILE)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("nsenter is part of util-linux");
        Daemon { process, log, files: None }
    }

    /// Runs a `portmap` command on the host.
    pub fn portmap(&self, arguments: &[&str]) -> Output {
        self.portmap_command(arguments).output().expect("the command runs")
    }

    /// Prepares a `portmap` command on the host.
    pub fn portmap_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(Netns::Host, binary("portmap"));
        command.args(arguments).env(portmap::failpoint::VARIABLE, faults::FILE);
        command
    }

    /// Runs a `portmap` command on the host and returns its output.
    ///
    /// # Panics
    ///
    /// Panics if it fails.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.portmap(arguments);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let printed = || text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "portmap {}: {}: {}", arguments.join(" "), output.status, printed());
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a `portmap` command on the host and returns its JSON output.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.ok(&all)).expect("JSON")
    }

    /// The statistics of a container, whose queues and sockets were read after the start of this call. The daemon
    /// may answer with those of a reading before it.
    pub fn fresh_stats(&self, name: &str) -> Value {
        let start = Instant::now();
        wait::for_value("a new reading", || {
            let sent = start.elapsed().as_millis();
            let stats = self.json(&["stats", name]);
            stats["read_age_ms"].as_u64().is_some_and(|age| u128::from(age) < sent).then_some(stats)
        })
    }

    /// The statistics of all containers and of the host. They are equal to earlier ones if nothing was counted in
    /// between, so the age of readings is left out.
    pub fn counters(&self) -> Value {
        let mut stats = self.json(&["stats"]);
        for container in stats["containers"].as_array_mut().into_iter().flatten() {
            container["read_age_ms"].take();
        }
        stats
    }

    /// Changes a file in the state directory. Returns the previous content.
    pub fn change_state(&self, file: &str, change: impl FnOnce(&mut Value)) -> Value {
        let path = self.path("/run/portmap").join(file);
        let mut now = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
        let before = Value::clone(&now);
        change(&mut now);
        fs::write(&path, serde_json::to_vec(&now).expect("JSON")).expect("written");
        before
    }

    /// Restores a saved state directory as if the machine had rebooted since, and as if the kernel had
    /// assigned the identity of a container's namespace to another namespace of the same name.
    pub fn reboot(&self, kept: &str, name: &str) {
        self.sh(Netns::Host, &format!("cp -r {kept} /run/portmap"));
        self.change_state("host.json", |file| file["record"]["boot"] = "another".into());
        let id = self.namespace(Netns::Container(name)).id().expect("a namespace");
        let id = json!({ "device": id.device, "inode": id.inode, "cookie": id.cookie });
        self.change_state(&format!("containers/{name}.json"), |file| file["record"]["namespace"] = id);
    }

    /// Runs a `portmap` command that must fail with this exit code. Returns its error, which must be a
    /// single line.
    pub fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.portmap(arguments);
        let errors = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(code), "portmap {}: {errors}", arguments.join(" "));
        assert_eq!(errors.lines().count(), 1, "portmap {}: {errors}", arguments.join(" "));
        errors
    }

    /// Returns the number of packets from container `name` that were dropped for `reason`.
    pub fn dropped(&self, name: &str, reason: &str) -> u64 {
        self.json(&["stats", name])["drops"]["tx"][reason].as_u64().unwrap_or_default()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Too slow on emulated machines.
        if self.was_used.load(Ordering::Relaxed) && sample() == 1 && !std::thread::panicking() {
            self.expect_no_trace();
        }
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        // The next test may check for leftovers.
        let init = format!("/proc/{}", self.init);
        if !std::thread::panicking() {
            wait::until("the sandbox's init process to exit", || !Path::new(&init).exists());
        }
    }
}

/// Returns the path of a binary of the same build as the running one.
///
/// # Panics
///
/// Panics if it is not built.
pub fn binary(name: &str) -> PathBuf {
    find_binary(name).unwrap_or_else(|| panic!("{name} is not built: run this with `cargo xtask test`"))
}

/// Returns the path of a binary of the same build as the running one, if it is built.
pub fn find_binary(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().expect("an executable");
    own.ancestors().skip(1).map(|directory| directory.join(name)).find(|path| path.exists())
}
