//! Offsets of structure fields, from the kernel's type information (BTF).
//!
//! The format is described in `Documentation/bpf/btf.rst`. aya-obj parses it, but does not expose members.

use std::{fs, io, sync::OnceLock};

use portmap_common::skb::SkbLayout;

use crate::kernel::error::{Context as _, Error, Result};

/// The running kernel's BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Magic number of a file, in native byte order.
const MAGIC: u16 = 0xeb9f;
/// Kinds of types with additional data after `struct btf_type`.
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
/// Sizes of `struct btf_type` and `struct btf_member` in bytes.
const TYPE: usize = 12;
const MEMBER: usize = 12;
/// Maximum depth of nested anonymous structures.
const DEPTH: u32 = 8;

/// Returns the layout of the running kernel's `struct sk_buff`.
///
/// # Errors
///
/// The kernel has no BTF, or a field is not where the programs expect it.
pub fn skb_layout() -> Result<SkbLayout> {
    static LAYOUT: OnceLock<SkbLayout> = OnceLock::new();
    if let Some(layout) = LAYOUT.get() {
        return Ok(*layout);
    }
    let layout = read_skb_layout()?;
    give_memory_back();
    Ok(*LAYOUT.get_or_init(|| layout))
}

/// Returns free memory to the kernel. glibc would keep it: BTF takes megabytes, and once blocks of that size
/// were freed, glibc allocates later ones from the heap instead of by mmap.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a function without arguments that may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether a type or function of the kernel itself, which includes built-in modules, has this name.
///
/// # Errors
///
/// If the kernel's BTF cannot be read.
pub fn vmlinux_has_name(name: &str) -> io::Result<bool> {
    let name = [b"\0", name.as_bytes(), b"\0"].concat();
    let bytes = fs::read(VMLINUX)?;
    let is_found = bytes.windows(name.len()).any(|window| window == name);
    drop(bytes);
    give_memory_back();
    Ok(is_found)
}

fn read_skb_layout() -> Result<SkbLayout> {
    let bytes = fs::read(VMLINUX).context(|| {
        format!(
            "cannot read {VMLINUX}, which the programs need for the offsets of kernel fields: portmap requires \
             a kernel with CONFIG_DEBUG_INFO_BTF"
        )
    })?;
    let unsupported = |field: &str| {
        Error::failure(format!(
            "{VMLINUX}: the field {field} of struct sk_buff is missing or at an unsupported offset"
        ))
    };
    let btf = Btf::parse(&bytes).ok_or_else(|| Error::failure(format!("{VMLINUX} is not BTF")))?;
    let skb = btf
        .find_struct("sk_buff")
        .ok_or_else(|| Error::failure(format!("{VMLINUX} has no struct sk_buff")))?;
    let bit = |field: &str| btf.bit_of(skb, field, DEPTH).ok_or_else(|| unsupported(field));
    let byte = |field: &str| {
        let bit = bit(field)?;
        u16::try_from(bit / 8).ok().filter(|_| bit % 8 == 0).ok_or_else(|| unsupported(field))
    };
    let summed = bit("ip_summed")?;
    let (checksum, head) = (byte("csum_start")?, byte("head")?);
    let shift =
        u8::try_from(summed % 8).ok().filter(|shift| *shift <= 6).ok_or_else(|| unsupported("ip_summed"))?;
    if byte("csum_offset")? != checksum + 2 {
        return Err(unsupported("csum_offset"));
    }
    if usize::from(byte("data")?) != usize::from(head) + size_of::<usize>() {
        return Err(unsupported("data"));
    }
    let summed = u16::try_from(summed / 8).ok().ok_or_else(|| unsupported("ip_summed"))?;
    Ok(SkbLayout { summed, summed_shift: shift, checksum, head })
}

/// Parsed BTF.
struct Btf<'a> {
    /// Offset of each type in `bytes`; the first type has id 1.
    types: Vec<usize>,
    bytes: &'a [u8],
    names: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Parses BTF; `None` if it is not valid.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != MAGIC.to_ne_bytes() {
            return None;
        }
        let header = |offset| word(bytes, offset).map(|word| word as usize);
        let start = header(4)?;
        let part = |from: usize, length: usize| bytes.get(start.checked_add(from)?..)?.get(..length);
        let all = part(header(8)?, header(12)?)?;
        let names = part(header(16)?, header(20)?)?;
        let (mut types, mut offset) = (Vec::new(), 0);
        while offset < all.len() {
            types.push(offset);
            let info = word(all, offset + 4)?;
            let length = (info & 0xffff) as usize;
            offset += TYPE
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
        let text = self.names.get(name as usize..).unwrap_or_default();
        text.strip_prefix(wanted.as_bytes()).is_some_and(|after| after.first() == Some(&0))
    }

    /// Returns the offset of a structure's type.
    fn find_struct(&self, name: &str) -> Option<usize> {
        self.types.iter().copied().find(|offset| {
            let is_struct = word(self.bytes, offset + 4).is_some_and(|info| kind(info) == STRUCT);
            is_struct && word(self.bytes, *offset).is_some_and(|at| self.is_named(at, name))
        })
    }

    /// Returns the bit offset of a field in a structure, or in an anonymous structure within it.
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

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn btf_has_the_layout_of_sk_buff() {
        let layout = skb_layout().expect("the kernel has BTF");
        assert!(layout.checksum > layout.summed && layout.head > layout.checksum, "{layout:?}");
    }

    #[test]
    fn btf_truncated_is_rejected() {
        let bytes = fs::read(VMLINUX).expect("the kernel has BTF");
        for length in [0, 1, 3, 20, 100, bytes.len() / 2] {
            assert!(Btf::parse(&bytes[..length]).is_none(), "{length}");
        }
    }
}
