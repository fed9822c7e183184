//! The differences that portmap has on purpose. docs/coexistence.md lists them.

use nix::errno::Errno;
use portmap_tests::service::Transport;

use super::{
    compare::Pair,
    kinds::Kind,
    place::{Form, MOVED},
    probe::Outcome,
    routes::{Effect, Route},
    world::World,
};

/// Whether a difference is one of these.
pub(crate) fn allow(world: &World, route: Route, pair: &Pair) -> bool {
    is_other_next_hop(route, pair)
        || is_within_the_host(world, pair)
        || is_datagram_without_a_bound_source(route, pair)
        || is_gateway_known_to_be_silent(route, pair)
        || is_own_address_in_a_vrf(world, pair)
}

/// A process of the host that is not in a VRF does not reach the host's addresses in it. A container reaches containers
/// by them, as by every shared address, but not the host.
fn is_own_address_in_a_vrf(world: &World, pair: &Pair) -> bool {
    let is_own = world.form.all(world.net).contains(&pair.probe.to.ip());
    world.kind == Kind::Vrf && pair.client.is_none() && is_own
}

/// Once the host's kernel knows that an IPv6 gateway does not answer, it takes a less specific route, if it is no
/// router itself. The programs' question to the FIB does not do that.
fn is_gateway_known_to_be_silent(route: Route, pair: &Pair) -> bool {
    let [Outcome::Answer { .. }, Outcome::Error { error: Errno::EHOSTUNREACH, .. }] = pair.outcomes else {
        return false;
    };
    route == Route::Silent && MOVED.contains(&pair.probe.to.ip()) && pair.probe.to.is_ipv6()
}

/// Rules by source apply to every packet of a container. On the host they do not apply to a datagram of a socket that
/// is bound to no address, because the kernel chooses its source after the route.
fn is_datagram_without_a_bound_source(route: Route, pair: &Pair) -> bool {
    route == Route::RuleFrom && pair.client.is_some() && pair.probe.transport == Transport::Udp
}

/// Within the host the container's packets cross its `eth0`, which has the uplink's MTU, and the host's only `lo`. To
/// a secondary address of an interface that is not the uplink the host connects from the first address of the
/// network, and the container from the secondary one.
fn is_within_the_host(world: &World, pair: &Pair) -> bool {
    let own = world.form.all(world.net);
    let [
        Outcome::Answer { from: host, seen: by_host, answered_from: to_host, .. },
        Outcome::Answer { from: container, seen: by_container, answered_from: to_container, .. },
    ] = &pair.outcomes
    else {
        return false;
    };
    let is_other_source =
        world.kind.is_further() && world.form == Form::Secondary && own.contains(by_container);
    pair.client.is_none()
        && own.contains(&pair.probe.to.ip())
        && host == container
        && (is_other_source || (by_host, to_host) == (by_container, to_container))
}

/// No difference in fact: of several next hops the kernel chooses by a hash, for IPv6 with a random flow label, so
/// two connections of the host itself go different ways.
fn is_other_next_hop(route: Route, pair: &Pair) -> bool {
    let [
        Outcome::Answer { seen: host, answered_from: to_host, mtu: host_mtu, .. },
        Outcome::Answer { seen: container, answered_from: to_container, mtu: container_mtu, .. },
    ] = &pair.outcomes
    else {
        return false;
    };
    route.effect() == Effect::Either
        && MOVED.contains(&pair.probe.to.ip())
        && (host, to_host, host_mtu) == (container, to_container, container_mtu)
}
