//! Port resources in the syntax of Mesos' `--resources` flag.

use tracing::info;

use super::ports::PortSet;
use crate::error::{Error, Result};

/// Resources of a Mesos agent that portmap ignores.
const IGNORED: [&str; 4] = ["cpus", "mem", "disk", "gpus"];
/// The supported syntax.
const EXPECTED: &str = "expected ports:[31000-32000];ephemeral_ports:[61440-65535]";

/// Ports of a resources string such as `ports:[31000-32000];ephemeral_ports:[61440-65535]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Static ports.
    pub ports: Option<PortSet>,
    /// Ephemeral ports.
    pub ephemeral_ports: Option<PortSet>,
}

/// Parses a resources string. `cpus`, `mem`, `disk` and `gpus` are ignored, so that a Mesos agent's flag can
/// be used unchanged. Any other name is an error, because ports under a misspelt name would be lost silently.
pub fn parse(text: &str) -> Result<Resources> {
    let text = text.trim();
    if text.starts_with(['[', '{']) {
        return Err(Error::usage(format!("--resources {:?} is JSON: {EXPECTED}", truncated(text))));
    }
    if text.contains("://") {
        return Err(Error::usage(format!(
            "--resources {:?} names a file, which portmap does not read: {EXPECTED}",
            truncated(text)
        )));
    }
    let mut resources = Resources::default();
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once(':') else {
            return Err(Error::usage(format!(
                "{:?} in --resources has no value: {EXPECTED}",
                truncated(part)
            )));
        };
        // Mesos allows a role after the name: ports(*):[…].
        let name = name.split('(').next().unwrap_or_default().trim();
        let slot = match name {
            "ports" => &mut resources.ports,
            "ephemeral_ports" => &mut resources.ephemeral_ports,
            _ if IGNORED.contains(&name) => {
                info!("--resources: ignoring {name}");
                continue;
            }
            _ => {
                return Err(Error::usage(format!(
                    "--resources contains {:?}, which portmap does not support: {EXPECTED}; {} are ignored",
                    truncated(name),
                    IGNORED.join(", ")
                )));
            }
        };
        if slot.is_some() {
            return Err(Error::usage(format!("--resources {:?} names {name} twice", truncated(text))));
        }
        let ports = value.parse().map_err(|error: Error| {
            Error::new(error.kind, format!("{name} in --resources: {}", error.message))
        })?;
        *slot = Some(ports);
    }
    Ok(resources)
}

/// Truncates a value to a length that fits into one line.
fn truncated(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    let begin: String = text.chars().take(MAX_CHARS).collect();
    if begin.len() < text.len() { format!("{begin}…") } else { begin }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_have_both_kinds_of_ports() {
        let resources = parse("cpus:4;ports(*):[31000-32000, 33000];ephemeral_ports:[32768-57344];mem:100")
            .expect("resources");
        assert_eq!(resources.ports.expect("ports").to_string(), "31000-32000,33000");
        assert_eq!(resources.ephemeral_ports.expect("ports").to_string(), "32768-57344");
    }

    #[test]
    fn resources_parse_error_names_the_value() {
        for (text, part) in [
            ("ports", "\"ports\""),
            ("ports:[1-2];ports:[3]", "twice"),
            ("ports:[1-70000]", "65535"),
            ("ephemeral_ports:[2-1]", "reversed"),
            ("port:[31000-32000]", "\"port\""),
            ("PORTS:[31000-32000]", "\"PORTS\""),
            ("ports:[1-2];disks:10", "\"disks\""),
            ("[{\"name\":\"ports\",\"type\":\"RANGES\"}]", "JSON"),
            (" {\"resources\":[]}", "JSON"),
            ("file:///etc/mesos/resources.json", "file"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.message.contains(part) && error.message.contains("--resources"), "{text}: {error}");
        }
    }
}
