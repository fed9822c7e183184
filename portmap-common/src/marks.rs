//! All values that portmap gives `skb->mark`. `docs/drops.md` lists them for operators.
//!
//! The high half is `PM` in ASCII, so that a rule of the operator's own is unlikely to use one of these
//! values. No mark leaves the host: a program that redirects a packet clears the mark.

/// Mark of a packet that a program drops: the low half is the number of the
/// [`Reason`](crate::reason::Reason). Tracers of the kernel's drops (`skb:kfree_skb` and the like) tell
/// portmap's drops from others by it.
pub const DROP_MARK: u32 = 0x504d_0000;

/// Mark of a packet that the program at a host veth has redirected into the host's loopback device. The
/// program there clears the mark and passes the packet on. Besides portmap, only the host's root can set it
/// on a packet of the host's.
pub const HANDLED_MARK: u32 = 0x504d_4c4f;

/// Mark of a dry run: the program reports its verdict and has no side effects. It takes effect only together
/// with [`DRY_RUN_HWTSTAMP`], because a container's root can set a mark.
pub const DRY_RUN_MARK: u32 = 0x504d_3f3f;

/// Hardware timestamp (`skb->hwtstamp`) of a dry run, which no real packet has: senders and programs cannot
/// set this field, only drivers of network hardware can. The value is centuries in the future, and no kernel
/// address, which some kernels keep in the same field.
pub const DRY_RUN_HWTSTAMP: u64 = 0x504d_3f3f_504d_3f3f;
