//! An interface without Ethernet headers, as VPNs make them: a pair of tun devices and a thread that carries the
//! packets.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    libc::{self, IFF_NO_PI, IFF_TUN},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use portmap_tests::sandbox::{Netns, Sandbox};

use super::{A, HOST_PORT, PORT, expect, world};

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
pub(super) fn device(sandbox: &Sandbox, netns: Netns<'_>) -> File {
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

/// Carries packets between two devices until it is dropped.
pub(super) struct Tunnel {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel {
    pub(super) fn new(mut ends: [File; 2]) -> Self {
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

#[test]
fn tunnel_device_leads_to_containers_and_back() {
    let (sandbox, _daemon, _services) = world("");
    let _tunnel = Tunnel::new([device(&sandbox, Netns::Host), device(&sandbox, Netns::Outside)]);
    let set_up = |own: u8| {
        format!(
            "set -e; ip link set tunnel up; ip address add 10.8.0.{own}/24 dev tunnel; \
             ip address add fd08::{own}/64 dev tunnel nodad"
        )
    };
    sandbox.sh(Netns::Host, &set_up(1));
    sandbox.sh(Netns::Outside, &set_up(2));
    let own: [IpAddr; 2] =
        [Ipv4Addr::new(10, 8, 0, 1).into(), Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 1).into()];
    let peers: [IpAddr; 2] =
        [Ipv4Addr::new(10, 8, 0, 2).into(), Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 2).into()];
    for (own, peer) in own.into_iter().zip(peers) {
        assert_eq!(expect(&sandbox, Netns::Outside, (own, HOST_PORT), "host"), peer);
        super::wait_for(&sandbox, Netns::Outside, (own, PORT), "a");
        assert_eq!(expect(&sandbox, Netns::Outside, (own, PORT), "a"), peer);
        assert_eq!(expect(&sandbox, Netns::Host, (peer, HOST_PORT), "outside"), own);
        assert_eq!(expect(&sandbox, A, (peer, HOST_PORT), "outside"), own, "the host's source address");
    }
    // Limits hold there, too: packets to a container pass its qdisc.
    sandbox.ok(&["update", "a", "--ingress-rate", "10MB"]);
    assert_eq!(expect(&sandbox, Netns::Outside, (own[0], PORT), "a"), peers[0]);
    sandbox.ok(&["doctor"]);
}
