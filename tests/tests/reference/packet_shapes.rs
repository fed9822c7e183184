//! All packet shapes, and the relevant addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    packets::{Content, FRAGMENT, Part, Shape, UDP, WITH_PORTS},
    world::{GATEWAY, HOST, HOST6},
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const EXTENSIONS: [u8; 4] = [HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION];

/// Returns all shapes.
pub(crate) fn all() -> Vec<Shape> {
    [plain(), options(), fragments(), extensions(), errors(), without_numbers()].concat()
}

fn both() -> [bool; 2] {
    [false, true]
}

fn plain() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for is_ipv6 in both() {
        for protocol in WITH_PORTS {
            shapes.push(Shape::new(&format!("protocol {protocol}"), is_ipv6, Content::Ports(protocol)));
        }
        shapes.push(Shape::new("echo request", is_ipv6, Content::EchoRequest));
        shapes.push(Shape::new("echo reply", is_ipv6, Content::EchoReply));
        let shortest = Shape::new("eight bytes", is_ipv6, Content::Ports(UDP));
        shapes.push(Shape { cut: 8, ..shortest });
    }
    shapes
}

fn options() -> Vec<Shape> {
    let contents = [
        ("UDP", Content::Ports(UDP)),
        ("echo request", Content::EchoRequest),
        ("echo reply", Content::EchoReply),
    ];
    let shapes = [4, 20, 40].into_iter().flat_map(|options| {
        contents.clone().map(|(name, content)| {
            let shape = Shape::new(&format!("{name} behind {options} bytes of options"), false, content);
            Shape { options, ..shape }
        })
    });
    shapes.collect()
}

fn fragments() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for is_ipv6 in both() {
        for (part, name) in [(Part::First, "first"), (Part::Subsequent, "subsequent")] {
            let contents = [
                ("TCP", Content::Ports(6)),
                ("UDP", Content::Ports(UDP)),
                ("echo request", Content::EchoRequest),
                ("echo reply", Content::EchoReply),
                ("no ports", Content::Other(47)),
                ("another message", Content::Message(200, 0)),
            ];
            for (what, content) in contents {
                let shape = Shape::new(&format!("{name} fragment of {what}"), is_ipv6, content);
                shapes.push(Shape { part, extensions: vec![FRAGMENT], ..shape.clone() });
                let longer = Shape { name: format!("{} behind more headers", shape.name), part, ..shape };
                if is_ipv6 {
                    let extensions = vec![HOP_BY_HOP, FRAGMENT, AUTHENTICATION, DESTINATION];
                    shapes.push(Shape { extensions, ..longer });
                } else {
                    shapes.push(Shape { options: 8, ..longer });
                }
            }
        }
        let inner = Shape::new("inner", is_ipv6, Content::Ports(UDP));
        let kind = if is_ipv6 { 1 } else { 3 };
        let error =
            Shape::new("first fragment of an error", is_ipv6, Content::Error(kind, 1, Box::new(inner)));
        shapes.push(Shape { part: Part::First, extensions: vec![FRAGMENT], ..error });
    }
    shapes
}

fn extensions() -> Vec<Shape> {
    let mut chains: Vec<Vec<u8>> = Vec::new();
    for one in EXTENSIONS.into_iter().chain([FRAGMENT]) {
        chains.push(vec![one]);
        // At most six are skipped.
        chains.extend([5, 6, 7].map(|length| {
            let others = EXTENSIONS.into_iter().cycle().take(length - 1);
            others.chain([one]).collect()
        }));
    }
    chains.push(vec![FRAGMENT, DESTINATION]);
    chains.push(vec![DESTINATION, FRAGMENT, ROUTING]);
    let contents = [
        ("UDP", Content::Ports(UDP)),
        ("echo request", Content::EchoRequest),
        ("echo reply", Content::EchoReply),
    ];
    let shapes = chains.into_iter().flat_map(|extensions| {
        contents.clone().map(|(name, content)| {
            let shape = Shape::new(&format!("{name} behind {extensions:?}"), true, content);
            Shape { extensions: extensions.clone(), ..shape }
        })
    });
    shapes.collect()
}

/// Types and codes of errors. Those of one row have equal verdicts.
const ERRORS4: [(u8, u8); 7] = [(3, 0), (3, 3), (3, 4), (11, 0), (11, 1), (11, 2), (12, 0)];
const ERRORS6: [(u8, u8); 7] = [(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (3, 2), (4, 0)];

fn errors() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for is_ipv6 in both() {
        let errors = if is_ipv6 { ERRORS6 } else { ERRORS4 };
        for (kind, code) in errors {
            shapes.push(error(kind, code, Shape::new("protocol 17", is_ipv6, Content::Ports(UDP))));
            shapes.push(error(kind, code, Shape::new("echo request", is_ipv6, Content::EchoRequest)));
        }
        let (kind, code) = errors[1];
        for inner in inner(is_ipv6) {
            shapes.push(error(kind, code, inner));
        }
        let udp = Shape::new("UDP", is_ipv6, Content::Ports(UDP));
        if is_ipv6 {
            shapes
                .push(Shape { extensions: vec![DESTINATION, HOP_BY_HOP], ..error(kind, code, udp.clone()) });
            shapes.push(Shape { extensions: vec![FRAGMENT], ..error(kind, code, udp) });
        } else {
            shapes.push(Shape { options: 12, ..error(kind, code, udp) });
        }
    }
    shapes
}

