//! Transfers of files and streams by real programs, over every protocol with ports.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    libc,
    sys::socket::{SockaddrStorage, bind},
};
use portmap_tests::{
    not_run,
    sandbox::{FAR, FAR6, Netns, OUTSIDE, OUTSIDE6},
    service::any,
    wait,
};

use crate::{A, A_PORT, B, B_PORT, HOST_PORT, LOCAL, SHARED, World, background::Background};

const OUTSIDES: [IpAddr; 4] = [IpAddr::V4(OUTSIDE), IpAddr::V6(OUTSIDE6), IpAddr::V4(FAR), IpAddr::V6(FAR6)];

/// Every pair of namespaces: client, server and its port, and the addresses.
const PATHS: [(Netns<'_>, Netns<'_>, u16, &[IpAddr]); 9] = [
    (Netns::Outside, A, A_PORT, &SHARED),
    (Netns::Outside, Netns::Host, HOST_PORT, &SHARED),
    (A, Netns::Outside, HOST_PORT, &OUTSIDES),
    (Netns::Host, Netns::Outside, HOST_PORT, &OUTSIDES),
    (A, A, A_PORT, &LOCAL),
    (A, B, B_PORT, &LOCAL),
    (B, A, A_PORT, &LOCAL),
    (A, Netns::Host, HOST_PORT, &LOCAL),
    (Netns::Host, A, A_PORT, &LOCAL),
];

const SERVERS: [(Netns<'_>, u16, &str); 4] = [
    (A, A_PORT, "a"),
    (B, B_PORT, "b"),
    (Netns::Host, HOST_PORT, "host"),
    (Netns::Outside, HOST_PORT, "outside"),
];

#[test]
fn curl_gets_whole_files_on_every_path() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let mut sums = Vec::new();
    for (netns, port, name) in SERVERS {
        let make = format!(
            "mkdir /run/www-{name}; head -c 3M /dev/urandom > /run/www-{name}/file; sha256sum < /run/www-{name}/file"
        );
        sums.push((netns, sandbox.sh(Netns::Host, &make)));
        // GSO packets are segmented and checksummed at the last moment, or never: veth and lo leave
        // them as they are.
        let command = format!("python3 -m http.server --bind :: --directory /run/www-{name} {port}");
        Background::server(sandbox, netns, port, &command);
    }
    for (from, to, port, addresses) in PATHS {
        let expected = &sums.iter().find(|(netns, _)| *netns == to).expect("a server").1;
        for address in addresses {
            let url = format!("http://{}/file", SocketAddr::new(*address, port));
            let script = format!("set -o pipefail; curl -gsS --max-time 60 '{url}' | sha256sum");
            let output = sandbox.command(from, "bash").args(["-c", &script]).output().expect("a shell");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{from:?}: {url}: {errors}");
            assert_eq!(String::from_utf8_lossy(&output.stdout), *expected, "{from:?}: {url}");
        }
    }
}

#[test]
fn iperf3_runs_over_every_protocol_it_knows() {
    let world = World::new();
    let sandbox = &world.sandbox;
    // Datagrams no faster than a busy emulated machine receives them.
    let mut protocols = vec!["-n 2M", "-n 200K -u -b 10M -l 1200"];
    if has_protocol(libc::SOCK_STREAM, libc::IPPROTO_SCTP) {
        protocols.push("-n 2M --sctp");
    } else {
        not_run("over SCTP, which this kernel lacks");
    }
    // A server in a container on its own port for the outside and the other container, and one outside
    // for containers.
    let paths = [
        (Netns::Outside, A, A_PORT, SHARED),
        (B, A, A_PORT, SHARED),
        (Netns::Host, A, A_PORT, SHARED),
        (A, Netns::Outside, HOST_PORT, [OUTSIDE.into(), OUTSIDE6.into()]),
    ];
    for (netns, port) in [(A, A_PORT), (Netns::Outside, HOST_PORT)] {
        Background::server(sandbox, netns, port, &format!("iperf3 --server --port {port}"));
    }
    for (from, _, port, addresses) in paths {
        for (address, protocol) in
            addresses.into_iter().flat_map(|address| protocols.iter().map(move |p| (address, p)))
        {
            for reverse in ["", "-R"] {
                let command = format!("iperf3 -J -p {port} {protocol} {reverse} -c {address}");
                let run = || sandbox.command(from, "sh").args(["-c", &command]).output().expect("a shell");
                // A server that has not released the previous client refuses the next one.
                let output = wait::for_value("the iperf3 server to be free", || {
                    let output = run();
                    let is_busy = String::from_utf8_lossy(&output.stdout).contains("the server is busy");
                    (!is_busy).then_some(output)
                });
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let what = format!("{from:?}: {command}: {text}");
                assert!(output.status.success(), "{what}");
                let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                let end = &report["end"];
                let received = if end["sum"].is_null() { &end["sum_received"] } else { &end["sum"] };
                // The receiver stops counting as soon as the sender reports its end.
                assert_ne!(received["bytes"].as_u64().unwrap_or_default(), 0, "{what}");
                if let Some(lost) = received["lost_percent"].as_f64() {
                    assert!(lost < 50.0, "{what}");
                }
            }
        }
    }
    assert_eq!([world.drops("a"), world.drops("b")], [const { BTreeMap::new() }; 2]);
}

#[test]
fn udp_lite_works_on_every_path() {
    if !has_protocol(libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE) {
        not_run("this kernel has no UDP-Lite");
        return;
    }
    let world = World::new();
    let sandbox = &world.sandbox;
    let open = |netns, address| sandbox.inside(netns, || udp_lite(address)).expect("UDP-Lite");
    for (from, to, port, addresses) in PATHS {
        for address in addresses {
            let to_address = SocketAddr::new(*address, port);
            // Bound to this address, so that it replies from it.
            let server = open(to, to_address);
            let client = open(from, any(to_address, 0));
            client.connect(to_address).expect("connected");
            let what = format!("{from:?} to {to:?} by {address}");
            // The second one exceeds the MTU.
            for length in [10, 3000] {
                client.send(&vec![7; length]).expect("sent");
                let mut buffer = [0; 4000];
                let (received, sender) =
                    server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(received, length, "{what}");
                server.send_to(b"answer", sender).unwrap_or_else(|error| panic!("{what}: {error}"));
                let received = client.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(buffer[..received], *b"answer", "{what}");
            }
            // The socket is closed. Kernels rate-limit ICMP errors, so not every packet is
            // refused.
            drop(server);
            client.set_read_timeout(Some(Duration::from_secs(1))).expect("a time");
            wait::until(&what, || {
                let _ = client.send(b"?");
                let error = client.recv(&mut [0; 16]).expect_err("the socket is closed");
                error.kind() == io::ErrorKind::ConnectionRefused
            });
        }
    }
}

/// Returns whether the kernel supports a protocol. The probe loads its module, if it is one.
fn has_protocol(kind: libc::c_int, protocol: libc::c_int) -> bool {
    open(libc::AF_INET, kind, protocol).is_ok()
}

/// Returns a UDP-Lite socket, which works like a UDP socket.
fn udp_lite(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = open(family, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(wait::LIMIT))?;
    Ok(socket)
}

fn open(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers only.
    let number = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
