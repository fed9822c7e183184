//! The kernel's type information (BTF), as far as it is needed: where fields of a structure are.
//!
//! The format is that of `Documentation/bpf/btf.rst`. aya-obj reads it for itself, but does not give out members.

use std::{fs, sync::OnceLock};

use portmap_common::skb::SkbLayout;

use crate::kernel::error::{Context as _, Error, Result};

/// The running kernel's.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// What a file begins with, in this machine's order of bytes.
const MAGIC: u16 = 0xeb9f;
/// Kinds of types that have something behind their first three words.
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;
/// Bytes of a type without what follows, and of a member.
const TYPE: usize = 12;
const MEMBER: usize = 12;
/// Structures in structures that are followed.
const DEPTH: u32 = 8;

/// Where the running kernel keeps what it knows of a packet.
///
/// # Errors
///
/// The kernel has no type information, or its packets are of another kind than is known here.
pub fn skb_layout() -> Result<SkbLayout> {
    static LAYOUT: OnceLock<SkbLayout> = OnceLock::new();
    if let Some(layout) = LAYOUT.get() {
        return Ok(*layout);
    }
    let layout = read_skb_layout()?;
    give_memory_back();
    Ok(*LAYOUT.get_or_init(|| layout))
}

/// Gives memory back to the kernel that is free. The C library would keep it: type information is megabytes, and once
/// blocks of that size were freed it takes later ones from where it does not return them.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a function without arguments that may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn read_skb_layout() -> Result<SkbLayout> {
    let bytes = fs::read(VMLINUX).context(|| {
        format!(
            "cannot read {VMLINUX}, by which programs find the kernel's fields: portmap needs a kernel with CONFIG_DEBUG_INFO_BTF"
        )
    })?;
    let what = |field: &str| {
        Error::failure(format!("{VMLINUX} has no field {field} of struct sk_buff where it is expected"))
    };
    let btf =
        Btf::read(&bytes).ok_or_else(|| Error::failure(format!("{VMLINUX} is not in the format of BTF")))?;
    let skb = btf
        .find_struct("sk_buff")
        .ok_or_else(|| Error::failure(format!("{VMLINUX} has no struct sk_buff")))?;
    let bit = |field: &str| btf.bit_of(skb, field, DEPTH).ok_or_else(|| what(field));
    let byte = |field: &str| {
        let bit = bit(field)?;
        u16::try_from(bit / 8).ok().filter(|_| bit % 8 == 0).ok_or_else(|| what(field))
    };
    let summed = bit("ip_summed")?;
    let (checksum, head) = (byte("csum_start")?, byte("head")?);
    let shift = u8::try_from(summed % 8).ok().filter(|shift| *shift <= 6).ok_or_else(|| what("ip_summed"))?;
    if byte("csum_offset")? != checksum + 2 {
        return Err(what("csum_offset"));
    }
    if usize::from(byte("data")?) != usize::from(head) + size_of::<usize>() {
        return Err(what("data"));
    }
    let summed = u16::try_from(summed / 8).ok().ok_or_else(|| what("ip_summed"))?;
    Ok(SkbLayout { summed, summed_shift: shift, checksum, head })
}

/// Types, and their names.
struct Btf<'a> {
    /// Where each type begins among `bytes`; that with the number 1 is the first.
    types: Vec<usize>,
    bytes: &'a [u8],
    names: &'a [u8],
}

impl<'a> Btf<'a> {
    /// None if it is nothing that can be read.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != MAGIC.to_ne_bytes() {
            return None;
        }
        let header = |place| word(bytes, place).map(|word| word as usize);
        let start = header(4)?;
        let part = |from: usize, length: usize| bytes.get(start.checked_add(from)?..)?.get(..length);
        let all = part(header(8)?, header(12)?)?;
        let names = part(header(16)?, header(20)?)?;
        let (mut types, mut place) = (Vec::new(), 0);
        while place < all.len() {
            types.push(place);
            let info = word(all, place + 4)?;
            let length = (info & 0xffff) as usize;
            place += TYPE
                + match kind(info) {
                    INT | VAR | DECL_TAG => 4,
                    ARRAY => 12,
                    STRUCT | UNION => length * MEMBER,
                    ENUM | FUNC_PROTO => length * 8,
                    DATASEC | ENUM64 => length * 12,
                    _ => 0,
                };
        }
        Some(Self { types, bytes: all, names })
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let rest = self.names.get(name as usize..).unwrap_or_default();
        rest.strip_prefix(wanted.as_bytes()).is_some_and(|after| after.first() == Some(&0))
    }

    /// Where the type of a structure begins.
    fn find_struct(&self, name: &str) -> Option<usize> {
        self.types.iter().copied().find(|place| {
            let is_struct = word(self.bytes, place + 4).is_some_and(|info| kind(info) == STRUCT);
            is_struct && word(self.bytes, *place).is_some_and(|at| self.is_named(at, name))
        })
    }

    /// Bits in front of a field of the structure, or of one without a name within it.
    fn bit_of(&self, structure: usize, field: &str, depth: u32) -> Option<u32> {
        let info = word(self.bytes, structure + 4)?;
        if !matches!(kind(info), STRUCT | UNION) {
            return None;
        }
        let has_bit_fields = info >> 31 == 1;
        (0..(info & 0xffff) as usize).find_map(|number| {
            let member = structure + TYPE + number * MEMBER;
            let [name, of, offset] = [0, 4, 8].map(|at| word(self.bytes, member + at));
            let offset = if has_bit_fields { offset? & 0x00ff_ffff } else { offset? };
            if name? != 0 {
                return self.is_named(name?, field).then_some(offset);
            }
            let inside = *self.types.get((of? as usize).checked_sub(1)?)?;
            Some(offset + self.bit_of(inside, field, depth.checked_sub(1)?)?)
        })
    }
}

const fn kind(info: u32) -> u32 {
    info >> 24 & 31
}

fn word(bytes: &[u8], place: usize) -> Option<u32> {
    bytes.get(place..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_tells_where_its_fields_are() {
        let layout = skb_layout().expect("the kernel has type information");
        assert!(layout.checksum > layout.summed && layout.head > layout.checksum, "{layout:?}");
    }

    #[test]
    fn what_is_cut_off_is_no_type_information() {
        let bytes = fs::read(VMLINUX).expect("the kernel has type information");
        for length in [0, 1, 3, 20, 100, bytes.len() / 2] {
            assert!(Btf::read(&bytes[..length]).is_none(), "{length}");
        }
    }
}
