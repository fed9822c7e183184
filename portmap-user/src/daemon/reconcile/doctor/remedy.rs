//! The remedy that most findings name.

/// How the operator repairs the host's side or a container.
pub(super) const REPAIR: &str = "`portmap doctor --repair` repairs it";
