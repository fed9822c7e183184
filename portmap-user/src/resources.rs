//! Resources in the form that Mesos uses on its command line.

use crate::{
    error::{Error, Result},
    ports::PortSet,
};

/// What portmap understands of `ports:[31000-32000];ephemeral_ports:[32768-57344]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Static ports.
    pub ports: Option<PortSet>,
    /// Ephemeral ports.
    pub ephemeral_ports: Option<PortSet>,
}

/// Reads a resources string. Resources other than ports (`cpus:4`, `mem:1024`) are none of portmap's business and
/// are passed over, so that a Mesos agent's flag can be used as it is.
pub fn parse(text: &str) -> Result<Resources> {
    let mut resources = Resources::default();
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once(':') else {
            return Err(Error::usage(format!(
                "{part:?} in the resources {text:?} has no value: expected a form such as ports:[31000-32000]"
            )));
        };
        // Mesos allows a role behind the name: ports(*):[…].
        let name = name.split('(').next().unwrap_or_default().trim();
        let place = match name {
            "ports" => &mut resources.ports,
            "ephemeral_ports" => &mut resources.ephemeral_ports,
            _ => continue,
        };
        if place.is_some() {
            return Err(Error::usage(format!("the resources {text:?} name {name} twice")));
        }
        *place = Some(value.parse()?);
    }
    Ok(resources)
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
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.message.contains(part), "{text}: {error}");
        }
    }
}
