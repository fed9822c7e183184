//! Resources in the forms of Mesos' `--resources` flag: text and JSON.

use std::collections::BTreeSet;

use serde::Deserialize;
use tracing::info;

use super::ports::PortSet;
use crate::error::{Error, Result};

/// Resources of a Mesos agent that portmap ignores.
const IGNORED: [&str; 3] = ["mem", "disk", "gpus"];
/// The role of resources without one.
const ANY_ROLE: &str = "*";
/// The supported syntax.
const EXPECTED: &str = "expected ports:[31000-32000];ephemeral_ports:[61440-65535], or Mesos' JSON";

/// Resources such as `cpus:8;ports:[31000-32000];ephemeral_ports:[61440-65535]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// Static ports.
    pub ports: Option<PortSet>,
    /// Ephemeral ports.
    pub ephemeral_ports: Option<PortSet>,
    /// The host's CPUs, among which `auto` divides the link's speed.
    pub cpus: Option<f64>,
}

/// Parses resources. `mem`, `disk` and `gpus` are ignored, so that a Mesos agent's flag can be used unchanged.
/// Any other name is an error, because ports under a misspelt name would be lost silently. Resources of
/// several roles are added up.
///
/// # Errors
///
/// Names the value and the expectation.
pub fn parse(text: &str) -> Result<Resources> {
    let text = text.trim();
    if text.starts_with(['[', '{']) {
        return from_json(text);
    }
    if text.contains("://") {
        return Err(Error::usage(format!(
            "--resources {:?} names a file, which portmap does not read: {EXPECTED}",
            truncated(text)
        )));
    }
    let mut found = Found::default();
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once(':') else {
            return Err(Error::usage(format!(
                "{:?} in --resources has no value: {EXPECTED}",
                truncated(part)
            )));
        };
        // Mesos allows a role after the name: ports(*):[…].
        let (name, role) = name.split_once('(').unwrap_or((name, ANY_ROLE));
        let (name, role) = (name.trim(), role.trim_end_matches([')', ' ']));
        match found.field(name, role)? {
            None => {}
            Some(Field::Cpus(cpus)) => {
                add_cpus(cpus, value.trim().parse().unwrap_or(f64::NAN)).map_err(inside(name))?;
            }
            Some(Field::Ports(ports)) => add_ports(ports, &value.parse().map_err(inside(name))?),
        }
    }
    Ok(found.resources)
}

/// A resource in Mesos' JSON. Fields that do not matter here (reservations, providers) are ignored.
#[derive(Deserialize)]
struct Resource {
    name: String,
    #[serde(default)]
    role: Option<String>,
    #[serde(rename = "type")]
    type_name: String,
    #[serde(default)]
    ranges: Option<Ranges>,
    #[serde(default)]
    scalar: Option<Scalar>,
}

#[derive(Deserialize)]
struct Ranges {
    #[serde(default)]
    range: Vec<Range>,
}

#[derive(Deserialize)]
struct Range {
    begin: u64,
    end: u64,
}

#[derive(Deserialize)]
struct Scalar {
    value: f64,
}

/// Mesos accepts a list, and an object with the list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    resources: Vec<Resource>,
}

fn from_json(text: &str) -> Result<Resources> {
    let list = if text.starts_with('{') {
        serde_json::from_str(text).map(|List { resources }| resources)
    } else {
        serde_json::from_str(text)
    };
    let list: Vec<Resource> = list.map_err(|error| {
        Error::usage(format!(
            "--resources {:?} is not a list of resources in JSON: {error}; expected \
             [{{\"name\":\"ports\",\"type\":\"RANGES\",\"ranges\":{{\"range\":[{{\"begin\":31000,\"end\":32000}}]}}}}]",
            truncated(text)
        ))
    })?;
    let mut found = Found::default();
    for Resource { name, role, type_name, ranges, scalar } in list {
        match found.field(&name, role.as_deref().unwrap_or(ANY_ROLE))? {
            None => {}
            Some(Field::Cpus(cpus)) => {
                let value = scalar.filter(|_| type_name == "SCALAR").map(|scalar| scalar.value);
                let value = value.ok_or_else(|| wrong_type("SCALAR with scalar", &type_name));
                value.and_then(|value| add_cpus(cpus, value)).map_err(inside(&name))?;
            }
            Some(Field::Ports(ports)) => {
                let ranges = ranges.filter(|_| type_name == "RANGES");
                let ranges = ranges.ok_or_else(|| wrong_type("RANGES with ranges", &type_name));
                let more = ranges.and_then(|ranges| ports_of(&ranges.range)).map_err(inside(&name))?;
                add_ports(ports, &more);
            }
        }
    }
    Ok(found.resources)
}

fn wrong_type(expected: &str, found: &str) -> Error {
    Error::usage(format!("the type {:?}: expected {expected}", truncated(found)))
}

fn ports_of(ranges: &[Range]) -> Result<PortSet> {
    let port = |number: u64| match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Error::usage(format!("{number} is not a port: expected one between 1 and 65535"))),
    };
    let bounds = ranges.iter().map(|Range { begin, end }| Ok((port(*begin)?, port(*end)?)));
    bounds.collect::<Result<Vec<_>>>()?.try_into()
}

