//! The commands of the plugin, one by one.

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, Netns, Sandbox},
    service::{Service, Transport, ask, expect_no_reply},
};
use serde_json::{Value, json};

use super::calls::{Attachment, finish, make_netns};

const N1: Netns<'_> = Netns::Container("n1");

#[test]
fn plugin_adds_checks_and_deletes() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    make_netns(&sandbox, "n1");
    let mut web = Attachment::new("default-web", "n1", &[31000]);
    web.interface = "net5".to_owned();
    web.args = "IgnoreUnknown=1;K8S_POD_NAME=nice_wozniak".to_owned();
    assert_eq!(web.call(&sandbox, "STATUS"), Ok(Value::Null));
    let result = web.add(&sandbox);
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "net5", "mac": "02:00:00:00:01:01", "mtu": 1500, "sandbox": "/run/netns/n1" },
                { "name": "pm1", "mac": "02:00:00:00:01:01", "mtu": 1500 },
            ],
            "ips": [
                { "address": "10.0.0.1/32", "interface": 0 },
                { "address": "2001:db8:0:1::1/128", "interface": 0 },
            ],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            "dns": {},
        })
    );
    let shown = sandbox.json(&["show", "default-web"]);
    assert_eq!(shown["labels"], json!({ "cni.network": "portmap", "name": "nice_wozniak" }));
    assert_eq!((&shown["loopback"], &shown["interface"]), (&json!("private"), &json!("net5")));
    let _service = Service::start(&sandbox, N1, Transport::Tcp, 31000, "web");
    assert_eq!(ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer").from, "web");
    assert_eq!(web.check(&sandbox, &result), Ok(Value::Null));
    // A difference from the result of ADD fails.
    let other = result.to_string().replace("10.0.0.1/32", "10.0.0.9/32");
    let error =
        web.check(&sandbox, &serde_json::from_str(&other).expect("JSON")).expect_err("another address");
    assert!(error["msg"].as_str().is_some_and(|text| text.contains("the address 10.0.0.9/32")), "{error}");
    web.delete(&sandbox);
    expect_no_reply(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000));
    let error = web.check(&sandbox, &result).expect_err("it is gone");
    assert!(
        error["msg"].as_str().is_some_and(|text| text.contains("the daemon does not have it")),
        "{error}"
    );
    web.netns = "/run/netns/n1".to_owned();
    // The daemon chooses ports.
    web.args = "PORTMAP_PORTS=auto:4+aligned,31500".to_owned();
    let result = web.add(&sandbox);
    let shown = sandbox.json(&["show", "default-web"]);
    let [first, last] = [0, 1].map(|end| shown["automatic_ports"][0][end].as_u64().expect("a range"));
    assert_eq!((last - first, first % 4), (3, 0), "{shown}");
    assert!(shown["ports"].to_string().contains("31500"), "{shown}");
    assert_eq!(web.check(&sandbox, &result), Ok(Value::Null));
    web.args = "PORTMAP_PORTS=auto:5,31500".to_owned();
    web.check(&sandbox, &result).expect_err("it has four");
    web.delete(&sandbox);
    // containerd's CRI calls DEL three times.
    web.netns.clear();
    web.delete(&sandbox);
    web.delete(&sandbox);
    assert_eq!(sandbox.json(&["list"]), json!([]));
}

#[test]
fn plugin_refuses_what_the_daemon_cannot_do() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    make_netns(&sandbox, "n1");
    let plain = Attachment::new("c1", "n1", &[31000]);
    let runtime = |key: &str, value: Value| plain.clone().with(|config| config["runtimeConfig"][key] = value);
    let mapped = |mapping: Value| runtime("portMappings", json!([mapping]));
    for (attachment, code, part) in [
        (
            mapped(json!({ "hostPort": 31000, "containerPort": 80 })),
            7,
            "31000 cannot lead to container port 80",
        ),
        (mapped(json!({ "hostPort": 31000, "hostIP": "127.0.0.1" })), 7, "on 127.0.0.1 only"),
        (mapped(json!({ "hostPort": 31000, "hostIP": "192.0.2.7" })), 7, "the address 192.0.2.7: expected"),
        (
            mapped(json!({ "hostPort": 80 })),
            7,
            "does not manage the ports 80: expected ports of --ports (31000-32000)",
        ),
        (
            runtime("ips", json!(["10.77.0.2"])),
            7,
            "the address 10.77.0.2: expected one that the host shares, 10.0.0.1",
        ),
        (runtime("mac", json!("02:00:00:00:00:09")), 7, "the MAC address 02:00:00:00:00:09"),
        (plain.clone().with(|config| config["cniVersion"] = "2.0.0".into()), 1, "\"2.0.0\" is not supported"),
        (
            Attachment { netns: "/run/netns/none".to_owned(), ..plain.clone() },
            7,
            "/run/netns/none does not exist",
        ),
        (Attachment { id: "a/b".to_owned(), ..plain.clone() }, 4, "CNI_CONTAINERID"),
    ] {
        let text = attachment.refused(&sandbox, code);
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(sandbox.json(&["list"]), json!([]));
    // The shared addresses are accepted.
    let same = plain.with(|config| {
        config["runtimeConfig"]["ips"] = json!(["10.0.0.1", "2001:db8:0:1::1/64"]);
        config["runtimeConfig"]["mac"] = "02:00:00:00:01:01".into();
    });
    same.add(&sandbox);
    make_netns(&sandbox, "n2");
    let text = Attachment::new("c2", "n2", &[31000]).refused(&sandbox, 104);
    assert!(text.contains("the ports 31000 are owned by container \"c1\""), "{text}");
}

