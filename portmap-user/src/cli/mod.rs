//! The command line: `portmap`'s commands and flags.

mod capacity;
mod drops;
mod events;
mod explain;
mod flows;
mod output;
mod port_variables;
mod print;
mod process;
mod top;
mod wrap;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use nix::unistd::geteuid;

use self::output::Output;
use crate::{
    api::{AddRequest, Finding, FlowsRequest, Health, UpdateRequest},
    client::{CallError, Client},
    daemon,
    error::{Error, Kind, Result},
    kernel::{bpffs, programs::AttachMode},
    log,
    model::{Cpus, Label, LabelChanges, Labels, Loopback, PortRequest, TrafficSpec},
    paths::{DEFAULT_BPFFS_DIR, DEFAULT_STATE_DIR, STATE_DIR_VARIABLE, StateDir},
    sizes::HumanBytes,
};

/// Lets many containers share this host's IP address, each with ports of its own.
#[derive(Debug, Parser)]
#[command(name = "portmap", version, args_override_self = true)]
pub struct Command {
    /// Directory of the daemon's socket and state
    #[arg(long, global = true, value_name = "DIR", env = STATE_DIR_VARIABLE, default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a container
    Add {
        /// Its name
        name: String,
        #[command(flatten)]
        namespace: NamespaceOptions,
        /// Apply the host's sysctls below /proc/sys/net to an existing namespace (a new one always gets them)
        #[arg(long)]
        inherit_sysctls: bool,
        #[command(flatten)]
        ports: PortOptions,
        #[command(flatten)]
        traffic: TrafficOptions,
        /// Name that it has elsewhere, as KEY=VALUE; repeatable
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<Label>,
    },
    /// Add a container, run a command in it, and remove the container when the command ends
    #[command(override_usage = "portmap run [OPTIONS] -- COMMAND…")]
    Run {
        /// Its name [default: run-PID]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        ports: PortOptions,
        #[command(flatten)]
        traffic: TrafficOptions,
        /// Name that it has elsewhere, as KEY=VALUE; repeatable
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<Label>,
        #[command(flatten)]
        command: CommandOptions,
    },
    /// Change a container's ports, ephemeral ports, limits and labels; without options, reinstall its limits
    Update {
        /// Its name
        name: String,
        /// New static ports, replacing the current ones; for automatic ranges it keeps current ports that fit
        #[arg(long, value_name = "RANGES|auto:N", allow_hyphen_values = true)]
        ports: Option<PortRequest>,
        /// Take ports from listening processes of the host
        #[arg(long)]
        take: bool,
        /// New number of ephemeral ports, a power of two; connections keep their ports
        #[arg(long, value_name = "N", alias = "ephemeral_ports_per_container")]
        ephemeral_ports_per_container: Option<u16>,
        #[command(flatten)]
        traffic: TrafficOptions,
        /// New value of a label as KEY=VALUE, or KEY= to remove it; repeatable
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<Label>,
    },
    /// Run a command in a container
    #[command(override_usage = "portmap exec [OPTIONS] NAME -- COMMAND…")]
    Exec {
        /// The container's name
        name: String,
        #[command(flatten)]
        command: CommandOptions,
    },
    /// Remove a container
    #[command(alias = "delete", alias = "rm")]
    Del {
        /// Its name
        name: String,
    },
    /// List all containers
    #[command(alias = "ls")]
    List,
    /// Show one container
    Show {
        /// Its name
        name: String,
    },
    /// Show traffic and drops of one container, or of all containers and the host
    Stats {
        /// The container's name
        name: Option<String>,
    },
    /// Show who a container talks to, from its open connections
    Flows {
        /// The container's name
        name: String,
        /// Most flows to show, those with the most bytes
        #[arg(long, value_name = "N", default_value_t = FlowsRequest::default().limit)]
        limit: usize,
        /// Show each peer once, with all its ports
        #[arg(long)]
        by_peer: bool,
    },
    /// Follow traffic, drops and queues of all containers on the terminal
    Top(top::Options),
    /// Show dropped packets by reason, or follow drops as they occur
    Drops {
        /// The container's name, or outside [default: all]
        name: Option<String>,
        /// Print a line for each dropped packet (sampled under load) until interrupted
        #[arg(short, long)]
        follow: bool,
    },
    /// Print a line of JSON for each change of a container or of the host, as it happens, until interrupted
    Events {
        /// The container's name [default: all]
        name: Option<String>,
    },
    /// Show what containers can still get: ports, slots, and how many more containers fit
    Capacity,
    /// Show the verdict on a packet at each hook
    Explain(explain::Question),
    /// Compare actual with desired state
    Doctor {
        /// Repair what can be repaired
        #[arg(long)]
        repair: bool,
    },
    /// Remove all containers and undo all of the daemon's changes to the host
    Teardown {
        /// Directory of the pins, if the state is lost
        #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS_DIR)]
        bpffs_dir: PathBuf,
    },
    /// Print a shell completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Args, Debug)]
struct NamespaceOptions {
    /// Path of an existing network namespace [default: a new one in /run/netns]
    #[arg(long, value_name = "PATH", conflicts_with = "pid")]
    netns: Option<PathBuf>,
    /// A process in an existing network namespace
    #[arg(long)]
    pid: Option<u32>,
}

#[derive(Args, Debug)]
struct CommandOptions {
    /// Words before `--`, where a command is not accepted, because its options could be taken for portmap's.
    #[arg(hide = true)]
    stray: Vec<OsString>,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl CommandOptions {
    /// Returns the command; `before` is the command line up to it, for the error message.
    fn words(self, before: &str) -> Result<Vec<OsString>> {
        let given = if self.stray.is_empty() { &self.command } else { &self.stray };
        if self.stray.is_empty() && !given.is_empty() {
            return Ok(self.command);
        }
        let words: Vec<_> = given.iter().map(|word| word.to_string_lossy()).collect();
        let example = if words.is_empty() { "COMMAND".to_owned() } else { words.join(" ") };
        Err(Error::usage(format!("the command must follow `--`: {before} -- {example}")))
    }
}

#[derive(Args, Debug)]
struct PortOptions {
    /// Name of its interface, for programs that expect the uplink's for example [default: eth0]
    #[arg(long, value_name = "NAME", alias = "container_interface")]
    container_interface: Option<String>,
    /// Static ports, such as 31000-31009,31500; the daemon chooses N adjacent ones for auto:N, and for
    /// auto:N+aligned the first one is a multiple of N
    #[arg(long, value_name = "RANGES|auto:N", allow_hyphen_values = true)]
    ports: Option<PortRequest>,
    /// Number of ephemeral ports, a power of two [default: the daemon's]
    #[arg(long, value_name = "N", alias = "ephemeral_ports_per_container")]
    ephemeral_ports_per_container: Option<u16>,
    /// Take ports from listening processes of the host
    #[arg(long)]
    take: bool,
}

#[derive(Args, Debug)]
struct TrafficOptions {
    /// Limit on what it sends, such as 37500KB (per second) or 300mbit; 0: unlimited
    #[arg(long, value_name = "RATE")]
    egress_rate: Option<HumanBytes>,
    /// Limit on what it receives; 0: unlimited
    #[arg(long, value_name = "RATE")]
    ingress_rate: Option<HumanBytes>,
    /// Its CPUs, for per-CPU limits [default: 1]
    #[arg(long, value_name = "F")]
    cpus: Option<Cpus>,
    /// Scope of its loopback addresses: shared with the host, or private [default: the daemon's]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "shared|private")]
    loopback: Option<Loopback>,
}

impl TrafficOptions {
    fn spec(&self) -> TrafficSpec {
        TrafficSpec {
            egress_rate: self.egress_rate.map(|rate| rate.0),
            ingress_rate: self.ingress_rate.map(|rate| rate.0),
            cpus: self.cpus,
            loopback: self.loopback,
        }
    }
}

impl PortOptions {
    fn request(self, name: String, traffic: &TrafficOptions, labels: Vec<Label>) -> Result<AddRequest> {
        let ports = self.ports.unwrap_or_default();
        Ok(AddRequest {
            name,
            netns: None,
            pid: None,
            container_interface: self.container_interface,
            ports: ports.numbered(),
            automatic_ports: ports.automatic(),
            take: self.take,
            inherit_sysctls: false,
            ephemeral_ports_per_container: self.ephemeral_ports_per_container,
            traffic: traffic.spec(),
            labels: Labels::try_from(LabelChanges::from_iter(labels))?,
            ..AddRequest::default()
        })
    }
}

/// Executes a command, and returns its exit code.
pub fn run(command: Command) -> ExitCode {
    match command.execute() {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

impl Command {
    fn execute(self) -> Result<ExitCode> {
        let Self { state_dir, output, verb } = self;
        let state_dir = StateDir::new(state_dir);
        let client = || Client::new(&state_dir);
        match verb {
            Verb::Add { name, namespace, inherit_sysctls, ports, traffic, labels } => {
                let netns = namespace.netns.as_deref().map(absolute).transpose()?;
                let pid = namespace.pid;
                let request = ports.request(name, &traffic, labels)?;
                let request = AddRequest { netns, pid, inherit_sysctls, ..request };
                print::changed(output, &client()?.add(&request)?)?;
            }
            Verb::Run { name, ports, traffic, labels, command } => {
                let command = command.words("portmap run")?;
                let name = name.unwrap_or_else(|| format!("run-{}", std::process::id()));
                let requested = ports.ports.clone();
                let request = ports.request(name, &traffic, labels)?;
                return process::run(&client()?, request, requested.as_ref(), &command);
            }
            Verb::Update { name, ports, take, ephemeral_ports_per_container, traffic, labels } => {
                let (traffic, labels) = (traffic.spec(), LabelChanges::from_iter(labels));
                let request = UpdateRequest {
                    automatic_ports: ports.as_ref().map(PortRequest::automatic).unwrap_or_default(),
                    ports: ports.as_ref().map(PortRequest::numbered),
                    take,
                    ephemeral_ports_per_container,
                    traffic,
                    labels,
                };
                print::changed(output, &client()?.update(&name, &request)?)?;
            }
            Verb::Exec { name, command } => {
                let command = command.words(&format!("portmap exec {name}"))?;
                return process::exec(&client()?.show(&name)?, &command);
            }
            Verb::Del { name } => client()?.delete(&name)?,
            Verb::List => print::containers(output, &client()?.list()?)?,
            Verb::Show { name } => print::container(output, &client()?.show(&name)?)?,
            Verb::Stats { name } => stats(&client()?, output, name.as_deref())?,
            Verb::Flows { name, limit, by_peer } => {
                flows::print(output, &client()?.flows(&name, FlowsRequest { limit, by_peer })?)?;
            }
            Verb::Top(options) => return top::run(&options, output, &state_dir),
            Verb::Drops { name, follow: true } => drops::follow(&client()?, output, name.as_deref())?,
            Verb::Drops { name, follow: false } => drops::print(output, &client()?.drops(name.as_deref())?)?,
            Verb::Capacity => capacity::show(output, &client()?.capacity()?)?,
            Verb::Events { name } => events::follow(&client()?, name.as_deref())?,
            Verb::Explain(question) => explain::print(output, &client()?.explain(&question.request())?)?,
            Verb::Doctor { repair } => return doctor(&client()?, output, repair),
            Verb::Teardown { bpffs_dir } => {
                let removed = match client()?.teardown() {
                    Err(CallError::Unreachable(_)) => {
                        let torn_down = daemon::teardown::teardown(&state_dir, &bpffs_dir)?;
                        for notice in &torn_down.notices {
                            log::line(format_args!("portmap: {notice}"));
                        }
                        torn_down.anything
                    }
                    other => other?,
                };
                print::torn_down(output, removed)?;
            }
            Verb::Completions { shell } => {
                // Into memory first, because the generator panics on write errors.
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "portmap", &mut script);
                output::bytes(&script)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes a path absolute, because the daemon's working directory may differ.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::usage(format!("the path {}: {error}", path.display())))
}

/// Prints counters. The tables also have the limits, which are not part of the stable JSON of this command.
fn stats(client: &Client, output: Output, name: Option<&str>) -> Result<()> {
    let containers = if output == Output::Table { client.list()? } else { Vec::new() };
    match name {
        Some(name) => {
            let container = containers.iter().find(|container| container.name == name);
            print::container_stats(output, &client.container_stats(name)?, container)
        }
        None => print::stats(output, &client.stats()?, &containers),
    }
}

fn doctor(client: &Client, output: Output, repair: bool) -> Result<ExitCode> {
    let (findings, code) = match if repair { client.repair() } else { client.doctor() } {
        Ok(findings) => {
            let healthy = findings.iter().all(|finding| finding.health != Health::Problem);
            (findings, if healthy { 0 } else { Kind::Unhealthy.exit_code() })
        }
        // The exit code is that of any other command.
        Err(error) => {
            let error = Error::from(error);
            (without_daemon(&error), error.kind.exit_code())
        }
    };
    print::findings(output, &findings)?;
    Ok(ExitCode::from(code))
}

/// Findings that need no daemon.
fn without_daemon(error: &Error) -> Vec<Finding> {
    let bpffs = bpffs::check_mounted(DEFAULT_BPFFS_DIR.as_ref());
    let mut findings = vec![
        Finding::new("daemon", Health::Problem, error.message.clone()),
        match bpffs {
            Ok(()) => Finding::new("bpffs", Health::Ok, "mounted"),
            Err(error) => Finding::new("bpffs", Health::Problem, error.to_string()),
        },
    ];
    // Only root may query TCX.
    if geteuid().is_root() {
        let text = format!("this kernel would use {}", AttachMode::detect().name());
        findings.push(Finding::new("attachment", Health::Ok, text));
    }
    findings
}
