//! Inputs as runtimes send them (`fixtures`), and random changes of them.

use portmap::{
    api::{AddRequest, Container, ContainerState},
    model::{Labels, Loopback, PortRange, PortSet, TrafficSpec},
};
use serde_json::{Value, json};

use super::{Answer, Invocation, config::Config, result, run, wanted::Wanted};
use crate::error::{CniError, Code};

const PODMAN: &str = include_str!("../fixtures/podman.json");
const CRI: &str = include_str!("../fixtures/cri.json");
const NOMAD: &str = include_str!("../fixtures/nomad.json");
const MESOS: &str = include_str!("../fixtures/mesos.json");
const GC: &str = include_str!("../fixtures/gc.json");

/// `CNI_ARGS` as recorded.
const PODMAN_ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAME=nice_wozniak";
const CRI_ARGS: &str = "K8S_POD_INFRA_CONTAINER_ID=9f1;K8S_POD_UID=u-1;IgnoreUnknown=1;\
                        K8S_POD_NAMESPACE=default;K8S_POD_NAME=web1";
const NOMAD_ARGS: &str = "NOMAD_ALLOC_ID=5e1;IgnoreUnknown=true;NOMAD_REGION=global;NOMAD_NAMESPACE=default;\
                          NOMAD_JOB_ID=web;NOMAD_GROUP_NAME=g;PORTMAP_EGRESS=100mbit";

fn invocation(command: &str, args: &str) -> Invocation {
    let variable = |name: &str| match name {
        "CNI_COMMAND" => command.to_owned(),
        "CNI_CONTAINERID" => "c1".to_owned(),
        "CNI_NETNS" => "/run/netns/n1".to_owned(),
        "CNI_IFNAME" => "eth0".to_owned(),
        "CNI_ARGS" => args.to_owned(),
        // No daemon can be there.
        "PORTMAP_STATE_DIR" => "/dev/null/portmap".to_owned(),
        _ => String::new(),
    };
    Invocation::new(variable).expect("a command")
}

fn request(input: &str, args: &str) -> Result<AddRequest, CniError> {
    let (invocation, config) = (invocation("ADD", args), Config::parse(input.as_bytes())?);
    let wanted = Wanted::read(&config, &invocation.args()?)?;
    wanted.into_request(invocation.container()?, invocation.netns()?, invocation.interface()?)
}

fn accepted(input: &str, args: &str) -> AddRequest {
    request(input, args).unwrap_or_else(|error| panic!("{input}: {error}"))
}

fn refused(input: &str, args: &str) -> (Code, String) {
    let error = request(input, args).expect_err(input);
    (error.code, error.message)
}

fn ports(text: &str) -> PortSet {
    text.parse().expect("ports")
}

fn label<'a>(request: &'a AddRequest, key: &str) -> Option<&'a str> {
    request.labels.get(key)
}

/// A configuration with these keys.
fn with(keys: &Value) -> String {
    let mut all = json!({ "cniVersion": "1.0.0", "name": "n", "type": "portmap-bpf" });
    for (key, value) in keys.as_object().expect("keys") {
        all[key] = value.clone();
    }
    all.to_string()
}

fn mapping(mapping: &Value) -> String {
    with(&json!({ "runtimeConfig": { "portMappings": [mapping] } }))
}

#[test]
fn recorded_podman_input_names_the_container() {
    // Port 80 of the container would have to be rewritten.
    let (code, text) = refused(PODMAN, PODMAN_ARGS);
    assert_eq!(code, Code::InvalidConfig);
    assert!(text.contains("host port 8080 cannot lead to container port 80"), "{text}");
    let same = PODMAN.replace("\"containerPort\":80,", "\"containerPort\":8080,");
    let request = accepted(&same, PODMAN_ARGS);
    assert_eq!(request.ports, ports("8080"));
    assert_eq!((request.name.as_str(), request.container_interface.as_deref()), ("c1", Some("eth0")));
    assert_eq!(
        (label(&request, "name"), label(&request, "cni.network")),
        (Some("nice_wozniak"), Some("log"))
    );
    assert_eq!(request.traffic, TrafficSpec { loopback: Some(Loopback::Private), ..TrafficSpec::default() });
    // What `network reload` passes for addresses, in both ways.
    let request = accepted(&same, &format!("{PODMAN_ARGS};MAC=02:00:00:00:01:01;IP=10.0.0.1"));
    assert_eq!(request.mac.as_deref(), Some("02:00:00:00:01:01"));
    assert_eq!(request.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().expect("an address")]);
    let both =
        same.replace("\"portMappings\":[", "\"ips\":[\"10.0.0.1\",\"2001:db8::1/64\"],\"portMappings\":[");
    assert_eq!(accepted(&both, "").addresses.len(), 2);
}

