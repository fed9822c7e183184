//! What an interface leaves to whoever gets its frames (`linux/ethtool.h`): cutting them, and summing them up.

use std::{io, mem, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::{
    fault,
    kernel::error::{Error, Result},
};

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// The set of strings that names features by their numbers.
const ETH_SS_FEATURES: u32 = 4;
/// Bytes of a name, `ETH_GSTRING_LEN`.
const NAME: usize = 32;
/// Features for each pair of words, of which one is what is to be changed, and the other what it is to be.
const BLOCK: usize = 32;
/// What `SIOCETHTOOL` answers if some of the features cannot be changed.
const UNSUPPORTED: i32 = 1;

/// Segments of what is inside a UDP tunnel, without and with a checksum of the tunnel's own (`net/ethtool/common.c`).
const TUNNELS: [&str; 2] = ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];

/// Has the kernel cut what is inside UDP tunnels before it leaves by an interface of the calling thread's namespace.
pub fn cut_tunnels(interface: &str) -> Result<()> {
    turn_off(interface, |feature| TUNNELS.contains(&feature))
}

/// Turns features of an interface of the calling thread's namespace off, by the names that `ethtool -k` has for them.
///
/// A failure if the kernel refuses to say or change anything; a feature that it does not know or cannot turn off is left.
pub fn turn_off(interface: &str, is_meant: impl Fn(&str) -> bool) -> Result<()> {
    let failed = |error: io::Error| {
        Error::failure(format!("cannot turn off what {interface} leaves to others (`ethtool -k`): {error}"))
    };
    fault::step("turn offloads off").map_err(failed)?;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| failed(errno.into()))?;
    // Every command is a structure of 32-bit words, or ends in an array of bytes that is a multiple of them.
    let ask = |words: &mut [u32]| {
        // SAFETY: a structure of integers, and a union of integers and pointers, all of which may be zero.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *place = byte.cast_signed();
        }
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        // SAFETY: the request points to the words, of which there are as many as the command in them says.
        let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        match answer {
            0 | UNSUPPORTED => Ok(()),
            _ => Err(failed(io::Error::last_os_error())),
        }
    };
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    ask(&mut info)?;
    let number = info[4];
    let features = number as usize;
    let mut strings = vec![0; 3 + features * NAME / size_of::<u32>()];
    strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, number]);
    ask(&mut strings)?;
    let names: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let blocks = features.div_ceil(BLOCK);
    let mut set = vec![0; 2 + 2 * blocks];
    set[0] = ETHTOOL_SFEATURES;
    set[1] = u32::try_from(blocks).expect("fewer than there are features");
    for (feature, name) in names.chunks(NAME).enumerate() {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if str::from_utf8(name).is_ok_and(&is_meant) {
            set[2 + 2 * (feature / BLOCK)] |= 1 << (feature % BLOCK);
        }
    }
    ask(&mut set)
}
