//! Raw sockets: an attacker's, with all metadata that a sender can set, and those of observers.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage,
        recvmsg, socket,
    },
};

/// `ETH_P_ALL`.
const EVERYTHING: u16 = 3;
/// `SO_RCVMARK`, since Linux 5.19: delivers a received packet's mark as ancillary data.
const SO_RCVMARK: libc::c_int = 75;
/// Receive buffer of an observer, in bytes.
const BUFFER: libc::c_int = 256 << 20;
/// `TP_STATUS_VLAN_VALID`, and the offsets of the status and of the tag in `struct tpacket_auxdata`.
const VLAN_VALID: u32 = 1 << 4;
const STATUS: usize = 0;
const TAG: usize = 16;

/// Bytes of a `struct virtio_net_hdr`.
pub(crate) const VIRTIO: usize = 10;

/// Data that an observer has received.
#[derive(Debug)]
pub(crate) struct Received {
    /// The frame, or the data that a raw socket delivers.
    pub(crate) bytes: Vec<u8>,
    /// A VLAN tag that the kernel has removed from the frame.
    pub(crate) tag: Option<u16>,
    /// Whether the observer's own side has sent it.
    pub(crate) is_outgoing: bool,
    /// The packet's mark, if the socket reports it.
    pub(crate) mark: u32,
    /// The sender, if it is a raw socket.
    pub(crate) from: Option<IpAddr>,
}

/// A raw or packet socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    /// The interface for sending; 0 if none.
    index: i32,
}

