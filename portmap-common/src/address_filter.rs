//! A Bloom filter in front of the maps of further addresses. Programs look up the source address of every packet, which
//! is hardly ever one of the host's, and a lookup in a hash map costs more than all the rest of a verdict.

use crate::tables::{Address4, Address6};

/// Number of words of the filter. With 1,000 addresses, one of 33 other addresses passes it.
const WORDS: usize = 1 << WORD_BITS;
const WORD_BITS: u32 = 9;

/// The bits of all further addresses: an address without its bit is in neither map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressFilter {
    /// The words. The highest bits of an address' hash choose the word, the next six the bit.
    pub words: [u64; WORDS],
}

impl AddressFilter {
    /// The filter that nothing passes.
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// Lets the address with this [`hash4`] or [`hash6`] pass.
    pub fn insert(&mut self, hash: u64) {
        let (word, bit) = place(hash);
        self.words[word] |= 1 << bit;
    }

    /// Returns whether the address with this [`hash4`] or [`hash6`] may be in a map.
    #[inline(always)]
    pub fn passes(&self, hash: u64) -> bool {
        let (word, bit) = place(hash);
        self.words[word] >> bit & 1 != 0
    }
}

/// The hash of an IPv4 address.
#[inline(always)]
pub fn hash4(address: Address4) -> u64 {
    scatter(u64::from(u32::from_be_bytes(address.bytes)))
}

/// The hash of an IPv6 address.
#[inline(always)]
pub fn hash6(address: Address6) -> u64 {
    let bits = u128::from_be_bytes(address.bytes);
    #[expect(clippy::cast_possible_truncation, reason = "they are the two halves")]
    let (high, low) = ((bits >> 64) as u64, bits as u64);
    scatter(scatter(high) ^ low)
}

/// Spreads a number over the highest bits: a multiplication by the golden ratio (Knuth, *The Art of Computer
/// Programming*, volume 3, section 6.4).
#[inline(always)]
const fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[inline(always)]
const fn place(hash: u64) -> (usize, u32) {
    ((hash >> (64 - WORD_BITS)) as usize, (hash >> (64 - WORD_BITS - 6)) as u32 & 63)
}

const _: () = assert!(size_of::<AddressFilter>() == 4096);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_passes_its_addresses_and_few_others() {
        let mut filter = AddressFilter::EMPTY;
        let v4 = |number: u32| hash4(Address4::new((0x0a01_0000 + number).to_be_bytes()));
        let v6 = |number: u128| hash6(Address6::new(((0x2001_0db8 << 96) + number).to_be_bytes()));
        for number in 0..500 {
            filter.insert(v4(number));
            filter.insert(v6(number.into()));
        }
        assert!((0..500).all(|number| filter.passes(v4(number)) && filter.passes(v6(number.into()))));
        let others = (500..100_500).filter(|number| filter.passes(v4(*number))).count();
        assert!(others < 4_000, "{others} of 100,000 other IPv4 addresses pass");
        let others = (500..100_500).filter(|number| filter.passes(v6(*number))).count();
        assert!(others < 4_000, "{others} of 100,000 other IPv6 addresses pass");
        assert!((0..500).all(|number| !AddressFilter::EMPTY.passes(v4(number))));
    }
}
