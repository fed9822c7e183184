//! Everything that portmap may make or change on a host: what is the same before and after is neither lost nor leaked.

use portmap::{kernel::maps::Maps, paths::Pins};
use portmap_common::slot::SLOTS;

use crate::sandbox::{Place, Sandbox};

/// Of mounts those count that are where a sandbox has its own: all others are the machine's, and come and go with it.
/// Interfaces, addresses, routes, queues, filters, namespaces, mounts, pins, state and settings of a host, and who is in
/// the maps. The daemon's socket is not among it, so that it can be compared with and without a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory(Vec<String>);

const LOOK: &str = r"
while ip -6 address show tentative | grep -q inet6; do sleep 0.02; done
ip -o link | sed 's/state .*//'; ip -o address; ip route show table all; ip -6 route show table all; tc qdisc
for d in lo uplink; do tc filter show dev $d ingress 2>/dev/null | sed 's/ (rule hit .*//; s/ id [0-9]* / /' || true; done
ls /run/netns; find /sys/fs/bpf /run/portmap 2>/dev/null | grep -v -e debug -e portmapd.sock || true
for m in /sys/fs/bpf/portmap/v*/maps/pm_guarded; do test -e $m && bpftool map dump pinned $m | grep -c slot || true; done
cut -d' ' -f2- /proc/mounts | grep -E '^(/run|/sys/fs/bpf)(/| )'
cd /proc/sys/net/ipv4; grep . conf/*/accept_local conf/*/route_localnet conf/*/rp_filter ip_local_reserved_ports
";

/// Prints the names of namespaces that portmap has made.
const OWN_NAMESPACES: &str = "
cd /run/portmap/containers 2>/dev/null || exit 0
grep -l '\"owns_netns\": true' *.json 2>/dev/null | sed 's/.json$//' || true";

/// Prints what a daemon has made and a teardown has left.
const LEFT: &str = "
set +e
ls -d /sys/fs/bpf/portmap /run/portmap 2>/dev/null
ip -o link show type veth | grep -o ' pm[0-9]*@.*alias portmap:.*'
for d in lo uplink; do tc filter show dev $d ingress 2>/dev/null | grep pm_; done
tc qdisc | grep -e 'dev pm[0-9]' -e '504d:'
cat /proc/sys/net/ipv4/ip_local_reserved_ports | grep .
true";

impl Sandbox {
    /// Removes everything of portmap, and looks whether that is so.
    pub(crate) fn expect_no_trace(&self) {
        let own = self.sh(Place::Host, OWN_NAMESPACES);
        self.ok(&["teardown"]);
        let mut left = self.sh(Place::Host, LEFT);
        for name in own.lines() {
            left += &self.sh(Place::Host, &format!("ls /run/netns/{name} 2>/dev/null || true"));
            left += &self.sh(Place::Host, &format!("grep ' /run/netns/{name} ' /proc/mounts || true"));
        }
        assert!(left.is_empty(), "the teardown leaves behind: {left}");
    }

    /// What is there now.
    pub fn inventory(&self) -> Inventory {
        let mut lines: Vec<String> = self.sh(Place::Host, LOOK).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines.extend(self.in_maps());
        Inventory(lines)
    }

    /// Compares what is there now with what was there.
    ///
    /// # Panics
    ///
    /// If they differ; the message has the lines that do, and `at`.
    #[track_caller]
    pub fn expect_inventory(&self, before: &Inventory, at: &str) {
        let after = self.inventory();
        let lacking = |all: &Inventory, other: &Inventory| -> Vec<String> {
            all.0.iter().filter(|line| !other.0.contains(line)).cloned().collect()
        };
        assert!(
            after == *before,
            "{at}: lost: {:#?}, left behind: {:#?}",
            lacking(before, &after),
            lacking(&after, before)
        );
    }

    /// The ports that are owned and the slots that are in use, as the maps have them; nothing if there are none.
    fn in_maps(&self) -> Option<String> {
        let maps = Maps::open(&Pins::new(self.path("/sys/fs/bpf/portmap"))).ok()?;
        let owned = (0..=u16::MAX).filter(|port| maps.ports.get(*port).slot != 0).count();
        let is_in_use = |slot: &u16| {
            maps.endpoint(*slot).expect("a map").host_ifindex != 0
                || maps.limit(*slot).expect("a map").ns_per_byte != 0
        };
        let in_use: Vec<u16> = (1..SLOTS).filter(is_in_use).collect();
        Some(format!("{owned} owned ports, slots in use: {in_use:?}"))
    }
}
