//! Comparison of a container with a process of the host in the same place.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use portmap_tests::{
    sandbox::{Netns, OUTSIDE, OUTSIDE6},
    service::Transport,
    wait,
};

use super::{
    exceptions,
    place::{BEYOND, CLOSED, FOREIGN_GATEWAY, GATEWAY, MOVED, ON_LINK, PORT, SERVICE, UNUSED},
    probe::{Outcome, Probe},
    routes::{Effect, Route},
    world::{A, OTHER_MACHINE, World},
};

/// Time for which a client that gets errors waits: longer than the kernel needs to give up a neighbour.
const OUT_PATIENCE: Duration = Duration::from_secs(8);
/// Time for which a client outside waits at first. Silence is the right answer if the way back leads nowhere.
const IN_PATIENCE: Duration = Duration::from_secs(1);
/// Attempts after which differences count, if they do not disappear within [`wait::LIMIT`].
const ATTEMPTS: u32 = 3;

/// The same for a process of the host and one in the container.
#[derive(Debug)]
pub(crate) struct Pair {
    /// Who tries; `None`: the process itself.
    pub(crate) client: Option<Netns<'static>>,
    /// What; from outside, to the port of the host's service.
    pub(crate) probe: Probe,
    /// How it ends for the process of the host, and for that in the container.
    pub(crate) outcomes: [Outcome; 2],
}

/// Waits until a container has the host's view. Returns what differs otherwise.
///
/// # Panics
///
/// Panics if a process of the host does not have what the form of routes is about.
pub(crate) fn expect_same(world: &World, route: Route) -> Result<usize, String> {
    let start = Instant::now();
    // The container follows in the meantime.
    loop {
        let doctor = world.sandbox.portmap(&["doctor"]);
        if doctor.status.success() {
            break;
        }
        if start.elapsed() > wait::LIMIT {
            let findings = String::from_utf8_lossy(&doctor.stdout).into_owned();
            return Err(describe(world, route, &[]) + &findings);
        }
        thread::sleep(Duration::from_millis(10));
    }
    for attempt in 1.. {
        let pairs = try_all(world, route, attempt);
        check_oracle(world, route, &pairs);
        let differ: Vec<&Pair> = pairs.iter().filter(|pair| !is_same(world, route, pair)).collect();
        if differ.is_empty() {
            return Ok(pairs.len());
        }
        if attempt >= ATTEMPTS && start.elapsed() > wait::LIMIT {
            return Err(describe(world, route, &differ));
        }
    }
    unreachable!("the number of attempts is limited")
}

fn is_same(world: &World, route: Route, pair: &Pair) -> bool {
    let [host, container] = &pair.outcomes;
    let is_same = if pair.client.is_some() {
        // A client outside waits for neighbours of its own, perhaps longer than for an answer.
        let ends = |outcome: &Outcome| {
            let is_waiting = matches!(outcome, Outcome::Error { error: Errno::EHOSTUNREACH, .. });
            if is_waiting { Outcome::Silence } else { outcome.clone() }
        };
        ends(host) == ends(container)
    } else {
        host == container
    };
    is_same || exceptions::allow(world, route, pair)
}

/// The form of routes must be in effect for the host, or the comparison says nothing.
fn check_oracle(world: &World, route: Route, pairs: &[Pair]) {
    for pair in pairs.iter().filter(|pair| pair.client.is_none() && MOVED.contains(&pair.probe.to.ip())) {
        let by = match &pair.outcomes[0] {
            Outcome::Answer { from, .. } => Some(from.as_str()),
            Outcome::Error { .. } | Outcome::Silence => None,
        };
        let is_right = match route.effect() {
            Effect::Outside => by == Some("outside"),
            Effect::Other => by == Some("other"),
            Effect::Either => by.is_some(),
            Effect::NoAnswer => by.is_none(),
            Effect::Any => true,
        };
        assert!(is_right, "{:?}, {:?}, {route:?}: the host itself: {pair:?}", world.kind, world.form);
    }
}

fn describe(world: &World, route: Route, differ: &[&Pair]) -> String {
    let mut text = format!("{:?}, {:?}, {route:?}:\n", world.kind, world.form);
    for Pair { client, probe, outcomes: [host, container] } in differ {
        let who = client.map_or_else(|| "itself".to_owned(), |client| format!("{client:?}"));
        let Probe { transport, source, to, .. } = probe;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "  {who} {transport:?} {source:?} to {to}:\n    host      {host:?}\n    container {container:?}"
        );
    }
    text
}

