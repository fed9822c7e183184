//! Pins the JSON of every request and response: clients of other versions depend on it.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;
use crate::model::{Label, Protocol};

/// Asserts that `json` deserialises to `value`, which serialises to exactly `json`, fields in this order.
fn pin<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, json: &str) {
    assert_eq!(serde_json::to_string(value).expect("JSON"), json);
    assert_eq!(serde_json::from_str::<T>(json).expect(json), *value);
}

fn labels() -> Labels {
    BTreeMap::from([("framework_id".to_owned(), "f-1".to_owned())]).try_into().expect("labels")
}

fn container() -> Container {
    Container {
        name: "web".to_owned(),
        slot: 3,
        netns: "/run/netns/web".into(),
        netns_inode: Some(4_026_532_281),
        pid: None,
        host_veth: "pm3".to_owned(),
        interface: "eth0".to_owned(),
        mac: "02:00:00:00:01:01".to_owned(),
        mtu: 1500,
        ip: Ipv4Addr::new(10, 0, 0, 1),
        ip6: Some(Ipv6Addr::LOCALHOST),
        ports: "31000-31009,31500".parse().expect("ports"),
        automatic_ports: vec![PortRange::new(31500, 31500).expect("a range")],
        ephemeral_ports: PortRange::new(32768, 33791).expect("a range"),
        draining_ports: "34816-35839".parse().expect("ports"),
        egress: Some(Limit { rate: 1, ceil: 2, burst: 3, leaf: "fq_codel".to_owned() }),
        ingress: None,
        loopback: Loopback::Private,
        labels: labels(),
        state: ContainerState::Ready,
    }
}

const CONTAINER: &str = concat!(
    r#""name":"web","slot":3,"netns":"/run/netns/web","netns_inode":4026532281,"pid":null,"host_veth":"pm3","#,
    r#""interface":"eth0","mac":"02:00:00:00:01:01","mtu":1500,"ip":"10.0.0.1","ip6":"::1","ports":[[31000,31009],[31500,31500]],"#,
    r#""automatic_ports":[[31500,31500]],"ephemeral_ports":[32768,33791],"draining_ports":[[34816,35839]],"#,
    r#""egress":{"rate":1,"ceil":2,"burst":3,"leaf":"fq_codel"},"ingress":null,"#,
    r#""loopback":"private","labels":{"framework_id":"f-1"},"state":"ready""#
);

fn automatic() -> Vec<AutomaticRange> {
    ["auto:10", "auto:3+aligned"].map(|range| range.parse().expect(range)).into()
}

