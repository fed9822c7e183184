//! The matrix: kinds of uplinks, forms of addresses and forms of routes, each with each. In every combination a
//! process in a container must have what a process of the host has in the same place, connection by connection: who
//! answers, from which address it is seen, with which MTU, or which error it gets, at once or after a wait; and it is
//! reached as the host is.
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
mod server;
mod world;

use std::{panic::resume_unwind, thread};

use portmap_tests::{
    faults::sample,
    not_run,
    sandbox::{DAEMON_FLAGS, Netns, Sandbox},
};

use self::{
    choice::chosen,
    compare::expect_same,
    kinds::{Kind, lacks},
    place::{FORMS, Form},
    routes::Route,
    world::World,
};

/// Tries the chosen combinations of a kind of uplink, each form of addresses at the same time, because tests mostly
/// wait.
fn matrix(kind: Kind) {
    if sample() > 1 && !kind.is_tried_on_emulated_machines() {
        not_run("a sample has only the kinds of uplinks that few kernels have");
        return;
    }
    let trial = Sandbox::new();
    if kind.is_lacking(&trial) {
        return;
    }
    let no_dummy = lacks(&trial, "dummy");
    drop(trial);
    let mut forms: Vec<(Form, Vec<Route>)> = FORMS
        .map(|form| (form, chosen(kind, form)))
        .into_iter()
        .filter(|(_, routes)| !routes.is_empty())
        .collect();
    if let Some(error) = no_dummy {
        not_run(format!("this kernel has no dummy interfaces: {error}"));
        forms.retain(|(form, _)| *form != Form::Dummy);
    }
    let results: Vec<Result<usize, String>> = thread::scope(|scope| {
        let worlds: Vec<_> = forms
            .into_iter()
            .map(|(form, routes)| scope.spawn(move || in_world(kind, form, &routes)))
            .collect();
        worlds
            .into_iter()
            .flat_map(|world| world.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    let comparisons: usize = results.iter().flatten().sum();
    println!("{kind:?}: {} combinations, {comparisons} comparisons", results.len());
    let failures: Vec<&str> =
        results.iter().filter_map(|result| result.as_ref().err()).map(String::as_str).collect();
    assert!(
        failures.is_empty(),
        "{} of {} combinations\n{}",
        failures.len(),
        results.len(),
        failures.join("\n")
    );
}

/// Tries forms of routes, one after the other, in one world. Returns the number of comparisons of each, or what
/// differs.
fn in_world(kind: Kind, form: Form, routes: &[Route]) -> Vec<Result<usize, String>> {
    let world = World::new(Sandbox::new(), kind, form);
    let mut results = Vec::new();
    for route in routes {
        let [up, down] = route.commands(world.net, form);
        world.sandbox.sh(Netns::Host, &up);
        results.push(expect_same(&world, *route).map_err(|failure| failure + &world.log()));
        world.sandbox.sh(Netns::Host, &down);
    }
    results
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

/// The only host that is refused for its addresses.
#[test]
fn matrix_host_without_ipv4_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "ip -4 address flush dev uplink");
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    assert!(
        code == 2 && log.contains("the uplink uplink has no IPv4 address, nor has another interface"),
        "{log}"
    );
}
