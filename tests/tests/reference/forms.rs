//! The list of packet forms, and the addresses that make a difference.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    packets::{Content, FRAGMENT, Form, Piece, UDP, WITH_PORTS},
    world::{GATEWAY, HOST, HOST6},
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const EXTENSIONS: [u8; 4] = [HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION];

/// Every form.
pub(crate) fn all() -> Vec<Form> {
    [plain(), options(), fragments(), extensions(), errors(), without_numbers()].concat()
}

fn both() -> [bool; 2] {
    [false, true]
}

fn plain() -> Vec<Form> {
    let mut forms = Vec::new();
    for is_ipv6 in both() {
        for protocol in WITH_PORTS {
            forms.push(Form::new(&format!("protocol {protocol}"), is_ipv6, Content::Ports(protocol)));
        }
        forms.push(Form::new("echo request", is_ipv6, Content::EchoRequest));
        forms.push(Form::new("echo reply", is_ipv6, Content::EchoReply));
        let shortest = Form::new("eight bytes", is_ipv6, Content::Ports(UDP));
        forms.push(Form { cut: 8, ..shortest });
    }
    forms
}

fn options() -> Vec<Form> {
    let contents = [
        ("UDP", Content::Ports(UDP)),
        ("echo request", Content::EchoRequest),
        ("echo reply", Content::EchoReply),
    ];
    let forms = [4, 20, 40].into_iter().flat_map(|options| {
        contents.clone().map(|(name, content)| {
            let form = Form::new(&format!("{name} behind {options} bytes of options"), false, content);
            Form { options, ..form }
        })
    });
    forms.collect()
}

fn fragments() -> Vec<Form> {
    let mut forms = Vec::new();
    for is_ipv6 in both() {
        for (piece, name) in [(Piece::First, "first"), (Piece::Later, "later")] {
            let contents = [
                ("TCP", Content::Ports(6)),
                ("UDP", Content::Ports(UDP)),
                ("echo request", Content::EchoRequest),
                ("echo reply", Content::EchoReply),
                ("no ports", Content::Other(47)),
                ("another message", Content::Message(200, 0)),
            ];
            for (what, content) in contents {
                let form = Form::new(&format!("{name} fragment of {what}"), is_ipv6, content);
                forms.push(Form { piece, extensions: vec![FRAGMENT], ..form.clone() });
                let longer = Form { name: format!("{} behind more headers", form.name), piece, ..form };
                if is_ipv6 {
                    let extensions = vec![HOP_BY_HOP, FRAGMENT, AUTHENTICATION, DESTINATION];
                    forms.push(Form { extensions, ..longer });
                } else {
                    forms.push(Form { options: 8, ..longer });
                }
            }
        }
        let quoted = Form::new("quoted", is_ipv6, Content::Ports(UDP));
        let kind = if is_ipv6 { 1 } else { 3 };
        let error =
            Form::new("first fragment of an error", is_ipv6, Content::Error(kind, 1, Box::new(quoted)));
        forms.push(Form { piece: Piece::First, extensions: vec![FRAGMENT], ..error });
    }
    forms
}

fn extensions() -> Vec<Form> {
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
    let forms = chains.into_iter().flat_map(|extensions| {
        contents.clone().map(|(name, content)| {
            let form = Form::new(&format!("{name} behind {extensions:?}"), true, content);
            Form { extensions: extensions.clone(), ..form }
        })
    });
    forms.collect()
}

