//! Frames built by Scapy, which implements the headers that this test suite does not.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
};

use portmap_tests::sandbox::{Netns, Sandbox};

/// Prologue of every script: addresses, and a function that names a frame.
///
/// `out` builds a frame as the outside peer sends it to the host, `own` one as a container sends it through
/// its `eth0`.
const PRELUDE: &str = r#"
import logging
logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import *
from scapy.layers.inet6 import *
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import *
from scapy.packet import Raw
HOST, OUTSIDE, FAR = "10.0.0.1", "10.0.0.2", "192.0.2.1"
HOST6, OUTSIDE6, FAR6 = "2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:f::1"
HOST_MAC, OUTSIDE_MAC = "02:00:00:00:01:01", "02:00:00:00:01:02"
def name(text, frame):
    print(bytes(frame).hex(), text)
def out(packet):
    return Ether(src=OUTSIDE_MAC, dst=HOST_MAC) / packet
def own(packet):
    return Ether(src=HOST_MAC, dst=HOST_MAC) / packet
"#;

/// Frames by the names that a script assigns.
#[derive(Debug)]
pub(crate) struct Frames(BTreeMap<String, Vec<u8>>);

impl Frames {
    /// Returns the frames that a Python script builds. The result is cached, because Scapy takes ten
    /// seconds to start on an emulated machine.
    pub(crate) fn of(sandbox: &Sandbox, script: &str) -> Self {
        let script = format!("{PRELUDE}{script}");
        let mut hasher = DefaultHasher::new();
        script.hash(&mut hasher);
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("scapy-{:016x}", hasher.finish()));
        let text = fs::read_to_string(&kept).unwrap_or_else(|_none| {
            let text = run(sandbox, &script);
            // Written atomically, because another test may use the same cache.
            let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
            fs::write(&file, &text).expect("written");
            file.persist(&kept).expect("kept");
            text
        });
        Self(text.lines().map(|line| line.split_once(' ').expect("two words")).map(parse).collect())
    }

    /// Returns the frame with this name.
    pub(crate) fn get(&self, name: &str) -> &[u8] {
        self.0.get(name).unwrap_or_else(|| panic!("no frame {name:?}"))
    }

    /// Returns all frames in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }
}

fn run(sandbox: &Sandbox, script: &str) -> String {
    // Debian's package belongs to Debian's interpreter, which need not be the first one in PATH.
    let mut command = sandbox.command(Netns::Host, "/usr/bin/python3");
    let output = command.args(["-c", script]).output().expect("Debian's Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn parse((hexadecimal, name): (&str, &str)) -> (String, Vec<u8>) {
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("digits");
        u8::from_str_radix(pair, 16).expect("hexadecimal digits")
    };
    (name.to_owned(), hexadecimal.as_bytes().chunks(2).map(byte).collect())
}
