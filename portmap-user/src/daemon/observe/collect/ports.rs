//! The ports of a block that are in use.

use crate::model::PortRange;

/// A set of ports of a block.
pub(super) struct PortsInUse {
    block: PortRange,
    words: Vec<u64>,
}

impl PortsInUse {
    /// None of the block's ports.
    pub(super) fn new(block: PortRange) -> Self {
        Self { block, words: vec![0; block.count().div_ceil(64)] }
    }

    /// Adds a port, if it is one of the block.
    pub(super) fn add(&mut self, port: u16) {
        let Some(index) = port.checked_sub(self.block.first()) else { return };
        if self.block.contains(port)
            && let Some(word) = self.words.get_mut(usize::from(index / 64))
        {
            *word |= 1 << (index % 64);
        }
    }

    /// The number of ports.
    pub(super) fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_use_are_counted_once() {
        let mut ports = PortsInUse::new(PortRange::new(32768, 32768 + 99).expect("a range"));
        for port in [32768, 32768, 32767, 32867, 32868, 0, u16::MAX, 32832] {
            ports.add(port);
        }
        assert_eq!(ports.count(), 3);
    }
}
