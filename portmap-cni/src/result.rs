//! The result of ADD, in each version of CNI.

use portmap::api::Container;
use serde_json::{Map, Value, json};

use crate::{config::Config, error::Result, keys, version::Version};

/// Index of the container's interface in the list of interfaces.
const OF_CONTAINER: usize = 0;

/// The result of ADD for a container. `netns` is the path by which the runtime knows its namespace.
///
/// # Errors
///
/// If the configuration's DNS settings are not of their form.
pub(crate) fn of_add(config: &Config, container: &Container, netns: &str) -> Result<Value> {
    let (version, dns) = (config.version, dns(config)?);
    let text = version.text();
    let v4 = format!("{}/32", container.ip);
    let v6 = container.ip6.map(|address| format!("{address}/128"));
    if version < Version::V0_3_0 {
        let mut result =
            json!({ "cniVersion": text, "ip4": { "ip": v4, "routes": [{ "dst": DEFAULT_V4 }] }, "dns": dns });
        if let Some(v6) = v6 {
            result["ip6"] = json!({ "ip": v6, "routes": [{ "dst": DEFAULT_V6 }] });
        }
        return Ok(result);
    }
    let mut interfaces = vec![
        json!({ "name": container.interface, "mac": container.mac, "sandbox": netns }),
        json!({ "name": container.host_veth, "mac": container.mac }),
    ];
    if version >= Version::V1_1_0 {
        for interface in &mut interfaces {
            interface["mtu"] = container.mtu.into();
        }
    }
    // Runtimes take the first address for the main one.
    let addresses = [Some(("4", v4, DEFAULT_V4)), v6.map(|v6| ("6", v6, DEFAULT_V6))];
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for (ip_version, address, default) in addresses.into_iter().flatten() {
        let mut ip = json!({ "address": address, "interface": OF_CONTAINER });
        if version < Version::V1_0_0 {
            ip["version"] = ip_version.into();
        }
        ips.push(ip);
        routes.push(json!({ "dst": default }));
    }
    Ok(json!({ "cniVersion": text, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": dns }))
}

/// Destinations of the default routes. They have no gateway, because the host routes what containers send.
const DEFAULT_V4: &str = "0.0.0.0/0";
/// See [`DEFAULT_V4`].
const DEFAULT_V6: &str = "::/0";

/// The DNS settings of the configuration, and in their place those of the runtime.
fn dns(config: &Config) -> Result<Value> {
    // The keys of results, with those of the runtime's configuration.
    const LISTS: [(&str, &str); 3] =
        [("nameservers", "servers"), ("search", "searches"), ("options", "options")];
    let mut dns = Map::new();
    if let Some(configured) = keys::object(&config.object, "dns")? {
        if let Some(domain) = keys::text(configured, "domain")? {
            dns.insert("domain".to_owned(), domain.into());
        }
        for (key, _) in LISTS {
            dns.insert(key.to_owned(), keys::texts(configured, key)?.into());
        }
    }
    let of_runtime = config.runtime()?.map(|runtime| keys::object(runtime, "dns")).transpose()?.flatten();
    if let Some(of_runtime) = of_runtime {
        for (key, spelling) in LISTS {
            let texts = keys::texts(of_runtime, spelling)?;
            if !texts.is_empty() {
                dns.insert(key.to_owned(), texts.into());
            }
        }
    }
    dns.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
    Ok(dns.into())
}
