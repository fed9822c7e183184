//! A host with containers and one uplink for each variant, in namespaces that end with this process.
//!
//! All uplinks have the same MAC address, so that one frame fits all of them. One namespace holds the `eth0`
//! of all containers, which makes no difference: the measured path ends before the kernel uses state of the
//! namespace.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use portmap::{
    kernel::{
        clsact,
        link::{self, VethPair},
        maps::Maps,
        namespace::Namespace,
        netlink::Netlink,
        port_table::PortTable,
        programs::{self, AttachMode, AttachPoint},
        sysctl::{self, Sysctls},
    },
    paths::Pins,
};
use portmap_common::{
    gcra::{GcraState, MAX_RATE},
    names,
    slot::{HOST_SLOT, veth_ifindex},
    tables::{Address4, Address6, Config, Endpoint, Mac, PortEntry},
};

use crate::classifier::{
    layout, mesos,
    source::{self, Source},
    test_runs::LIMITED_SLOT,
};

/// The host's address.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The host's IPv6 address.
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The host's gateway.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
/// The MAC address of every interface.
pub(crate) const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];

const BPFFS: &str = "/sys/fs/bpf";
const MTU: u32 = 1500;
const FIRST_UPLINK: u32 = 100;
/// Index of the first container's `eth0`, and of the first uplink's peer, in their namespace.
const FIRST_ETH0: u32 = 10_000;
const FIRST_PEER: u32 = 100;

/// The classifier at the ingress of an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Classifier {
    /// No classifier.
    None,
    /// An empty program.
    Empty,
    /// A program that delivers without a verdict.
    Deliver,
    /// portmap's program, as the daemon attaches it.
    Portmap,
    /// Mesos' list for this many containers.
    U32(u16),
}

impl Classifier {
    pub(crate) const ALL: [Self; 8] = [
        Self::None,
        Self::Empty,
        Self::Deliver,
        Self::Portmap,
        Self::U32(layout::CONTAINERS[0]),
        Self::U32(layout::CONTAINERS[1]),
        Self::U32(layout::CONTAINERS[2]),
        Self::U32(layout::CONTAINERS[3]),
    ];

    /// Returns the name of its uplink.
    pub(crate) fn interface(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Empty => "empty".to_owned(),
            Self::Deliver => "deliver".to_owned(),
            Self::Portmap => "portmap".to_owned(),
            Self::U32(containers) => format!("u32-{containers}"),
        }
    }

    /// Returns the index of its uplink.
    pub(crate) fn ifindex(self) -> u32 {
        let place = Self::ALL.into_iter().position(|other| other == self).expect("one of all");
        FIRST_UPLINK + u32::try_from(place).expect("a few")
    }
}

/// The namespaces, maps and programs.
pub(crate) struct World {
    /// The namespace of all containers' `eth0`.
    pub(crate) containers: Namespace,
    pub(crate) maps: Maps,
    /// What the programs know of the host.
    pub(crate) config: Config,
    /// Port to owner.
    pub(crate) ports: PortTable,
    pub(crate) pins: Pins,
    pub(crate) attach_mode: AttachMode,
}

/// Returns the name of a container's `eth0`, which is in a namespace with all others.
pub(crate) fn eth0(slot: u16) -> String {
    format!("c{slot}")
}

/// Returns the name of a container's host veth.
pub(crate) fn host_veth(slot: u16) -> String {
    format!("v{slot}")
}

/// Moves this process into new namespaces, to protect the machine's interfaces, routes and settings. The
/// process must have a single thread.
pub(crate) fn leave_the_host() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("cannot create namespaces: run as root")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")?;
    mount(none, BPFFS, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("cannot mount a bpffs on {BPFFS}"))
}

