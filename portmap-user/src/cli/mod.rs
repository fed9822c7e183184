//! The command line: what can be typed, and what is done then.

mod drops;
mod explain;
mod print;
mod process;

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    api::{AddRequest, Finding, Health, UpdateRequest, Wishes},
    client::Client,
    daemon,
    error::{Error, Kind, Result},
    kernel::{bpffs, programs::Mechanism},
    paths::{DEFAULT_BPFFS_DIR, DEFAULT_STATE_DIR, STATE_DIR_VARIABLE, StateDir},
    ports::PortSet,
    rates::Cpus,
    reach::Loopback,
    sizes::Size,
};

/// Lets many containers share this host's IP address, each with ports of its own.
#[derive(Debug, Parser)]
#[command(name = "portmap", version, args_override_self = true)]
pub struct Command {
    /// Where the daemon's socket and state are
    #[arg(long, global = true, value_name = "DIR", env = STATE_DIR_VARIABLE, default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    verb: Verb,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs; stable.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a container
    Add {
        /// Its name
        name: String,
        #[command(flatten)]
        namespace: NamespaceOptions,
        #[command(flatten)]
        ports: PortOptions,
        #[command(flatten)]
        traffic: TrafficOptions,
    },
    /// Add a container, run a command in it, and remove it when the command ends
    Run {
        /// Its name [default: one made of the process id]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        ports: PortOptions,
        #[command(flatten)]
        traffic: TrafficOptions,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Change a container's ports and limits; without options, put back what limits it
    Update {
        /// Its name
        name: String,
        /// Static ports that it has from now on, instead of those that it had
        #[arg(long, value_name = "RANGES", allow_hyphen_values = true)]
        ports: Option<PortSet>,
        #[command(flatten)]
        traffic: TrafficOptions,
    },
    /// Run a command in a container
    Exec {
        /// The container's name
        name: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
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
    /// Show traffic and drops of one container, or of all and the host
    Stats {
        /// The container's name
        name: Option<String>,
    },
    /// Show what was dropped and why, or follow drops as they happen
    Drops {
        /// The container's name, or `outside` [default: all]
        name: Option<String>,
        /// Print a line for each dropped packet (of many, samples) until interrupted
        #[arg(short, long)]
        follow: bool,
    },
    /// Show what would become of a packet, hook by hook
    Explain(explain::Question),
    /// Check that everything is as it is meant to be
    Doctor {
        /// Put back what is not, as far as that is possible
        #[arg(long)]
        repair: bool,
    },
    /// Remove all containers and everything that the daemon has done to the host
    Teardown {
        /// Where pins are whose state is lost
        #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS_DIR)]
        bpffs_dir: PathBuf,
    },
    /// Print a script that completes commands
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Args, Debug)]
struct NamespaceOptions {
    /// File of an existing network namespace [default: a new one in /run/netns]
    #[arg(long, value_name = "PATH", conflicts_with = "pid")]
    netns: Option<PathBuf>,
    /// A process in an existing network namespace
    #[arg(long)]
    pid: Option<u32>,
}

#[derive(Args, Debug)]
struct PortOptions {
    /// Static ports, such as 31000-31009,31500
    #[arg(long, value_name = "RANGES", allow_hyphen_values = true)]
    ports: Option<PortSet>,
    /// Number of ephemeral ports, a power of two [default: the daemon's]
    #[arg(long, value_name = "N", alias = "ephemeral_ports_per_container")]
    ephemeral_ports_per_container: Option<u16>,
}

#[derive(Args, Debug)]
struct TrafficOptions {
    /// Limit on what it sends, such as 37500KB (per second) or 300mbit; 0: none
    #[arg(long, value_name = "B")]
    egress_rate: Option<Size>,
    /// Limit on what it receives; 0: none
    #[arg(long, value_name = "B")]
    ingress_rate: Option<Size>,
    /// CPUs that it has, for limits that depend on them [default: 1]
    #[arg(long, value_name = "F")]
    cpus: Option<Cpus>,
    /// Whose 127.0.0.0/8 and ::1 are in it: everybody's on the host, or its own [default: the daemon's]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "shared|private")]
    loopback: Option<Loopback>,
}

impl TrafficOptions {
    fn wishes(&self) -> Wishes {
        Wishes {
            egress_rate: self.egress_rate.map(|rate| rate.0),
            ingress_rate: self.ingress_rate.map(|rate| rate.0),
            cpus: self.cpus,
            loopback: self.loopback,
        }
    }
}

impl PortOptions {
    fn request(self, name: String, traffic: &TrafficOptions) -> AddRequest {
        AddRequest {
            name,
            netns: None,
            pid: None,
            ports: self.ports.unwrap_or_default(),
            ephemeral_ports_per_container: self.ephemeral_ports_per_container,
            traffic: traffic.wishes(),
        }
    }
}

/// Does what was typed and says how it went by the exit code.
pub fn run(command: Command) -> ExitCode {
    match command.execute() {
        Ok(code) => code,
        Err(error) => {
            print::error(&error);
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
            Verb::Add { name, namespace, ports, traffic } => {
                let netns = namespace.netns.as_deref().map(absolute).transpose()?;
                let request = AddRequest { netns, pid: namespace.pid, ..ports.request(name, &traffic) };
                print::container(output, &client()?.add(&request)?)?;
            }
            Verb::Run { name, ports, traffic, command } => {
                let name = name.unwrap_or_else(|| format!("run-{}", std::process::id()));
                return process::run(&client()?, &ports.request(name, &traffic), &command);
            }
            Verb::Update { name, ports, traffic } => {
                let request = UpdateRequest { ports, traffic: traffic.wishes() };
                print::container(output, &client()?.update(&name, &request)?)?;
            }
            Verb::Exec { name, command } => return Err(process::exec(&client()?.show(&name)?, &command)),
            Verb::Del { name } => client()?.delete(&name)?,
            Verb::List => print::containers(output, &client()?.list()?)?,
            Verb::Show { name } => print::container(output, &client()?.show(&name)?)?,
            Verb::Stats { name: Some(name) } => {
                print::container_stats(output, &client()?.container_stats(&name)?)?;
            }
            Verb::Stats { name: None } => print::stats(output, &client()?.stats()?)?,
            Verb::Drops { name, follow: true } => drops::follow(&client()?, output, name.as_deref())?,
            Verb::Drops { name, follow: false } => drops::print(output, &client()?.drops(name.as_deref())?)?,
            Verb::Explain(question) => explain::print(output, &client()?.explain(&question.request())?)?,
            Verb::Doctor { repair } => return doctor(&client()?, output, repair),
            Verb::Teardown { bpffs_dir } => {
                let removed = match client()?.teardown() {
                    Err(error) if error.kind == Kind::Unreachable => {
                        daemon::teardown(&state_dir, &bpffs_dir)?
                    }
                    other => other?,
                };
                print::torn_down(output, removed)?;
            }
            Verb::Completions { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "portmap", &mut io::stdout());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The daemon may have another working directory.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::usage(format!("the path {}: {error}", path.display())))
}

fn doctor(client: &Client, output: Output, repair: bool) -> Result<ExitCode> {
    let findings = match if repair { client.repair() } else { client.doctor() } {
        Ok(findings) => findings,
        Err(error) => without_daemon(&error),
    };
    print::findings(output, &findings)?;
    let healthy = findings.iter().all(|finding| finding.health != Health::Problem);
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(Kind::Unhealthy.exit_code()) })
}

/// What can be said when the daemon does not answer.
fn without_daemon(error: &Error) -> Vec<Finding> {
    let bpffs = bpffs::check_mounted(DEFAULT_BPFFS_DIR.as_ref());
    vec![
        Finding::new("daemon", Health::Problem, error.message.clone()),
        match bpffs {
            Ok(()) => Finding::new("bpffs", Health::Ok, "mounted"),
            Err(error) => Finding::new("bpffs", Health::Problem, error.message),
        },
        Finding::new(
            "attachment",
            Health::Ok,
            format!("this kernel would use {}", Mechanism::detect().name()),
        ),
    ]
}