#[test]
fn recorded_cri_input_has_limits_and_annotations() {
    let (code, text) = refused(CRI, CRI_ARGS);
    assert_eq!(code, Code::InvalidConfig);
    assert!(text.contains("host port 5353 cannot be published on 127.0.0.1 only"), "{text}");
    let request = accepted(&CRI.replace("\"127.0.0.1\"", "\"0.0.0.0\""), CRI_ARGS);
    assert_eq!(request.ports, ports("5353,7000,8080,31000-31009"));
    let rates = (request.traffic.egress_rate, request.traffic.ingress_rate);
    assert_eq!(rates, (Some(125_000_000), Some(1_250_000)));
    assert_eq!((label(&request, "name"), label(&request, "namespace")), (Some("web1"), Some("default")));
    assert_eq!(request.addresses, [] as [std::net::IpAddr; 0]);
}

#[test]
fn recorded_nomad_input_has_each_port_twice() {
    let request = accepted(NOMAD, NOMAD_ARGS);
    assert_eq!(request.ports, ports("25123"));
    assert_eq!(request.traffic.egress_rate, Some(12_500_000));
    assert_eq!((label(&request, "name"), label(&request, "namespace")), (Some("web/g"), Some("default")));
    let ranges =
        format!("{NOMAD_ARGS};PORTMAP_PORTS=31000-31009;PORTMAP_LOOPBACK=shared;PORTMAP_EPHEMERAL_PORTS=64");
    let request = accepted(NOMAD, &ranges);
    assert_eq!(request.ports, ports("25123,31000-31009"));
    assert_eq!(request.traffic.loopback, Some(Loopback::Shared));
    assert_eq!(request.ephemeral_ports_per_container, Some(64));
}

#[test]
fn recorded_mesos_input_has_no_version() {
    let request = accepted(MESOS, "");
    assert_eq!(request.ports, ports("31000"));
    assert_eq!(request.traffic.egress_rate, Some(37500 << 10));
    let answer = result_for(MESOS);
    assert_eq!(
        answer,
        json!({
            "cniVersion": "0.1.0",
            "ip4": { "ip": "10.0.0.1/32", "routes": [{ "dst": "0.0.0.0/0" }] },
            "ip6": { "ip": "2001:db8::1/128", "routes": [{ "dst": "::/0" }] },
            "dns": {},
        })
    );
}

#[test]
fn mapping_rules_decide_on_host_ip_and_protocol() {
    for host_ip in ["", "0.0.0.0", "::", "::ffff:0.0.0.0"] {
        let request =
            accepted(&mapping(&json!({ "hostPort": 80, "containerPort": 80, "hostIP": host_ip })), "");
        assert_eq!((request.ports, request.addresses.len()), (ports("80"), 0), "{host_ip}");
    }
    let request =
        accepted(&mapping(&json!({ "HOSTPORT": 80, "HostIP": "10.0.0.1", "Protocol": "SCTP" })), "");
    assert_eq!((request.ports, request.addresses.len()), (ports("80"), 1));
    for host_ip in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
        let (code, text) = refused(&mapping(&json!({ "hostPort": 80, "hostIP": host_ip })), "");
        assert_eq!(code, Code::InvalidConfig);
        assert!(text.contains(&format!("on {host_ip} only")), "{text}");
    }
    // An entry without a host port publishes nothing.
    assert!(accepted(&mapping(&json!({ "hostPort": 0, "containerPort": 80 })), "").ports.is_empty());
    for (entry, part) in [
        (json!({ "hostPort": 80, "protocol": "icmp" }), "\"icmp\": expected tcp, udp, sctp"),
        (json!({ "hostPort": 65536 }), "has 65536: expected a port"),
        (json!({ "hostPort": "80" }), "hostPort has \"80\": expected a number"),
        (json!({ "hostPort": -1 }), "has -1"),
        (json!({ "hostPort": 80, "HostPort": 81 }), "hostPort is there in two spellings"),
        (json!({ "hostPort": 80, "hostIP": "localhost" }), "\"localhost\" is not an IP address"),
        (json!(80), "portMappings has 80: expected objects"),
    ] {
        let (code, text) = refused(&mapping(&entry), "");
        assert!(code == Code::InvalidConfig && text.contains(part), "{text}");
    }
}

