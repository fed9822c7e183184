//! What a hook may look up, and what it may write down for later packets.

use portmap_common::{
    limit::Limit,
    memory::{
        Echo, EchoKey, Fragment, FragmentKey4, FragmentKey6, HostFlow, HostFlowKey, Neighbour, NeighbourKey,
    },
    tables::{Address4, Config, Endpoint, PortEntry},
};

/// The maps, or a stand-in for them.
pub trait Tables {
    /// The owner of `port`.
    fn port(&self, port: u16) -> PortEntry;

    /// The container in `slot`; all zero if there is none.
    fn endpoint(&self, slot: u16) -> Endpoint;

    /// The host's addresses.
    fn config(&self) -> &Config;

    /// Nanoseconds of the monotonic clock.
    fn now(&self) -> u64;

    /// What the first fragment of an IPv4 datagram carried.
    fn fragment4(&self, key: &FragmentKey4) -> Option<Fragment>;

    /// Writes down what the first fragment of an IPv4 datagram carried.
    fn set_fragment4(&self, key: &FragmentKey4, fragment: &Fragment);

    /// What the first fragment of an IPv6 datagram carried.
    fn fragment6(&self, key: &FragmentKey6) -> Option<Fragment>;

    /// Writes down what the first fragment of an IPv6 datagram carried.
    fn set_fragment6(&self, key: &FragmentKey6, fragment: &Fragment);

    /// Who has asked for the echo with this key.
    fn echo(&self, key: &EchoKey) -> Option<Echo>;

    /// Writes down who asks for the echo with this key, whoever did before.
    fn set_echo(&self, key: &EchoKey, echo: &Echo);

    /// Writes down when the asker of the echo with this key has asked last.
    fn renew_echo(&self, key: &EchoKey, seen: u64);

    /// As [`Self::set_echo`], but if somebody else has the key by now, it returns false. `stale` is what may be replaced.
    fn claim_echo(&self, key: &EchoKey, echo: &Echo, stale: Option<Echo>) -> bool;

    /// Whether a port is one of the host's that containers may reach, where not all are.
    fn is_open(&self, port: u16) -> bool;

    /// When the host has sent something between two ports.
    fn host_flow(&self, key: &HostFlowKey) -> Option<HostFlow>;

    /// Writes down when the host has sent something between two ports.
    fn set_host_flow(&self, key: &HostFlowKey, flow: &HostFlow);

    /// When a container has asked for a neighbour.
    fn neighbour(&self, key: &NeighbourKey) -> Option<Neighbour>;

    /// Writes down when a container has asked for a neighbour.
    fn set_neighbour(&self, key: &NeighbourKey, neighbour: &Neighbour);

    /// Whether a slot may ask for one more neighbour now; if so, it has used up its part.
    fn may_ask(&self, slot: u16, now: u64) -> bool;

    /// Whether an address is a broadcast of one of the host's networks other than the shared one, if there are any.
    fn is_broadcast(&self, address: Address4) -> bool;

    /// The limit on what a slot sends, if it has one.
    fn limit(&self, slot: u16) -> Option<&Limit>;

    /// Moves the schedule of a slot on by so many nanoseconds, from the moment `now` if it is behind that, unless it is
    /// ahead of `now` by more than `slack`. Returns whether it has been moved.
    fn schedule(&self, slot: u16, time: u64, now: u64, slack: u64) -> bool;
}
