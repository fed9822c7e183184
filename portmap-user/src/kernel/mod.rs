//! Access to the kernel, one module per subsystem. Nothing here decides what to do.

pub mod address;
pub mod bpffs;
pub mod btf;
pub mod cgroup;
pub mod clock;
pub mod clsact;
mod dump;
pub mod error;
pub mod file_lock;
pub mod guard;
pub mod inherit;
pub mod ipsec;
pub mod link;
pub mod link_stats;
pub mod maps;
pub mod namespace;
pub mod nat;
pub mod neighbour;
pub mod netlink;
pub mod netns_lock;
pub mod notifications;
pub mod offloads;
pub mod own_process;
pub mod pin_migration;
pub mod pins;
pub mod port_table;
pub mod proc_net;
pub mod process;
pub mod programs;
pub mod pseudo;
pub mod qdisc;
pub mod ring;
pub mod routes;
pub mod rules;
pub mod session;
pub mod slot_counters;
mod sock_diag;
pub mod sockets;
pub mod sysctl;
pub mod tcp_sockets;
pub mod test_run;
pub mod udp_sockets;
#[cfg(feature = "datapath-log")]
pub mod verdict_log;
pub mod visitor;

pub use self::error::{CgroupError, Error, Failure, NamespaceError};
