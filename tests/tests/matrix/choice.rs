//! Which combinations exist, and which of them a run tries.

use std::env;

use portmap_tests::faults::sample;

use super::{
    kinds::{KINDS, Kind},
    place::{FORMS, Form},
    routes::{ROUTES, Route},
};

/// Without `PORTMAP_SAMPLE`, a run tries every fourth form of routes of each kind of uplink with each form of
/// addresses. The forms rotate, so that every pair of two of the three properties is tried.
const STRIDE: usize = 4;

/// Why a combination does not exist.
pub(crate) fn invalid(kind: Kind, form: Form, route: Route) -> Option<&'static str> {
    match route {
        _ if kind == Kind::Vrf && form == Form::Dummy => {
            Some("an address of an interface outside of a VRF is none of the VRF's")
        }
        Route::Source if form.further(kind.net()).is_none() => {
            Some("there is no second address that a route could prefer")
        }
        Route::Multipath if kind.is_tunnel() => Some("both next hops would be the one end of the tunnel"),
        Route::LinkLocalGateway if kind.is_tunnel() => {
            Some("a tunnel has no neighbours, so that a gateway by another IP version is a device route")
        }
        Route::Silent if kind.is_tunnel() => Some("a tunnel has no neighbours that could fail to answer"),
        _ => None,
    }
}

/// The forms of routes that this run tries on a kind of uplink with a form of addresses.
pub(crate) fn chosen(kind: Kind, form: Form) -> Vec<Route> {
    chosen_of(kind, form, stride())
}

fn stride() -> usize {
    if env::var("PORTMAP_MATRIX").is_ok_and(|wanted| wanted == "all") { 1 } else { sample().max(STRIDE) }
}

fn chosen_of(kind: Kind, form: Form, stride: usize) -> Vec<Route> {
    let of_routes = stride.min(STRIDE);
    // The rest of a larger stride is left to whole worlds, which are slow to make.
    let of_forms = stride / of_routes;
    let place = |all: Option<usize>| all.expect("the list is complete");
    let first = place(KINDS.iter().position(|other| *other == kind))
        + place(FORMS.iter().position(|other| *other == form));
    if !first.is_multiple_of(of_forms) {
        return Vec::new();
    }
    let numbered = ROUTES.into_iter().enumerate();
    numbered
        .filter(|(number, _)| (first / of_forms + number).is_multiple_of(of_routes))
        .map(|(_, route)| route)
        .filter(|route| invalid(kind, form, *route).is_none())
        .collect()
}

/// In all, and in a sample of the first six kinds, which every kernel has.
#[test]
fn matrix_has_hundreds_of_combinations() {
    let count = |kinds: &[Kind], stride| -> usize {
        let all = kinds.iter().flat_map(|kind| FORMS.map(|form| (*kind, form)));
        all.map(|(kind, form)| chosen_of(kind, form, stride).len()).sum()
    };
    assert!(count(&KINDS, 1) > 1000, "{}", count(&KINDS, 1));
    assert!(count(&KINDS[..6], STRIDE) > 100, "{}", count(&KINDS[..6], STRIDE));
}

/// A sample has every pair of two properties that exists.
#[test]
fn matrix_sample_has_every_pair() {
    let tried: Vec<(Kind, Form, Route)> = KINDS
        .into_iter()
        .flat_map(|kind| FORMS.map(|form| (kind, form)))
        .flat_map(|(kind, form)| {
            chosen_of(kind, form, STRIDE).into_iter().map(move |route| (kind, form, route))
        })
        .collect();
    for kind in KINDS {
        let is_valid = |form: &Form| ROUTES.iter().any(|route| invalid(kind, *form, *route).is_none());
        for form in FORMS.into_iter().filter(is_valid) {
            assert!(tried.iter().any(|it| (it.0, it.1) == (kind, form)), "{kind:?} {form:?}");
            for route in ROUTES {
                if invalid(kind, form, route).is_none() {
                    // Two forms of addresses have a second address, so not each kind meets a route that prefers it.
                    let is_rare = route == Route::Source;
                    assert!(
                        is_rare || tried.iter().any(|it| (it.0, it.2) == (kind, route)),
                        "{kind:?} {route:?}"
                    );
                    assert!(tried.iter().any(|it| (it.1, it.2) == (form, route)), "{form:?} {route:?}");
                }
            }
        }
    }
}
