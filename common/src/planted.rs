//! Known bugs that can be switched on, one at a time for a thread, to see whether the simulation finds them. Without the feature `planted`
//! none can be, and nothing of this is left in a program.

use crate::store::Write;
#[cfg(feature = "planted")]
use crate::{key, store::Op};

/// A known bug. Its name says what is then done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A mirror that lists, or goes on after an interruption, watches from the present instead of from what it saw last.
    WatchFromNow,
    /// A mirror whose watch fell behind the compaction goes on from the present without listing again.
    CompactionIgnored,
    /// What a shard's owner writes is not guarded by its epoch.
    NoEpochGuard,
    /// Publishing is answered as done whatever became of the write.
    AckedBeforeCommit,
    /// The dedupe key of a request is written after its events.
    DedupeApart,
    /// A retry is parked after its delivery was noted as moved.
    RetryApart,
    /// A keep-alive that was sent counts as answered.
    KeepAliveAssumed,
    /// A publish of which nothing is known is made anew.
    SentAgainBlindly,
    /// The loss of a lease is not noticed.
    LeaseLossUnnoticed,
    /// A shard is taken whoever has it.
    TakenUnguarded,
    /// A shard is given up before its progress is written.
    ReleasedUnwritten,
    /// A new owner does not look at the progress of the one before.
    ProgressForgotten,
    /// A new owner begins to count anew.
    CountsForgotten,
    /// A new owner numbers events from 1 again.
    NumbersForgotten,
    /// What follows a delivery in an order does not wait for it while it is being parked.
    LineGoesOn,
    /// A batch that failed is sent again under another id.
    BatchRemade,
    /// What a receiver did not take of a request counts as taken.
    PartTakenForAll,
    /// A webhook that is retired is served.
    RetiredServed,
    /// A change of a webhook does not reach its deliveries.
    ChangeUnseen,
    /// An event is sent before its time.
    SentTooEarly,
    /// An event is sent after its time.
    SentTooLate,
    /// What is parked while dead letters are put back counts as one of these.
    RevivedTakenForOwn,
    /// A webhook gets what its filter does not let through.
    FilterIgnored,
    /// A webhook that was deleted is served.
    DeletedServed,
    /// A webhook gets what was accepted for another that had its name.
    NamesakeServed,
    /// A store that says that it is full is believed that nothing was done.
    FullBelieved,
    /// What a full store refused counts as done.
    FullTakenForDone,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::WatchFromNow,
        Self::CompactionIgnored,
        Self::NoEpochGuard,
        Self::AckedBeforeCommit,
        Self::DedupeApart,
        Self::RetryApart,
        Self::KeepAliveAssumed,
        Self::SentAgainBlindly,
        Self::LeaseLossUnnoticed,
        Self::TakenUnguarded,
        Self::ReleasedUnwritten,
        Self::ProgressForgotten,
        Self::CountsForgotten,
        Self::NumbersForgotten,
        Self::LineGoesOn,
        Self::BatchRemade,
        Self::PartTakenForAll,
        Self::RetiredServed,
        Self::ChangeUnseen,
        Self::SentTooEarly,
        Self::SentTooLate,
        Self::RevivedTakenForOwn,
        Self::FilterIgnored,
        Self::DeletedServed,
        Self::NamesakeServed,
        Self::FullBelieved,
        Self::FullTakenForDone,
    ];
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Switches a bug on for this thread, and every other one off.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether a bug is switched on.
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// What a bug makes two writes of, one after the other.
#[cfg(feature = "planted")]
pub fn split(write: &Write) -> Option<(Write, Write)> {
    let mut first = write.clone();
    let is_later = |op: &Op| match PLANTED.get() {
        // Of what is published only dedupe keys are leased.
        Some(Bug::DedupeApart) => matches!(op, Op::Put { lease: Some(_), .. }),
        Some(Bug::RetryApart) => key::parse_parked(op.key()).is_some(),
        _ => false,
    };
    let guards = first.guards.clone();
    let ops = first.ops.extract_if(.., |op| is_later(op)).collect::<Vec<_>>();
    (!ops.is_empty() && !first.ops.is_empty()).then_some((first, Write { guards, ops }))
}

/// What a bug makes two writes of: nothing.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn split(_: &Write) -> Option<(Write, Write)> {
    None
}

/// Whether a bug is switched on: none ever is.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
