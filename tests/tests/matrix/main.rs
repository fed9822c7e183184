//! The matrix: kinds of uplinks, forms of addresses and forms of routes, each with each. In every combination a process
//! in a container must have what a process of the host has in the same place, connection by connection: who answers,
//! from which address it is seen, with which MTU, or which error it gets, at once or after a wait; and it is reached
//! as the host is.
//!
//! One world is made for each kind of uplink with each form of addresses. The forms of routes come and go there while
//! the daemon runs.

mod choice;
mod compare;
mod exceptions;
mod kinds;
mod place;
mod probe;
mod routes;
mod world;

use portmap_tests::{
    faults::sample,
    not_run,
    sandbox::{Netns, Sandbox},
};

use self::{
    choice::chosen,
    compare::expect_same,
    kinds::{Kind, lacks},
    place::{FORMS, Form},
    world::World,
};

/// Tries the chosen combinations of a kind of uplink.
fn matrix(kind: Kind) {
    if sample() > 1 && !kind.is_tried_on_emulated_machines() {
        not_run("a sample has only the kinds of uplinks that few kernels have");
        return;
    }
    let mut failures = Vec::new();
    let (mut combinations, mut comparisons) = (0, 0);
    for form in FORMS {
        let routes = chosen(kind, form);
        if routes.is_empty() {
            continue;
        }
        let sandbox = Sandbox::new();
        if kind.is_lacking(&sandbox) {
            return;
        }
        if form == Form::Dummy
            && let Some(error) = lacks(&sandbox, "dummy")
        {
            not_run(format!("this kernel has no dummy interfaces: {error}"));
            continue;
        }
        let world = World::new(sandbox, kind, form);
        for route in routes {
            let [up, down] = route.commands(world.net, form);
            world.sandbox.sh(Netns::Host, &up);
            combinations += 1;
            match expect_same(&world, route) {
                Ok(compared) => comparisons += compared,
                Err(failure) => failures.push(failure + &world.log()),
            }
            world.sandbox.sh(Netns::Host, &down);
        }
    }
    println!("{kind:?}: {combinations} combinations, {comparisons} comparisons");
    assert!(
        failures.is_empty(),
        "{} of {combinations} combinations\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn matrix_card() {
    matrix(Kind::Card);
}

#[test]
fn matrix_two_cards() {
    matrix(Kind::TwoCards);
}

#[test]
fn matrix_bridge() {
    matrix(Kind::Bridge);
}

#[test]
fn matrix_macvlan() {
    matrix(Kind::Macvlan);
}

#[test]
fn matrix_macvlan_parent() {
    matrix(Kind::MacvlanParent);
}

#[test]
fn matrix_tun() {
    matrix(Kind::Tun);
}

#[test]
fn matrix_bond() {
    matrix(Kind::Bond);
}

#[test]
fn matrix_vlan() {
    matrix(Kind::Vlan);
}

#[test]
fn matrix_vrf() {
    matrix(Kind::Vrf);
}

#[test]
fn matrix_wireguard() {
    matrix(Kind::WireGuard);
}
