//! Offloads of an interface (`linux/ethtool.h`), such as segmentation and checksums.

use std::{io, mem, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::{
    failpoint,
    kernel::error::{Error, Failure, Result},
};

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// The string set with the names of all features.
const ETH_SS_FEATURES: u32 = 4;
/// Size of a name in bytes, `ETH_GSTRING_LEN`.
const NAME: usize = 32;
/// Features per block of two words: the mask of changes and the new values.
const BLOCK: usize = 32;
/// Result of `SIOCETHTOOL` if some features cannot be changed.
const UNSUPPORTED: i32 = 1;

/// Segmentation offloads of UDP tunnels without and with an outer checksum (`net/ethtool/common.c`).
const TUNNELS: [&str; 2] = ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];

/// Disables UDP tunnel segmentation offload of an interface in the calling thread's namespace, so that the
/// kernel segments in software.
pub fn disable_tunnel_segmentation(interface: &str) -> Result<()> {
    disable(interface, |feature| TUNNELS.contains(&feature))
}

/// Disables features of an interface in the calling thread's namespace, by their names in `ethtool -k`.
/// Features that the kernel lacks, or cannot change, are ignored.
pub fn disable(interface: &str, is_selected: impl Fn(&str) -> bool) -> Result<()> {
    let failed = |error: io::Error| {
        Error::from(Failure::caused_by(
            format!("cannot disable offloads of {interface} (`ethtool -K`)"),
            error,
        ))
    };
    failpoint::hit("turn offloads off").map_err(failed)?;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| failed(errno.into()))?;
    // Every command is a structure of 32-bit words, or ends with a byte array whose size is a multiple of
    // four.
    let ask = |words: &mut [u32]| {
        // SAFETY: a structure of integers and a union of integers and pointers, all of which may be zero.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (char, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *char = byte.cast_signed();
        }
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        // SAFETY: the request points to the words, whose number is that in the command.
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
        if str::from_utf8(name).is_ok_and(&is_selected) {
            set[2 + 2 * (feature / BLOCK)] |= 1 << (feature % BLOCK);
        }
    }
    ask(&mut set)
}
