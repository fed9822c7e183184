//! Offsets of fields of the kernel's `struct sk_buff` that `__sk_buff` does not contain.

/// `CHECKSUM_PARTIAL` of `linux/skbuff.h`: the checksum is not computed yet.
pub const CHECKSUM_PARTIAL: u8 = 3;

/// Offsets of fields of `struct sk_buff` in bytes. They differ between kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkbLayout {
    /// Offset of the byte with `ip_summed`.
    pub summed: u16,
    /// Position of `ip_summed`, which has two bits, in that byte.
    pub summed_shift: u8,
    /// Offset of `csum_start`; `csum_offset` follows it.
    pub checksum: u16,
    /// Offset of `head`; `data` follows it.
    pub head: u16,
}

impl SkbLayout {
    /// Packs all offsets into one number, which the daemon stores in a constant of the programs.
    #[must_use]
    pub const fn pack(self) -> u64 {
        let Self { summed, summed_shift, checksum, head } = self;
        summed as u64 | (summed_shift as u64) << 16 | (checksum as u64) << 32 | (head as u64) << 48
    }

    /// Unpacks the result of [`pack`](Self::pack).
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
    fn skb_layout_survives_packing() {
        let layout = SkbLayout { summed: 0xfedc, summed_shift: 5, checksum: 0x1234, head: 0xabcd };
        assert_eq!(SkbLayout::unpack(layout.pack()), layout);
    }
}
