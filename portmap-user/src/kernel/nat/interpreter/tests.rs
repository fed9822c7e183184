use std::net::Ipv4Addr;

use super::*;

/// An attribute.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("short");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    attribute(kind, &attribute(VALUE, bytes))
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    let name = attribute(NFTA_EXPR_NAME, &[name.as_bytes(), &[0]].concat());
    attribute(1, &[name, attribute(NFTA_EXPR_DATA, &data.concat())].concat())
}

/// `tcp dport`, compared with a port.
fn port_is(operation: u32, port: u16) -> Vec<u8> {
    [
        expression("meta", &[number(1, 1), number(2, META_PROTOCOL)]),
        expression("cmp", &[number(1, 1), number(2, EQUAL), value(3, &[6])]),
        expression("payload", &[number(1, 1), number(2, TRANSPORT_HEADER), number(3, 2), number(4, 2)]),
        expression("cmp", &[number(1, 1), number(2, operation), value(3, &port.to_be_bytes())]),
    ]
    .concat()
}

fn constant(register: u32, bytes: &[u8]) -> Vec<u8> {
    expression("immediate", &[number(1, register), value(2, bytes)])
}

fn ports(text: &str) -> Option<PortSet> {
    text.parse().ok()
}

#[test]
fn nat_redirect_is_read() {
    let rule = [
        port_is(EQUAL, 80),
        expression("counter", &[]),
        constant(1, &31000_u16.to_be_bytes()),
        expression("redir", &[number(1, 1), number(2, 1)]),
    ];
    let expected = Interpretation {
        protocol: Some(6),
        ports: ports("80"),
        translation: Some(Translation::Redirect),
        to_ports: PortRange::new(31000, 31000),
    };
    assert_eq!(interpret(NFPROTO_IPV4, &rule.concat()), expected);
    // Any part of it is accepted.
    let rule = rule.concat();
    for length in 0..rule.len() {
        let _ = interpret(NFPROTO_IPV4, &rule[..length]);
    }
}

#[test]
fn nat_destination_is_read() {
    let address = Ipv4Addr::new(172, 17, 0, 2);
    let nat = expression("nat", &[number(1, 1), number(2, 2), number(3, 1), number(5, 9), number(6, 9)]);
    let to = constant(1, &[&address.octets()[..], &80_u16.to_be_bytes()].concat());
    let found = interpret(NFPROTO_IPV4, &[port_is(AT_LEAST, 100), to, nat.clone()].concat());
    assert_eq!(found.translation, Some(Translation::Destination(NewAddress::Known(address.into()))));
    assert_eq!((found.ports, found.to_ports), (ports("100-65535"), PortRange::new(80, 80)));
    // What an expression that is not followed leaves in registers is unknown.
    let map = expression("lookup", &[attribute(1, b"map\0"), number(2, 1), number(3, 1)]);
    let found = interpret(NFPROTO_IPV4, &[port_is(EQUAL, 80), map, nat].concat());
    assert_eq!(found.translation, Some(Translation::Destination(NewAddress::Unknown)));
    assert_eq!(found.to_ports, None);
}

#[test]
fn nat_targets_of_iptables_are_read() {
    let target = |name: &str, revision, info: &[u8]| {
        expression("target", &[attribute(1, name.as_bytes()), number(2, revision), attribute(3, info)])
    };
    let mut info = [0; 20];
    info[4..8].copy_from_slice(&2_u32.to_ne_bytes());
    info[16..20].copy_from_slice(&[31000_u16.to_be_bytes(), 31009_u16.to_be_bytes()].concat());
    let found = interpret(NFPROTO_IPV4, &target("REDIRECT", 0, &info));
    assert_eq!(found.translation, Some(Translation::Redirect));
    assert_eq!(found.to_ports, PortRange::new(31000, 31009));
    let mut info = [0; 44];
    info[..8].copy_from_slice(&[1, 0, 0, 0, 10, 0, 0, 9]);
    let found = interpret(NFPROTO_IPV4, &target("DNAT", 2, &info));
    let to = NewAddress::Known(Ipv4Addr::new(10, 0, 0, 9).into());
    assert_eq!((found.translation, found.to_ports), (Some(Translation::Destination(to)), None));
    assert_eq!(interpret(NFPROTO_IPV4, &target("ACCEPT", 0, &[])), Interpretation::default());
}
