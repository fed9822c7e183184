//! A container's slot and the two places that carry it through the kernel: the index of its host veth and the
//! MAC address of its loopback device.

/// Number of slots, the host's (0) included.
///
/// Every container owns an aligned block of at least 16 ephemeral ports, none of them below 1,024, so there are
/// never more than 64,512 / 16 = 4,032 containers.
pub const SLOTS: u16 = 4096;

/// The host's slot: it owns every port that no container owns.
pub const HOST_SLOT: u16 = 0;

/// A host veth has the interface index `VETH_IFINDEX_BASE + slot`, requested when it is created. That tells the
/// program at its ingress whose packet it sees without a map lookup, and before the packet is even parsed.
pub const VETH_IFINDEX_BASE: u32 = 1_000_000;

/// The interface index that the host veth of `slot` has.
pub const fn veth_ifindex(slot: u16) -> u32 {
    VETH_IFINDEX_BASE + slot as u32
}

#[expect(clippy::cast_possible_truncation, reason = "what is cast is less than SLOTS")]
/// The slot of the host veth with this interface index; the host's if it is none.
pub const fn slot_of_veth(ifindex: u32) -> u16 {
    let slot = ifindex.wrapping_sub(VETH_IFINDEX_BASE);
    // A host veth never has slot 0, so the host's slot doubles as "not a host veth".
    if slot < SLOTS as u32 { slot as u16 } else { HOST_SLOT }
}

/// First four bytes of the MAC address of a container's loopback device: locally administered, then `PM`.
const LOOPBACK_PREFIX: [u8; 4] = [0x02, b'P', b'M', 0];

/// The MAC address that the loopback device of the container in `slot` has.
///
/// A loopback device writes its own address into every frame's source, so the one program that is shared by
/// all containers' loopback devices learns from it whose frame it sees. Nothing depends on it for safety: a
/// container that changes it only sends its own packets astray.
pub const fn loopback_mac(slot: u16) -> [u8; 6] {
    let [a, b, c, d] = LOOPBACK_PREFIX;
    let [high, low] = slot.to_be_bytes();
    [a, b, c, d, high, low]
}

/// The slot in a loopback device's MAC address, if it has one.
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
    fn every_slot_survives_both_carriers() {
        for slot in 1..SLOTS {
            assert_eq!(slot_of_veth(veth_ifindex(slot)), slot);
            assert_eq!(slot_of_loopback(loopback_mac(slot)), Some(slot));
        }
    }

    #[test]
    fn other_interfaces_and_addresses_carry_no_slot() {
        for ifindex in [0, 1, 2, VETH_IFINDEX_BASE - 1, VETH_IFINDEX_BASE + u32::from(SLOTS), u32::MAX] {
            assert_eq!(slot_of_veth(ifindex), HOST_SLOT, "{ifindex}");
        }
        assert_eq!(slot_of_loopback([0; 6]), None);
        assert_eq!(slot_of_loopback([0x02, b'P', b'M', 1, 0, 1]), None);
        assert_eq!(slot_of_loopback([0x02, b'P', b'M', 0, 0x80, 1]), None);
        assert_eq!(slot_of_loopback(loopback_mac(SLOTS)), None);
    }
}