/// Tries everything at the same time.
fn try_all(world: &World, route: Route, attempt: u32) -> Vec<Pair> {
    let outgoing = outgoing(world, route);
    let incoming = incoming(world, route);
    let patience = IN_PATIENCE * attempt;
    let run = |netns, probes: Vec<Probe>, patience| move || run(world, netns, &probes, patience);
    thread::scope(|scope| {
        let by_both = [Netns::Host, A].map(|netns| scope.spawn(run(netns, outgoing.clone(), OUT_PATIENCE)));
        let from_outside = [Netns::Outside, OTHER_MACHINE].map(|client| {
            let probes: Vec<Probe> =
                incoming.iter().filter(|(from, _)| *from == client).map(|(_, probe)| *probe).collect();
            let to_both = [SERVICE, PORT].map(|port| {
                let to_port = |probe: &Probe| {
                    let mut probe = *probe;
                    probe.to.set_port(port);
                    probe
                };
                scope.spawn(run(client, probes.iter().map(to_port).collect(), patience))
            });
            (client, probes, to_both)
        });
        let mut pairs = Vec::new();
        let mut add = |client, probes: Vec<Probe>, [host, container]: [Vec<Outcome>; 2]| {
            let outcomes = host.into_iter().zip(container);
            pairs.extend(probes.into_iter().zip(outcomes).map(|(probe, (host, container))| Pair {
                client,
                probe,
                outcomes: [host, container],
            }));
        };
        add(None, outgoing, by_both.map(|run| run.join().expect("no panic")));
        for (client, probes, to_both) in from_outside {
            add(Some(client), probes, to_both.map(|run| run.join().expect("no panic")));
        }
        pairs
    })
}

/// Runs probes in a namespace, each on its own thread, which inherits the namespace.
fn run(world: &World, netns: Netns<'_>, probes: &[Probe], patience: Duration) -> Vec<Outcome> {
    world.sandbox.inside(netns, || {
        thread::scope(|scope| {
            let threads: Vec<_> =
                probes.iter().map(|probe| scope.spawn(move || probe.run(patience))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    })
}

/// What the process itself tries.
fn outgoing(world: &World, route: Route) -> Vec<Probe> {
    let net = world.net;
    let machines =
        [[OUTSIDE.into(), OUTSIDE6.into()], net.at(GATEWAY), net.at(net.other), BEYOND, MOVED, ON_LINK];
    let mut to: Vec<SocketAddr> =
        machines.concat().into_iter().map(|address| SocketAddr::new(address, SERVICE)).collect();
    to.extend([OUTSIDE.into(), OUTSIDE6.into()].map(|address: IpAddr| SocketAddr::new(address, CLOSED)));
    if route == Route::ForeignGateway {
        to.extend(FOREIGN_GATEWAY.map(|address| SocketAddr::new(address, SERVICE)));
    }
    if route == Route::Silent {
        to.extend(net.at(UNUSED[1]).map(|address| SocketAddr::new(address, SERVICE)));
    }
    to.sort_unstable();
    to.dedup();
    // The host itself and the container, by the addresses that both have.
    let own = world.form.all(net).into_iter();
    let own: Vec<SocketAddr> =
        own.flat_map(|address| [SERVICE, PORT].map(|port| SocketAddr::new(address, port))).collect();
    let mut all = [probes(&to, None, false), probes(&own, None, true)].concat();
    if route == Route::RuleFrom {
        // For IPv6 the kernel chooses the source after the route, so rules know it only of sockets that are bound.
        for probe in all.iter_mut().filter(|probe| probe.to.is_ipv6()) {
            probe.source = Some(world.form.main(net)[1]);
        }
    }
    all
}

/// What the machines outside try: with their own source, and with one to which the form of routes leads.
fn incoming(world: &World, route: Route) -> Vec<(Netns<'static>, Probe)> {
    let to: Vec<SocketAddr> =
        world.form.all(world.net).into_iter().map(|address| SocketAddr::new(address, SERVICE)).collect();
    let moved = match route.effect() {
        Effect::Outside | Effect::NoAnswer => Some(Netns::Outside),
        Effect::Other => Some(OTHER_MACHINE),
        // The machine that does not wait for it could get the answer.
        Effect::Either | Effect::Any => None,
    };
    let mut sources: Vec<(Netns<'static>, Option<IpAddr>)> =
        vec![(Netns::Outside, None), (OTHER_MACHINE, None)];
    sources.extend(moved.into_iter().flat_map(|client| MOVED.map(|moved| (client, Some(moved)))));
    if route == Route::OnLink {
        sources.extend(ON_LINK.map(|own| (OTHER_MACHINE, Some(own))));
    }
    let from = |(client, source): (Netns<'static>, Option<IpAddr>)| {
        let is_version = |to: &&SocketAddr| source.is_none_or(|source| source.is_ipv4() == to.is_ipv4());
        let to: Vec<SocketAddr> = to.iter().filter(is_version).copied().collect();
        probes(&to, source, true).into_iter().map(move |probe| (client, probe)).collect::<Vec<_>>()
    };
    sources.into_iter().flat_map(from).collect()
}

fn probes(to: &[SocketAddr], source: Option<IpAddr>, is_inward: bool) -> Vec<Probe> {
    let with = |transport| move |to: &SocketAddr| Probe { transport, source, to: *to, is_inward };
    [Transport::Tcp, Transport::Udp]
        .into_iter()
        .flat_map(|transport| to.iter().map(with(transport)))
        .collect()
}
