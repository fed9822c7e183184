//! Everything that touches the kernel. One module for each of its subsystems; none of them decides anything.

pub mod address;
pub mod bpffs;
pub mod btf;
pub mod cgroup;
pub mod clock;
pub mod clsact;
pub mod guard;
pub mod inherit;
pub mod layout;
pub mod link;
pub mod locked;
pub mod maps;
pub mod namespace;
pub mod netlink;
pub mod netns_lock;
pub mod offloads;
pub mod pins;
pub mod process;
pub mod programs;
pub mod pseudo;
pub mod qdisc;
pub mod ring;
pub mod sockets;
pub mod sysctl;
pub mod test_run;
