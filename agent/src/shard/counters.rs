//! What workers and the ledger count, for the metrics.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::budget::Budget;
use crate::attempt::Reason;

/// Every reason for which an attempt can fail, in the order in which they are counted.
pub const REASONS: [Reason; 13] = [
    Reason::Status,
    Reason::Redirect,
    Reason::Gone,
    Reason::Throttled,
    Reason::Timeout,
    Reason::NameNotFound,
    Reason::BlockedAddress,
    Reason::Connect,
    Reason::Tls,
    Reason::Disconnected,
    Reason::Protocol,
    Reason::Token,
    Reason::Partial,
];

/// What happened in one worker since it was last added to the [`Counters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Deliveries delivered.
    pub delivered: u64,
    /// Deliveries dropped, because their webhook was deleted.
    pub dropped: u64,
    /// Deliveries that became dead letters.
    pub dead: u64,
    /// Deliveries parked: for a retry, for want of room, or because their webhook is not active.
    pub parked: u64,
    /// Attempts that could not be made.
    pub not_made: u64,
    /// Attempts that took the last place of their webhook's `max_in_flight` while more was ready.
    pub webhook_full: u64,
    /// Times that an attempt was ready while the agent had as many under way as it may.
    pub agent_full: u64,
    /// Times that an attempt was ready and had to leave the places that are left to receivers that answered last time.
    pub reserved_full: u64,
    /// Times that an attempt to a receiver that did not answer last time was ready before its shard's turn.
    pub paced: u64,
    /// Dead letters that expired.
    pub expired: u64,
    /// Attempts that failed, in the order of [`REASONS`].
    pub failed: [u64; REASONS.len()],
}

impl Tally {
    /// Counts a failed attempt.
    pub fn failed(&mut self, reason: Reason) {
        let at = REASONS.iter().position(|known| *known == reason);
        if let Some(count) = at.and_then(|at| self.failed.get_mut(at)) {
            *count += 1;
        }
    }
}

/// Counts of one agent since it started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Deliveries delivered.
    pub delivered: AtomicU64,
    /// Deliveries dropped, because their webhook was deleted.
    pub dropped: AtomicU64,
    /// Deliveries that became dead letters.
    pub dead: AtomicU64,
    /// Deliveries parked: for a retry, for want of room, or because their webhook is not active.
    pub parked: AtomicU64,
    /// Attempts that could not be made.
    pub not_made: AtomicU64,
    /// Attempts that took the last place of their webhook's `max_in_flight` while more was ready.
    pub webhook_full: AtomicU64,
    /// Times that an attempt was ready while the agent had as many under way as it may.
    pub agent_full: AtomicU64,
    /// Times that an attempt was ready and had to leave the places that are left to receivers that answered last time.
    pub reserved_full: AtomicU64,
    /// Times that an attempt to a receiver that did not answer last time was ready before its shard's turn.
    pub paced: AtomicU64,
    /// Dead letters that expired.
    pub expired: AtomicU64,
    /// Attempts that failed, in the order of [`REASONS`].
    pub failed: [AtomicU64; REASONS.len()],
    /// Attempts under way now.
    pub in_flight: AtomicI64,
    /// Shards being worked on now.
    pub shards: AtomicI64,
    /// The memory for loaded deliveries.
    pub(super) budget: OnceLock<Arc<Budget>>,
    /// Records that the ledger has not written yet.
    pub unwritten: AtomicI64,
    /// Stored segments that could not be read.
    pub unreadable: AtomicU64,
    /// Transactions that the ledger committed.
    pub ledger_transactions: AtomicU64,
    /// Records (deliveries that ended or moved) in them.
    pub ledger_records: AtomicU64,
}

impl Counters {
    /// Bytes of deliveries in memory.
    pub fn loaded_bytes(&self) -> usize {
        self.budget.get().map_or(0, |budget| budget.used())
    }

    /// Adds what happened in a worker.
    pub fn add(&self, tally: &Tally) {
        let add = |counter: &AtomicU64, count: u64| {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        };
        add(&self.delivered, tally.delivered);
        add(&self.dropped, tally.dropped);
        add(&self.dead, tally.dead);
        add(&self.parked, tally.parked);
        add(&self.not_made, tally.not_made);
        add(&self.webhook_full, tally.webhook_full);
        add(&self.agent_full, tally.agent_full);
        add(&self.reserved_full, tally.reserved_full);
        add(&self.paced, tally.paced);
        add(&self.expired, tally.expired);
        for (counter, count) in self.failed.iter().zip(tally.failed) {
            add(counter, count);
        }
    }
}

/// Something that is counted while it lives.
pub(super) struct Counted(Arc<Counters>, fn(&Counters) -> &AtomicI64);

impl Counted {
    pub(super) fn new(counters: Arc<Counters>, gauge: fn(&Counters) -> &AtomicI64) -> Self {
        gauge(&counters).fetch_add(1, Ordering::Relaxed);
        Self(counters, gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use postrider_common::retry::FINAL_REASONS;

    use super::*;

    #[test]
    fn every_reason_may_be_called_final_but_those_that_statuses_name_better_and_a_part() {
        let mut reasons: Vec<&str> = REASONS.iter().map(|reason| reason.as_str()).collect();
        reasons.retain(|reason| !["STATUS", "GONE", "THROTTLED", "PARTIAL"].contains(reason));
        reasons.sort_unstable();
        assert_eq!(reasons, FINAL_REASONS);
    }
}
