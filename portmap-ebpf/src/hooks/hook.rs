//! The interface of a hook: a decision in two steps, and the sink of its verdict.

use portmap_common::reason::Reason;

use crate::{
    frame::Frame,
    packet::{ParsePath, SlowPath, V4, V6, ethernet::L3},
    route::Route,
    segments::WireSize,
    tables::Tables,
    verdict::Verdict,
};

/// Receives verdicts: applies them to a packet, or returns them.
pub trait VerdictSink {
    /// Result of applying a verdict.
    type Output;

    /// Applies a verdict that counts no traffic, or delivers a frame that is one packet on the wire. An
    /// implementation must be inlined, because the compiler then removes the code for other verdicts.
    fn apply(&self, verdict: Verdict) -> Self::Output;

    /// Applies a verdict that delivers a frame of this size on the wire.
    fn deliver(&self, verdict: Verdict, size: WireSize) -> Self::Output;
}

/// Returns the verdict without applying it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReturnVerdict;

impl VerdictSink for ReturnVerdict {
    type Output = Verdict;

    #[inline(always)]
    fn apply(&self, verdict: Verdict) -> Verdict {
        verdict
    }

    #[inline(always)]
    fn deliver(&self, verdict: Verdict, _size: WireSize) -> Verdict {
        verdict
    }
}

/// A hook.
///
/// A decision has two steps, so that the programs can have a separate stack for each IP version.
pub trait Hook {
    /// Returns the L3 protocol of a frame, or the verdict on a frame that is not an IP packet.
    fn classify_frame(frame: &impl Frame, tables: &impl Tables) -> Result<L3, Verdict>;

    /// Decides on an IP packet and returns the result of applying the verdict, or the reason for which
    /// [`Hook::stop`] has one.
    ///
    /// It applies each verdict where it reaches it. If verdicts were merged first, their fields would share
    /// registers that one arm left uninitialised, and the verifier rejects reads of those. A reason is one
    /// register, so all early ends share the code that applies their verdict.
    fn decide_ip<V: Route, P: ParsePath, S: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &S,
    ) -> Result<S::Output, Reason>;

    /// Returns the verdict on an IP packet on which the decision ended early, for this reason.
    #[inline(always)]
    fn stop(_frame: &impl Frame, reason: Reason) -> Verdict {
        Verdict::Continue(reason)
    }

    /// Decides on an IP packet and returns the result of applying the verdict.
    #[inline(always)]
    fn apply_ip<V: Route, P: ParsePath, S: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &S,
    ) -> S::Output {
        match Self::decide_ip::<V, P, S>(frame, tables, sink) {
            Ok(output) => output,
            Err(reason) => sink.apply(Self::stop(frame, reason)),
        }
    }

    /// Returns the verdict on a frame, from the slow path.
    #[inline(always)]
    fn decide(frame: &impl Frame, tables: &impl Tables) -> Verdict {
        match Self::classify_frame(frame, tables) {
            Ok(L3::V4) => Self::apply_ip::<V4, SlowPath, _>(frame, tables, &ReturnVerdict),
            Ok(L3::V6) => Self::apply_ip::<V6, SlowPath, _>(frame, tables, &ReturnVerdict),
            Err(verdict) => verdict,
        }
    }
}
