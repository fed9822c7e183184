//! DNS with a server outside and resolvers in containers, and the reverse.

use portmap_tests::{faults::sample, sandbox::Netns};

use crate::{A, B, World, background::Background};

/// Returns the command of a server with a small answer, and one that exceeds a packet and is sent in
/// fragments.
fn dnsmasq(port: u16) -> String {
    // TXT records consist of strings of at most 255 bytes.
    let text: Vec<String> = (0..12).map(|number| format!("{number:0250}")).collect();
    format!(
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --pid-file= --log-facility=- --port={port} \
         --no-resolv --no-hosts --edns-packet-max=4096 --host-record=small.test,192.0.2.77,2001:db8:f::77 \
         --txt-record=large.test,{}",
        text.join(",")
    )
}

#[test]
fn dns_resolvers_get_every_answer() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let servers = [(Netns::Outside, 53), (A, 31005)];
    let _servers = servers.map(|(netns, port)| Background::server(sandbox, netns, port, &dnsmasq(port)));
    let asked = [
        (A, 53, ["10.0.0.2", "2001:db8:0:1::2"]),
        (Netns::Host, 53, ["192.0.2.1", "2001:db8:f::1"]),
        (Netns::Outside, 31005, ["10.0.0.1", "2001:db8:0:1::1"]),
        (B, 31005, ["10.0.0.1", "2001:db8:0:1::1"]),
        (B, 31005, ["127.0.0.1", "::1"]),
        (Netns::Host, 31005, ["127.0.0.1", "::1"]),
    ];
    for (number, (netns, port, servers)) in asked.into_iter().enumerate() {
        // On emulated machines IPv4 and IPv6 alternate, because dig takes a second to start there.
        let (first, count) = if sample() == 1 { (0, 2) } else { (number % 2, 1) };
        for server in servers.into_iter().skip(first).take(count) {
            let dig = |question: &str| {
                let command =
                    format!("dig +timeout=20 +tries=2 +noall +answer +stats -p {port} @{server} {question}");
                (sandbox.sh(netns, &command), format!("{netns:?}: {command}"))
            };
            for question in ["small.test A", "small.test A +tcp"] {
                let (text, what) = dig(question);
                assert!(text.contains("192.0.2.77"), "{what}: {text}");
            }
            let (text, what) = dig("small.test AAAA");
            assert!(text.contains("2001:db8:f::77"), "{what}: {text}");
            for question in ["large.test TXT +bufsize=4096 +ignore +notcp", "large.test TXT +tcp"] {
                let (text, what) = dig(question);
                let transport = if question.ends_with("+tcp") { "(TCP)" } else { "(UDP)" };
                assert!(text.contains(transport), "{what}: {text}");
                assert!(text.contains(&format!("{:0250}", 11)), "{what}: {text}");
                let size = text.lines().find_map(|line| line.split_once("rcvd: ")).expect("statistics").1;
                assert!(size.trim().parse::<u32>().expect("a number") > 3000, "{what}: {text}");
            }
        }
    }
}
