//! Relevant values of the [world](crate::world), and their selection by the fuzzer's bytes.

use arbitrary::Unstructured;

/// The shared IPv4 address.
pub const HOST: [u8; 4] = [10, 0, 0, 1];
/// The gateway of IPv4.
pub const GATEWAY: [u8; 4] = [10, 0, 0, 254];
/// The shared IPv6 address.
pub const HOST6: [u8; 16] = *b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01";
/// The gateway of IPv6.
pub const GATEWAY6: [u8; 16] = *b"\xfe\x80\0\0\0\0\0\0\0\0\0\0\0\0\x02\x54";
/// A neighbour, and its IPv6 address.
pub const PEER: [u8; 4] = [10, 0, 0, 9];
/// See [`PEER`].
pub const PEER6: [u8; 16] = *b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09";

/// Further shared addresses, of which a host may have none, one or both: in the network of the primary one, and
/// elsewhere.
pub const SECOND: [[u8; 4]; 2] = [[10, 0, 0, 3], [192, 0, 2, 8]];
/// See [`SECOND`].
pub const SECOND6: [[u8; 16]; 2] =
    [*b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x03", *b"\x20\x01\x0d\xb8\0\x01\0\0\0\0\0\0\0\0\0\x08"];
/// Interface index of the uplink.
pub const UPLINK: u32 = 77;
/// Interface index of another interface that leads outside.
pub const OTHER_UPLINK: u32 = 78;

/// IPv4 addresses of all kinds.
pub const ADDRESSES4: [[u8; 4]; 17] = [
    HOST,
    PEER,
    [192, 0, 2, 7],
    SECOND[0],
    SECOND[1],
    SECOND[0],
    [127, 0, 0, 1],
    [127, 255, 255, 254],
    GATEWAY,
    [10, 0, 0, 0],
    [10, 0, 0, 255],
    [10, 0, 0, 2],
    [10, 0, 0, 4],
    [0, 1, 2, 3],
    [223, 255, 255, 255],
    [224, 0, 0, 1],
    [255, 255, 255, 255],
];

/// IPv6 addresses of all kinds.
pub const ADDRESSES6: [[u8; 16]; 15] = [
    HOST6,
    PEER6,
    SECOND6[0],
    SECOND6[1],
    SECOND6[0],
    *b"\x20\x01\x0d\xb8\0\x01\0\0\0\0\0\0\0\0\0\x07",
    *b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01",
    GATEWAY6,
    *b"\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\x01",
    [0; 16],
    *b"\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\x01",
    *b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02",
    *b"\0\0\0\0\0\0\0\0\0\0\0\0\x7f\0\0\x01",
    *b"\xfe\xbf\xff\xff\0\0\0\0\0\0\0\0\0\0\0\x01",
    *b"\xfe\xc0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01",
];

/// MAC address of the uplink and of every `eth0`.
pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];
/// MAC address of the host's loopback device.
pub const LO_MAC: [u8; 6] = [0; 6];
/// MAC address of a neighbour.
pub const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 9, 9];

/// Slots of three containers. The last one is the highest slot.
pub const A: u16 = 1;
/// See [`A`].
pub const B: u16 = 7;
/// See [`A`].
pub const C: u16 = 4095;
/// Slot of a deleted container whose interface still exists.
pub const GONE: u16 = 2;

/// Ports with known owners, see [`World::new`](crate::world::World::new), and ports of the host.
pub const PORTS: [u16; 8] = [31_000, 65_535, 40_000, 80, 31_001, 1, 0, 1_024];

/// Few identifications of datagrams and identifiers of echoes, so that they collide.
pub const IDS: [u16; 4] = [1, 2, 0, 0xffff];

/// Returns the next byte; 0 behind the last one.
pub fn byte(choices: &mut Unstructured<'_>) -> u8 {
    choices.arbitrary().unwrap_or_default()
}

/// Returns the next two bytes as a number.
pub fn short(choices: &mut Unstructured<'_>) -> u16 {
    u16::from_le_bytes([byte(choices), byte(choices)])
}

/// Returns one of the values, selected by a byte.
pub fn one_of<T: Copy>(values: &[T], choice: u8) -> T {
    values[usize::from(choice) % values.len()]
}

/// Returns the common value in most cases, else one of the others, selected by the next byte.
pub fn usually<T: Copy>(choices: &mut Unstructured<'_>, usual: T, others: &[T]) -> T {
    let choice = byte(choices);
    if choice < 0xc0 { usual } else { one_of(others, choice - 0xc0) }
}

/// Returns one of the values or any other number.
pub fn number(choices: &mut Unstructured<'_>, pool: &[u16]) -> u16 {
    let choice = byte(choices);
    if choice == 0xff { short(choices) } else { one_of(pool, choice) }
}
