//! Classes of ICMP messages, which both IP versions have.

/// Class of an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpMessage {
    /// An echo request.
    EchoRequest,
    /// An echo reply.
    EchoReply,
    /// An error about a packet, which it contains.
    Error {
        /// Whether only routers have reason to send it, not the packet's receiver.
        by_router: bool,
    },
    /// IPv6 neighbour discovery.
    Neighbour,
    /// Anything else.
    Other,
}
