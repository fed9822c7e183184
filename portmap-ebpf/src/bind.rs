//! The decision of the bind guard: which ports a container may bind. `src/bin/bind_guard.rs` contains the
//! programs.

/// Returns whether the container in `slot` may bind to `port`: to its own ports, and to port 0, for which the
/// kernel chooses one of the container's ephemeral ports.
#[inline(always)]
pub fn is_allowed(port: u16, slot: u32, owner: impl FnOnce(u16) -> u32) -> bool {
    port == 0 || owner(port) == slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_is_allowed_to_own_ports_and_port_0() {
        let owner = |port| match port {
            31_000 => 7,
            31_001 => 8,
            _ => 0,
        };
        for (port, expected) in [(0, true), (31_000, true), (31_001, false), (80, false)] {
            assert_eq!(is_allowed(port, 7, owner), expected, "{port}");
        }
    }
}
