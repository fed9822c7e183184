//! Soak test: random commands, namespaces that end, deleted interfaces and killed daemons, while observers
//! query the daemon and an unrelated container has traffic. After each step the test compares the actual
//! with the desired state.
//!
//! The sequence depends on the seed alone. `PORTMAP_SOAK_SECONDS` sets the duration, `PORTMAP_SOAK_SEED`
//! replays a run.

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant, SystemTime},
};

use portmap::model::PortSet;
use portmap_tests::{
    daemon::Daemon,
    faults::sample,
    load::under_load,
    observers::observed,
    random::Random,
    sandbox::{DAEMON_FLAGS, HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::{Value, json};

/// Default duration in seconds.
const SECONDS: u64 = 20;
/// Names of the containers, which are reused.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// The unrelated container, and its port.
const STEADY: Netns<'_> = Netns::Container("steady");
const STEADY_PORT: u16 = 31900;

/// Starts a daemon with enough ephemeral ports for all containers.
fn start(sandbox: &Sandbox) -> Daemon {
    let flags = [&DAEMON_FLAGS[..], &["--ephemeral-ports-per-container", "256"]].concat();
    sandbox.daemon_with(&flags)
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn soak_random_operations_keep_desired_state() {
    let seed = number("PORTMAP_SOAK_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time");
        now.as_secs() % 1_000_000
    });
    let length = Duration::from_secs(number("PORTMAP_SOAK_SECONDS").unwrap_or(if sample() == 1 {
        SECONDS
    } else {
        SECONDS / 2
    }));
    println!("to replay: PORTMAP_SOAK_SEED={seed}");
    let sandbox = Sandbox::new();
    let initial = sandbox.inventory();
    let daemon = start(&sandbox);
    sandbox.ok(&["add", "steady", "--ports", &STEADY_PORT.to_string(), "--egress-rate", "10gbit"]);
    let before = sandbox.inventory();
    let servers = [(STEADY, STEADY_PORT, b's'), (Netns::Host, 7001, b'h')];
    let flows = [(Netns::Outside, 0, HOST), (Netns::Host, 0, HOST), (STEADY, 1, HOST)];
    let soak = || {
        observed(&sandbox, |answers| {
            let mut world = World {
                sandbox: &sandbox,
                daemon: Some(daemon),
                containers: BTreeMap::new(),
                random: Random::new(seed),
            };
            let start = Instant::now();
            let mut steps = 0;
            while start.elapsed() < length {
                let what = world.step();
                world.check(&format!("seed {seed}, step {steps}: {what}"));
                steps += 1;
            }
            let daemon = world.daemon.as_ref().expect("there always is one");
            println!("{steps} steps, {} bytes of memory", daemon.resident());
            world.remove_all();
            answers.expect_all();
            world.daemon.take().expect("there always is one")
        })
    };
    let last = under_load(&sandbox, &servers, &flows, Duration::from_millis(1), soak);
    sandbox.ok(&["doctor"]);
    sandbox.expect_inventory(&before, "after all other containers have gone");
    sandbox.ok(&["teardown"]);
    last.wait();
    sandbox.expect_inventory(&initial, "after the teardown");
}

struct World<'a> {
    sandbox: &'a Sandbox,
    daemon: Option<Daemon>,
    /// The static ports of each container, and its service.
    containers: BTreeMap<&'static str, (PortSet, Option<Service>)>,
    random: Random,
}

