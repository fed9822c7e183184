//! Sending frames as they are, as the root of a container can.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, send, socket},
};

/// A raw socket on one interface.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a socket on `interface` of the calling thread's namespace.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn open(interface: &str) -> Self {
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).expect("root may");
        let index = nix::net::if_::if_nametoindex(interface).expect("the interface exists");
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).expect("a small number"),
            // Nothing is received.
            sll_protocol: 0,
            sll_ifindex: index.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = u32::try_from(size_of::<libc::sockaddr_ll>()).expect("a small number");
        // SAFETY: the address is a whole sockaddr_ll, and its own size is passed with it.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "cannot bind to {interface}: {}", std::io::Error::last_os_error());
        Self(fd)
    }

    /// Sends one frame.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn send(&self, frame: &[u8]) {
        let sent = send(self.0.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }
}
