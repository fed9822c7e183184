//! An interface without Ethernet headers, as VPNs make them: a pair of tun devices and a thread that carries the
//! packets.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::sandbox::{Netns, Sandbox};
use nix::{
    libc::{self, IFF_NO_PI, IFF_TUN},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// `TUNSETIFF` of `linux/if_tun.h`.
const SET_INTERFACE: libc::Ioctl = 0x4004_54ca;

/// `struct ifreq`, with the flags of a tun device.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    padding: [u8; 22],
}

/// Makes a tun device called `tunnel`.
fn device(sandbox: &Sandbox, netns: Netns<'_>) -> File {
    sandbox.inside(netns, || {
        let device =
            OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("a kernel with tun");
        let mut name = [0; 16];
        name[..6].copy_from_slice(b"tunnel");
        let flags = i16::try_from(IFF_TUN | IFF_NO_PI).expect("small flags");
        let request = Request { name, flags, padding: [0; 22] };
        // SAFETY: the request has the form that the kernel reads, and lives until this returns.
        let made = unsafe { libc::ioctl(device.as_raw_fd(), SET_INTERFACE, &raw const request) };
        assert_eq!(made, 0, "a tun device: {}", std::io::Error::last_os_error());
        device
    })
}

/// Carries packets between two devices called `tunnel` until it is dropped.
#[derive(Debug)]
pub struct Tunnel {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes a device in each of two namespaces. They are down and have no address.
    ///
    /// # Panics
    ///
    /// Panics if the kernel has no tun devices.
    pub fn new(sandbox: &Sandbox, ends: [Netns<'_>; 2]) -> Self {
        let mut ends = ends.map(|netns| device(sandbox, netns));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut packet = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                let mut ready = [0, 1]
                    .map(|end: usize| PollFd::new(std::os::fd::AsFd::as_fd(&ends[end]), PollFlags::POLLIN));
                poll(&mut ready, PollTimeout::from(50_u8)).expect("polled");
                let ready = ready.map(|end| end.any().unwrap_or_default());
                for from in (0..2).filter(|end| ready[*end]) {
                    let length = ends[from].read(&mut packet).expect("a packet");
                    // A device that is down takes none.
                    let _ = ends[1 - from].write(&packet[..length]);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
