//! Resources in the form that Mesos uses on its command line.

use tracing::info;

use crate::{
    error::{Error, Result},
    ports::PortSet,
};

/// Resources that a Mesos agent has and portmap has no use for.
const OTHERS: [&str; 4] = ["cpus", "mem", "disk", "gpus"];
/// The form that is understood.
const EXPECTED: &str = "expected ports:[31000-32000];ephemeral_ports:[61440-65535]";

/// What portmap understands of `ports:[31000-32000];ephemeral_ports:[61440-65535]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Static ports.
    pub ports: Option<PortSet>,
    /// Ephemeral ports.
    pub ephemeral_ports: Option<PortSet>,
}

/// Reads a resources string. `cpus`, `mem`, `disk` and `gpus` are passed over, so that a Mesos agent's flag can be used as
/// it is; whatever else it has is refused, because ports under a name that is not understood would be missed.
pub fn parse(text: &str) -> Result<Resources> {
    let text = text.trim();
    if text.starts_with(['[', '{']) {
        return Err(Error::usage(format!("--resources {:?} are JSON: {EXPECTED}", beginning(text))));
    }
    if text.contains("://") {
        return Err(Error::usage(format!(
            "--resources {:?} name a file, which is not read: {EXPECTED}",
            beginning(text)
        )));
    }
    let mut resources = Resources::default();
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once(':') else {
            return Err(Error::usage(format!(
                "{:?} in --resources has no value: {EXPECTED}",
                beginning(part)
            )));
        };
        // Mesos allows a role behind the name: ports(*):[…].
        let name = name.split('(').next().unwrap_or_default().trim();
        let place = match name {
            "ports" => &mut resources.ports,
            "ephemeral_ports" => &mut resources.ephemeral_ports,
            _ if OTHERS.contains(&name) => {
                info!("--resources: {name} are none of portmap's business");
                continue;
            }
            _ => {
                return Err(Error::usage(format!(
                    "--resources has {:?}, which portmap does not know: {EXPECTED}; {} may be among them",
                    beginning(name),
                    OTHERS.join(", ")
                )));
            }
        };
        if place.is_some() {
            return Err(Error::usage(format!("--resources {:?} name {name} twice", beginning(text))));
        }
        let ports = value.parse().map_err(|error: Error| {
            Error::new(error.kind, format!("{name} in --resources: {}", error.message))
        })?;
        *place = Some(ports);
    }
    Ok(resources)
}

/// As much as fits into a line.
fn beginning(text: &str) -> String {
    const MOST: usize = 60;
    let begin: String = text.chars().take(MOST).collect();
    if begin.len() < text.len() { format!("{begin}…") } else { begin }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_ports_are_read() {
        let resources = parse("cpus:4;ports(*):[31000-32000, 33000];ephemeral_ports:[32768-57344];mem:100")
            .expect("resources");
        assert_eq!(resources.ports.expect("ports").to_string(), "31000-32000,33000");
        assert_eq!(resources.ephemeral_ports.expect("ports").to_string(), "32768-57344");
    }

    #[test]
    fn mistakes_are_named() {
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
