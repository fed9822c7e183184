//! `portmap explain`: the request's flags and the output.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::Args;

use super::output::{self, Output};
use crate::{
    api::{ExplainRequest, ExplainedPacket, Explanation, endpoint},
    error::{Error, Result},
    model::Protocol,
};

/// Help of `--to`.
const TO_HELP: &str =
    "Its destination, such as 10.0.0.1:80 or [fd00::1]:80; without a port for protocols that have none";

/// The packet's flags.
#[derive(Args, Debug)]
pub(super) struct Question {
    /// Its sender: outside, host or a container's name
    #[arg(long, value_name = "WHO")]
    from: String,
    /// Its source address [default: the one that the sender would use]
    #[arg(long, value_name = "ADDRESS")]
    src: Option<IpAddr>,
    /// Its source port [default: one that the sender owns]
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    // Not a doc comment: `--help` would print its backticks.
    #[arg(long, value_name = "ADDRESS[:PORT]", help = TO_HELP)]
    to: Target,
    /// Its protocol: tcp, udp, udplite, sctp, dccp, icmp or icmp6 (an echo request), or a number
    #[arg(long, value_name = "PROTOCOL", default_value_t)]
    proto: Protocol,
}

impl Question {
    /// The API request.
    pub(super) fn request(self) -> ExplainRequest {
        ExplainRequest {
            from: self.from,
            protocol: self.proto,
            source: self.src,
            source_port: self.sport,
            destination: self.to.address,
            destination_port: self.to.port,
        }
    }
}

/// An address with an optional port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { address: address.ip(), port: Some(address.port()) });
        }
        let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let address = inside.unwrap_or(text).parse();
        address.map(|address| Self { address, port: None }).map_err(|_unparsed| {
            Error::usage(format!(
                "{text:?} is not a destination: expected an address with or without a port, such as 10.0.0.1:80 or \
                 [fd00::1]:80"
            ))
        })
    }
}

/// Prints the verdicts. An error if a loaded program and the decision code disagree.
pub(super) fn print(output: Output, explanation: &Explanation) -> Result<()> {
    output::print(output, explanation, || described(explanation))?;
    let disagreement =
        explanation.steps.iter().find_map(|step| step.decision_code.as_ref().map(|code| (step, code)));
    match disagreement {
        None => Ok(()),
        Some((step, code)) => Err(Error::failure(format!(
            "the loaded program {} decides {:?}, but portmapd's decision code {:?}: restart portmapd, which loads \
             its own programs",
            step.program, step.outcome.text, code.text
        ))),
    }
}

fn described(explanation: &Explanation) -> String {
    let ExplainedPacket { protocol, source, source_port, destination, destination_port } = explanation.packet;
    let (source, destination) = (endpoint(source, source_port), endpoint(destination, destination_port));
    let mut text = format!("{protocol} {source} > {destination}\n\n");
    if !explanation.steps.is_empty() {
        let mut table = output::plain();
        table.add_row(["HOOK", "PROGRAM", "VERDICT"]);
        for step in &explanation.steps {
            table.add_row([&step.hook, &step.program, &step.outcome.text]);
            if let Some(code) = &step.decision_code {
                table.add_row(["", "(decision code)", &code.text]);
            }
        }
        text += &output::text(table);
        text += "\n\n";
    }
    text += if explanation.agrees {
        &explanation.outcome.text
    } else {
        "the loaded program and the decision code DISAGREE"
    };
    for note in &explanation.notes {
        text += "\n\nnote: ";
        text += note;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explain_destination_is_parsed() {
        let target = |address: &str, port| Ok(Target { address: address.parse().expect("an address"), port });
        assert_eq!("10.0.0.1:80".parse(), target("10.0.0.1", Some(80)));
        assert_eq!("10.0.0.1".parse(), target("10.0.0.1", None));
        assert_eq!("[fd00::1]:80".parse(), target("fd00::1", Some(80)));
        assert_eq!("[fd00::1]".parse(), target("fd00::1", None));
        assert_eq!("fd00::1".parse(), target("fd00::1", None));
        for text in ["", "web", "10.0.0.1:", "10.0.0.1:65536", "10.0.0", "[fd00::1", ":80"] {
            let error = text.parse::<Target>().expect_err(text);
            assert!(
                error.message.contains(&format!("{text:?}")) && error.message.contains("expected"),
                "{error}"
            );
        }
    }
}