#[test]
fn plugin_keeps_a_container_in_two_networks() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    make_netns(&sandbox, "n1");
    let one = Attachment::new("c1", "n1", &[31000]);
    let mut two = one.clone().with(|config| config["name"] = "second".into());
    two.interface = "eth1".to_owned();
    one.add(&sandbox);
    let result = two.add(&sandbox);
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    assert_eq!(two.check(&sandbox, &result), Ok(Value::Null));
    two.delete(&sandbox);
    assert_eq!(sandbox.json(&["show", "c1"])["ports"], json!([[31000, 31000]]));
    one.delete(&sandbox);
    assert_eq!(sandbox.json(&["list"]), json!([]));
}

#[test]
fn plugin_leaves_containers_of_others_alone() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "web", "--ports", "31000"]);
    make_netns(&sandbox, "n1");
    let mut web = Attachment::new("web", "n1", &[31001]);
    let text = web.refused(&sandbox, 104);
    assert!(text.contains("no CNI network has added it"), "{text}");
    // The runtime calls DEL after a failed ADD.
    web.delete(&sandbox);
    web.netns.clear();
    web.delete(&sandbox);
    assert_eq!(sandbox.json(&["show", "web"])["ports"], json!([[31000, 31000]]));
}

#[test]
fn plugin_collects_what_the_runtime_has_lost() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "operators"]);
    let attachments = ["c1", "c2", "c3"].map(|name| {
        make_netns(&sandbox, name);
        Attachment::new(name, name, &[])
    });
    let [one, two, three] = attachments;
    let three = three.with(|config| config["name"] = "another".into());
    for attachment in [&one, &two, &three] {
        attachment.add(&sandbox);
    }
    let names = || {
        let list = sandbox.json(&["list"]);
        let names = list
            .as_array()
            .expect("a list")
            .iter()
            .map(|one| one["name"].as_str().expect("a name").to_owned());
        names.collect::<Vec<_>>()
    };
    let gc = Attachment { id: String::new(), netns: String::new(), interface: String::new(), ..one.clone() };
    // Without the list it would remove everything.
    assert_eq!(gc.call(&sandbox, "GC").expect_err("no list")["code"], 7);
    assert_eq!(names(), ["c1", "c2", "c3", "operators"]);
    let valid = json!([{ "containerID": "c2", "ifname": "eth0" }]);
    let gc = gc.with(|config| {
        config["cni.dev/valid-attachments"] = valid.clone();
        config["cni.dev/attachments"] = valid;
    });
    assert_eq!(gc.call(&sandbox, "GC"), Ok(Value::Null));
    assert_eq!(names(), ["c2", "c3", "operators"]);
}

#[test]
fn plugin_adds_a_hundred_at_once() {
    const COUNT: u16 = 100;
    let sandbox = Sandbox::new();
    let flags = [&DAEMON_FLAGS[..], &["--ephemeral-ports-per-container", "16"]].concat();
    let _daemon = sandbox.daemon_with(&flags);
    let names: Vec<String> = (0..COUNT).map(|number| format!("c{number}")).collect();
    sandbox.sh(Netns::Host, &format!("for name in {}; do ip netns add $name; done", names.join(" ")));
    let attachments: Vec<_> =
        names.iter().zip(31000..).map(|(name, port)| Attachment::new(name, name, &[port])).collect();
    for command in ["ADD", "DEL"] {
        let calls: Vec<_> =
            attachments.iter().map(|attachment| attachment.start(&sandbox, command)).collect();
        for call in calls {
            finish(call).unwrap_or_else(|error| panic!("{command}: {error}"));
        }
        let count = sandbox.json(&["list"]).as_array().map(Vec::len);
        assert_eq!(count, Some(if command == "ADD" { usize::from(COUNT) } else { 0 }));
    }
}
