//! Containers of the reference plugins of the Container Network Interface: `ptp`, chained with `bandwidth`.

use std::{io::Write as _, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use portmap_tests::sandbox::{Netns, Sandbox};
use serde_json::{Value, json};

/// Directory of Debian's package `containernetworking-plugins`.
const PLUGINS: &str = "/usr/lib/cni";
const VERSION: &str = "0.4.0";
/// Burst in bits, which the plugin requires: a few dozen full frames.
const BURST: u64 = 400_000;

/// Returns the reason why the plugins cannot run here, if there is one.
pub(crate) fn why_not() -> Option<String> {
    let missing = ["ptp", "host-local", "bandwidth"]
        .into_iter()
        .find(|plugin| !Path::new(PLUGINS).join(plugin).exists());
    missing.map(|plugin| format!("{PLUGINS}/{plugin} is missing: install containernetworking-plugins"))
}

/// Creates a container, with an egress limit in bits per second.
pub(crate) fn add(sandbox: &Sandbox, name: &str, limit: Option<u64>) -> Result<()> {
    sandbox.sh(Netns::Host, &format!("ip netns add {name}"));
    // These containers have addresses of their own, so outside needs a route.
    sandbox.sh(Netns::Outside, "ip route replace 10.22.0.0/24 via 10.0.0.1");
    let conf = json!({
        "cniVersion": VERSION, "name": "bench", "type": "ptp", "ipMasq": false,
        "ipam": {
            "type": "host-local", "subnet": "10.22.0.0/24", "dataDir": "/run/cni",
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    let result = call(sandbox, name, "ptp", &conf)?;
    if let Some(limit) = limit {
        let conf = json!({
            "cniVersion": VERSION, "name": "bench", "type": "bandwidth",
            "egressRate": limit, "egressBurst": BURST, "prevResult": result,
        });
        call(sandbox, name, "bandwidth", &conf)?;
    }
    Ok(())
}

fn call(sandbox: &Sandbox, name: &str, plugin: &str, conf: &Value) -> Result<Value> {
    let mut process = sandbox
        .command(Netns::Host, Path::new(PLUGINS).join(plugin))
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", name)
        .env("CNI_NETNS", format!("/run/netns/{name}"))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", PLUGINS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    process.stdin.take().context("it is piped")?.write_all(conf.to_string().as_bytes())?;
    let output = process.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "the CNI plugin {plugin} failed: {text}");
    Ok(serde_json::from_str(&text)?)
}
