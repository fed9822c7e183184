//! The reading of one container, inside its namespace and at its host veth.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use portmap_common::slot::veth_ifindex;

use tracing::debug;

use super::{
    links::{HostReading, LinkSource},
    ports::PortsInUse,
    rounds::Subject,
    rtt::RttSamples,
};
use crate::{
    daemon::{
        container::limits::{Queue, Queues},
        env::Env,
        registry::{Entry, Life},
    },
    error::Result,
    kernel::{
        link_stats,
        netlink::Netlink,
        proc_net,
        session::NetSession,
        tcp_sockets::{self, Ended, Query},
        udp_sockets,
        visitor::Visitor,
    },
    model::{
        ContainerRecord, Limit, PortUse, RttPercentiles, Snmp, SocketSummary, TcpInfo, TcpSocket, TcpState,
    },
    settings::Monitor,
};

/// Time limit of a visit to one container, apart from its qdiscs.
const VISIT: Duration = Duration::from_millis(250);

/// Time limit for its qdiscs.
const QUEUES: Duration = Duration::from_millis(100);

/// Sockets of a visit itself when the namespace's are counted: that of its netlink session.
const OWN_SOCKETS: u64 = 1;

/// A source of readings: the host veths of containers, or a container.
#[derive(Clone)]
pub(super) enum Source {
    Host(Arc<[LinkSource]>),
    Container(Arc<Entry>),
}

/// Identity of a source: a container in one life, with its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::daemon) struct Key {
    /// `None`: the host.
    life: Option<Life>,
    /// Inode and cookie.
    namespace: Option<(u64, Option<u64>)>,
}

impl Key {
    /// The host.
    pub(super) const HOST: Self = Self { life: None, namespace: None };

    /// A container.
    pub(in crate::daemon) fn of(entry: &Entry) -> Self {
        let namespace = entry.record.namespace.map(|id| (id.inode, id.cookie));
        Self { life: Some(entry.life), namespace }
    }
}

impl Subject for Source {
    type Key = Key;
    type Reading = Reading;

    fn key(&self) -> Key {
        match self {
            Self::Host(_) => Key::HOST,
            Self::Container(entry) => Key::of(entry),
        }
    }

    fn is_answered_by(&self, reading: &Reading) -> bool {
        match (self, reading) {
            (Self::Host(links), Reading::Host(host)) => host.is_of(links),
            (Self::Container(entry), Reading::Container(reading)) => reading.has_limits_of(&entry.record),
            _ => false,
        }
    }
}

/// A reading of a source.
pub(super) enum Reading {
    Host(HostReading),
    Container(Box<ContainerReading>),
}

/// A reading of a container.
pub(in crate::daemon) struct ContainerReading {
    /// The qdiscs of its limits.
    pub(in crate::daemon) queues: Queues,
    /// The reading inside its namespace; the error of the visit.
    pub(in crate::daemon) inside: Result<Inside>,
    /// The limits that were in force.
    limits: [Option<Limit>; 2],
    /// The newest complete reading of its ephemeral ports, of this reading or of one before it.
    ports: Option<PortUse>,
}

impl ContainerReading {
    /// Whether the container had the limits of this record when its qdiscs were read.
    pub(in crate::daemon) fn has_limits_of(&self, record: &ContainerRecord) -> bool {
        self.limits == [record.egress.clone(), record.ingress.clone()]
    }
}

/// A reading inside a container. A part that was not requested, or not complete at the deadline, is `None`.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Inside {
    /// Use of its ephemeral ports.
    pub(in crate::daemon) ports: Option<PortUse>,
    /// Counts of its sockets.
    pub(in crate::daemon) sockets: Option<SocketSummary>,
    /// Round-trip times; also `None` if no connection has one.
    pub(in crate::daemon) rtt: Option<RttPercentiles>,
    /// Protocol counters.
    pub(in crate::daemon) snmp: Option<Arc<Snmp>>,
    /// Whether a part is missing because of the deadline.
    pub(in crate::daemon) is_incomplete: bool,
}

/// Reads sources on the threads of the collector.
pub(super) struct Reader {
    pub(super) env: Arc<Env>,
    pub(super) visitor: Visitor,
}

impl Reader {
    /// Reads a source, given its last reading.
    pub(super) fn read(&self, source: &Source, before: Option<&Reading>) -> Reading {
        match source {
            Source::Host(sources) => {
                let found = self
                    .visitor
                    .stay_home()
                    .and_then(|()| Netlink::open().and_then(|netlink| link_stats::errors(&netlink)));
                let found = found.unwrap_or_else(|error| {
                    debug!("the counters of host veths are those of an earlier reading: {error}");
                    BTreeMap::new()
                });
                let before = before.and_then(|before| match before {
                    Reading::Host(host) => Some(host),
                    Reading::Container(_) => None,
                });
                Reading::Host(HostReading::next(sources.clone(), before, &found))
            }
            Source::Container(entry) => {
                let before = before.and_then(|before| match before {
                    Reading::Host(_) => None,
                    Reading::Container(reading) => reading.ports,
                });
                Reading::Container(Box::new(self.read_container(&entry.record, before)))
            }
        }
    }

