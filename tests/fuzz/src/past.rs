//! State that earlier packets have left, selected by the bytes of an input.

use portmap_common::{
    flow_state::{Echo, FragCacheEntry, HostConnection, Neighbour, NeighbourKey},
    hook_point::HookPoint,
    slot::HOST_SLOT,
    tables::Address6,
};
use portmap_ebpf::Tables as _;

use crate::{
    hook_ctx::HookCtx,
    reader::{self, Content, Inner, Packet, Part},
    spec::{self, datagram},
    values::{A, B, C, GONE, IDS, PORTS, one_of},
    world::World,
};

/// Bytes of an input that select the state.
pub const PAST_BYTES: usize = 9;

/// Fills the state with entries that are relevant to this frame.
pub fn fill(world: &World, ctx: &HookCtx, frame: &[u8], choices: [u8; PAST_BYTES]) {
    let [fragment, source, destination, echo, own_id, other_id, races, connection, neighbour] = choices;
    world.races.set(if races >= 0xe0 { races & 0x0f } else { 0 });
    let Some(packet) = reader::packet(frame) else { return };
    let mut ids = vec![one_of(&IDS, other_id)];
    if fragment != 0 {
        ids.extend(add_fragment(world, ctx, &packet, [fragment, source, destination]));
    }
    if echo & 0x0f != 0 {
        add_identifiers(world, &packet, ids, [echo, own_id]);
    }
    if connection != 0 {
        add_connection(world, ctx, frame, connection);
    }
    if neighbour != 0 {
        add_neighbour(world, ctx, &packet, neighbour);
    }
}

/// Adds the entry of a fragment's datagram, and returns the identifier in it.
fn add_fragment(
    world: &World,
    ctx: &HookCtx,
    packet: &Packet<'_>,
    [fragment, source, destination]: [u8; 3],
) -> Option<u16> {
    let behind = packet.behind()?;
    let (Part::First(id) | Part::Subsequent(id)) = behind.part else { return None };
    let scope = match ctx.hook {
        HookPoint::VethIngress(slot) => slot,
        HookPoint::ContainerLoEgress => A | 0x8000,
        _ => HOST_SLOT,
    };
    let kind =
        one_of(&[FragCacheEntry::PORTS, FragCacheEntry::ECHO_REQUEST, FragCacheEntry::ECHO_REPLY], fragment);
    let ages = [0, 1_000_000_000, 30_000_000_000, 30_000_000_001, 1_000_000_001];
    let seen = world.now - one_of(&ages, fragment >> 2);
    let (source, destination) = if kind == FragCacheEntry::PORTS {
        (one_of(&PORTS, source), one_of(&PORTS, destination))
    } else {
        (one_of(&IDS, source), 0)
    };
    let scope = if fragment >= 0xe0 { scope ^ 1 } else { scope };
    let entry = FragCacheEntry { seen, kind, source, destination };
    world.memory.borrow_mut().fragments.insert(datagram(packet, behind, id, scope), entry);
    Some(source)
}

/// Adds the owner of these identifiers and of the packet's.
fn add_identifiers(world: &World, packet: &Packet<'_>, mut ids: Vec<u16>, [echo, own_id]: [u8; 2]) {
    let mut peers = vec![packet.source, packet.destination];
    match packet.behind().and_then(|behind| packet.content(behind)) {
        Some(Content::Echo { id, .. }) => ids.push(id),
        Some(Content::Error { quote: Inner::Request(id, _), destination, .. }) => {
            ids.push(id);
            peers.push(destination);
        }
        _ => {}
    }
    // Now, and around the lifetime of an owner.
    let seen = world.now - one_of(&[0, 60_000_000_000, 60_000_000_001], echo >> 4);
    let live = |slot| {
        let generation = world.endpoint(slot).generation;
        Echo { generation, slot, id: one_of(&IDS, own_id), seen }
    };
    let entry = match echo & 0x0f {
        ..=5 => live(A),
        6 | 7 => live(B),
        8 => live(C),
        9 | 10 => Echo { generation: 4, ..live(A) },
        11 => live(GONE),
        12 => Echo { generation: 6, ..live(B) },
        13 => Echo { generation: 1, ..live(HOST_SLOT) },
        _ => live(HOST_SLOT),
    };
    let mut memory = world.memory.borrow_mut();
    if echo >= 0xe0 {
        memory.default_owner = Some(entry);
    }
    for peer in peers {
        memory.echoes.extend(ids.iter().map(|id| (((packet.is_v6, peer), *id), entry)));
    }
}

/// Adds a connection of the host's: the packet's, or one that differs in one part of the key.
fn add_connection(world: &World, ctx: &HookCtx, frame: &[u8], choice: u8) {
    let key = spec::connection_of(ctx, frame, world, &world.memory.borrow());
    let Some(mut key) = key else { return };
    // Fresh, in its last moment, just over, older than a second, and as old as one of the short lifetime.
    let second = 1_000_000_000;
    let (five_days, three_minutes) = (432_000 * second, 180 * second);
    let now = world.now;
    let until = one_of(
        &[
            now + five_days,
            now + three_minutes,
            now,
            now - 1,
            now + five_days - second,
            now + five_days - second - 1,
            now + three_minutes - second,
            now + three_minutes - second - 1,
        ],
        choice,
    );
    let closing = u32::from(choice >> 3 & 1);
    match choice >> 4 {
        10 => key.peer_port ^= 1,
        11 => key.peer = Address6::new([7; 16]),
        12 => key.local = Address6::new([7; 16]),
        13 => key.version ^= 2,
        _ => {}
    }
    let mut memory = world.memory.borrow_mut();
    memory.host_connections.insert(key, HostConnection { until, closing, reserved: 0 });
    // Without the flag, the daemon has replaced the port's entry.
    if choice >> 4 != 14 && world.owner(key.local_port).slot != HOST_SLOT {
        memory.flagged.insert(key.local_port);
    }
}

/// Adds the entry of a destination as a neighbour of the sender's.
fn add_neighbour(world: &World, ctx: &HookCtx, packet: &Packet<'_>, choice: u8) {
    let HookPoint::VethIngress(slot) = ctx.hook else { return };
    let key = NeighbourKey {
        address: Address6::new(packet.destination),
        slot: slot.into(),
        version: if packet.is_v6 { 6 } else { 4 },
    };
    let now = world.now;
    // Around the ends of the minute for which it is free, and of the time for which the FIB is not asked again.
    let seen = one_of(&[now, 0, now - 60_000_000_000, now - 60_000_000_001], choice);
    let checked = one_of(&[now, now - 10_000_000, now - 10_000_001, 0], choice >> 2);
    world.memory.borrow_mut().neighbours.insert(key, Neighbour { seen, checked });
}
