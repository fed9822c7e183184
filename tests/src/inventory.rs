//! Snapshot of everything that portmap may create or change on a host, to prove that nothing is lost or
//! leaked.

use portmap::{
    kernel::{maps::Maps, port_table::PortTable},
    paths::Pins,
};
use portmap_common::slot::SLOTS;

use crate::sandbox::{Netns, Sandbox};

/// Interfaces, addresses, routes, qdiscs, filters, namespaces, mounts, pins, state and settings of a host,
/// and the owners in the maps.
///
/// Only mounts below the sandbox's own mount points count, because all others belong to the machine. The
/// daemon's socket is excluded, so that snapshots with and without a daemon compare equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory(Vec<String>);

const SNAPSHOT: &str = r"
n=0
while [ $n -lt 250 ] && ip link show uplink 2>/dev/null | grep -q NO-CARRIER; do n=$((n + 1)); sleep 0.02; done
while ip -6 address show tentative | grep -q inet6; do sleep 0.02; done
ip -o link | sed 's/state .*//'; ip -o address; ip route show table all; ip -6 route show table all; tc qdisc
for d in lo uplink; do
  tc filter show dev $d ingress 2>/dev/null | sed 's/ (rule hit .*//; s/ id [0-9]* / /' || true
done
ls /run/netns; find /sys/fs/bpf /run/portmap 2>/dev/null | grep -v -e debug -e portmapd.sock -e readonly.sock || true
for m in /sys/fs/bpf/portmap/v*/maps/pm_guarded; do
  test -e $m && bpftool map dump pinned $m | grep -c slot || true
done
cut -d' ' -f2- /proc/mounts | grep -E '^(/run|/sys/fs/bpf)(/| )'
cd /proc/sys/net/ipv4; grep . conf/*/accept_local conf/*/route_localnet conf/*/rp_filter ip_local_reserved_ports
";

/// Prints the names of the namespaces that portmap has created.
const OWN_NAMESPACES: &str = "
cd /run/portmap/containers 2>/dev/null || exit 0
grep -l '\"owns_netns\": true' *.json 2>/dev/null | sed 's/.json$//' || true";

/// Prints leftovers of a daemon after a teardown.
const LEFTOVERS: &str = "
set +e
ls -d /sys/fs/bpf/portmap /run/portmap 2>/dev/null
ip -o link show type veth | grep -o ' pm[0-9]*@.*alias portmap:.*'
for d in lo uplink; do tc filter show dev $d ingress 2>/dev/null | grep pm_; done
tc qdisc | grep -e 'dev pm[0-9]' -e '504d:'
cat /proc/sys/net/ipv4/ip_local_reserved_ports | grep .
true";

impl Sandbox {
    /// Tears portmap down and checks that nothing of it remains.
    pub(crate) fn expect_no_trace(&self) {
        let own = self.sh(Netns::Host, OWN_NAMESPACES);
        self.ok(&["teardown"]);
        let mut left = self.sh(Netns::Host, LEFTOVERS);
        for name in own.lines() {
            left += &self.sh(Netns::Host, &format!("ls /run/netns/{name} 2>/dev/null || true"));
            left += &self.sh(Netns::Host, &format!("grep ' /run/netns/{name} ' /proc/mounts || true"));
        }
        assert!(left.is_empty(), "leftovers after the teardown: {left}");
    }

    /// Takes a snapshot.
    pub fn inventory(&self) -> Inventory {
        let mut lines: Vec<String> = self.sh(Netns::Host, SNAPSHOT).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines.extend(self.in_maps());
        Inventory(lines)
    }

    /// Compares the present state with an earlier snapshot.
    ///
    /// # Panics
    ///
    /// Panics if they differ; the message lists the lines that differ, and `at`.
    #[track_caller]
    pub fn expect_inventory(&self, before: &Inventory, at: &str) {
        let after = self.inventory();
        let lacking = |all: &Inventory, other: &Inventory| -> Vec<String> {
            all.0.iter().filter(|line| !other.0.contains(line)).cloned().collect()
        };
        assert!(
            after == *before,
            "{at}: lost: {:#?}, leaked: {:#?}",
            lacking(before, &after),
            lacking(&after, before)
        );
    }

    /// Returns the number of owned ports and the slots in use according to the maps; `None` without maps.
    fn in_maps(&self) -> Option<String> {
        let pins = Pins::new(self.path("/sys/fs/bpf/portmap"));
        let (maps, ports) = (Maps::open(&pins).ok()?, PortTable::open(&pins).ok()?);
        let owned = (0..=u16::MAX).filter(|port| ports.get(*port).slot != 0).count();
        let is_in_use = |slot: &u16| {
            maps.endpoint(*slot).expect("a map").host_ifindex != 0
                || maps.limit(*slot).expect("a map").ns_per_byte != 0
        };
        let in_use: Vec<u16> = (1..SLOTS).filter(is_in_use).collect();
        Some(format!("{owned} owned ports, slots in use: {in_use:?}"))
    }
}
