//! Flags, the configuration file, and the errors of both.

use std::fs;

use clap::{CommandFactory as _, Parser};

use super::{raw::RESOURCES_HELP, *};
use crate::model::Loopback;

#[derive(Parser)]
#[command(args_override_self = true)]
struct Command {
    #[command(flatten)]
    settings: RawSettings,
}

fn settings(arguments: &str) -> Result<Settings> {
    let arguments = std::iter::once("portmapd").chain(arguments.split_whitespace());
    let arguments = normalized(arguments.map(Into::into));
    Command::try_parse_from(arguments).expect("a command line").settings.resolve()
}

#[test]
fn settings_accept_underscores_and_the_last_flag_wins() {
    let settings = settings(
        "--ephemeral_ports=61440-65535 --ephemeral-ports-per-container 64 --ephemeral_ports_per_container=32 \
         --resources ports:[31000-32000];ephemeral_ports:[40000-41000]",
    )
    .expect("settings");
    assert_eq!(settings.block, 32);
    assert_eq!(settings.ports.to_string(), "31000-32000");
    assert_eq!(settings.ephemeral_ports.to_string(), "61440-65535");
}

#[test]
fn settings_published_ports_are_outside_the_pools() {
    let of = |flags: &str| settings(&format!("--ephemeral-ports 61440-65535 --ports 31000-32000 {flags}"));
    let published = |flags: &str| of(flags).expect(flags).published.to_string();
    assert_eq!(published(""), "");
    assert_eq!(published("--published-ports 80,443"), "80,443");
    // The daemon's own port is not among them.
    assert_eq!(published("--published_ports 1-61439"), "1-5050,5052-30999,32001-61439");
    assert_eq!(published("--published-ports 5000-6000 --listen none"), "5000-6000");
    let error = of("--published-ports 1-65535").expect_err("two uses").message;
    assert!(
        error.contains("the ports 61440-65535 are in --published-ports and in --ephemeral-ports"),
        "{error}"
    );
}

#[test]
fn settings_flags_accept_the_documented_forms() {
    let of = |flags: &str| settings(&format!("--ephemeral-ports 61440-65535 {flags}")).expect(flags);
    for (flags, expected) in [
        ("", true),
        ("--reconcile", true),
        ("--reconcile true", true),
        ("--reconcile=true", true),
        ("--reconcile false", false),
        ("--reconcile=false", false),
        ("--reconcile false --reconcile", true),
        ("--reconcile --reconcile=false", false),
    ] {
        assert_eq!(of(flags).reconcile, expected, "{flags}");
    }
    assert!(!of("--limit-local-traffic false").shaping.limits_local);
    assert!(!of("--limit_local_traffic=false").shaping.limits_local);
    assert!(of("--ingress-isolate-existing-containers true").shaping.ingress_for_existing);
    assert!(!of("--ingress-isolate-existing-containers false").shaping.ingress_for_existing);
    assert!(of("--egress-unique-flow-per-container").shaping.flows.is_some());
    assert!(of("--egress-unique-flow-per-container true").shaping.flows.is_some());
    assert_eq!(of("--bind-guard").bind_guard, Some(BindGuard::All));
    for flag in ["--bind-guard /a/cgroup", "--bind-guard=/a/cgroup"] {
        assert_eq!(of(flag).bind_guard, Some(BindGuard::Cgroup("/a/cgroup".into())), "{flag}");
    }
    // The example in the help text.
    let example = RESOURCES_HELP.split_once("syntax: ").and_then(|(_, rest)| rest.split_once(' '));
    let (example, _) = example.expect("an example");
    assert_eq!(settings(&format!("--resources {example}")).expect(example).ports.to_string(), "31000-32000");
}

