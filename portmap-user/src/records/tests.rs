//! Pins the JSON of the state files: daemons of other versions read them.

use serde::de::DeserializeOwned;

use super::*;
use crate::model::Loopback as ModelLoopback;

const CONTAINER: &str = concat!(
    r#"{"name":"web","slot":3,"netns":"/run/netns/web","namespace":{"device":4,"#,
    r#""inode":4026531840,"cookie":7},"owns_netns":false,"pid":12,"owner":{"pid":13,"#,
    r#""started":99},"interface":"ens3","ports":[[31000,31009],[31500,31500]],"#,
    r#""automatic_ports":[[31500,31500],[31004,31005]],"ephemeral_ports":[32768,33791],"#,
    r#""draining":[{"ports":[34816,35839],"until":{"secs":7,"nanos":8}}],"#,
    r#""ipv6":true,"wishes":{"egress_rate":0,"cpus":1.5,"loopback":"private"},"#,
    r#""labels":{"framework_id":"f-1"},"egress":null,"#,
    r#""ingress":{"rate":1,"ceil":2,"burst":3,"leaf":"bfifo"},"inherit_sysctls":true,"#,
    r#""before":{"lo_mac":[0,0,0,0,0,0],"lo_mtu":65536,"local_ports":[32768,60999],"#,
    r#""had_clsact":false,"lo_up":true,"lo_has_address":true,"#,
    r#""sysctls":[{"name":"core/somaxconn","before":"4096","set":"128"}]},"phase":"ready"}"#
);

const HOST: &str = concat!(
    r#"{"boot":"b","namespace":{"device":4,"inode":4026531840,"cookie":null},"#,
    r#""bpffs_dir":"/sys/fs/bpf/portmap","uplink":"eth0","interfaces":{"7":"docker0"},"#,
    r#""reserved":[[31000,32000]],"#,
    r#""sysctls":[{"name":"ipv4/ip_forward","before":"0","set":"1"}],"clsact":["lo"],"#,
    r#""queues":{"2":4294967295},"primaries":["10.0.0.1","2001:db8::1"]}"#
);

const QUARANTINE: &str = r#"[{"name":"web","block":[32768,33791],"since":{"secs":5,"nanos":6}}]"#;

fn read<T: Recorded>(json: &str) -> T
where
    T::Form: DeserializeOwned,
{
    T::from_form(serde_json::from_str(json).expect(json)).expect(json)
}

fn written(record: &impl Recorded) -> String {
    serde_json::to_string(&record.to_form()).expect("JSON")
}

#[test]
fn state_file_json_of_a_container_is_pinned() {
    let record: model::ContainerRecord = read(CONTAINER);
    assert_eq!(written(&record), CONTAINER);
    assert_eq!(record.ports.to_string(), "31000-31009,31500");
    assert_eq!(record.all_ports().to_string(), "31000-31009,31500,32768-33791,34816-35839");
    assert_eq!(record.automatic_ports[1].to_string(), "31004-31005");
    assert_eq!(record.draining[0].until, Duration::new(7, 8));
    assert_eq!(record.traffic.loopback, Some(ModelLoopback::Private));
    assert_eq!(record.traffic.cpus.map(f64::from), Some(1.5));
    assert_eq!(record.labels.get("framework_id"), Some("f-1"));
    assert_eq!(record.phase, model::Phase::Ready);
}

#[test]
fn state_file_json_of_the_host_is_pinned() {
    let record: model::HostRecord = read(HOST);
    assert_eq!(written(&record), HOST);
    assert_eq!(record.reserved.to_string(), "31000-32000");
    // A record of version 7 has the one qdisc without the index of the uplink.
    let record: model::HostRecord =
        read(&HOST.replace(r#""queues":{"2":4294967295}"#, r#""uplink_queue":65552"#));
    assert_eq!((record.uplink_queue, record.queues.len()), (Some(65552), 0));
}

#[test]
fn state_file_json_of_the_quarantine_is_pinned() {
    let quarantine: Vec<Quarantined> = read(QUARANTINE);
    assert_eq!(written(&quarantine), QUARANTINE);
    assert_eq!(quarantine[0].since, Duration::new(5, 6));
}

#[test]
fn state_file_of_version_3_has_defaults() {
    let container = concat!(
        r#"{"name":"a","slot":1,"netns":"/run/netns/a","namespace":{"device":4,"inode":5},"#,
        r#""owns_netns":true,"pid":null,"ports":[],"ephemeral_ports":[32768,33791],"ipv6":false,"#,
        r#""wishes":{},"egress":null,"ingress":null,"before":null,"phase":"deleting"}"#
    );
    let record: model::ContainerRecord = read(container);
    assert_eq!((record.owner, record.inherit_sysctls, record.labels.is_empty()), (None, false, true));
    assert_eq!(record.draining, []);
    assert_eq!(record.interface.as_str(), "eth0");
    assert_eq!(record.namespace.expect("an identity").cookie, None);
    let quarantine: Vec<Quarantined> = read(r#"[{"block":[32768,33791],"since":{"secs":5,"nanos":6}}]"#);
    assert_eq!(quarantine[0].name, None);
}

#[test]
fn state_file_with_invalid_values_is_an_error() {
    for (valid, invalid) in [
        ("[31000,31009]", "[31009,31000]"),
        ("\"cpus\":1.5", "\"cpus\":-1.5"),
        ("[34816,35839]", "[35839,34816]"),
        ("framework_id", "framework id"),
        ("ens3", "all"),
    ] {
        let form = serde_json::from_str(&CONTAINER.replace(valid, invalid)).expect("the form is right");
        assert!(model::ContainerRecord::from_form(form).is_err(), "{invalid}");
    }
}
