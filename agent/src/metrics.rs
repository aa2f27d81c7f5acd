//! The agent's metrics: names, and where their values come from.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use postrider_common::metric;
use postrider_common::store::etcd::Authentications;
use postrider_common::store::room;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use crate::history;
use crate::shard::counters::{Counters, REASONS};
use crate::transport;

/// What the agent counts. Clones are the same counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) shards: Arc<Counters>,
    pub(crate) history: Arc<history::Counters>,
    pub(crate) transport: Arc<transport::Counters>,
    pub(crate) store_full: room::Full,
    authentications: Arc<Authentications>,
}

impl Metrics {
    /// Puts the metrics into `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_collector(Box::new(metrics.clone()));
        metrics
    }

    /// What the store counts of how it is let in.
    pub fn authentications(&self) -> Arc<Authentications> {
        Arc::clone(&self.authentications)
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (shards, history) = (&self.shards, &self.history);
        let counts: [(&str, &str, &AtomicU64); 15] = [
            (
                "deliveries_delivered",
                "Deliveries that a receiver took",
                &shards.delivered,
            ),
            ("deliveries_dead", "Deliveries that became dead letters", &shards.dead),
            ("dead_letters_expired", "Dead letters that expired", &shards.expired),
            (
                "deliveries_dropped",
                "Deliveries dropped because their webhook was deleted",
                &shards.dropped,
            ),
            (
                "deliveries_parked",
                "Deliveries parked: for a retry, for want of room, or because their webhook is not active",
                &shards.parked,
            ),
            (
                "attempts_not_made",
                "Attempts that this agent could not make",
                &shards.not_made,
            ),
            (
                "answers_cut",
                "Answers whose body was too long, too slow or broke off: their status counts, their connection is given up",
                &self.transport.cut,
            ),
            (
                "segments_unreadable",
                "Stored segments that could not be read",
                &shards.unreadable,
            ),
            (
                "ledger_transactions",
                "Transactions that recorded progress",
                &shards.ledger_transactions,
            ),
            (
                "ledger_records",
                "Deliveries whose end or move they recorded",
                &shards.ledger_records,
            ),
            ("history_entries", "Entries of the history written", &history.written),
            (
                "history_bytes",
                "Bytes of the history written to the store",
                &history.bytes,
            ),
            (
                "history_transactions",
                "Transactions that wrote or deleted history",
                &history.transactions,
            ),
            (
                "history_dropped",
                "Entries of the history lost: too many waited, or the store did not take them",
                &history.dropped,
            ),
            (
                "history_left_out",
                "Successful attempts that the history of a busy shard left out",
                &history.left_out,
            ),
        ];
        for (name, help, count) in counts {
            metric::counter(&mut encoder, name, help, count.load(Ordering::Relaxed))?;
        }
        let failed = REASONS.iter().zip(&shards.failed);
        let failed = failed.map(|(reason, count)| ([("reason", reason.as_str())], count.load(Ordering::Relaxed)));
        metric::counters(
            &mut encoder,
            "attempts_failed",
            "Attempts that a receiver did not take",
            failed,
        )?;
        let held_back = [
            ("max_in_flight", &shards.webhook_full),
            ("attempts", &shards.agent_full),
            ("reserved", &shards.reserved_full),
            ("pace", &shards.paced),
            ("requests", &self.transport.waited),
        ];
        let held_back = held_back.map(|(limit, count)| ([("limit", limit)], count.load(Ordering::Relaxed)));
        metric::counters(
            &mut encoder,
            "attempts_held_back",
            "Times that more attempts were ready than a limit lets be under way",
            held_back,
        )?;
        self.authentications.encode(&mut encoder)?;
        let gauges: [(&str, &str, &AtomicI64); 4] = [
            ("attempts_in_flight", "Attempts under way", &shards.in_flight),
            ("shards_owned", "Shards being worked on", &shards.shards),
            (
                "ledger_unwritten",
                "Deliveries that ended or moved and are not recorded yet; a shard with more than 2048 starts nothing",
                &shards.unwritten,
            ),
            ("store_full", "1 while the store takes no more", &self.store_full),
        ];
        for (name, help, gauge) in gauges {
            metric::gauge(&mut encoder, name, help, gauge.load(Ordering::Relaxed))?;
        }
        let loaded = i64::try_from(shards.loaded_bytes()).unwrap_or(i64::MAX);
        let help = "Bytes of deliveries in memory, of 64 MiB";
        metric::gauge(&mut encoder, "deliveries_loaded_bytes", help, loaded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_at_a_limit_is_told_by_its_limit() {
        let mut registry = Registry::with_prefix("postrider");
        let metrics = Metrics::register(&mut registry);
        metrics.shards.webhook_full.fetch_add(1, Ordering::Relaxed);
        metrics.shards.agent_full.fetch_add(2, Ordering::Relaxed);
        metrics.transport.waited.fetch_add(3, Ordering::Relaxed);
        metrics.shards.reserved_full.fetch_add(6, Ordering::Relaxed);
        metrics.shards.paced.fetch_add(7, Ordering::Relaxed);
        metrics.transport.cut.fetch_add(4, Ordering::Relaxed);
        metrics.shards.expired.fetch_add(5, Ordering::Relaxed);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "postrider_attempts_held_back_total{limit=\"max_in_flight\"} 1",
            "postrider_attempts_held_back_total{limit=\"attempts\"} 2",
            "postrider_attempts_held_back_total{limit=\"requests\"} 3",
            "postrider_attempts_held_back_total{limit=\"reserved\"} 6",
            "postrider_attempts_held_back_total{limit=\"pace\"} 7",
            "postrider_answers_cut_total 4",
            "postrider_dead_letters_expired_total 5",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in:\n{text}");
        }
    }
}
