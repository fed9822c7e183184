//! Marks the map values as plain bytes for aya.
#![expect(unsafe_code, reason = "aya::Pod is an unsafe trait")]

use aya::Pod;

use crate::{
    address_filter::AddressFilter,
    counters::Counters,
    event::{DropEvent, SampleLimiter},
    flow_state::{
        Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HostConnection, HostConnectionKey,
        HostFlow, HostFlowKey, Neighbour, NeighbourBudget, NeighbourKey,
    },
    gcra::GcraState,
    reason::{Drops, ReasonCounts},
    tables::{Address4, Address6, Config, Endpoint, NetnsOwner, PortEntry},
    verdict_log::{LogFilter, LogLimiter},
};

macro_rules! pod {
    ($($type:ty),*) => { $(
        // SAFETY: the type is `repr(C)`, made of integers and arrays of integers only, and has no padding
        // (its module asserts its size), so every bit pattern is valid and every byte is initialised.
        unsafe impl Pod for $type {}
    )* };
}

pod!(
    Address4,
    Address6,
    AddressFilter,
    PortEntry,
    Endpoint,
    NetnsOwner,
    Config,
    Counters,
    ReasonCounts,
    Drops,
    FragmentKey4,
    FragmentKey6,
    FragCacheEntry,
    EchoKey,
    Echo,
    HostFlowKey,
    HostFlow,
    HostConnectionKey,
    HostConnection,
    NeighbourKey,
    Neighbour,
    NeighbourBudget,
    DropEvent,
    SampleLimiter,
    GcraState,
    LogFilter,
    LogLimiter
);
