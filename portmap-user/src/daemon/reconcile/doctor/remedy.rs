//! The remedy that most findings name.

/// The remedy for drift of the host side or of a container.
pub(super) const REPAIR: &str = "`portmap doctor --repair` repairs it";
