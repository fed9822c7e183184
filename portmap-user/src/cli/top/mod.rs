//! `portmap top`: a view of all containers that follows their traffic.
//!
//! One thread asks the daemon, one waits for keys and one for signals; each sends events to the loop, which
//! alone draws. So a daemon that hangs does not stop the keys, and of the readings that a slow terminal leaves
//! behind only the newest is kept ([`inbox`]).

mod action;
mod app;
mod columns;
mod detail;
mod help;
mod inbox;
mod input;
mod queue;
mod screen;
mod sort;
mod state;
mod table;
mod text;
mod theme;
mod view;

use std::{
    env,
    io::{self, IsTerminal as _},
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use ratatui::crossterm::event::{self, Event as TerminalEvent};

use self::{
    app::{App, Next},
    inbox::{Event, Inbox},
    screen::Screen,
    state::Reading,
    theme::Theme,
};
use super::output::Output;
use crate::{
    api::FlowsRequest,
    client::{CallError, Client},
    durations::HumanDuration,
    error::{Context as _, Error, Result},
    paths::StateDir,
};

/// Time after which a request to the daemon counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bounds on the interval between readings.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_hours(1);
/// Signals that end the view, and the one that suspends it.
const SIGNALS: [Signal; 5] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP];

/// Options of `portmap top`.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Time between two readings, such as 1s or 500ms
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    interval: HumanDuration,
    /// Use no colours; the environment variable `NO_COLOR` does the same
    #[arg(long)]
    no_color: bool,
}

/// Shows the view until the user quits.
pub(super) fn run(options: &Options, output: Output, state_dir: &StateDir) -> Result<ExitCode> {
    let interval = check(options, output)?;
    let client = Client::new(state_dir)?;
    // Before the screen changes, so that the error is that of any other command.
    let first = read(&client)?;
    // Before any thread starts, because threads inherit it: only the thread below receives these signals.
    let signals: SigSet = SIGNALS.into_iter().collect();
    signals.thread_block().context(|| "cannot block signals")?;
    let inbox = Arc::new(Inbox::default());
    start(&inbox, "portmap-top-signals", move |inbox| send_signals(signals, inbox))?;
    let mut screen = Screen::open()?;
    start(&inbox, "portmap-top-keys", send_keys)?;
    let (asked, shown) = mpsc::channel();
    start(&inbox, "portmap-top-daemon", move |inbox| send_counters(&client, interval, &shown, inbox))?;
    let theme = theme(options.no_color);
    let mut app = App::new();
    app.read(Ok(first));
    follow(&mut screen, &mut app, theme, &inbox, &asked)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses what cannot work, and returns the interval.
fn check(options: &Options, output: Output) -> Result<Duration> {
    if output == Output::Json {
        return Err(Error::usage("`portmap top` has no JSON output: use `portmap stats -o json`"));
    }
    let HumanDuration(interval) = options.interval;
    if !(SHORTEST..=LONGEST).contains(&interval) {
        return Err(Error::usage(format!(
            "--interval {interval:?}: expected a duration from {SHORTEST:?} to one hour"
        )));
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Error::usage(
            "`portmap top` needs a terminal as standard input and output: use `portmap stats` in scripts",
        ));
    }
    let terminal = env::var("TERM").unwrap_or_default();
    if matches!(terminal.as_str(), "" | "dumb" | "unknown") {
        return Err(Error::usage(format!(
            "the terminal type TERM={terminal:?} cannot move the cursor: set TERM to the terminal's type, or use \
             `portmap stats`"
        )));
    }
    Ok(interval)
}

fn theme(no_color: bool) -> Theme {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find(|name| is_set(name));
    let locale = locale.and_then(|name| env::var(name).ok()).unwrap_or_default().to_lowercase();
    Theme {
        has_colour: !no_color && !is_set("NO_COLOR"),
        is_ascii: !locale.contains("utf-8") && !locale.contains("utf8"),
    }
}

fn start(inbox: &Arc<Inbox>, name: &str, work: impl FnOnce(&Inbox) + Send + 'static) -> Result<()> {
    let inbox = inbox.clone();
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || work(&inbox));
    thread.map(drop).context(|| "cannot start a thread")
}

/// Sends signals until one asks this process to end.
fn send_signals(signals: SigSet, inbox: &Inbox) {
    while let Ok(Signal::SIGTSTP) = signals.wait() {
        inbox.send(Event::Suspend);
    }
    inbox.send(Event::End);
}

/// Sends keys until there is no terminal.
fn send_keys(inbox: &Inbox) {
    loop {
        match event::read() {
            Ok(TerminalEvent::Key(key)) => inbox.send(Event::Key(key)),
            Ok(TerminalEvent::Resize(..)) => inbox.send(Event::Resized),
            Ok(_) => {}
            Err(_gone) => return inbox.send(Event::End),
        }
    }
}

/// Sends a reading in each interval, and the flows of the container that is `shown`, at once if that is another.
fn send_counters(client: &Client, interval: Duration, shown: &Receiver<Option<String>>, inbox: &Inbox) {
    let mut name = None;
    let mut next = Instant::now() + interval;
    loop {
        match shown.recv_timeout(next.saturating_duration_since(Instant::now())) {
            // Those in between have been left already.
            Ok(other) => name = shown.try_iter().last().unwrap_or(other),
            Err(RecvTimeoutError::Timeout) => {
                // After a pause of this process, no readings are made up for.
                next = (next + interval).max(Instant::now());
                inbox.send(Event::Reading(read(client).map_err(|error| error.to_string())));
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if let Some(name) = &name {
            let flows = client.flows_within(name, FlowsRequest::default(), PATIENCE);
            inbox.send(Event::Flows(flows.map_err(|error| error.to_string())));
        }
    }
}

fn read(client: &Client) -> Result<Reading, CallError> {
    let stats = client.stats_within(PATIENCE)?;
    Ok(Reading { at: Instant::now(), stats, containers: client.list_within(PATIENCE)? })
}

/// Draws, and does what events ask for, until one of them ends the view.
fn follow(
    screen: &mut Screen,
    app: &mut App,
    theme: Theme,
    inbox: &Inbox,
    asked: &Sender<Option<String>>,
) -> Result<()> {
    let mut shown = None;
    loop {
        let detail = app.detail().map(|row| row.stats.name.clone());
        if detail != shown {
            // If that thread has ended, no readings come either, and keys still work.
            let _ = asked.send(detail.clone());
            shown = detail;
        }
        screen.draw(|frame| view::draw(frame, app, theme))?;
        for event in inbox.receive() {
            let next = match event {
                Event::Key(key) => {
                    input::action(key, app.mode).map_or(Next::Continue, |action| app.act(action))
                }
                Event::Resized => Next::Continue,
                Event::Reading(reading) => {
                    app.read(reading);
                    Next::Continue
                }
                Event::Flows(flows) => {
                    app.read_flows(flows);
                    Next::Continue
                }
                Event::Suspend => Next::Suspend,
                Event::End => Next::Quit,
            };
            match next {
                Next::Continue => {}
                Next::Suspend => screen.suspend()?,
                Next::Quit => return Ok(()),
            }
        }
    }
}
