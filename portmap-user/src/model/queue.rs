//! Counters of qdiscs and traffic classes.

/// What [`QueueStats::kind`] of a class begins with.
const CLASS: &str = "class ";

/// Counters of a qdisc or class, since it was created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Kind of qdisc, or `class` and the class id.
    pub kind: String,
    /// Bytes sent, including the headers that segmentation adds.
    pub bytes: u64,
    /// Packets sent.
    pub packets: u64,
    /// Packets dropped.
    pub drops: u64,
    /// Times that a packet was delayed by the rate limit.
    pub overlimits: u64,
    /// Times that the device returned a packet to the queue.
    pub requeues: u64,
    /// Bytes in the queue.
    pub backlog: u64,
    /// Packets in the queue.
    pub qlen: u64,
    /// Packets ECN-marked instead of dropped; `None` if the qdisc does not mark.
    pub ecn_marks: Option<u64>,
}

impl QueueStats {
    /// Names counters as those of the class `major:minor`.
    #[must_use]
    pub fn of_class(self, major: u16, minor: u16) -> Self {
        Self { kind: format!("{CLASS}{major:x}:{minor:x}"), ..self }
    }

    /// Whether these are the counters of a class rather than a qdisc.
    pub fn is_class(&self) -> bool {
        self.kind.starts_with(CLASS)
    }
}
