//! Pure values: no IO, and no knowledge of the wire, the disk or the kernel.
//!
//! [`crate::api`] and [`crate::records`] have types of their own for their serialised forms. Their
//! conversions destructure exhaustively, so a field that is added here does not compile until both have
//! decided on it.

/// Conversions between a struct of the model and one with the same name and fields in the calling module,
/// both ways.
macro_rules! mirror_struct {
    ($name:ident { $($field:ident),+ }) => {
        impl From<$crate::model::$name> for $name {
            fn from($crate::model::$name { $($field),+ }: $crate::model::$name) -> Self {
                Self { $($field),+ }
            }
        }

        impl From<$name> for $crate::model::$name {
            fn from($name { $($field),+ }: $name) -> Self {
                Self { $($field),+ }
            }
        }
    };
}

/// The same for an enum without fields.
macro_rules! mirror_enum {
    ($name:ident { $($variant:ident),+ }) => {
        impl From<$crate::model::$name> for $name {
            fn from(value: $crate::model::$name) -> Self {
                match value { $($crate::model::$name::$variant => Self::$variant),+ }
            }
        }

        impl From<$name> for $crate::model::$name {
            fn from(value: $name) -> Self {
                match value { $($name::$variant => Self::$variant),+ }
            }
        }
    };
}

pub(crate) use {mirror_enum, mirror_struct};

mod container;
mod cpus;
pub mod ephemeral;
mod host;
pub mod interface_name;
pub mod labels;
pub mod limit;
mod log_target;
pub mod name;
mod netns;
pub mod port_choice;
pub mod port_request;
pub mod ports;
mod process;
pub mod protocol;
mod queue;
pub mod reach;
mod reading;
pub mod resources;
mod tcp;
mod traffic;

pub use self::{
    container::{ContainerRecord, Draining, Phase, SavedNetns},
    cpus::Cpus,
    ephemeral::{EphemeralPool, PoolCapacity},
    host::{HostRecord, SavedSysctl},
    interface_name::InterfaceName,
    labels::{Label, LabelChanges, Labels},
    limit::{Direction, Limit, PerCpu, Policy},
    log_target::LogTarget,
    netns::NetnsId,
    port_request::{AutomaticRange, PortRequest},
    ports::{PortRange, PortSet},
    process::Process,
    protocol::Protocol,
    queue::QueueStats,
    reach::{HostAccess, Loopback, Reach},
    reading::{LinkErrors, PortUse, RttPercentiles, Snmp, SocketSummary},
    resources::Resources,
    tcp::{TcpInfo, TcpSocket, TcpState},
    traffic::TrafficSpec,
};
