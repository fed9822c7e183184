//! Ping, arping and name resolution in a container.

use portmap_tests::{
    background::Background,
    sandbox::{HOST, Netns, OUTSIDE, Sandbox},
};

use crate::{A, add_a, daemon};

#[test]
fn ping_arping_and_host_work_from_a_container() {
    let sandbox = Sandbox::new();
    let _daemon = daemon(&sandbox, &[]);
    add_a(&sandbox);
    // To the outside, and to the host's address and the loopback address.
    for address in ["10.0.0.2", "192.0.2.1", "10.0.0.1", "127.0.0.1"] {
        sandbox.sh(A, &format!("ping -c1 {address}"));
    }
    let _resolver = Background::server(
        &sandbox,
        Netns::Outside,
        53,
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --pid-file= --log-facility=- --no-resolv \
         --no-hosts --host-record=www.test,192.0.2.77",
    );
    let answer = sandbox.sh(A, &format!("host -t A www.test {OUTSIDE}"));
    assert!(answer.contains("www.test has address 192.0.2.77"), "{answer}");
    // Unlike there, a container sends no ARP: the host resolves its neighbours.
    let arping = format!("arping -f -w1 -I eth0 {OUTSIDE}");
    let output = sandbox.command(A, "sh").args(["-c", &arping]).output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(2) && text.contains("not ARPable"), "{output:?}");
    // And one request has one reply, however many containers there are.
    sandbox.ok(&["add", "b"]);
    let replies = sandbox.sh(Netns::Outside, &format!("arping -c1 -w2 -I eth0 {HOST}"));
    assert!(replies.contains("Received 1 response(s)"), "{replies}");
}
