//! A seeded pseudo-random number generator.

/// A xorshift generator; the sequence depends on the seed alone.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Returns the generator for a seed.
    pub fn new(seed: u64) -> Self {
        // The state must not be zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns any number.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `limit`.
    ///
    /// # Panics
    ///
    /// Panics if the limit is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("a number");
        usize::try_from((self.next() >> 32) % limit).expect("less than the limit")
    }

    /// Returns a clone of one element.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// Returns true in one of `times` cases.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Returns any byte.
    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    /// Returns any port.
    pub fn port(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }
}
