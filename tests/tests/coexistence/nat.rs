//! NAT rules of the host: which of them cannot work with containers, and that commands name those.

use portmap_tests::{
    sandbox::{HOST, Netns, Sandbox},
    service::{Service, Transport, ask, expect_no_reply},
    wait,
};
use serde_json::Value;

use crate::{A, findings};

const SUBJECT: &str = "host NAT";
/// As Docker, an administrator and a firewall write them. Those of the output hook concern the host's own packets
/// only, and the masquerading of `172.18.0.0/16` uses other ports.
const RULES: &str = "
iptables -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 31000
iptables -t nat -A PREROUTING -p tcp -m multiport --dports 82,83 -j DNAT --to-destination 127.0.0.1:31000
iptables -t nat -N DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A DOCKER -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE --random-fully
iptables -t nat -A POSTROUTING -p tcp -s 172.18.0.0/16 -j MASQUERADE --to-ports 50000-60000
nft -f - <<END
table inet own {
    chain in {
        type nat hook prerouting priority -90
        udp dport 100-110 redirect to :31001
        tcp dport 111 redirect to :9000
    }
    chain out {
        type nat hook output priority -90
        tcp dport 81 redirect to :31000
    }
}
END";

fn notes(sandbox: &Sandbox, from: &str, to: &str, protocol: &str) -> Vec<String> {
    let explanation = sandbox.json(&["explain", "--from", from, "--to", to, "--proto", protocol]);
    let notes = explanation["notes"].as_array().into_iter().flatten();
    notes.map(|note| note.as_str().expect("text").to_owned()).collect()
}

#[test]
fn nat_rules_that_cannot_work_are_named() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, RULES);
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000-31001"]);
    let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    let _host = Service::start(&sandbox, Netns::Host, Transport::Tcp, 9000, "host");
    // What the rules do: a packet from outside does not come to the container, one of the host does.
    for port in [80, 82] {
        expect_no_reply(&sandbox, Netns::Outside, Transport::Tcp, (HOST, port));
    }
    assert_eq!(ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 111)).expect("an answer").from, "host");
    assert_eq!(ask(&sandbox, Netns::Host, Transport::Tcp, (HOST, 81)).expect("an answer").from, "a");
    let expected = [
        "table ip nat, chain PREROUTING, translates tcp port 80 to port 31000 of this host; table ip nat, chain \
         PREROUTING, translates tcp port 82-83 to port 31000 of this host; table inet own, chain in, translates udp \
         port 100-110 to port 31001 of this host; portmap's programs see the packet before that",
        "table ip nat, chain DOCKER, translates tcp port 8080 to 172.17.0.2:80; containers do not reach it by the \
         host's address",
    ];
    let found = findings(&sandbox, SUBJECT);
    assert_eq!(found.len(), expected.len() + 1, "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(&format!("notice {expected}")), "{found}");
        wait::until("a warning of the start", || daemon.log().contains(expected));
    }
    // NAT that chooses source ports works, so it is no reason for a warning.
    let choosing =
        "ok table ip nat, chain POSTROUTING, may choose source ports of containers: the replies go to";
    assert!(found[2].starts_with(choosing), "{found:?}");
    sandbox.ok(&["doctor"]);
    // explain names the rule that concerns a packet.
    let text = sandbox.ok(&["explain", "--from", "outside", "--to", "10.0.0.1:80"]);
    assert!(
        text.contains("\n\nnote: NAT may apply: table ip nat, chain PREROUTING, translates tcp port 80"),
        "{text}"
    );
    for (from, to, protocol, expected) in [
        ("outside", "10.0.0.1:105", "udp", Some("table inet own, chain in")),
        ("a", "10.0.0.1:8080", "tcp", Some("172.17.0.2:80")),
        ("outside", "10.0.0.1:105", "tcp", None),
        ("outside", "10.0.0.1:31000", "tcp", None),
        ("host", "10.0.0.1:80", "tcp", None),
        ("a", "10.0.0.2:8080", "tcp", None),
    ] {
        let notes = notes(&sandbox, from, to, protocol);
        assert_eq!(notes.len(), usize::from(expected.is_some()), "{from} {to}: {notes:?}");
        assert!(
            notes.iter().all(|note| note.contains(expected.unwrap_or_default())),
            "{from} {to}: {notes:?}"
        );
    }
    sandbox.sh(Netns::Host, "nft flush ruleset");
    assert_eq!(findings(&sandbox, SUBJECT), ["ok no rule concerns ports of containers"]);
}

#[test]
fn nat_rules_in_thousands_are_a_few_lines() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let rules = "(echo 'table ip own { chain in { type nat hook prerouting priority -100'; \
        for i in $(seq 3000); do echo \"tcp dport $i dnat to 172.17.0.2:$i\"; done; echo '}'; echo '}') | nft -f -";
    sandbox.sh(Netns::Host, rules);
    let found = findings(&sandbox, SUBJECT);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].contains("translates tcp port 8 to") && found[0].contains("and 56 more rules"),
        "{found:?}"
    );
    assert_eq!(found[1], "notice 2936 more rules concern ports of containers");
    let found = notes(&sandbox, "outside", "10.0.0.1:2999", "tcp");
    assert!(found.len() == 1 && found[0].contains("172.17.0.2:2999"), "{found:?}");
}

#[test]
fn nat_table_of_older_iptables_is_named() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let list = || sandbox.sh(Netns::Host, "cat /proc/net/ip_tables_names 2>/dev/null || true");
    let before = list();
    assert!(findings(&sandbox, SUBJECT)[0].starts_with("ok "));
    assert_eq!(list(), before, "reading does not create tables");
    let creates =
        sandbox.command(Netns::Host, "iptables-legacy").args(["-t", "nat", "-S"]).output().expect("it runs");
    if !creates.status.success() {
        return portmap_tests::not_run("this kernel has no older iptables");
    }
    let found = findings(&sandbox, SUBJECT);
    assert!(found.len() == 1 && found[0].contains("iptables-legacy -t nat -S"), "{found:?}");
    let explanation: Value = sandbox.json(&["explain", "--from", "outside", "--to", "10.0.0.1:80"]);
    assert!(explanation["notes"][0].as_str().expect("a note").contains("are not examined"), "{explanation}");
}
