//! Runs a loaded program on a frame (`BPF_PROG_TEST_RUN`) with a single system call and without allocation.

use std::{io, os::fd::RawFd};

use nix::libc;

/// `BPF_PROG_TEST_RUN`.
const COMMAND: libc::c_long = 10;

/// `struct __sk_buff` of `linux/bpf.h` as words. A test run uses those with the indices below.
pub(crate) type Skb = [u32; 48];

pub(crate) const GSO_SIZE: usize = 44;
pub(crate) const MARK: usize = 2;
pub(crate) const PRIORITY: usize = 8;
pub(crate) const INGRESS_IFINDEX: usize = 9;
pub(crate) const IFINDEX: usize = 10;
/// First of two words.
pub(crate) const HWTSTAMP: usize = 46;
/// First of five words.
pub(crate) const CB: usize = 12;

/// The part of `union bpf_attr` for this command.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    program: u32,
    returned: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Runs a program, and returns its return code and the context behind it.
pub(crate) fn run(program: RawFd, frame: &[u8], context: &Skb) -> io::Result<(i32, Skb)> {
    let mut after: Skb = [0; 48];
    let context_size = u32::try_from(size_of::<Skb>()).expect("a small structure");
    let mut attributes = Attributes {
        program: u32::try_from(program).expect("a descriptor"),
        data_size_in: u32::try_from(frame.len()).expect("a short frame"),
        data_in: frame.as_ptr().addr() as u64,
        context_size_in: context_size,
        context_size_out: context_size,
        context_in: context.as_ptr().addr() as u64,
        context_out: after.as_mut_ptr().expose_provenance() as u64,
        ..Attributes::default()
    };
    // SAFETY: the attributes are those of the command and have its size. The kernel reads the frame and the
    // context and writes to `after`, within the given sizes, and keeps no pointers.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, COMMAND, &raw mut attributes, size_of::<Attributes>()) };
    if result == 0 { Ok((attributes.returned.cast_signed(), after)) } else { Err(io::Error::last_os_error()) }
}