#[test]
fn api_json_of_requests_is_pinned() {
    let traffic = TrafficSpec {
        egress_rate: Some(125_000),
        ingress_rate: Some(0),
        cpus: Some("1.5".parse().expect("CPUs")),
        loopback: Some(Loopback::Shared),
    };
    let spec = r#"{"egress_rate":125000,"ingress_rate":0,"cpus":1.5,"loopback":"shared"}"#;
    pin(
        &AddRequest { name: "web".to_owned(), ..AddRequest::default() },
        r#"{"name":"web","ports":[],"traffic":{}}"#,
    );
    pin(
        &AddRequest {
            name: "web".to_owned(),
            netns: Some("/run/netns/x".into()),
            pid: Some(4),
            container_interface: Some("ens3".to_owned()),
            ports: "31000-31009".parse().expect("ports"),
            automatic_ports: automatic(),
            take: true,
            inherit_sysctls: true,
            ephemeral_ports_per_container: Some(64),
            traffic,
            labels: labels(),
            replace: true,
            addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            mac: Some("02:00:00:00:01:01".to_owned()),
            remove_with_client: true,
            owner: None,
        },
        &format!(
            concat!(
                r#"{{"name":"web","netns":"/run/netns/x","pid":4,"container_interface":"ens3","ports":[[31000,31009]],"#,
                r#""automatic_ports":[{{"count":10}},{{"count":3,"aligned":true}}],"take":true,"inherit_sysctls":true,"ephemeral_ports_per_container":64,"traffic":{spec},"#,
                r#""labels":{{"framework_id":"f-1"}},"replace":true,"addresses":["127.0.0.1","::1"],"#,
                r#""mac":"02:00:00:00:01:01","ends_with_asker":true}}"#
            ),
            spec = spec
        ),
    );
    let changes = ["a=", "b=1"].map(|label| label.parse::<Label>().expect(label)).into_iter().collect();
    pin(&UpdateRequest::default(), r#"{"traffic":{}}"#);
    pin(
        &UpdateRequest {
            ports: Some(PortSet::default()),
            automatic_ports: automatic(),
            take: true,
            ephemeral_ports_per_container: Some(2048),
            traffic,
            labels: changes,
        },
        &format!(
            concat!(
                r#"{{"ports":[],"automatic_ports":[{{"count":10}},{{"count":3,"aligned":true}}],"take":true,"ephemeral_ports_per_container":2048,"traffic":{spec},"#,
                r#""labels":{{"a":null,"b":"1"}}}}"#
            ),
            spec = spec
        ),
    );
    pin(
        &ExplainRequest {
            from: "outside".to_owned(),
            protocol: Protocol::UDP,
            source: None,
            source_port: Some(1),
            destination: Ipv4Addr::LOCALHOST.into(),
            destination_port: Some(53),
        },
        r#"{"from":"outside","protocol":"udp","source_port":1,"destination":"127.0.0.1","destination_port":53}"#,
    );
    assert_eq!(serde_json::from_str::<AddRequest>(r#"{"name":"web"}"#).expect("defaults").name, "web");
}

#[test]
fn api_json_of_containers_is_pinned() {
    pin(&container(), &format!("{{{CONTAINER}}}"));
    let changed = Changed { container: container(), warnings: vec!["taken".to_owned()] };
    pin(&changed, &format!(r#"{{{CONTAINER},"warnings":["taken"]}}"#));
}

#[test]
fn api_json_of_stats_is_pinned() {
    let queue = QueueStats {
        kind: "htb".to_owned(),
        bytes: 1,
        packets: 2,
        drops: 3,
        overlimits: 4,
        requeues: 5,
        backlog: 6,
        qlen: 7,
        ecn_marks: None,
    };
    let leaf = QueueStats { kind: "fq_codel".to_owned(), ecn_marks: Some(8), ..queue.clone() };
    let drops = DropStats { rx: Reasons::from([("rate".to_owned(), 2)]), tx: Reasons::new() };
    let stats = Stats {
        containers: vec![ContainerStats {
            name: "web".to_owned(),
            slot: 3,
            traffic: BTreeMap::from([("rx_outside".to_owned(), Traffic { packets: 1, bytes: 60 })]),
            drops: drops.clone(),
            egress: vec![queue, leaf],
            ingress: Vec::new(),
            ephemeral_ports: Some(PortUse { in_use: 9, total: 16, peak: 10, exhausted: 0 }),
            rtt_us: Some(RttPercentiles { p50: 100, p90: 200, p95: 300, p99: 400 }),
            read_age_ms: Some(12),
        }],
        host: HostStats { passed: BTreeMap::from([("uplink".to_owned(), drops.rx.clone())]), drops },
    };
    pin(
        &stats,
        concat!(
            r#"{"containers":[{"name":"web","slot":3,"traffic":{"rx_outside":{"packets":1,"#,
            r#""bytes":60}},"drops":{"rx":{"rate":2},"tx":{}},"egress":[{"kind":"htb","bytes":1,"#,
            r#""packets":2,"drops":3,"overlimits":4,"requeues":5,"backlog":6,"qlen":7},"#,
            r#"{"kind":"fq_codel","bytes":1,"packets":2,"drops":3,"overlimits":4,"requeues":5,"#,
            r#""backlog":6,"qlen":7,"ecn_marks":8}],"ingress":[],"#,
            r#""ephemeral_ports":{"in_use":9,"total":16,"peak":10,"exhausted":0},"#,
            r#""rtt_us":{"p50":100,"p90":200,"p95":300,"p99":400},"read_age_ms":12}],"#,
            r#""host":{"passed":{"uplink":{"rate":2}},"drops":{"rx":{"rate":2},"tx":{}}}}"#
        ),
    );
}

#[test]
fn api_json_of_drops_is_pinned() {
    let count = DropCount {
        name: OUTSIDE.to_owned(),
        direction: Direction::Rx,
        reason: "rate".to_owned(),
        packets: 9,
        text: "too fast".to_owned(),
    };
    pin(&count, r#"{"name":"outside","direction":"rx","reason":"rate","packets":9,"text":"too fast"}"#);
    let sample = DropSample {
        time: "t".to_owned(),
        name: "web".to_owned(),
        reason: "rate".to_owned(),
        source: Some(Ipv4Addr::LOCALHOST.into()),
        source_port: Some(1),
        destination: None,
        destination_port: None,
        protocol: "tcp".to_owned(),
        length: 60,
        suppressed: 2,
    };
    pin(
        &DropStreamItem::Sample(sample),
        concat!(
            r#"{"time":"t","name":"web","reason":"rate","source":"127.0.0.1","source_port":1,"#,
            r#""destination":null,"destination_port":null,"protocol":"tcp","length":60,"#,
            r#""suppressed":2}"#
        ),
    );
    pin(&DropStreamItem::Missed { missed: 3 }, r#"{"missed":3}"#);
}

#[test]
fn api_json_of_explain_is_pinned() {
    let outcome = Outcome {
        verdict: "drop".to_owned(),
        reason: Some("port".to_owned()),
        target: None,
        text: "dropped".to_owned(),
    };
    let step = Step {
        hook: "pm3, ingress".to_owned(),
        program: "pm_veth_in".to_owned(),
        outcome: outcome.clone(),
        agrees: false,
        decision_code: Some(outcome.clone()),
    };
    let explanation = Explanation {
        packet: ExplainedPacket {
            protocol: Protocol(47),
            source: Ipv4Addr::LOCALHOST.into(),
            source_port: None,
            destination: Ipv6Addr::LOCALHOST.into(),
            destination_port: Some(80),
        },
        steps: vec![step],
        outcome,
        agrees: false,
        notes: vec!["NAT".to_owned()],
    };
    pin(
        &explanation,
        concat!(
            r#"{"packet":{"protocol":"47","source":"127.0.0.1","source_port":null,"#,
            r#""destination":"::1","destination_port":80},"steps":[{"hook":"pm3, ingress","#,
            r#""program":"pm_veth_in","verdict":"drop","reason":"port","target":null,"#,
            r#""text":"dropped","agrees":false,"decision_code":{"verdict":"drop","reason":"port","#,
            r#""target":null,"text":"dropped"}}],"verdict":"drop","reason":"port","target":null,"#,
            r#""text":"dropped","agrees":false,"notes":["NAT"]}"#
        ),
    );
}

#[test]
fn api_json_of_findings_is_pinned() {
    let finding = Finding::new("bpffs", Health::Notice, "mounted");
    pin(&finding, r#"{"subject":"bpffs","health":"notice","text":"mounted"}"#);
}

#[test]
fn api_rejects_invalid_values_in_requests() {
    for (json, part) in [
        (r#"{"name":"a","ports":[[5,4]]}"#, "[5,4] is reversed"),
        (r#"{"name":"a","automatic_ports":[{"count":0}]}"#, "an automatic range of 0 ports"),
        (r#"{"name":"a","automatic_ports":[{"count":65536}]}"#, "expected a number between 1 and 65535"),
        (r#"{"name":"a","traffic":{"cpus":-1}}"#, "-1 CPUs"),
        (r#"{"name":"a","traffic":{"loopback":"mine"}}"#, "expected `shared` or `private`"),
        (r#"{"name":"a","traffic":{"rate":1}}"#, "unknown field `rate`"),
        (r#"{"name":"a","labels":{"a b":"1"}}"#, "\"a b\" cannot be the key of a label"),
        (r#"{"name":"a","labels":{"a":""}}"#, "the value of label a is empty"),
    ] {
        let error = serde_json::from_str::<AddRequest>(json).expect_err(json).to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(serde_json::to_value(Health::Problem).expect("JSON"), Value::from("problem"));
}
