//! The stream of drop samples. A ring buffer has a single reader, so one task reads it while there are
//! subscriptions, and broadcasts each sample to all of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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

use super::drops::describe;
use crate::{
    api::{DropSample, DropStreamItem},
    error::{Context as _, Result},
    kernel::{clock, ring::EventRing},
    paths::Pins,
};

/// Returns the names of all containers by slot.
pub(in crate::daemon) type Names = Arc<dyn Fn() -> BTreeMap<u16, String> + Send + Sync>;

/// Most samples that wait for the slowest subscription, which misses further ones.
const BACKLOG: usize = 1024;

/// A sample on its way to the subscriptions.
struct Sample {
    /// Its time, by the monotonic clock.
    moment: u64,
    text: DropSample,
}

/// Broadcasts samples to subscriptions.
#[derive(Default)]
pub(in crate::daemon) struct Broadcaster {
    /// The sender of the reading task, while it runs.
    sender: Mutex<Option<broadcast::Sender<Arc<Sample>>>>,
}

impl Broadcaster {
    /// Subscribes to all drops, or to those with this name of a container or of outside.
    ///
    /// # Errors
    ///
    /// If the ring buffer cannot be opened.
    pub(in crate::daemon) fn subscribe(
        self: Arc<Self>,
        pins: &Pins,
        names: Names,
        name: Option<String>,
        ending: watch::Receiver<bool>,
    ) -> Result<Subscription> {
        let since = clock::monotonic()?;
        let mut running = self.sender();
        let receiver = if let Some(sender) = running.as_ref() {
            sender.subscribe()
        } else {
            let ring = EventRing::open(pins)?;
            // SAFETY: the ring owns its descriptor, which does not change while the ring lives.
            let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
            let ring = ring.context(|| "cannot wait for samples of drops".to_owned())?;
            let (sender, receiver) = broadcast::channel(BACKLOG);
            *running = Some(sender.clone());
            task::spawn(self.clone().read(names, sender, ring));
            receiver
        };
        Ok(Subscription { receiver, ending, name, since, suppressed: HashMap::new() })
    }

    /// Reads samples while there are subscriptions.
    async fn read(
        self: Arc<Self>,
        names: Names,
        sender: broadcast::Sender<Arc<Sample>>,
        mut ring: AsyncFd<EventRing>,
    ) {
        loop {
            tokio::select! {
                () = sender.closed() => {
                    let mut running = self.sender();
                    // Another subscription may have been added in the meantime.
                    if sender.receiver_count() == 0 {
                        *running = None;
                        return;
                    }
                    continue;
                }
                _ = ring.readable() => {}
            }
            if let Err(error) = broadcast_available(&names, &sender, &mut ring).await {
                warn!("cannot read samples of drops: {error}");
                // Dropping the sender ends the streams of all subscriptions.
                *self.sender() = None;
                return;
            }
        }
    }

    // A poisoned lock is taken, because every change is a single step.
    fn sender(&self) -> MutexGuard<'_, Option<broadcast::Sender<Arc<Sample>>>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Broadcasts the available samples; waits if there are none.
async fn broadcast_available(
    names: &Names,
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
    let slots = names();
    for event in events {
        // This fails without receivers, which the caller detects.
        let _ = sender.send(Arc::new(Sample { moment: event.time, text: describe(&event, &slots)? }));
    }
    Ok(())
}

/// A client's subscription.
pub(in crate::daemon) struct Subscription {
    receiver: broadcast::Receiver<Arc<Sample>>,
    ending: watch::Receiver<bool>,
    name: Option<String>,
    /// Its start, by the monotonic clock. Older samples in the ring buffer are skipped.
    since: u64,
    /// For each name, the count of suppressed packets in the last sample.
    suppressed: HashMap<String, u64>,
}

impl Subscription {
    /// The items, as a stream.
    pub(in crate::daemon) fn items(self) -> impl Stream<Item = DropStreamItem> {
        stream::unfold(self, async |mut subscription| {
            let item = subscription.next().await?;
            Some((item, subscription))
        })
    }

    /// Waits for the next item; `None` at shutdown.
    async fn next(&mut self) -> Option<DropStreamItem> {
        loop {
            let received = tokio::select! {
                _ = self.ending.wait_for(|ending| *ending) => return None,
                received = self.receiver.recv() => received,
            };
            match received {
                Ok(sample) => {
                    if let Some(sample) = self.filter(&sample) {
                        return Some(DropStreamItem::Sample(sample));
                    }
                }
                Err(RecvError::Lagged(missed)) => return Some(DropStreamItem::Missed { missed }),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Returns a sample with the count of suppressed packets since the last one, if the subscription includes
    /// it.
    fn filter(&mut self, sample: &Sample) -> Option<DropSample> {
        let Sample { moment, text } = sample;
        if *moment < self.since || self.name.as_ref().is_some_and(|name| *name != text.name) {
            return None;
        }
        let before = self.suppressed.insert(text.name.clone(), text.suppressed);
        // The count decreases if a new container has the name.
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

    fn subscription(
        name: Option<&str>,
    ) -> (broadcast::Sender<Arc<Sample>>, watch::Sender<bool>, Subscription) {
        let (sender, receiver) = broadcast::channel(2);
        let (set_ending, ending) = watch::channel(false);
        let name = name.map(str::to_owned);
        (sender, set_ending, Subscription { receiver, ending, name, since: 10, suppressed: HashMap::new() })
    }

    #[test]
    fn drop_stream_counts_suppressed_packets_between_samples() {
        let (_sender, _ending, mut subscription) = subscription(None);
        let mut seen = |moment, name, suppressed| {
            subscription.filter(&sample(moment, name, suppressed)).map(|sample| sample.suppressed)
        };
        assert_eq!(seen(9, "a", 1), None, "it is older than the subscription");
        assert_eq!(seen(10, "a", 100), Some(0));
        assert_eq!(seen(11, "b", 7), Some(0));
        assert_eq!(seen(12, "a", 130), Some(30));
        assert_eq!(seen(13, "a", 5), Some(5), "another container of this name");
    }

    #[test]
    fn drop_stream_filters_by_name() {
        let (_sender, _ending, mut subscription) = subscription(Some("a"));
        assert!(subscription.filter(&sample(10, "b", 0)).is_none());
        assert!(subscription.filter(&sample(10, "a", 0)).is_some());
    }

    #[tokio::test]
    async fn drop_stream_reports_missed_samples_and_ends_at_shutdown() {
        let (sender, set_ending, mut subscription) = subscription(None);
        for moment in 10..15 {
            assert!(sender.send(Arc::new(sample(moment, "a", 0))).is_ok());
        }
        assert_eq!(subscription.next().await, Some(DropStreamItem::Missed { missed: 3 }));
        assert!(matches!(subscription.next().await, Some(DropStreamItem::Sample(_))));
        assert!(matches!(subscription.next().await, Some(DropStreamItem::Sample(_))));
        set_ending.send_replace(true);
        assert_eq!(subscription.next().await, None);
    }
}
