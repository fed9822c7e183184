//! What the loop of `portmap top` waits for. Bounded: a reading that the loop has not taken yet is replaced by the
//! next one, and keys wait in the terminal when there are many.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use ratatui::crossterm::event::KeyEvent;

use super::state::Reading;
use crate::api::Flows;

/// Most keys that wait here.
const KEYS: usize = 256;

/// An event.
#[derive(Debug)]
pub(super) enum Event {
    Key(KeyEvent),
    /// The size of the terminal has changed.
    Resized,
    /// The counters, or why they could not be read.
    Reading(Result<Reading, String>),
    /// The flows of the container that is shown, or why they could not be read.
    Flows(Result<Flows, String>),
    /// A signal asks this process to suspend itself.
    Suspend,
    /// A signal asks this process to end, or the terminal is gone.
    End,
}

/// The events that wait.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    keys: VecDeque<KeyEvent>,
    reading: Option<Result<Reading, String>>,
    flows: Option<Result<Flows, String>>,
    is_resized: bool,
    suspends: bool,
    ends: bool,
}

impl State {
    fn is_empty(&self) -> bool {
        let Self { keys, reading, flows, is_resized, suspends, ends } = self;
        keys.is_empty() && reading.is_none() && flows.is_none() && !is_resized && !suspends && !ends
    }
}

impl Inbox {
    // A poisoned lock is taken, because every change is a single step.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. A key waits while there are many; others replace an earlier one of their kind.
    pub(super) fn send(&self, event: Event) {
        let mut state = self.lock();
        match event {
            Event::Key(key) => {
                while state.keys.len() >= KEYS {
                    state = self.wait(state);
                }
                state.keys.push_back(key);
            }
            Event::Resized => state.is_resized = true,
            Event::Reading(reading) => state.reading = Some(reading),
            Event::Flows(flows) => state.flows = Some(flows),
            Event::Suspend => state.suspends = true,
            Event::End => state.ends = true,
        }
        self.changed.notify_all();
    }

    /// Waits for an event, and returns all that wait: one screen for all of them does not lag behind a key that is
    /// held down.
    pub(super) fn receive(&self) -> impl Iterator<Item = Event> {
        let mut state = self.lock();
        while state.is_empty() {
            state = self.wait(state);
        }
        let State { keys, reading, flows, is_resized, suspends, ends } = std::mem::take(&mut *state);
        self.changed.notify_all();
        let signal = |is_sent: bool, event| is_sent.then_some(event);
        let others = reading.map(Event::Reading).into_iter().chain(flows.map(Event::Flows));
        others
            .chain(keys.into_iter().map(Event::Key))
            .chain(signal(is_resized, Event::Resized))
            .chain(signal(suspends, Event::Suspend))
            .chain(signal(ends, Event::End))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Instant};

    use ratatui::crossterm::event::{KeyCode, KeyModifiers};

    use super::*;
    use crate::cli::top::state::tests::{reading, stats};

    #[test]
    fn top_newest_reading_replaces_those_that_wait() {
        let inbox = Inbox::default();
        for number in 0..1000 {
            inbox.send(Event::Reading(Ok(reading(Instant::now(), vec![stats("a", number, 0)]))));
        }
        inbox.send(Event::Resized);
        let events: Vec<Event> = inbox.receive().collect();
        let [Event::Reading(Ok(newest)), Event::Resized] = &events[..] else { panic!("{events:?}") };
        assert_eq!(newest.stats.containers[0].traffic["rx_outside"].bytes, 999);
    }

    #[test]
    fn top_keys_wait_in_order_and_are_bounded() {
        let inbox = Inbox::default();
        let key = |number: usize| {
            let character = char::from_u32(u32::try_from(number).expect("small") + 0x4e00).expect("a letter");
            KeyEvent::new(KeyCode::Char(character), KeyModifiers::NONE)
        };
        let (sent, count) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..3 * KEYS {
                    inbox.send(Event::Key(key(number)));
                    sent.send(()).expect("the receiver is there");
                }
            });
            for _ in 0..KEYS {
                count.recv().expect("keys up to the bound do not wait");
            }
            let mut received = Vec::new();
            while received.len() < 3 * KEYS {
                let some: Vec<Event> = inbox.receive().collect();
                assert!(some.len() <= KEYS, "{}", some.len());
                received.extend(some);
            }
            for (number, event) in received.into_iter().enumerate() {
                assert!(matches!(event, Event::Key(found) if found == key(number)), "{number}: {event:?}");
            }
        });
    }
}