#[test]
fn mapping_of_a_range_becomes_one() {
    let all: Vec<Value> = (20_000..30_000)
        .map(|port| json!({ "hostPort": port, "containerPort": port, "protocol": "udp" }))
        .collect();
    let request = accepted(&with(&json!({ "runtimeConfig": { "portMappings": all } })), "");
    assert_eq!(request.ports.ranges(), [PortRange::new(20_000, 29_999).expect("a range")]);
}

#[test]
fn setting_of_a_container_precedes_that_of_the_network() {
    let keys = json!({
        "egress": "1mbit", "ingressRate": 8_000_001, "ephemeralPorts": 128, "loopback": "shared",
        "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { "portmap.egress": "2mbit", "portmap": "x" } },
    });
    let request = accepted(&with(&keys), "");
    assert_eq!((request.traffic.egress_rate, request.traffic.ingress_rate), (Some(250_000), Some(1_000_001)));
    assert_eq!(request.ephemeral_ports_per_container, Some(128));
    assert_eq!(request.traffic.loopback, Some(Loopback::Shared));
    assert_eq!(accepted(&with(&keys), "PORTMAP_EGRESS=3mbit").traffic.egress_rate, Some(375_000));
    // Runtimes without limits send 0.
    let none = json!({ "runtimeConfig": { "bandwidth": { "ingressRate": 0, "egressRate": 0 } } });
    assert_eq!(accepted(&with(&none), "").traffic.egress_rate, None);
}

#[test]
fn unknown_setting_is_refused_if_it_is_ours() {
    for (keys, args, code, part) in [
        (
            json!({}),
            "PORTMAP_EGRES=1mbit",
            Code::InvalidEnvironment,
            "\"PORTMAP_EGRES\" of CNI_ARGS is unknown",
        ),
        (json!({}), "PORTMAP_EGRESS=fast", Code::InvalidConfig, "PORTMAP_EGRESS: \"fast\" is not a size"),
        (json!({}), "PORTMAP_PORTS=9-1", Code::InvalidConfig, "PORTMAP_PORTS: "),
        (json!({}), "PORTMAP_LOOPBACK=none", Code::InvalidConfig, "expected shared or private"),
        (json!({}), "IP=somewhere", Code::InvalidConfig, "\"somewhere\" is not an IP address"),
        (json!({}), "nothing", Code::InvalidEnvironment, "\"nothing\": expected KEY=VALUE"),
        (
            json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { "portmap.port": "1" } } }),
            "",
            Code::InvalidConfig,
            "\"portmap.port\" is unknown",
        ),
        (json!({ "name": "a/b" }), "", Code::InvalidConfig, "the network's name is \"a/b\""),
        (
            json!({ "cniVersion": "2.0.0" }),
            "",
            Code::IncompatibleVersion,
            "cniVersion \"2.0.0\" is not supported",
        ),
    ] {
        let (found, text) = refused(&with(&keys), args);
        assert!(found == code && text.contains(part), "{found:?} {text}");
    }
    assert!(request(&with(&json!({ "other": {} })), "ANOTHER=1;IgnoreUnknown=0;").is_ok());
}

fn container() -> Container {
    Container {
        name: "c1".to_owned(),
        slot: 1,
        netns: "/run/netns/n1".into(),
        netns_inode: Some(1),
        pid: None,
        host_veth: "pm1".to_owned(),
        interface: "net5".to_owned(),
        mac: "02:00:00:00:01:01".to_owned(),
        mtu: 1500,
        ip: "10.0.0.1".parse().expect("an address"),
        ip6: Some("2001:db8::1".parse().expect("an address")),
        ports: PortSet::default(),
        automatic_ports: Vec::new(),
        ephemeral_ports: PortRange::new(32768, 33791).expect("a range"),
        draining_ports: PortSet::default(),
        egress: None,
        ingress: None,
        loopback: Loopback::Private,
        labels: Labels::default(),
        state: ContainerState::Ready,
    }
}

fn result_for(input: &str) -> Value {
    let config = Config::parse(input.as_bytes()).expect("a configuration");
    result::of_add(&config, &container(), "/run/netns/n1").expect("a result")
}