impl World {
    /// Builds everything. The process must be in its own namespaces.
    pub(crate) fn build(source: &mut Source) -> Result<Self> {
        let netlink = Netlink::open()?;
        // The open file keeps the namespace after the end of its thread.
        let containers = std::thread::spawn(|| -> Result<Namespace> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            Ok(Namespace::current()?)
        });
        let containers = containers.join().map_err(std::panic::resume_unwind)??;
        without_ipv6()?;
        containers.run(|_session| without_ipv6())?;
        for slot in layout::slots(layout::MOST_CONTAINERS) {
            let names = (host_veth(slot), eth0(slot));
            pair(&netlink, &containers, &names, (veth_ifindex(slot), FIRST_ETH0 + u32::from(slot)))?;
        }
        for classifier in Classifier::ALL {
            let (name, index) = (classifier.interface(), classifier.ifindex());
            let names = (name.clone(), format!("{name}-peer"));
            pair(&netlink, &containers, &names, (index, index - FIRST_UPLINK + FIRST_PEER))?;
        }
        link::set_up(&netlink, link::LOOPBACK, "lo")?;
        containers.run(|_session| {
            let netlink = Netlink::open()?;
            for classifier in Classifier::ALL {
                link::set_up(&netlink, classifier.ifindex() - FIRST_UPLINK + FIRST_PEER, "a peer")?;
            }
            layout::slots(layout::MOST_CONTAINERS)
                .try_for_each(|slot| link::set_up(&netlink, FIRST_ETH0 + u32::from(slot), &eth0(slot)))
        })?;
        let pins = Pins::new(Path::new(BPFFS).join("portmap"));
        let attach_mode = AttachMode::detect();
        programs::load(&pins)?;
        let (maps, ports) = (Maps::open(&pins)?, PortTable::open(&pins)?);
        let config = config();
        let mut world = Self { containers, maps, config, ports, pins, attach_mode };
        world.fill_fixed_maps()?;
        world.attach(&netlink, source)?;
        Ok(world)
    }

    /// Fills the maps with the host's configuration and all endpoints.
    fn fill_fixed_maps(&mut self) -> Result<()> {
        self.maps.set_config(&self.config)?;
        self.maps.set_endpoint(HOST_SLOT, Endpoint::default())?;
        for slot in layout::slots(layout::MOST_CONTAINERS) {
            let [.., ephemeral] = layout::ranges(slot);
            let endpoint = Endpoint {
                host_ifindex: veth_ifindex(slot),
                eth0_ifindex: FIRST_ETH0 + u32::from(slot),
                ephemeral_first: ephemeral.first(),
                ephemeral_last: ephemeral.last(),
                ..Endpoint::default()
            };
            self.maps.set_endpoint(slot, endpoint)?;
        }
        // With the largest tolerance, so that it never drops a packet.
        let limit = GcraState::new(MAX_RATE, 1 << 60, true);
        self.maps.set_limit(LIMITED_SLOT, limit)?;
        Ok(())
    }

    /// Attaches every classifier to its uplink.
    fn attach(&self, netlink: &Netlink, source: &mut Source) -> Result<()> {
        let hook = AttachPoint {
            attach_mode: self.attach_mode,
            interface: Classifier::Portmap.interface(),
            ingress: true,
            program: names::PROG_UPLINK_INGRESS,
            link: self.pins.link(&Classifier::Portmap.interface()),
        };
        programs::attach(netlink, &self.pins, &hook)?;
        for (classifier, name) in [(Classifier::Empty, source::EMPTY), (Classifier::Deliver, source::DELIVER)]
        {
            attach_own(self.attach_mode, netlink, &classifier.interface(), name, source.classifier(name)?)?;
        }
        for containers in layout::CONTAINERS {
            mesos::install(&Classifier::U32(containers).interface(), containers)?;
        }
        Ok(())
    }

    /// Publishes the owners of all ports.
    pub(crate) fn publish(&self, table: &[PortEntry]) {
        for (port, owner) in (0..=u16::MAX).zip(table) {
            self.ports.set(port, *owner);
        }
    }
}

/// The configuration of a host with one address of each IP version and one gateway.
fn config() -> Config {
    Config {
        host_ip: Address4::new(HOST.octets()),
        netmask: Address4::new([255, 255, 255, 0]),
        gateway: Address4::new(GATEWAY.octets()),
        uplink_ifindex: Classifier::Portmap.ifindex(),
        host_ip6: Address6::new(HOST6.octets()),
        netmask6: Address6::new((u128::MAX << 64).to_be_bytes()),
        mac: Mac::new(HOST_MAC),
        direct4: 1,
        direct6: 1,
        ..Config::default()
    }
}

fn attach_own(
    attach_mode: AttachMode,
    netlink: &Netlink,
    interface: &str,
    name: &str,
    program: &mut SchedClassifier,
) -> Result<()> {
    match attach_mode {
        AttachMode::Tcx => {
            let order = TcAttachOptions::TcxOrder(LinkOrder::default());
            program
                .attach_with_options(interface, TcAttachType::Ingress, order)
                .with_context(|| format!("cannot attach {name} to {interface}"))?;
        }
        AttachMode::Clsact => {
            let fd = program.fd().with_context(|| format!("{name} is not loaded"))?.as_fd().as_raw_fd();
            clsact::replace_filter(netlink, interface, true, name, fd)?;
        }
    }
    Ok(())
}

/// Disables IPv6 in the calling thread's namespace, so that it sends no packets of its own.
fn without_ipv6() -> portmap::error::Result<()> {
    let sysctls = Sysctls::open()?;
    for interface in ["all", "default"] {
        let setting = sysctl::of_interface("ipv6", interface, "disable_ipv6");
        sysctls.write_if_present(&setting, "1")?;
    }
    Ok(())
}

/// Creates a veth pair between the host and the containers' namespace; the host's end is up.
fn pair(
    netlink: &Netlink,
    containers: &Namespace,
    (host_name, container_name): &(String, String),
    (host_index, container_index): (u32, u32),
) -> Result<()> {
    link::create_veth(
        netlink,
        &VethPair {
            host_name,
            host_index,
            alias: "",
            container_name,
            container_index,
            container: containers,
            mac: HOST_MAC,
            mtu: MTU,
        },
    )?;
    link::set_up(netlink, host_index, host_name)?;
    Ok(())
}

/// A file of `/proc/net`, which belongs to the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct NamespaceFile(fs::File);

impl NamespaceFile {
    /// Opens a file of the calling thread's namespace.
    pub(crate) fn open(name: &str) -> portmap::error::Result<Self> {
        let path = format!("/proc/thread-self/net/{name}");
        let file = fs::File::open(&path);
        Ok(Self(
            file.map_err(|error| portmap::error::Error::failure(format!("cannot open {path}: {error}")))?,
        ))
    }

    /// Reads the current content.
    pub(crate) fn read(&self) -> Result<String> {
        let mut text = String::new();
        let mut file = &self.0;
        file.seek(SeekFrom::Start(0)).context("cannot rewind a file of /proc/net")?;
        file.read_to_string(&mut text).context("cannot read a file of /proc/net")?;
        Ok(text)
    }
}