#[test]
fn settings_accept_the_flags_of_mesos() {
    // The command line of its documentation.
    let documented = "--isolation=network/port_mapping \
        --resources=ports:[31000-32000];ephemeral_ports:[32768-57344] --ephemeral_ports_per_container=1024 \
        --egress_rate_limit_per_container=37500KB --egress_unique_flow_per_container";
    let of = |flags: &str| settings(&format!("{documented} {flags}")).expect(flags);
    let Settings { ports, ephemeral_ports, block, shaping, .. } = of("");
    assert_eq!(
        (ports.to_string(), ephemeral_ports.to_string(), block),
        ("31000-32000".to_owned(), "32768-57344".to_owned(), 1024)
    );
    assert_eq!((shaping.egress.fixed, shaping.flows.is_some(), shaping.cpus), (Some(38_400_000), true, None));
    assert!(of("--no-egress_unique_flow_per_container").shaping.flows.is_none());
    assert!(!of("--no-ingress-isolate-existing-containers").shaping.ingress_for_existing);
    assert!(
        of("--no-egress_unique_flow_per_container --egress_unique_flow_per_container")
            .shaping
            .flows
            .is_some()
    );
    assert!(of("--listen_to_containers --no_listen_to_containers").reach.listener.is_some());
    assert_eq!(of("--eth0_name=e --lo_name=l").uplinks, [UplinkChoice::Name("e".to_owned())]);
    assert_eq!(of("--eth0_name=e --lo_name=l").lo_name.as_deref(), Some("l"));
    for (cpus, divisor) in [("64", 64), ("4.9", 4), ("0.5", 1)] {
        let flags = format!("--resources=cpus:{cpus};ports:[31000-32000];ephemeral_ports:[32768-57344]");
        assert_eq!(of(&flags).shaping.cpus, Some(divisor), "{cpus}");
    }
    // These are no flags that are true or false.
    for flag in ["--no-ports", "--no-reconcile=true", "--no-listen"] {
        let arguments = ["portmapd", flag].map(Into::into);
        assert!(Command::try_parse_from(normalized(arguments)).is_err(), "{flag}");
    }
    let help = Command::command().render_long_help().to_string();
    for flag in ["--eth0-name", "--lo-name", "--isolation", "--resources"] {
        assert!(help.contains(flag), "{flag}");
    }
}

#[test]
fn settings_flags_override_the_file() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(&file, "ports = \"100-200\"\nephemeral-ports = \"61440-65535\"\nlisten = \"none\"\n")
        .expect("written");
    let settings = settings(&format!("--ports 300 --config {}", file.path().display())).expect("settings");
    assert_eq!(settings.ports.to_string(), "300");
    assert_eq!(settings.ephemeral_ports.to_string(), "61440-65535");
    assert_eq!(settings.listen, None);
}

#[test]
fn settings_error_names_the_flag() {
    let ephemeral = "--ephemeral-ports 61440-65535";
    for (arguments, expected) in [
        (String::new(), "no ephemeral ports"),
        (format!("{ephemeral} --ports 65000-65010"), "65000-65010 are in --ports and in --ephemeral-ports"),
        ("--ephemeral-ports 512-2047".to_owned(), "512-2047"),
        (format!("{ephemeral} --ephemeral-ports-per-container 1000"), "power of two"),
        (format!("{ephemeral} --ephemeral-ports-per-container 8"), "at least 16"),
        ("--ephemeral-ports 61440-61500".to_owned(), "61 ports"),
        (format!("{ephemeral} --ports 31000-"), "\"31000-\""),
        (format!("{ephemeral} --resources ports"), "\"ports\""),
        (format!("{ephemeral} --isolation=cgroups/cpu,network/port_mapping"), "isolator \"cgroups/cpu\""),
        (format!("{ephemeral} --isolation="), "isolator \"\""),
        (format!("{ephemeral} --isolation=network/port_mapping,network/port_mapping"), "more than once"),
        (format!("{ephemeral} --listen here"), "\"here\""),
        (format!("{ephemeral} --bind-guard=here"), "\"here\""),
        (format!("{ephemeral} --ports 5000-6000"), "127.0.0.1:5051"),
        (format!("{ephemeral} --host-access some"), "\"some\""),
        (format!("{ephemeral} --config /does/not/exist"), "/does/not/exist"),
    ] {
        let error = settings(&arguments).expect_err(&arguments);
        assert!(error.message.contains(expected), "{arguments}: {error}");
    }
}

#[test]
fn settings_reach_of_containers() {
    let ephemeral = "--ephemeral-ports 61440-65535";
    let reach = |flags: &str| settings(&format!("{ephemeral} {flags}")).expect(flags).reach;
    let default = reach("");
    assert_eq!((default.loopback, &default.host), (Loopback::Shared, &HostAccess::All));
    assert_eq!(default.listener, Some("127.0.0.1:5051".parse().expect("an address")));
    assert_eq!(reach("--listen none").listener, None);
    assert_eq!(reach("--listen-to-containers").listener, None);
    assert_eq!(reach("--loopback=private").loopback, Loopback::Private);
    for (flags, host) in [
        ("--host-access none", "none"),
        ("--host-access=none --loopback private", "none"),
        ("--host-access ports 53", "53"),
        ("--host-access 53,8080-8090 --listen none", "53,8080-8090"),
        ("--host_access none --host-access ports 53", "53"),
    ] {
        assert_eq!(reach(flags).host.to_string(), host, "{flags}");
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = "host-access = \"ports 53\"\nloopback = \"private\"\nlisten_to_containers = true\n";
    fs::write(&file, text).expect("written");
    let read = reach(&format!("--config {}", file.path().display()));
    assert_eq!(
        (read.loopback, read.host.to_string().as_str(), read.listener),
        (Loopback::Private, "53", None)
    );
}

#[test]
fn settings_file_error_names_the_key() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    for (text, parts) in [
        ("port = \"100-200\"\n", ["unknown field `port`", "`ports`"]),
        ("listen = 5\n", ["expected a string", "`listen`"]),
        ("egress_burst = \"many\"\n", ["\"many\"", "`egress-burst`"]),
        ("loopback = \"mine\"\n", ["expected shared or private", "`loopback`"]),
        ("loopback = \"mine\"\nloop-back =\n", ["line 2", "loop-back"]),
        ("bind_guard = \"all\"\nbind-guard = \"none\"\n", ["bind-guard is given", "twice"]),
    ] {
        fs::write(&file, text).expect("written");
        let error = settings(&format!("--config {}", file.path().display())).expect_err(text);
        assert!(parts.iter().all(|part| error.message.contains(part)), "{error}");
    }
}

