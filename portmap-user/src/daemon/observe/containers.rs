//! Containers in the API.

use crate::{
    api::Container,
    daemon::{env::Env, host::HostState, registry::Entry},
    kernel::link,
};

/// Describes a container for the API.
pub(in crate::daemon) fn describe(env: &Env, state: &HostState, entry: &Entry) -> Container {
    let record = &entry.record;
    Container {
        name: record.name.clone(),
        slot: record.slot,
        netns: record.netns.clone(),
        netns_inode: record.namespace.map(|namespace| namespace.inode),
        pid: record.pid,
        host_veth: record.host_veth(),
        interface: record.interface.to_string(),
        mac: link::mac_text(state.mac),
        mtu: state.mtu,
        ip: state.v4.address,
        ip6: state.v6.filter(|_| record.ipv6).map(|v6| v6.address),
        ports: record.ports.clone(),
        automatic_ports: record.automatic_ports.clone(),
        ephemeral_ports: record.ephemeral_ports,
        draining_ports: record.draining_ports(),
        egress: record.egress.clone(),
        ingress: record.ingress.clone(),
        loopback: env.loopback(record),
        labels: record.labels.clone(),
        state: entry.state(),
    }
}