    fn read_container(&self, record: &ContainerRecord, ports: Option<PortUse>) -> ContainerReading {
        let deadline = Instant::now() + VISIT;
        let ingress = record.ingress.as_ref().map(|_limit| {
            self.visitor.stay_home()?;
            let netlink = Netlink::open()?;
            netlink.set_deadline(deadline);
            Ok(Queue::read(&netlink, veth_ifindex(record.slot)))
        });
        let mut egress = None;
        let inside = self.visit(record, |session| {
            // First, and with a deadline of its own, because a container's root can make any number of classes.
            let found = inside(record, &self.env.settings.monitor, ports, deadline);
            session.netlink.set_deadline(Instant::now() + QUEUES);
            if record.egress.is_some() {
                let eth0 = self.env.maps.endpoint(record.slot).map(|endpoint| endpoint.eth0_ifindex);
                egress = Some(eth0.map(|eth0| Queue::read(&session.netlink, eth0)).map_err(Into::into));
            }
            found
        });
        // A visit that fails before is the failure of its qdisc, too.
        if let (Some(_limit), None, Err(error)) = (&record.egress, &egress, &inside) {
            egress = Some(Err(error.clone()));
        }
        let limits = [record.egress.clone(), record.ingress.clone()];
        let ports = inside.as_ref().ok().and_then(|inside| inside.ports).or(ports);
        ContainerReading { queues: Queues { egress, ingress }, inside, limits, ports }
    }

    fn visit<T>(&self, record: &ContainerRecord, work: impl FnOnce(&NetSession) -> Result<T>) -> Result<T> {
        let gone = || crate::daemon::container::lookup::netns_gone(record);
        let recorded = record.namespace.ok_or_else(gone)?;
        self.visitor.visit(&record.netns, recorded, work)?.ok_or_else(gone)
    }
}

/// Reads what the settings ask for, in the namespace that the thread visits.
fn inside(
    record: &ContainerRecord,
    monitor: &Monitor,
    before: Option<PortUse>,
    deadline: Instant,
) -> Result<Inside> {
    let (sockets, snmp) = (proc_net::socket_summary(), monitor.snmp.then(proc_net::snmp));
    // A walk through the kernel's tables, which all namespaces share, takes most of a visit's time. It is not
    // needed where the namespace has nothing in them.
    let has_tcp = sockets.as_ref().map_or(true, |sockets| sockets.can_have_tcp(OWN_SOCKETS));
    let has_udp = sockets.as_ref().map_or(true, |sockets| sockets.udp > 0);
    let mut found = Inside {
        // One that fails must not cost the others.
        is_incomplete: sockets.is_err() && monitor.socket_summary || matches!(snmp, Some(Err(_))),
        sockets: sockets.ok().filter(|_| monitor.socket_summary),
        snmp: snmp.and_then(Result::ok).map(Arc::new),
        ..Inside::default()
    };
    let block = record.ephemeral_ports;
    let (mut ports, mut rtts) = (PortsInUse::new(block), RttSamples::default());
    // One walk through the kernel's tables for both, because that is what takes time.
    let query = Query {
        ports: Some(block).filter(|_| !monitor.socket_details),
        info: monitor.socket_details,
        ..Query::ALL
    };
    let mut ended = Ended::Complete;
    if has_tcp {
        ended = tcp_sockets::visit(query, deadline, |socket: &TcpSocket| {
            ports.add(socket.local.port());
            let rtt = socket.info.map_or(0, |TcpInfo { rtt, .. }| rtt);
            if rtt != 0 && socket.state != TcpState::Listen {
                rtts.add(rtt);
            }
            ControlFlow::Continue(())
        })?;
    }
    // At the deadline they are those of the connections that were read.
    found.rtt = rtts.percentiles();
    if has_udp && ended == Ended::Complete {
        ended = udp_sockets::visit(Some(block), deadline, |socket| ports.add(socket.local.port()))?;
    }
    let total = u32::try_from(block.count()).unwrap_or(u32::MAX);
    // A block that is full already is full, however many sockets were not read.
    found.ports = if ended == Ended::Complete || ports.count() >= total {
        Some(PortUse::next(before, ports.count(), total))
    } else {
        before.filter(|before| before.total == total)
    };
    found.is_incomplete |= ended != Ended::Complete;
    Ok(found)
}
