//! Those who follow drops as they happen. The ring of samples can have one reader only; that is a task which runs as
//! long as there are followers and hands every sample to all of them.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
    task,
};
use tracing::warn;

use super::{Daemon, drops::describe};
use crate::{
    api::{DropSample, DropStreamItem},
    error::{Context as _, Result},
    kernel::{clock, ring::EventRing},
};

/// Samples that wait for the slowest follower; what comes on top of them, it misses.
const WAITING: usize = 1024;

/// A sample on its way to the followers.
struct Sample {
    /// When, by the monotonic clock.
    moment: u64,
    text: DropSample,
}

/// Where the followers get their samples from.
#[derive(Default)]
pub(super) struct Feed {
    /// The reader's end, as long as it runs.
    sender: Mutex<Option<broadcast::Sender<Arc<Sample>>>>,
}

impl Feed {
    /// Begins to follow the drops of everybody, or of the container with this name.
    pub(super) fn follow(
        self: Arc<Self>,
        daemon: &Arc<Daemon>,
        name: Option<String>,
        ending: watch::Receiver<bool>,
    ) -> Result<Follower> {
        let since = clock::monotonic()?;
        let mut running = self.sender();
        let receiver = if let Some(sender) = running.as_ref() {
            sender.subscribe()
        } else {
            let ring = EventRing::open(&daemon.settings.pins)?;
            // SAFETY: the ring owns its descriptor, which is the same as long as the ring lives.
            let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
            let ring = ring.context(|| "cannot wait for samples of drops".to_owned())?;
            let (sender, receiver) = broadcast::channel(WAITING);
            *running = Some(sender.clone());
            task::spawn(self.clone().feed(daemon.clone(), sender, ring));
            receiver
        };
        Ok(Follower { receiver, ending, name, since, suppressed: HashMap::new() })
    }

    /// Reads samples until nobody wants them any more.
    async fn feed(
        self: Arc<Self>,
        daemon: Arc<Daemon>,
        sender: broadcast::Sender<Arc<Sample>>,
        mut ring: AsyncFd<EventRing>,
    ) {
        loop {
            tokio::select! {
                () = sender.closed() => {
                    let mut running = self.sender();
                    // Unless somebody has come just now.
                    if sender.receiver_count() == 0 {
                        *running = None;
                        return;
                    }
                    continue;
                }
                _ = ring.readable() => {}
            }
            if let Err(error) = pass_on(&daemon, &sender, &mut ring).await {
                warn!("samples of drops cannot be read: {error}");
                // With the last sender, the followers' streams end.
                *self.sender() = None;
                return;
            }
        }
    }

    // A panic while it is held leaves no half-done change.
    fn sender(&self) -> MutexGuard<'_, Option<broadcast::Sender<Arc<Sample>>>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands the samples on that there are; waits if there are none.
async fn pass_on(
    daemon: &Arc<Daemon>,
    sender: &broadcast::Sender<Arc<Sample>>,
    ring: &mut AsyncFd<EventRing>,
) -> Result<()> {
    let mut ready = ring.readable_mut().await.context(|| "cannot wait for them".to_owned())?;
    let mut events = Vec::new();
    while let Some(event) = ready.get_inner_mut().take() {
        events.push(event);
    }
    ready.clear_ready();
    if events.is_empty() {
        return Ok(());
    }
    let daemon = daemon.clone();
    let slots = task::spawn_blocking(move || daemon.slots()).await;
    let slots = slots.context(|| "cannot look names up".to_owned())?;
    for event in events {
        // It fails if there is no receiver left, which the caller sees.
        let _ = sender.send(Arc::new(Sample { moment: event.time, text: describe(&event, &slots)? }));
    }
    Ok(())
}

/// One who follows.
pub(super) struct Follower {
    receiver: broadcast::Receiver<Arc<Sample>>,
    ending: watch::Receiver<bool>,
    name: Option<String>,
    /// When this follower came, by the monotonic clock; older samples lay in the ring.
    since: u64,
    /// For each name, the count of suppressed packets in the last sample.
    suppressed: HashMap<String, u64>,
}

impl Follower {
    /// What there is to tell, as lines of JSON.
    ///
    /// `place` is kept as long as it follows.
    pub(super) fn lines<T: Send>(
        self,
        place: T,
    ) -> impl Stream<Item = std::result::Result<Bytes, Infallible>> + use<T> {
        stream::unfold((self, place), async |(mut follower, place)| {
            let news = follower.next().await?;
            let mut line = serde_json::to_vec(&news).ok()?;
            line.push(b'\n');
            Some((Ok(Bytes::from(line)), (follower, place)))
        })
    }

