//! The stream of events (`portmap events`). An event is sent to all subscriptions and stored nowhere.

use std::{
    cell::Cell,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use futures_util::{Stream, stream};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

use crate::{
    api::{Event, EventContainer, EventKind, EventStreamItem, Requester},
    kernel::clock,
};

/// Most events that wait for the slowest subscription, which misses further ones.
const BACKLOG: usize = 1024;

thread_local! {
    /// The request that this thread executes.
    static REQUESTER: Cell<Option<Requester>> = const { Cell::new(None) };
}

/// Runs `work` for a request: events and lines of the log name it.
pub(super) fn on_behalf_of<T>(requester: Option<Requester>, work: impl FnOnce() -> T) -> T {
    let Some(Requester { id, uid, pid }) = requester else { return work() };
    // A pid that is `None` is left out of the line.
    let _span = tracing::info_span!("request", id, uid, pid).entered();
    REQUESTER.set(requester);
    // Dropped even if `work` panics, because the thread then serves other requests.
    let _reset = Reset;
    work()
}

/// Ends the ascription of events to a request.
struct Reset;

impl Drop for Reset {
    fn drop(&mut self) {
        REQUESTER.set(None);
    }
}

/// Sends events to subscriptions.
pub(super) struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    /// Number of the last event.
    seq: Arc<AtomicU64>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG), seq: Arc::default() }
    }
}

impl Events {
    /// Sends an event to all subscriptions.
    pub(super) fn emit(&self, kind: EventKind, container: Option<EventContainer>, text: Option<String>) {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        // This fails without subscriptions.
        let _ = self.sender.send(Arc::new(event(seq, kind, container, text)));
    }

    /// Subscribes to all events, or to those of this container and those that concern none.
    pub(super) fn subscribe(&self, name: Option<String>, ending: watch::Receiver<bool>) -> Subscription {
        let receiver = self.sender.subscribe();
        let begin = event(self.seq.load(Ordering::Relaxed), EventKind::Subscribed, None, None);
        Subscription {
            receiver,
            ending,
            name,
            seq: self.seq.clone(),
            position: Position::Begin(Box::new(begin)),
        }
    }
}

fn event(seq: u64, event: EventKind, container: Option<EventContainer>, text: Option<String>) -> Event {
    // A clock that is out of range must not cost the event.
    let time = clock::local(SystemTime::now()).unwrap_or_default();
    Event { seq, time, event, container, text, request: REQUESTER.get() }
}

/// A client's subscription. Its first event is `subscribed`, and at the end of the daemon its last one is
/// `stopping`; both have the number of the last event that was sent.
pub(super) struct Subscription {
    receiver: broadcast::Receiver<Arc<Event>>,
    ending: watch::Receiver<bool>,
    name: Option<String>,
    seq: Arc<AtomicU64>,
    position: Position,
}

/// What a subscription has delivered.
enum Position {
    /// Nothing; this is the first event.
    Begin(Box<Event>),
    /// The first event.
    Within,
    /// The last event.
    End,
}

impl Subscription {
    /// The items, as a stream.
    pub(in crate::daemon) fn items(self) -> impl Stream<Item = EventStreamItem> {
        stream::unfold(self, async |mut subscription| {
            let item = subscription.next().await?;
            Some((item, subscription))
        })
    }

    /// Waits for the next item; `None` at the end of the daemon.
    async fn next(&mut self) -> Option<EventStreamItem> {
        match mem::replace(&mut self.position, Position::Within) {
            Position::Begin(first) => return Some(EventStreamItem::Event(*first)),
            Position::Within => {}
            Position::End => {
                self.position = Position::End;
                return None;
            }
        }
        loop {
            let received = tokio::select! {
                // Events that were sent before the end come first.
                biased;
                received = self.receiver.recv() => Some(received),
                _ = self.ending.wait_for(|ending| *ending) => None,
            };
            let Some(received) = received else {
                self.position = Position::End;
                let last = event(self.seq.load(Ordering::Relaxed), EventKind::Stopping, None, None);
                return Some(EventStreamItem::Event(last));
            };
            match received {
                Ok(event) if self.concerns(&event) => {
                    return Some(EventStreamItem::Event(Event::clone(&event)));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => return Some(EventStreamItem::Missed { missed }),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn concerns(&self, event: &Event) -> bool {
        let of = event.container.as_ref().map(|container| &container.name);
        self.name.is_none() || of.is_none() || of == self.name.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str) -> EventContainer {
        EventContainer { name: name.to_owned(), details: None }
    }

    #[tokio::test]
    async fn events_are_filtered_numbered_and_counted_when_missed() {
        let (events, (_set_ending, ending)) = (Events::default(), watch::channel(false));
        events.emit(EventKind::Added, Some(container("before")), None);
        let (mut of_a, mut all) =
            (events.subscribe(Some("a".to_owned()), ending.clone()), events.subscribe(None, ending));
        let requester = Requester { id: 7, uid: 0, pid: None };
        on_behalf_of(Some(requester), || events.emit(EventKind::Added, Some(container("b")), None));
        events.emit(EventKind::Removed, Some(container("a")), None);
        let mut seen = Vec::new();
        for subscription in [&mut of_a, &mut all] {
            for _ in 0..2 {
                let Some(EventStreamItem::Event(event)) = subscription.next().await else {
                    panic!("an event")
                };
                seen.push((event.seq, event.event, event.request));
            }
        }
        assert_eq!(
            seen,
            [
                (1, EventKind::Subscribed, None),
                (3, EventKind::Removed, None),
                (1, EventKind::Subscribed, None),
                (2, EventKind::Added, Some(requester)),
            ]
        );
        for _ in 0..BACKLOG + 5 {
            events.emit(EventKind::HostChanged, None, None);
        }
        // It had not yet read one, either.
        assert_eq!(all.next().await, Some(EventStreamItem::Missed { missed: 6 }));
    }

    #[tokio::test]
    async fn events_before_the_end_are_delivered() {
        let (events, (set_ending, ending)) = (Events::default(), watch::channel(false));
        let mut subscription = events.subscribe(None, ending);
        events.emit(EventKind::HostChanged, None, None);
        set_ending.send_replace(true);
        for (kind, seq) in [(EventKind::Subscribed, 0), (EventKind::HostChanged, 1), (EventKind::Stopping, 1)]
        {
            let Some(EventStreamItem::Event(event)) = subscription.next().await else { panic!("{kind:?}") };
            assert_eq!((event.event, event.seq), (kind, seq));
        }
        assert_eq!(subscription.next().await, None);
    }
}