impl Socket {
    /// Opens a packet socket for sending on an interface of the calling thread's namespace, optionally
    /// with virtio headers and past the qdisc.
    pub(crate) fn sender(interface: &str, virtio: bool, bypass: bool) -> Self {
        let socket = Self::at(interface, 0);
        socket.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, virtio.into());
        socket.set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, bypass.into());
        socket
    }

    /// Opens a packet socket that captures every frame of an interface of the calling thread's
    /// namespace.
    pub(crate) fn capture(interface: &str) -> Self {
        let socket = Self::at(interface, EVERYTHING.to_be());
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER);
        socket.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1);
        socket
    }

    /// Opens a raw socket that receives the reassembled packets of a protocol in the calling thread's
    /// namespace.
    pub(crate) fn raw(is_ipv6: bool, protocol: u8) -> Self {
        let socket = Self::ip(is_ipv6, protocol);
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER);
        socket.set(libc::SOL_SOCKET, SO_RCVMARK, 1);
        socket
    }

    /// Opens a raw socket for packets with IP headers of the sender.
    pub(crate) fn headers_included(is_ipv6: bool) -> Self {
        Self::ip(is_ipv6, u8::try_from(libc::IPPROTO_RAW).expect("a byte"))
    }

    fn ip(is_ipv6: bool, protocol: u8) -> Self {
        let family = if is_ipv6 { libc::AF_INET6 } else { libc::AF_INET };
        // SAFETY: a system call that takes three integers.
        let fd = unsafe { libc::socket(family, libc::SOCK_RAW, protocol.into()) };
        assert!(fd >= 0, "root may: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is new and has no other owner.
        let fd = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
        Self { fd, index: 0 }
    }

    fn at(interface: &str, protocol: u16) -> Self {
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None::<SockProtocol>);
        let index = nix::net::if_::if_nametoindex(interface).expect("the interface exists").cast_signed();
        let socket = Self { fd: fd.expect("root may"), index };
        let address = socket.address(protocol);
        // SAFETY: the address is a whole sockaddr_ll, and its size is passed with it.
        let bound = unsafe {
            libc::bind(socket.fd.as_raw_fd(), (&raw const address).cast(), size_of_val_u32(&address))
        };
        assert_eq!(bound, 0, "cannot bind to {interface}: {}", io::Error::last_os_error());
        socket
    }

    fn address(&self, protocol: u16) -> libc::sockaddr_ll {
        libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).expect("a small number"),
            sll_protocol: protocol,
            sll_ifindex: self.index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        }
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
        self.try_set(level, option, value).expect("the kernel knows the option");
    }

    fn try_set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let size = size_of_val_u32(&value);
        // SAFETY: the option's value is a whole int, and its size is passed with it.
        let set =
            unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, (&raw const value).cast(), size) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sets the mark and the priority of all further packets.
    pub(crate) fn mark(&self, mark: u32, priority: u32) {
        self.set(libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed());
        self.set(libc::SOL_SOCKET, libc::SO_PRIORITY, priority.cast_signed());
    }

    /// Sends a frame with this protocol; 0 lets the kernel derive it.
    pub(crate) fn send(&self, frame: &[u8], protocol: u16) -> io::Result<()> {
        let address = self.address(protocol.to_be());
        self.send_to(frame, &address)
    }

    /// Sends an IPv4 packet with its header to the destination in that header.
    pub(crate) fn send_ipv4(&self, packet: &[u8]) -> io::Result<()> {
        let [a, b, c, d] =
            *packet.get(16..).and_then(<[u8]>::first_chunk).ok_or(io::ErrorKind::InvalidInput)?;
        let address = libc::sockaddr_in {
            sin_family: u16::try_from(libc::AF_INET).expect("a small number"),
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([a, b, c, d]) },
            sin_zero: [0; 8],
        };
        self.send_to(packet, &address)
    }

    /// Sends an IPv6 packet with its header to the destination in that header.
    pub(crate) fn send_ipv6(&self, packet: &[u8]) -> io::Result<()> {
        let to = *packet.get(24..).and_then(<[u8]>::first_chunk).ok_or(io::ErrorKind::InvalidInput)?;
        let address = libc::sockaddr_in6 {
            sin6_family: u16::try_from(libc::AF_INET6).expect("a small number"),
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: to },
            sin6_scope_id: 0,
        };
        self.send_to(packet, &address)
    }

    fn send_to<T>(&self, bytes: &[u8], address: &T) -> io::Result<()> {
        // SAFETY: the bytes and the address are whole, and their sizes are passed with them.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_DONTWAIT,
                std::ptr::from_ref(address).cast(),
                size_of_val_u32(address),
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Receives without blocking. `buffer` has room for the largest packet.
    pub(crate) fn receive(&self, buffer: &mut [u8], control: &mut [u8]) -> Option<Received> {
        let mut parts = [io::IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.fd.as_raw_fd(),
            &mut parts,
            Some(control),
            MsgFlags::MSG_DONTWAIT,
        );
        let message = message.ok()?;
        let link = message.address.as_ref().and_then(SockaddrStorage::as_link_addr);
        let is_outgoing = link.is_some_and(|link| link.pkttype() == libc::PACKET_OUTGOING);
        let from4 =
            message.address.as_ref().and_then(SockaddrStorage::as_sockaddr_in).map(|from| from.ip().into());
        let from6 = message.address.as_ref().and_then(SockaddrStorage::as_sockaddr_in6);
        let from = from4.or_else(|| from6.map(|from| Ipv6Addr::from(from.ip().octets()).into()));
        let (mut tag, mut mark) = (None, 0);
        for message in message.cmsgs().into_iter().flatten() {
            let ControlMessageOwned::Unknown(unknown) = message else { continue };
            let data = &unknown.data_bytes;
            match (unknown.cmsg_header.cmsg_level, unknown.cmsg_header.cmsg_type) {
                (libc::SOL_PACKET, libc::PACKET_AUXDATA) if word(data, STATUS) & VLAN_VALID != 0 => {
                    tag = data.get(TAG..).and_then(<[u8]>::first_chunk).map(|tag| u16::from_ne_bytes(*tag));
                }
                (libc::SOL_SOCKET, libc::SO_MARK) => mark = word(data, 0),
                _ => {}
            }
        }
        let length = message.bytes;
        Some(Received { bytes: buffer[..length].to_vec(), tag, is_outgoing, mark, from })
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word))
}

fn size_of_val_u32<T>(value: &T) -> u32 {
    u32::try_from(size_of_val(value)).expect("a small structure")
}
