//! The ring buffer of samples of dropped packets.

use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{Map, MapData, RingBuf};
use portmap_common::{event::DropEvent, names::MAP_EVENTS};

use crate::{
    kernel::error::{Context as _, Result},
    paths::Pins,
};

/// The ring buffer. It has a single reader, because each sample is read once.
pub struct EventRing(RingBuf<MapData>);

impl EventRing {
    /// Opens the pinned ring buffer.
    pub fn open(pins: &Pins) -> Result<Self> {
        let path = pins.map(MAP_EVENTS);
        let opening = || format!("cannot open the pinned map {}", path.display());
        let map = MapData::from_pin(&path).context(opening)?;
        Ok(Self(RingBuf::try_from(Map::RingBuf(map)).context(opening)?))
    }

    /// Takes the oldest sample, if there is one.
    pub fn take(&mut self) -> Option<DropEvent> {
        // Records of another size are skipped; only programs of another layout write them, and those have
        // their own map.
        while let Some(record) = self.0.next() {
            if let Some(bytes) = record.first_chunk::<{ size_of::<DropEvent>() }>() {
                // SAFETY: the pointer is to as many bytes as the type has, and every bit pattern is a valid
                // value.
                return Some(unsafe { bytes.as_ptr().cast::<DropEvent>().read_unaligned() });
            }
        }
        None
    }
}

/// The descriptor is readable when there are samples.
impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