impl World<'_> {
    /// Performs one random operation and returns its description.
    fn step(&mut self) -> String {
        let name = self.random.pick(&NAMES);
        match self.random.below(12) {
            0..=3 if !self.containers.contains_key(name) => self.change("add", name),
            4 | 5 => self.delete(name),
            6 => self.kill(name),
            7 => self.end(name),
            8 => self.cut(name),
            _ => self.change("update", name),
        }
    }

    /// Returns random static ports from a small range, so that containers conflict.
    fn ports(&mut self) -> PortSet {
        let first = 31000 + 8 * self.random.below(12);
        let last = first + self.random.below(16);
        format!("{first}-{last}").parse().expect("ports")
    }

    fn change(&mut self, verb: &str, name: &'static str) -> String {
        let (ports, rate) = (self.ports(), self.random.pick(&["0", "100mbit", "1gbit"]));
        let direction = self.random.pick(&["--egress-rate", "--ingress-rate"]);
        let text = ports.to_string();
        let arguments = [verb, name, "--ports", &text, direction, rate];
        let what = arguments.join(" ");
        let others = self.containers.iter().filter(|(other, _)| **other != name);
        let is_taken = others.into_iter().any(|(_, (other, _))| !other.intersection(&ports).is_empty());
        let expected = match verb {
            "update" if !self.containers.contains_key(name) => 3,
            _ if is_taken => 4,
            _ => 0,
        };
        let output = self.sandbox.portmap(&arguments);
        assert_eq!(
            output.status.code(),
            Some(expected),
            "{what}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        if expected == 0 {
            // Stops the old service first, because its port may be among the new ones.
            self.containers.remove(name);
            let port = ports.iter().next().expect("a port");
            let service = Service::start(self.sandbox, Netns::Container(name), Transport::Udp, port, name);
            self.containers.insert(name, (ports, Some(service)));
        }
        what
    }

    fn delete(&mut self, name: &'static str) -> String {
        let expected = if self.containers.remove(name).is_some() { 0 } else { 3 };
        let output = self.sandbox.portmap(&["del", name]);
        assert_eq!(
            output.status.code(),
            Some(expected),
            "del {name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        format!("del {name}")
    }

    /// Kills the daemon, half of the time in the middle of a command.
    fn kill(&mut self, name: &'static str) -> String {
        let daemon = self.daemon.take().expect("there always is one");
        let is_in_the_middle = self.random.once_in(2) && !self.containers.contains_key(name);
        if is_in_the_middle {
            let mut client = self.sandbox.portmap_command(&["add", name]);
            client.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            let mut client = client.spawn().expect("it runs");
            let record = self.sandbox.path(format!("/run/portmap/containers/{name}.json"));
            wait::until("the command to begin", || record.exists());
            daemon.kill();
            let _ = client.wait();
        } else {
            daemon.kill();
        }
        self.daemon = Some(start(self.sandbox));
        // Either completed or rolled back.
        let _ = self.sandbox.portmap(&["del", name]).status;
        self.containers.remove(name);
        format!("the daemon is killed, in the middle of adding {name}: {is_in_the_middle}")
    }

    /// Destroys a container's namespace.
    fn end(&mut self, name: &'static str) -> String {
        if self.containers.remove(name).is_some() {
            self.sandbox.sh(Netns::Host, &format!("ip netns del {name}"));
            wait::until("its end to be noticed", || !self.listed().contains_key(name));
        }
        format!("{name} ends")
    }

    /// Deletes a container's interface.
    fn cut(&mut self, name: &'static str) -> String {
        if self.containers.contains_key(name) {
            let veth = self.sandbox.json(&["show", name])["host_veth"].as_str().expect("a name").to_owned();
            self.sandbox.sh(Netns::Host, &format!("ip link del {veth}"));
            wait::until("it to be back", || self.sandbox.portmap(&["doctor"]).status.success());
        }
        format!("the interface of {name} is deleted")
    }

    fn port(&self, name: &str) -> u16 {
        self.containers[name].0.iter().next().expect("a port")
    }

    /// Returns the static ports of all containers as the daemon lists them.
    fn listed(&self) -> BTreeMap<String, Value> {
        let Value::Array(all) = self.sandbox.json(&["list"]) else { panic!("a list") };
        let named = |container: Value| {
            (container["name"].as_str().expect("a name").to_owned(), container["ports"].clone())
        };
        all.into_iter().map(named).collect()
    }

    /// Compares the actual with the desired state.
    fn check(&mut self, at: &str) {
        let mut expected: BTreeMap<String, Value> = self
            .containers
            .iter()
            .map(|(name, (ports, _))| ((*name).to_owned(), json!(Vec::from(ports.clone()))))
            .collect();
        expected.insert("steady".to_owned(), json!([[STEADY_PORT, STEADY_PORT]]));
        assert_eq!(self.listed(), expected, "{at}");
        for name in self.containers.keys() {
            let answer = ask(self.sandbox, Netns::Outside, Transport::Udp, (HOST, self.port(name)));
            let answer = answer.unwrap_or_else(|error| panic!("{at}: {name}: {error}"));
            assert_eq!(answer.from, *name, "{at}");
        }
        if self.random.once_in(8) {
            let output = self.sandbox.portmap(&["doctor"]);
            assert!(output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }

    fn remove_all(&mut self) {
        for name in NAMES {
            self.delete(name);
        }
    }
}
