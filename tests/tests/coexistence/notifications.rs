//! Changes of settings that the kernel reports.

use portmap_tests::{
    sandbox::{Netns, Sandbox},
    wait,
};

use crate::setting;

/// How often the daemon must restore what a test changes. If it noticed that only at its next resync, which is due
/// every ten seconds, it would take longer than a wait may.
const CHANGES: u32 = 15;

#[test]
fn forwarding_of_lo_is_restored_at_once() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    // The value of the host is its own.
    let off = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/ip_forward; \
               echo 0 > /proc/sys/net/ipv6/conf/all/forwarding";
    let is_restored = || {
        let names = ["ipv4/conf/lo/forwarding", "ipv6/conf/lo/forwarding"];
        names.iter().all(|name| setting(&sandbox, Netns::Host, name) == "1")
    };
    let mut changes = 0;
    wait::until("forwarding of lo to be restored", || {
        if is_restored() {
            sandbox.sh(Netns::Host, off);
            changes += 1;
        }
        changes > CHANGES
    });
    assert_eq!(setting(&sandbox, Netns::Host, "ipv4/ip_forward"), "0");
}