/// Types and codes of errors; those of one row behave alike.
const ERRORS4: [(u8, u8); 7] = [(3, 0), (3, 3), (3, 4), (11, 0), (11, 1), (11, 2), (12, 0)];
const ERRORS6: [(u8, u8); 7] = [(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (3, 2), (4, 0)];

fn errors() -> Vec<Form> {
    let mut forms = Vec::new();
    for is_ipv6 in both() {
        let errors = if is_ipv6 { ERRORS6 } else { ERRORS4 };
        for (kind, code) in errors {
            forms.push(error(kind, code, Form::new("protocol 17", is_ipv6, Content::Ports(UDP))));
            forms.push(error(kind, code, Form::new("echo request", is_ipv6, Content::EchoRequest)));
        }
        let (kind, code) = errors[1];
        for quoted in quoted(is_ipv6) {
            forms.push(error(kind, code, quoted));
        }
        let udp = Form::new("UDP", is_ipv6, Content::Ports(UDP));
        if is_ipv6 {
            forms.push(Form { extensions: vec![DESTINATION, HOP_BY_HOP], ..error(kind, code, udp.clone()) });
            forms.push(Form { extensions: vec![FRAGMENT], ..error(kind, code, udp) });
        } else {
            forms.push(Form { options: 12, ..error(kind, code, udp) });
        }
    }
    forms
}

fn error(kind: u8, code: u8, quoted: Form) -> Form {
    let name = format!("error {kind}/{code} quoting {}", quoted.name);
    Form::new(&name, quoted.is_ipv6, Content::Error(kind, code, Box::new(quoted)))
}

fn quoted(is_ipv6: bool) -> Vec<Form> {
    let udp = Form::new("UDP", is_ipv6, Content::Ports(UDP));
    let request = Form::new("echo request", is_ipv6, Content::EchoRequest);
    let named = |name: &str, form: &Form| Form { name: format!("{} {name}", form.name), ..form.clone() };
    let mut forms: Vec<Form> = [6, 33, 132, 136]
        .map(|protocol| Form::new(&format!("protocol {protocol}"), is_ipv6, Content::Ports(protocol)))
        .into();
    forms.extend([3, 4, 7].map(|cut| Form { cut, ..named(&format!("cut to {cut}"), &udp) }));
    forms.extend([4, 7].map(|cut| Form { cut, ..named(&format!("cut to {cut}"), &request) }));
    for piece in [Piece::First, Piece::Later] {
        let extensions = vec![FRAGMENT];
        forms.push(Form { piece, extensions: extensions.clone(), ..named(&format!("{piece:?}"), &udp) });
        forms.push(Form { extensions, piece, ..named(&format!("{piece:?}"), &request) });
    }
    forms.push(Form::new("echo reply", is_ipv6, Content::EchoReply));
    forms.push(Form::new("another message", is_ipv6, Content::Message(13, 0)));
    forms.push(Form::new("no ports", is_ipv6, Content::Other(47)));
    forms.push(error(3, 1, udp.clone()));
    if is_ipv6 {
        for length in [1, 6, 7] {
            let extensions: Vec<u8> = EXTENSIONS.into_iter().cycle().take(length).collect();
            forms.push(Form { extensions: extensions.clone(), ..named(&format!("behind {length}"), &udp) });
            forms.push(Form { extensions, ..named(&format!("behind {length}"), &request) });
        }
    } else {
        for options in [4, 40] {
            forms.push(Form { options, ..named(&format!("with {options}"), &udp) });
            forms.push(Form { options, ..named(&format!("with {options}"), &request) });
        }
    }
    forms
}

fn without_numbers() -> Vec<Form> {
    let mut forms = Vec::new();
    for is_ipv6 in both() {
        for protocol in 0..=u8::MAX {
            // Numbers that are an extension header or have a form of their own.
            let is_extension = is_ipv6 && matches!(protocol, 0 | 43 | 44 | 51 | 60);
            if !is_extension && !WITH_PORTS.contains(&protocol) && protocol != if is_ipv6 { 58 } else { 1 } {
                forms.push(Form::new(&format!("protocol {protocol}"), is_ipv6, Content::Other(protocol)));
            }
        }
        for kind in 0..=u8::MAX {
            forms.push(Form::new(&format!("message {kind}"), is_ipv6, Content::Message(kind, 0)));
        }
    }
    forms
}

/// Addresses of every kind that the specification tells apart, and their neighbours.
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

/// One address of each of the kinds that matter most: shared, loopback, on the link, beyond the gateway.
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
