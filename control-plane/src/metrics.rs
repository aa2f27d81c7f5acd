//! The control plane's metrics: names, and where their values come from.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use postrider_common::metric;
use postrider_common::store::etcd::Authentications;
use postrider_common::store::room;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use crate::api::calls::Calls;
use crate::fullness::Fullness;
use crate::publish::{Backlog, Counters};
use crate::sweep;

/// What the control plane counts. Clones are the same counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) publish: Arc<Counters>,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) fullness: Arc<Fullness>,
    pub(crate) store_full: room::Full,
    authentications: Arc<Authentications>,
    pub(crate) sweep: Arc<sweep::Counters>,
    pub(crate) calls: Calls,
}

impl Metrics {
    /// Puts the metrics into `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_collector(Box::new(metrics.clone()));
        let help = "Calls of the API that ended, by method, status code and reason";
        registry.register("grpc_calls", help, metrics.calls.clone());
        metrics
    }

    /// What the store counts of how it is let in.
    pub fn authentications(&self) -> Arc<Authentications> {
        Arc::clone(&self.authentications)
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let publish = &self.publish;
        let counts: [(&str, &str, &AtomicU64); 10] = [
            (
                "publish_requests",
                "Publish requests answered as stored",
                &publish.requests,
            ),
            ("publish_events", "Events accepted", &publish.events),
            (
                "publish_unknown_type_events",
                "Events taken in whose type is not in the catalogue",
                &publish.unknown_type_events,
            ),
            (
                "publish_filter_errors",
                "Filters that had no value for an event, which did not match",
                &publish.filter_errors,
            ),
            (
                "publish_filter_skips",
                "Filters that could not be asked about an event, which matched",
                &publish.filter_skips,
            ),
            (
                "publish_deliveries",
                "Deliveries that accepted events caused",
                &publish.deliveries,
            ),
            (
                "publish_transactions",
                "Transactions that made events durable",
                &publish.transactions,
            ),
            (
                "publish_transaction_bytes",
                "Bytes of packed segments in those transactions",
                &publish.bytes,
            ),
            (
                "publish_duplicate_requests",
                "Requests answered with the answer of an earlier one",
                &publish.duplicates,
            ),
            (
                "publish_unknown_transactions",
                "Transactions whose outcome could not be learned",
                &publish.unknown,
            ),
        ];
        for (name, help, count) in counts {
            metric::counter(&mut encoder, name, help, count.load(Ordering::Relaxed))?;
        }
        let refused = [
            ("BACKLOG_FULL", &publish.refused_backlog),
            ("STORE_FULL", &publish.refused_store),
            ("PUBLISH_QUEUE_FULL", &publish.refused_queue),
        ];
        let refused = refused.map(|(reason, count)| ([("reason", reason)], count.load(Ordering::Relaxed)));
        metric::counters(
            &mut encoder,
            "publish_refused",
            "Publish requests refused at a limit",
            refused,
        )?;
        self.authentications.encode(&mut encoder)?;
        let (store, over) = (&self.fullness, self.backlog.accounts_over() as u64);
        let sweep = &self.sweep;
        metric::counter(
            &mut encoder,
            "store_compactions",
            "Compactions that this process made while it led",
            sweep.compactions.load(Ordering::Relaxed),
        )?;
        let help = "The revision to which it compacted the store last";
        let compacted = sweep.compacted.load(Ordering::Relaxed);
        metric::gauge(&mut encoder, "store_compacted_revision", help, compacted)?;
        let help = "The newest revision that it saw while it led";
        metric::gauge(
            &mut encoder,
            "store_revision",
            help,
            sweep.newest.load(Ordering::Relaxed),
        )?;
        let full = self.store_full.load(Ordering::Relaxed);
        metric::gauge(&mut encoder, "store_full", "1 while the store takes no more", full)?;
        let gauges = [
            (
                "store_bytes",
                "Bytes of the store on disk",
                store.size.load(Ordering::Relaxed),
            ),
            (
                "store_in_use_bytes",
                "Bytes of it that are in use: publishing stops at 70 % of the quota, creating at 85 %",
                store.in_use.load(Ordering::Relaxed),
            ),
            (
                "store_quota_bytes",
                "Bytes the store may grow to; 0 if without limit",
                store.quota.load(Ordering::Relaxed),
            ),
            ("accounts_backlog_full", "Accounts whose publishing is refused", over),
            (
                "publish_waiting_requests",
                "Publish requests in line to be stored, of 16384",
                publish.waiting.load(Ordering::Relaxed),
            ),
            (
                "publish_waiting_bytes",
                "Bytes of them before packing, of 32 MiB",
                publish.waiting_bytes.load(Ordering::Relaxed),
            ),
        ];
        for (name, help, value) in gauges {
            metric::gauge(&mut encoder, name, help, i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_line_and_what_was_refused_is_told() {
        let mut registry = Registry::with_prefix("postrider");
        let metrics = Metrics::register(&mut registry);
        metrics.publish.waiting.store(1, Ordering::Relaxed);
        metrics.publish.waiting_bytes.store(2, Ordering::Relaxed);
        metrics.publish.refused_queue.fetch_add(3, Ordering::Relaxed);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "postrider_publish_waiting_requests 1",
            "postrider_publish_waiting_bytes 2",
            "postrider_publish_refused_total{reason=\"PUBLISH_QUEUE_FULL\"} 3",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in:\n{text}");
        }
    }
}
