//! `portmap flows`: who a container talks to, to the byte.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
};

use portmap_tests::{
    sandbox::{HOST, Netns, OUTSIDE, Sandbox},
    wait,
};
use serde_json::{Value, json};

use super::page::{self, Page};

const WEB: Netns<'_> = Netns::Container("web");
const API: Netns<'_> = Netns::Container("api");

/// A connection from one namespace to a listener in another. Both ends stay open.
fn connection(
    sandbox: &Sandbox,
    from: Netns<'_>,
    to: Netns<'_>,
    port: u16,
    address: Ipv4Addr,
) -> [TcpStream; 2] {
    let listener = sandbox.inside(to, || TcpListener::bind(("0.0.0.0", port))).expect("the port is free");
    let client = sandbox.inside(from, || TcpStream::connect((address, port))).expect("connected");
    [client, listener.accept().expect("a connection").0]
}

/// Sends so many bytes, and waits until the other end has read all of them.
fn transfer(from: &TcpStream, to: &TcpStream, bytes: usize) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut from = from;
            from.write_all(&vec![7; bytes]).expect("sent");
        });
        let mut to = to;
        to.read_exact(&mut vec![0; bytes]).expect("received");
    });
}

/// The flow with this peer and port.
fn flow(flows: &Value, peer: impl Into<IpAddr>, port: u16) -> &Value {
    let peer = peer.into().to_string();
    let all = flows["flows"].as_array().expect("a list");
    let found = all.iter().find(|flow| flow["peer"] == json!(peer) && flow["port"] == json!(port));
    found.unwrap_or_else(|| panic!("{peer} {port}: {flows}"))
}

/// Checks that docs/flows.md shows this output, apart from times.
fn shows(output: &str) {
    let page = Page::open("flows.md");
    let outputs = [("portmap flows web".to_owned(), output.to_owned())].into();
    let new = page::with_outputs(&page.text, &outputs);
    if page::is_written() {
        page.write(&new);
    } else {
        // A time may have a fraction, or another unit.
        let form = |text: &str| -> Vec<String> {
            page::form(text).iter().map(|line| line.replace("0.0ms", "0us").replace("0ms", "0us")).collect()
        };
        assert_eq!(form(&new), form(&page.text));
    }
}

#[test]
fn flows_count_tcp_to_the_byte() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "web", "--ports", "31000-31009"]);
    sandbox.ok(&["add", "api", "--ports", "31010-31019"]);
    // A client outside, whose port does not matter; then the container as a client.
    let [client, server] = connection(&sandbox, Netns::Outside, WEB, 31000, HOST);
    transfer(&client, &server, 1_234_567);
    transfer(&server, &client, 7_654);
    let [out, outside] = connection(&sandbox, WEB, Netns::Outside, 8080, OUTSIDE);
    transfer(&out, &outside, 4_321);
    let [to_api, api] = connection(&sandbox, WEB, API, 31010, HOST);
    transfer(&to_api, &api, 99);

    let incoming = |flows: &Value| flow(flows, OUTSIDE, 31000).clone();
    let flows = sandbox.json(&["flows", "web"]);
    let found = incoming(&flows);
    assert_eq!(
        (&found["protocol"], &found["direction"], &found["peer_name"]),
        (&json!("tcp"), &json!("in"), &json!(null))
    );
    assert_eq!((&found["bytes_received"], &found["bytes_sent"]), (&json!(1_234_567), &json!(7_654)));
    assert_eq!((&found["connections"], &found["retransmits"]), (&json!(1), &json!(0)));
    assert!(found["rtt_us"].as_u64().is_some_and(|rtt| rtt > 0), "{found}");
    let found = flow(&flows, OUTSIDE, 8080);
    assert_eq!(
        (&found["direction"], &found["bytes_sent"], &found["bytes_received"]),
        (&json!("out"), &json!(4_321), &json!(0))
    );
    // Both containers see their connection, with the other's name.
    let found = flow(&flows, HOST, 31010);
    assert_eq!((&found["peer_name"], &found["bytes_sent"]), (&json!("api"), &json!(99)));
    let of_api = sandbox.json(&["flows", "api"]);
    let found = flow(&of_api, HOST, 31010);
    assert_eq!(
        (&found["peer_name"], &found["direction"], &found["bytes_received"]),
        (&json!("web"), &json!("in"), &json!(99))
    );
    assert_eq!((&flows["is_complete"], &flows["unconnected_udp"]), (&json!(true), &json!(0)));
    assert_eq!(flows["flows"][0], incoming(&flows), "the largest is the first");
    shows(&sandbox.ok(&["flows", "web"]));

    // The end of the client's stream is not a byte.
    drop(client);
    wait::until("the end of the stream", || sandbox.sh(WEB, "ss -Htn state close-wait").lines().count() == 1);
    assert_eq!(incoming(&sandbox.json(&["flows", "web"]))["bytes_received"], json!(1_234_567));
    // While acknowledgements do not come back, the container retransmits, which adds no bytes.
    sandbox.sh(Netns::Outside, &format!("ip route add blackhole {HOST}/32"));
    let mut sender = &out;
    sender.write_all(b"unacknowledged").expect("sent");
    let of_out = || flow(&sandbox.json(&["flows", "web"]), OUTSIDE, 8080).clone();
    wait::until("a retransmission", || of_out()["retransmits"].as_u64() > Some(0));
    sandbox.sh(Netns::Outside, &format!("ip route del blackhole {HOST}/32"));
    wait::until("all bytes", || of_out()["bytes_sent"] == json!(4_321 + 14));
    drop((server, out, outside, to_api, api));
}