    /// The next news; none when the daemon is about to end.
    async fn next(&mut self) -> Option<DropStreamItem> {
        loop {
            let received = tokio::select! {
                _ = self.ending.wait_for(|ending| *ending) => return None,
                received = self.receiver.recv() => received,
            };
            match received {
                Ok(sample) => {
                    if let Some(sample) = self.own(&sample) {
                        return Some(DropStreamItem::Sample(sample));
                    }
                }
                Err(RecvError::Lagged(missed)) => return Some(DropStreamItem::Missed { missed }),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// A sample as this follower is to see it, if at all.
    fn own(&mut self, sample: &Sample) -> Option<DropSample> {
        let Sample { moment, text } = sample;
        if *moment < self.since || self.name.as_ref().is_some_and(|name| *name != text.name) {
            return None;
        }
        let before = self.suppressed.insert(text.name.clone(), text.suppressed);
        // A smaller count is that of another container with the same name.
        let suppressed =
            before.map_or(0, |before| text.suppressed.checked_sub(before).unwrap_or(text.suppressed));
        Some(DropSample { suppressed, ..text.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(moment: u64, name: &str, suppressed: u64) -> Sample {
        let text = DropSample {
            time: String::new(),
            name: name.to_owned(),
            reason: "arp".to_owned(),
            source: None,
            source_port: None,
            destination: None,
            destination_port: None,
            protocol: "0x0806".to_owned(),
            length: 42,
            suppressed,
        };
        Sample { moment, text }
    }

    fn follower(name: Option<&str>) -> (broadcast::Sender<Arc<Sample>>, watch::Sender<bool>, Follower) {
        let (sender, receiver) = broadcast::channel(2);
        let (set_ending, ending) = watch::channel(false);
        let name = name.map(str::to_owned);
        (sender, set_ending, Follower { receiver, ending, name, since: 10, suppressed: HashMap::new() })
    }

    #[test]
    fn suppressed_packets_are_counted_from_sample_to_sample() {
        let (_sender, _ending, mut follower) = follower(None);
        let mut seen = |moment, name, suppressed| {
            follower.own(&sample(moment, name, suppressed)).map(|sample| sample.suppressed)
        };
        assert_eq!(seen(9, "a", 1), None, "it is older than the follower");
        assert_eq!(seen(10, "a", 100), Some(0));
        assert_eq!(seen(11, "b", 7), Some(0));
        assert_eq!(seen(12, "a", 130), Some(30));
        assert_eq!(seen(13, "a", 5), Some(5), "another container of this name");
    }

    #[test]
    fn a_name_hides_the_others() {
        let (_sender, _ending, mut follower) = follower(Some("a"));
        assert!(follower.own(&sample(10, "b", 0)).is_none());
        assert!(follower.own(&sample(10, "a", 0)).is_some());
    }

    #[tokio::test]
    async fn who_is_too_slow_is_told_so_and_who_stays_is_told_the_end() {
        let (sender, set_ending, mut follower) = follower(None);
        for moment in 10..15 {
            assert!(sender.send(Arc::new(sample(moment, "a", 0))).is_ok());
        }
        assert_eq!(follower.next().await, Some(DropStreamItem::Missed { missed: 3 }));
        assert!(matches!(follower.next().await, Some(DropStreamItem::Sample(_))));
        assert!(matches!(follower.next().await, Some(DropStreamItem::Sample(_))));
        set_ending.send_replace(true);
        assert_eq!(follower.next().await, None);
    }
}
