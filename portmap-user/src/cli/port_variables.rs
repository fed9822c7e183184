//! The variables by which a command of `portmap run` learns its static ports.

use crate::model::{PortRange, PortRequest};

/// Most ports that get a variable each, `PORT0` to `PORT99`.
const MOST: usize = 100;

/// A variable to be set, or without a value to be removed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: Option<String>,
}

/// `PORT0`, `PORT1` and so on are the ports in the order of the request. `PORT_RANGE` is the first automatic range,
/// or without one the first range, always as `FIRST-LAST`. Variables that would name other ports are removed,
/// because they are those of the environment of `portmap run`.
pub(super) fn of(requested: &PortRequest, automatic: &[PortRange]) -> Vec<Variable> {
    let granted = requested.granted(automatic);
    let mut ports = granted.iter().flat_map(|range| range.first()..=range.last());
    let numbered = (0..MOST).map(|index| Variable {
        name: format!("PORT{index}"),
        value: ports.next().map(|port| port.to_string()),
    });
    let mut variables: Vec<Variable> = numbered.collect();
    let range = automatic.first().or(granted.first());
    variables.push(Variable {
        name: "PORT_RANGE".to_owned(),
        value: range.map(|range| format!("{}-{}", range.first(), range.last())),
    });
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variables that are set, as a shell prints them.
    fn set(request: &str, automatic: &[(u16, u16)]) -> Vec<String> {
        let ranges = automatic.iter().map(|(first, last)| PortRange::new(*first, *last).expect("a range"));
        let variables = of(&request.parse().expect("a request"), &ranges.collect::<Vec<_>>());
        assert_eq!(variables.len(), MOST + 1, "all others are removed");
        variables
            .into_iter()
            .filter_map(|variable| Some(format!("{}={}", variable.name, variable.value?)))
            .collect()
    }

    #[test]
    fn port_variables_are_in_the_order_of_the_request() {
        for (request, automatic, expected) in [
            ("auto:3", &[(31000, 31002)][..], "PORT0=31000 PORT1=31001 PORT2=31002 PORT_RANGE=31000-31002"),
            ("31500,auto:2", &[(31000, 31001)], "PORT0=31500 PORT1=31000 PORT2=31001 PORT_RANGE=31000-31001"),
            (
                "auto:1,auto:2",
                &[(31005, 31005), (31000, 31001)],
                "PORT0=31005 PORT1=31000 PORT2=31001 PORT_RANGE=31005-31005",
            ),
            ("31002,31000-31001", &[], "PORT0=31002 PORT1=31000 PORT2=31001 PORT_RANGE=31002-31002"),
            ("", &[], ""),
        ] {
            assert_eq!(set(request, automatic).join(" "), expected, "{request}");
        }
    }

    #[test]
    fn port_variables_are_bounded() {
        let variables = set("20000-29999", &[]);
        assert_eq!(variables.len(), MOST + 1);
        assert_eq!(variables.last().map(String::as_str), Some("PORT_RANGE=20000-29999"));
    }
}
