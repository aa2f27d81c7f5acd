//! The control plane's metrics: names, and where their values come from.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use postrider_common::metric;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use crate::publish::Counters;

/// What the control plane counts. Clones are the same counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) publish: Arc<Counters>,
}

impl Metrics {
    /// Puts the metrics into `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_collector(Box::new(metrics.clone()));
        metrics
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
        Ok(())
    }
}
