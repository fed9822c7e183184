//! Container engines of Debian 12, as installed on the sandbox's host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use portmap_tests::{
    cache,
    sandbox::{Netns, Sandbox, binary},
    wait,
};

/// A directory of the sandbox, in memory.
pub(crate) const DIRECTORY: &str = "/run/engine";

/// Puts the engines, the plugin and its configuration where packages and users put them, over the machine's `/usr` and
/// `/etc` in the sandbox only, and makes a file system for containers.
const SET_UP: &str = r"
mkdir -p $DIR/usr/lib/cni $DIR/etc/cni/net.d $DIR/work $DIR/rootfs
(cd $DIR/rootfs; mkdir bin dev etc proc run sys tmp www)
ln -s $PLUGIN $DIR/usr/lib/cni/portmap-bpf
cp $CONFLIST $DIR/etc/cni/net.d/10-portmap.conflist
cp $(command -v busybox) $DIR/rootfs/bin/busybox
for name in httpd nc sh sleep wget; do ln -s busybox $DIR/rootfs/bin/$name; done
for name in web api one two; do mkdir $DIR/rootfs/www/$name; echo $name > $DIR/rootfs/www/$name/index.html; done
mount -t overlay overlay -o ro,lowerdir=$DIR/usr:$TREE/usr:/usr /usr
mount -t overlay overlay -o lowerdir=$TREE/etc:/etc,upperdir=$DIR/etc,workdir=$DIR/work /etc
";

/// The engines in a sandbox, and the name of the cgroup for their containers.
pub(crate) struct Engine<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) cgroup: String,
}

impl<'a> Engine<'a> {
    /// Installs the engines in a sandbox.
    pub(crate) fn new(sandbox: &'a Sandbox) -> Self {
        let tree = cache::file("tools/engines").filter(|tree| tree.is_dir());
        let tree = tree.expect("the engines are missing: run `cargo xtask setup run`");
        let variables = [
            ("DIR", PathBuf::from(DIRECTORY)),
            ("PLUGIN", binary("portmap-bpf")),
            ("CONFLIST", repository("contrib/cni/10-portmap.conflist")),
            ("TREE", tree),
        ];
        let assigned = variables.map(|(name, path)| format!("{name}='{}'\n", path.display())).concat();
        sandbox.sh(Netns::Host, &format!("{assigned}{SET_UP}"));
        Self { sandbox, cgroup: format!("portmap-test-engine-{}", sandbox.init()) }
    }

    /// Writes a file in [`DIRECTORY`].
    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.sandbox.path(DIRECTORY).join(name), content).expect("written");
    }

    /// Waits until the outside gets the page of a container's web server from a port of the host.
    pub(crate) fn expect_page(&self, port: u16, content: &str) {
        wait::until(&format!("{content} to serve port {port}"), || {
            self.get(port).is_some_and(|page| page == format!("{content}\n"))
        });
    }

    /// The page that the outside gets from a port of the host.
    fn get(&self, port: u16) -> Option<String> {
        let url = format!("http://10.0.0.1:{port}/");
        let output =
            self.sandbox.command(Netns::Outside, "curl").args(["-s", "--max-time", "5", &url]).output();
        let output = output.expect("it is installed");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The names of the daemon's containers.
    pub(crate) fn containers(&self) -> Vec<String> {
        let list = self.sandbox.json(&["list"]);
        let list = list.as_array().expect("a list").iter();
        list.map(|container| container["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Waits until the daemon has no container.
    pub(crate) fn expect_none(&self) {
        wait::until("the daemon to have no container", || self.containers().is_empty());
    }
}

impl Drop for Engine<'_> {
    /// Removes the cgroups of containers that have ended, in each hierarchy.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let own = hierarchy.path().join(&self.cgroup);
            wait::until("the cgroups to be empty", || !own.exists() || remove(&own).is_ok());
        }
    }
}

/// Removes a cgroup with its descendants.
fn remove(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Runs a command that must succeed. Returns its output without the last line break.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let text = printed(&output);
    assert!(output.status.success(), "{command:?}: {}: {text}", output.status);
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// All that a command has printed.
pub(crate) fn printed(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

/// The path of a file of this repository.
fn repository(path: &str) -> PathBuf {
    let tests = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests"));
    tests.parent().expect("the workspace").join(path)
}
