//! Builds the frame of a packet.

use std::net::IpAddr;

use etherparse::{IpNumber, PacketBuilder};
use portmap_common::tables::Mac;

use crate::{
    api::ExplainedPacket,
    error::{Context as _, Error, Result},
    model::Protocol,
};

/// Time to live.
const TTL: u8 = 64;
/// Identifier and sequence number of echo requests.
const ECHO: (u16, u16) = (1, 1);
/// Sequence number and window of TCP.
const TCP: (u32, u16) = (1, u16::MAX);
/// Payload. It is long enough for test runs, which refuse short frames.
const PAYLOAD: &[u8] = b"portmap explain";
/// Remainder of the transport header behind the ports, for protocols whose other fields do not matter.
const PADDING: [u8; 16] = [0; 16];

/// Returns the frame that carries a packet.
pub(super) fn build(packet: ExplainedPacket, from_mac: Mac, to_mac: Mac) -> Result<Vec<u8>> {
    let ExplainedPacket { protocol, source, source_port, destination, destination_port } = packet;
    let ethernet = PacketBuilder::ethernet2(from_mac.octets(), to_mac.octets());
    let ip = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), TTL)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), TTL)
        }
        _ => return Err(Error::usage("both addresses must be of one version of IP")),
    };
    let (from, to) = (source_port.unwrap_or_default(), destination_port.unwrap_or_default());
    let mut bytes = Vec::new();
    match protocol {
        Protocol::TCP => {
            ip.tcp(from, to, TCP.0, TCP.1).syn().write(&mut bytes, &[]).context(building)?;
        }
        Protocol::UDP => ip.udp(from, to).write(&mut bytes, PAYLOAD).context(building)?,
        Protocol::ICMP => {
            ip.icmpv4_echo_request(ECHO.0, ECHO.1).write(&mut bytes, PAYLOAD).context(building)?;
        }
        Protocol::ICMP6 => {
            ip.icmpv6_echo_request(ECHO.0, ECHO.1).write(&mut bytes, PAYLOAD).context(building)?;
        }
        Protocol(number) => {
            let payload = [&from.to_be_bytes()[..], &to.to_be_bytes(), &PADDING].concat();
            ip.write(&mut bytes, IpNumber(number), &payload).context(building)?;
        }
    }
    Ok(bytes)
}

fn building() -> String {
    "cannot build the packet".to_owned()
}