/// A resource that portmap uses, as found so far.
enum Field<'a> {
    Ports(&'a mut Option<PortSet>),
    Cpus(&'a mut Option<f64>),
}

/// The resources so far.
#[derive(Default)]
struct Found {
    resources: Resources,
    /// Their names and roles.
    names: BTreeSet<(String, String)>,
}

impl Found {
    /// The resource with this name; `None` if it is ignored.
    fn field(&mut self, name: &str, role: &str) -> Result<Option<Field<'_>>> {
        let field = match name {
            "ports" => Field::Ports(&mut self.resources.ports),
            "ephemeral_ports" => Field::Ports(&mut self.resources.ephemeral_ports),
            "cpus" => Field::Cpus(&mut self.resources.cpus),
            _ if IGNORED.contains(&name) => {
                info!("--resources: ignoring {name}");
                return Ok(None);
            }
            _ => {
                return Err(Error::usage(format!(
                    "--resources contains {:?}, which portmap does not support: {EXPECTED}; {} are ignored",
                    truncated(name),
                    IGNORED.join(", ")
                )));
            }
        };
        if !self.names.insert((name.to_owned(), role.to_owned())) {
            return Err(Error::usage(format!(
                "--resources names {name} twice for role {:?}: expected one entry with all of them",
                truncated(role)
            )));
        }
        Ok(Some(field))
    }
}

fn add_ports(ports: &mut Option<PortSet>, more: &PortSet) {
    *ports = Some(ports.take().unwrap_or_default().union(more));
}

fn add_cpus(cpus: &mut Option<f64>, more: f64) -> Result<()> {
    if !(0.0..=1_000_000.0).contains(&more) {
        return Err(Error::usage("not a number of CPUs: expected one such as 8 or 0.5"));
    }
    *cpus = Some(cpus.unwrap_or_default() + more);
    Ok(())
}

/// Adds the name of a resource to an error.
fn inside(name: &str) -> impl Fn(Error) -> Error {
    move |error| Error::new(error.kind, format!("{name} in --resources: {}", error.message))
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

    fn shown(text: &str) -> (String, String, Option<f64>) {
        let Resources { ports, ephemeral_ports, cpus } = parse(text).expect(text);
        let text = |ports: Option<PortSet>| ports.map_or_else(|| "-".to_owned(), |ports| ports.to_string());
        (text(ports), text(ephemeral_ports), cpus)
    }

    #[test]
    fn resources_have_both_kinds_of_ports_and_cpus() {
        let expected = ("31000-32000,33000".to_owned(), "32768-57344".to_owned(), Some(4.5));
        let json = concat!(
            r#"[{"name":"ports","type":"RANGES","role":"*","ranges":{"range":[{"begin":31000,"end":32000},"#,
            r#"{"begin":33000,"end":33000}]}},"#,
            r#"{"name":"ephemeral_ports","type":"RANGES","ranges":{"range":[{"begin":32768,"end":57344}]}},"#,
            r#"{"name":"cpus","type":"SCALAR","scalar":{"value":4.5},"allocation_info":{"role":"x"}},"#,
            r#"{"name":"mem","type":"SCALAR","scalar":{"value":100}}]"#
        );
        for text in [
            "cpus:4.5;ports(*):[31000-32000, 33000];ephemeral_ports:[32768-57344];mem:100",
            "cpus(*):4;cpus(a):0.5; ports(a) : [31000-32000];ports(b):[33000];ephemeral_ports:[32768-57344]",
            json,
            &format!(" {{\"resources\":{json}}}"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        assert_eq!(shown("[]"), ("-".to_owned(), "-".to_owned(), None));
    }

    #[test]
    fn resources_parse_error_names_the_value() {
        let json = |resource: &str| format!("[{{\"name\":{resource}}}]");
        let ports = |range: &str| json(&format!(r#""ports","type":"RANGES","ranges":{{"range":[{range}]}}"#));
        for (text, part) in [
            ("ports", "\"ports\""),
            ("ports:[1-2];ports:[3]", "ports twice"),
            ("ports(*):[1-2];ports:[3]", "ports twice"),
            ("ports:[1-70000]", "65535"),
            ("ephemeral_ports:[2-1]", "reversed"),
            ("port:[31000-32000]", "\"port\""),
            ("PORTS:[31000-32000]", "\"PORTS\""),
            ("ports:[1-2];disks:10", "\"disks\""),
            ("cpus:many", "cpus in --resources: not a number"),
            ("cpus:-1", "cpus in --resources: not a number"),
            ("[{\"name\":\"ports\"", "not a list of resources in JSON: EOF"),
            (r#"{"ports":[]}"#, "unknown field"),
            (&json(r#""ports""#), "missing field `type`"),
            (&json(r#""ports","type":"SCALAR","scalar":{"value":1}"#), "\"SCALAR\": expected RANGES"),
            (&json(r#""cpus","type":"SCALAR""#), "\"SCALAR\": expected SCALAR with scalar"),
            (&json(r#""port","type":"RANGES""#), "\"port\""),
            (&ports(r#"{"begin":1,"end":70000}"#), "70000 is not a port"),
            (&ports(r#"{"begin":0,"end":5}"#), "0 is not a port"),
            (&ports(r#"{"begin":5,"end":4}"#), "[5,4] is reversed"),
            (&ports(r#"{"begin":-1,"end":4}"#), "-1"),
            ("file:///etc/mesos/resources.json", "file"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.message.contains(part) && error.message.contains("--resources"), "{text}: {error}");
        }
    }
}