#[test]
fn flows_are_grouped_bounded_and_include_udp() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "web", "--ports", "31000-31009"]);
    let listeners = [8080, 8081].map(|port| {
        sandbox.inside(Netns::Outside, || TcpListener::bind(("0.0.0.0", port))).expect("the port is free")
    });
    let mut open = Vec::new();
    for (listener, count) in listeners.iter().zip([3, 1]) {
        let port = listener.local_addr().expect("an address").port();
        for _ in 0..count {
            let client = sandbox.inside(WEB, || TcpStream::connect((OUTSIDE, port))).expect("connected");
            let server = listener.accept().expect("a connection").0;
            transfer(&client, &server, 10);
            open.push((client, server));
        }
    }
    let [connected, unconnected] =
        [0, 31005].map(|port| sandbox.inside(WEB, || UdpSocket::bind(("0.0.0.0", port))).expect("a port"));
    sandbox.inside(WEB, || connected.connect((OUTSIDE, 53))).expect("connected");

    let flows = sandbox.json(&["flows", "web"]);
    let found = flow(&flows, OUTSIDE, 8080);
    assert_eq!((&found["connections"], &found["bytes_sent"]), (&json!(3), &json!(30)));
    let found = flow(&flows, OUTSIDE, 53);
    assert_eq!(
        (&found["protocol"], &found["bytes_sent"], &found["rtt_us"]),
        (&json!("udp"), &json!(null), &json!(null))
    );
    assert_eq!(flows["unconnected_udp"], json!(1));

    let flows = sandbox.json(&["flows", "web", "--limit", "1"]);
    assert_eq!(flows["flows"].as_array().map(Vec::len), Some(1));
    assert_eq!(flows["flows"][0]["port"], json!(8080));
    assert_eq!(flows["others"], json!({ "connections": 2, "bytes_sent": 10, "bytes_received": 0 }));

    let flows = sandbox.json(&["flows", "web", "--by-peer"]);
    let tcp = &flows["flows"][0];
    assert_eq!(
        (&tcp["connections"], &tcp["bytes_sent"], &tcp["port"]),
        (&json!(4), &json!(40), &json!(null))
    );

    assert!(sandbox.fails(&["flows", "absent"], 3).contains("\"absent\""));
    for limit in ["0", "1001"] {
        assert!(sandbox.fails(&["flows", "web", "--limit", limit], 2).contains("expected 1 to 1000"));
    }
    drop((open, connected, unconnected));
}
