//! Where the kernel keeps what it knows of a packet and tells no program.

/// `CHECKSUM_PARTIAL` of `linux/skbuff.h`: the checksum is yet to be computed.
pub const CHECKSUM_PARTIAL: u8 = 3;

/// Offsets in bytes of fields of `struct sk_buff`, which differ between kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkbLayout {
    /// Of the byte that has `ip_summed`.
    pub summed: u16,
    /// Bits in that byte below `ip_summed`, which has two bits.
    pub summed_shift: u8,
    /// Of `csum_start`, which `csum_offset` follows.
    pub checksum: u16,
    /// Of `head`, which `data` follows.
    pub head: u16,
}

impl SkbLayout {
    /// All of it in one number, which a program gets as a constant.
    #[must_use]
    pub const fn pack(self) -> u64 {
        let Self { summed, summed_shift, checksum, head } = self;
        summed as u64 | (summed_shift as u64) << 16 | (checksum as u64) << 32 | (head as u64) << 48
    }

    /// What [`pack`](Self::pack) has made.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "each is a part of the number")]
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            summed: packed as u16,
            summed_shift: (packed >> 16) as u8,
            checksum: (packed >> 32) as u16,
            head: (packed >> 48) as u16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        let layout = SkbLayout { summed: 0xfedc, summed_shift: 5, checksum: 0x1234, head: 0xabcd };
        assert_eq!(SkbLayout::unpack(layout.pack()), layout);
    }
}
