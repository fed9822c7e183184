//! Which ports a container may bind sockets to, where there is a guard for that.

/// Whether the container in `slot` may bind to a port: to its own ones, and to 0, for which the kernel chooses one of its
/// ephemeral ports.
#[inline(always)]
pub fn is_allowed(port: u16, slot: u32, owner: impl FnOnce(u16) -> u32) -> bool {
    port == 0 || owner(port) == slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_ports_and_none() {
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