fn error(kind: u8, code: u8, inner: Shape) -> Shape {
    let name = format!("error {kind}/{code} with_inner {}", inner.name);
    Shape::new(&name, inner.is_ipv6, Content::Error(kind, code, Box::new(inner)))
}

fn inner(is_ipv6: bool) -> Vec<Shape> {
    let udp = Shape::new("UDP", is_ipv6, Content::Ports(UDP));
    let request = Shape::new("echo request", is_ipv6, Content::EchoRequest);
    let named = |name: &str, shape: &Shape| Shape { name: format!("{} {name}", shape.name), ..shape.clone() };
    let mut shapes: Vec<Shape> = [6, 33, 132, 136]
        .map(|protocol| Shape::new(&format!("protocol {protocol}"), is_ipv6, Content::Ports(protocol)))
        .into();
    shapes.extend([3, 4, 7].map(|cut| Shape { cut, ..named(&format!("cut to {cut}"), &udp) }));
    shapes.extend([4, 7].map(|cut| Shape { cut, ..named(&format!("cut to {cut}"), &request) }));
    for part in [Part::First, Part::Subsequent] {
        let extensions = vec![FRAGMENT];
        shapes.push(Shape { part, extensions: extensions.clone(), ..named(&format!("{part:?}"), &udp) });
        shapes.push(Shape { extensions, part, ..named(&format!("{part:?}"), &request) });
    }
    shapes.push(Shape::new("echo reply", is_ipv6, Content::EchoReply));
    shapes.push(Shape::new("another message", is_ipv6, Content::Message(13, 0)));
    shapes.push(Shape::new("no ports", is_ipv6, Content::Other(47)));
    shapes.push(error(3, 1, udp.clone()));
    if is_ipv6 {
        for length in [1, 6, 7] {
            let extensions: Vec<u8> = EXTENSIONS.into_iter().cycle().take(length).collect();
            shapes.push(Shape { extensions: extensions.clone(), ..named(&format!("behind {length}"), &udp) });
            shapes.push(Shape { extensions, ..named(&format!("behind {length}"), &request) });
        }
    } else {
        for options in [4, 40] {
            shapes.push(Shape { options, ..named(&format!("with {options}"), &udp) });
            shapes.push(Shape { options, ..named(&format!("with {options}"), &request) });
        }
    }
    shapes
}

fn without_numbers() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for is_ipv6 in both() {
        for protocol in 0..=u8::MAX {
            // These are extension headers or have their own shapes.
            let is_extension = is_ipv6 && matches!(protocol, 0 | 43 | 44 | 51 | 60);
            if !is_extension && !WITH_PORTS.contains(&protocol) && protocol != if is_ipv6 { 58 } else { 1 } {
                shapes.push(Shape::new(&format!("protocol {protocol}"), is_ipv6, Content::Other(protocol)));
            }
        }
        for kind in 0..=u8::MAX {
            shapes.push(Shape::new(&format!("message {kind}"), is_ipv6, Content::Message(kind, 0)));
        }
    }
    shapes
}

/// Returns addresses of all kinds that the specification distinguishes, and the adjacent ones.
pub(crate) fn addresses(is_ipv6: bool) -> Vec<IpAddr> {
    let texts: &[&str] = if is_ipv6 {
        &[
            "::1",
            "::",
            "::2",
            "::ffff:10.0.0.1",
            "::ffff:192.0.2.7",
            "::fffe:0:1",
            "2001:db8::",
            "2001:db8::9",
            "2001:db8::ffff:ffff:ffff:ffff",
            "2001:db8:0:1::1",
            "2001:db8::50",
            "2001:db8:dead::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "fe7f::1",
            "ff02::1",
            "fe00::1",
            "fc00::1",
            "4000::1",
        ]
    } else {
        &[
            "10.0.0.50",
            "198.51.100.9",
            "127.0.0.1",
            "127.255.255.254",
            "127.0.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "10.0.0.9",
            "10.0.0.0",
            "10.0.0.255",
            "9.255.255.255",
            "10.0.1.0",
            "10.0.1.255",
            "192.0.2.7",
            "0.0.0.0",
            "0.1.2.3",
            "1.0.0.0",
            "223.255.255.255",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
        ]
    };
    let shared: [IpAddr; 2] =
        if is_ipv6 { [HOST6.into(), HOST6.into()] } else { [HOST.into(), GATEWAY.into()] };
    texts.iter().map(|text| text.parse().expect("an address")).chain(shared).collect()
}

/// Returns one address of each main kind: shared, loopback, on-link, beyond the gateway.
pub(crate) fn four(is_ipv6: bool) -> [IpAddr; 4] {
    if is_ipv6 {
        let near = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
        let far = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7);
        [HOST6.into(), Ipv6Addr::LOCALHOST.into(), near.into(), far.into()]
    } else {
        let (near, far) = (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(192, 0, 2, 7));
        [HOST.into(), Ipv4Addr::LOCALHOST.into(), near.into(), far.into()]
    }
}