#[test]
fn settings_accept_former_names() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = "eth0_name = 'e'\nlo_name = 'lo'\nisolation = 'network/port_mapping'\nephemeral_ports_rest = '5secs'\n";
    fs::write(&file, text).expect("written");
    for flags in ["--eth0_name=e --ephemeral-ports-rest 5s", &format!("--config {}", file.path().display())] {
        let settings = settings(&format!("--ephemeral-ports 61440-65535 {flags}")).expect(flags);
        assert_eq!(settings.uplinks, [UplinkChoice::Name("e".to_owned())], "{flags}");
        assert_eq!(settings.quarantine, Duration::from_secs(5), "{flags}");
    }
}

#[test]
fn settings_name_several_uplinks() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let in_file = format!("--config {}", file.path().display());
    let of = |flags: &str| settings(&format!("--ephemeral-ports 61440-65535 {flags}")).expect(flags).uplinks;
    let name = |text: &str| UplinkChoice::Name(text.to_owned());
    let pattern = |text: &str| UplinkChoice::Pattern(text.to_owned());
    assert_eq!(of(""), [UplinkChoice::Auto]);
    let several = [name("wan0"), pattern("eth*"), UplinkChoice::Auto];
    assert_eq!(of("--uplink wan0 --eth0_name=eth* --uplink auto"), several);
    fs::write(&file, "uplink = ['wan0', 'eth*', 'auto']\n").expect("written");
    assert_eq!(of(&in_file), several);
    assert_eq!(of(&format!("{in_file} --uplink bond?")), [pattern("bond?")], "flags override the file");
    fs::write(&file, "uplink = 'wan0'\n").expect("written");
    assert_eq!(of(&in_file), [name("wan0")]);
    fs::write(&file, "uplink = []\n").expect("written");
    assert_eq!(of(&in_file), [UplinkChoice::Auto]);
}

#[test]
fn settings_of_statistics_are_validated() {
    let of = |flags: &str| settings(&format!("--ephemeral-ports 61440-65535 {flags}"));
    assert_eq!(of("").expect("settings").monitor, Monitor::default());
    let all = "--network_enable_socket_statistics_summary --network_enable_socket_statistics_details=true \
               --network-enable-snmp-statistics --network_enable_rate_statistics \
               --network_rate_statistics_window=2secs --network_rate_statistics_interval=50ms";
    let monitor = of(all).expect("settings").monitor;
    let rates = RateWindow { window: Duration::from_secs(2), interval: Duration::from_millis(50) };
    let expected = Monitor { socket_summary: true, socket_details: true, snmp: true, rates: Some(rates) };
    assert_eq!(monitor, expected);
    assert_eq!(rates.capacity(), 40);
    assert_eq!(RateWindow { window: rates.interval * 2, ..rates }.capacity(), 3);
    let rates = "--network-enable-rate-statistics";
    let (window, interval) = ("--network-rate-statistics-window", "--network-rate-statistics-interval");
    for (flags, part) in [
        (rates.to_owned(), "needs --network-rate-statistics-window"),
        (format!("{rates} {window} 1s"), "needs --network-rate-statistics-interval"),
        (format!("{rates} {window} 1s {interval} 1s"), "expected more than the interval"),
        (format!("{rates} {window} 1s {interval} 19ms"), "expected at least 20ms"),
        (format!("{rates} {window} 3601s {interval} 1s"), "expected at most 3600"),
    ] {
        let error = of(&flags).expect_err(&flags).to_string();
        assert!(error.contains(part), "{flags}: {error}");
    }
    // Without the first flag the others have no effect, as in Mesos.
    assert_eq!(of(&format!("{window} 1s")).expect("settings").monitor.rates, None);
}
