//! Slots, and their two encodings in the kernel: the interface index of a host veth, and the MAC address of a
//! container's loopback device.

/// Number of slots, including the host's slot 0.
///
/// Every container owns an aligned block of at least 16 ephemeral ports from 1,024 up, so there are at most
/// 64,512 / 16 = 4,032 containers.
pub const SLOTS: u16 = 4096;

/// The host's slot. It owns every port that no container owns.
pub const HOST_SLOT: u16 = 0;

/// Base of the interface indices of host veths: a host veth is created with the index `VETH_IFINDEX_BASE +
/// slot`. So the program at its ingress knows the sender without a map lookup, and before it parses the
/// packet.
pub const VETH_IFINDEX_BASE: u32 = 1_000_000;

/// Returns the interface index of the host veth of `slot`.
pub const fn veth_ifindex(slot: u16) -> u32 {
    VETH_IFINDEX_BASE + slot as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the value is less than SLOTS")]
/// Returns the slot of the host veth with this interface index, or the host's slot if the index is not a host
/// veth's.
pub const fn slot_of_veth(ifindex: u32) -> u16 {
    let slot = ifindex.wrapping_sub(VETH_IFINDEX_BASE);
    // No host veth has slot 0, so the host's slot also means "not a host veth".
    if slot < SLOTS as u32 { slot as u16 } else { HOST_SLOT }
}

/// First four bytes of the MAC address of a container's loopback device: locally administered, then `PM` in
/// ASCII.
const LOOPBACK_PREFIX: [u8; 4] = [0x02, b'P', b'M', 0];

/// Returns the MAC address of the loopback device of the container in `slot`.
///
/// The kernel writes a loopback device's address into the source of every frame, so the program at the
/// loopback devices of all containers learns the slot from it. No security decision depends on it: a
/// container that changes the address misdirects only its own packets.
pub const fn loopback_mac(slot: u16) -> [u8; 6] {
    let [a, b, c, d] = LOOPBACK_PREFIX;
    let [high, low] = slot.to_be_bytes();
    [a, b, c, d, high, low]
}

/// Returns the slot encoded in a loopback device's MAC address; `None` for any other address.
pub const fn slot_of_loopback(mac: [u8; 6]) -> Option<u16> {
    let [a, b, c, d, high, low] = mac;
    let [pa, pb, pc, pd] = LOOPBACK_PREFIX;
    let slot = u16::from_be_bytes([high, low]);
    if a == pa && b == pb && c == pc && d == pd && slot < SLOTS { Some(slot) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_encodings_are_reversible() {
        for slot in 1..SLOTS {
            assert_eq!(slot_of_veth(veth_ifindex(slot)), slot);
            assert_eq!(slot_of_loopback(loopback_mac(slot)), Some(slot));
        }
    }

    #[test]
    fn slot_is_absent_from_foreign_indices_and_macs() {
        for ifindex in [0, 1, 2, VETH_IFINDEX_BASE - 1, VETH_IFINDEX_BASE + u32::from(SLOTS), u32::MAX] {
            assert_eq!(slot_of_veth(ifindex), HOST_SLOT, "{ifindex}");
        }
        assert_eq!(slot_of_loopback([0; 6]), None);
        assert_eq!(slot_of_loopback([0x02, b'P', b'M', 1, 0, 1]), None);
        assert_eq!(slot_of_loopback([0x02, b'P', b'M', 0, 0x80, 1]), None);
        assert_eq!(slot_of_loopback(loopback_mac(SLOTS)), None);
    }
}