#[test]
fn result_has_the_form_of_its_version() {
    let with_dns = |version: &str| {
        with(&json!({
            "cniVersion": version,
            "dns": { "nameservers": ["192.0.2.53"], "domain": "example", "search": ["a"] },
            "runtimeConfig": { "dns": { "Servers": ["10.96.0.10"], "Searches": [], "Options": ["ndots:5"] } },
        }))
    };
    let expected = |version: &str| {
        json!({
            "cniVersion": version,
            "interfaces": [
                { "name": "net5", "mac": "02:00:00:00:01:01", "sandbox": "/run/netns/n1" },
                { "name": "pm1", "mac": "02:00:00:00:01:01" },
            ],
            "ips": [
                { "address": "10.0.0.1/32", "interface": 0 },
                { "address": "2001:db8::1/128", "interface": 0 },
            ],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            "dns": {
                "nameservers": ["10.96.0.10"], "domain": "example", "search": ["a"], "options": ["ndots:5"],
            },
        })
    };
    assert_eq!(result_for(&with_dns("1.0.0")), expected("1.0.0"));
    let mut old = expected("0.4.0");
    (old["ips"][0]["version"], old["ips"][1]["version"]) = ("4".into(), "6".into());
    assert_eq!(result_for(&with_dns("0.4.0")), old);
    let mut new = expected("1.1.0");
    (new["interfaces"][0]["mtu"], new["interfaces"][1]["mtu"]) = (1500.into(), 1500.into());
    assert_eq!(result_for(&with_dns("1.1.0")), new);
}

fn answer(command: &str, input: &str) -> (Value, bool) {
    let Answer { output, is_error } = run(&invocation(command, ""), input.as_bytes());
    (if output.is_empty() { Value::Null } else { serde_json::from_slice(&output).expect("JSON") }, is_error)
}

#[test]
fn commands_without_a_daemon_say_so() {
    let v11 = with(&json!({ "cniVersion": "1.1.0" }));
    for (command, input, code) in [
        ("STATUS", v11.as_str(), 50),
        ("GC", GC, 11),
        ("GC", v11.as_str(), 7),
        ("GC", PODMAN, 1),
        ("CHECK", v11.as_str(), 7),
        ("CHECK", MESOS, 1),
        ("PAUSE", v11.as_str(), 4),
        ("ADD", "", 6),
        ("ADD", "[]", 6),
        ("ADD", r#"{"cniVersion":"1.0.0","name":"n","prevResult":{}}"#, 7),
    ] {
        let (output, is_error) = answer(command, input);
        assert!(is_error && output["code"] == code, "{command}: {output}");
        assert!(
            output["msg"].is_string() && output["details"] == "" && output["cniVersion"].is_string(),
            "{output}"
        );
    }
    // A container must be removable whatever happens, and VERSION is asked for every command of podman.
    for input in [PODMAN, "", "garbage"] {
        assert_eq!(answer("DEL", input), (Value::Null, false));
    }
    let (output, is_error) = answer("VERSION", r#"{"cniVersion":"1.0.0"}"#);
    assert!(!is_error && output["cniVersion"] == "1.0.0", "{output}");
    assert_eq!(output["supportedVersions"].as_array().map(Vec::len), Some(7));
    assert_eq!(answer("VERSION", "").0["cniVersion"], "1.1.0");
}

/// Random changes of recorded inputs: the outcome is always a request that the daemon can decode, or an
/// error of one line.
#[test]
fn random_inputs_are_decided() {
    const ROUNDS: u32 = 20_000;
    const WORDS: [&str; 12] = [
        "null",
        "{}",
        "[]",
        "-1",
        "65536",
        "4294967296",
        "\"\"",
        "\u{e4}",
        "=",
        ";",
        "\\u0000",
        "PORTMAP_PORTS",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).expect("31 bits") % limit.max(1)
    };
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        let (input, args) =
            [(PODMAN, PODMAN_ARGS), (CRI, CRI_ARGS), (NOMAD, NOMAD_ARGS), (MESOS, "IP=10.0.0.1")][below(4)];
        let mut texts = [input.as_bytes().to_vec(), args.as_bytes().to_vec()];
        for _ in 0..below(4) {
            let text = &mut texts[below(2)];
            let (at, word) = (below(text.len()), WORDS[below(WORDS.len())]);
            let until = (at + below(3) * below(8)).min(text.len());
            match below(3) {
                0 => drop(text.splice(at..until, word.bytes())),
                1 => drop(text.drain(at..until)),
                _ => text.insert(at, u8::try_from(below(256)).expect("a byte")),
            }
        }
        let [input, args] = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
        match request(&input, &args) {
            Ok(request) => {
                let sent = serde_json::to_vec(&request).expect("JSON");
                assert_eq!(serde_json::from_slice::<AddRequest>(&sent).expect("a request"), request);
                accepted += 1;
            }
            Err(error) => {
                assert!(
                    !error.message.is_empty() && !error.message.contains('\n'),
                    "{input} {args}: {error}"
                );
                refused += 1;
            }
        }
    }
    assert!(accepted > ROUNDS / 20 && refused > ROUNDS / 20, "{accepted} accepted, {refused} refused");
}
