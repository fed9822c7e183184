//! Raw frames through a packet socket, as root in a container can send and receive them.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    libc,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socket, sockopt::RcvBufForce,
    },
};

/// `ETH_P_ALL`.
const EVERYTHING: u16 = 3;

/// A packet socket bound to one interface.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a socket for sending on `interface` of the calling thread's namespace.
    ///
    /// # Panics
    ///
    /// Panics if that fails.
    pub fn open(interface: &str) -> Self {
        Self::bound(interface, 0)
    }

    /// Opens a socket that receives everything that `interface` of the calling thread's namespace does.
    ///
    /// # Panics
    ///
    /// Panics if that fails.
    pub fn listening(interface: &str) -> Self {
        Self::bound(interface, EVERYTHING.to_be())
    }

    fn bound(interface: &str, protocol: u16) -> Self {
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).expect("root may");
        let index = nix::net::if_::if_nametoindex(interface).expect("the interface exists");
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).expect("a small number"),
            sll_protocol: protocol,
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

    /// Bypasses the qdiscs of the interface from now on (`PACKET_QDISC_BYPASS`).
    ///
    /// # Panics
    ///
    /// Panics if that fails.
    pub fn bypass_qdisc(&self) {
        let on: libc::c_int = 1;
        let length = u32::try_from(size_of_val(&on)).expect("a small number");
        // SAFETY: the option's value is a whole int, and its size is passed with it.
        let set = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                length,
            )
        };
        assert_eq!(set, 0, "cannot bypass the qdisc: {}", std::io::Error::last_os_error());
    }

    /// Makes room for so many bytes of received frames, with the kernel's overhead.
    ///
    /// # Panics
    ///
    /// Panics if that fails.
    pub fn enlarge_buffer(&self, bytes: usize) {
        setsockopt(&self.0, RcvBufForce, &bytes).expect("root may");
    }

    /// Sends one frame.
    ///
    /// # Panics
    ///
    /// Panics if that fails.
    pub fn send(&self, frame: &[u8]) {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }

    /// Returns the next frame without removing it.
    pub fn peek(&self) -> Option<Vec<u8>> {
        self.next(MsgFlags::MSG_PEEK)
    }

    /// Removes and returns the next frame.
    pub fn receive(&self) -> Option<Vec<u8>> {
        self.next(MsgFlags::empty())
    }

    fn next(&self, flags: MsgFlags) -> Option<Vec<u8>> {
        let mut frame = vec![0; 0x1_0000];
        let length = recv(self.0.as_raw_fd(), &mut frame, flags | MsgFlags::MSG_DONTWAIT).ok()?;
        frame.truncate(length);
        Some(frame)
    }
}
