//! Puts the requests of one transaction together: at most one segment for each shard, and the dedupe keys. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use postrider_common::id::{EventId, Uid};
use postrider_common::key;
use postrider_common::model::segment::{Delivery, DeliveryState, Segment, Target};
use postrider_common::shard::ShardId;
use postrider_common::store::once::LANE_OPS;
use postrider_common::store::{Guard, LeaseId, MAX_OPS, MAX_WRITE_BYTES, Op, Write};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;

use super::admission::Identity;
use super::fanout::Part;

/// Bytes that a transaction should come to once packed: measured, the store takes most bytes a second at this size, and twice the latency at four
/// times of it.
pub(crate) const TARGET_BYTES: usize = 256 << 10;

/// Most bytes that several requests may come to before packing: below the store's limit even if they cannot be compressed, with room for keys.
pub(crate) const MAX_UNPACKED: usize = MAX_WRITE_BYTES - (200 << 10);

/// Bytes kept free of the store's limit for the lane's mark.
const MARK_BYTES: usize = 512;

/// Bytes of a stored answer besides its events: fingerprint, key and numbers, rounded up.
const DEDUPE_OVERHEAD: usize = 256;

/// What a request is answered once it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Answer {
    /// Each event's id, and how many webhooks want it.
    pub(crate) events: Vec<(EventId, u32)>,
    /// When the events were accepted.
    pub(crate) publish_time: Timestamp,
}

/// The stored answer that makes a repetition harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dedupe {
    /// The request, and where its answer is stored.
    pub(crate) identity: Identity,
    /// The answer, encoded.
    pub(crate) value: Bytes,
}

/// What one request wants stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Work {
    /// What each shard gets; at most [`super::fanout::MAX_SHARDS`].
    pub(crate) parts: Vec<Part>,
    /// For a request with an id.
    pub(crate) dedupe: Option<Dedupe>,
    /// What it is answered.
    pub(crate) answer: Answer,
}

impl Work {
    /// Most bytes that this adds to a transaction, before compression.
    pub(crate) fn bytes(&self) -> usize {
        let dedupe = self
            .dedupe
            .as_ref()
            .map_or(0, |dedupe| dedupe.value.len() + DEDUPE_OVERHEAD);
        self.parts.iter().map(|part| part.bytes).sum::<usize>() + dedupe
    }
}

/// What a transaction would hold: says which requests still fit.
#[derive(Debug)]
pub(crate) struct Load {
    shards: BTreeSet<ShardId>,
    dedupes: usize,
    bytes: usize,
    limit: usize,
}

impl Load {
    /// Of a transaction of at most `limit` bytes before packing.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            shards: BTreeSet::new(),
            dedupes: 0,
            bytes: 0,
            limit: limit.min(MAX_UNPACKED),
        }
    }

    /// Takes `work` in, or says that it does not fit. The first always fits: it goes alone if it is large.
    pub(crate) fn take_in(&mut self, work: &Work) -> bool {
        let first = self.shards.is_empty() && self.dedupes == 0;
        let bytes = self.bytes + work.bytes();
        let dedupes = self.dedupes + usize::from(work.dedupe.is_some());
        let new = work
            .parts
            .iter()
            .filter(|part| !self.shards.contains(&part.shard))
            .count();
        let fits = bytes <= self.limit && self.shards.len() + new + dedupes + LANE_OPS <= MAX_OPS;
        if first || fits {
            self.bytes = bytes;
            self.dedupes = dedupes;
            self.shards.extend(work.parts.iter().map(|part| part.shard));
        }
        first || fits
    }
}

/// A transaction, ready to be sent on a lane.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// What to write.
    pub(crate) write: Write,
    /// Bytes before packing, about.
    pub(crate) unpacked: usize,
    /// Bytes of the write.
    pub(crate) packed: usize,
}

impl Sealed {
    /// Whether the store takes it. It takes everything but a single request that is too large for any transaction.
    pub(crate) const fn fits(&self) -> bool {
        self.packed + MARK_BYTES <= MAX_WRITE_BYTES
    }
}

/// Packs `works` into the transaction `sequence` of the lane `writer`; `lease` is for the dedupe keys.
pub(crate) fn seal<'a>(
    works: impl Iterator<Item = &'a Work> + Clone,
    writer: &str,
    sequence: u64,
    lease: LeaseId,
) -> Sealed {
    let mut sealed = Sealed {
        write: Write::default(),
        unpacked: works.clone().map(Work::bytes).sum(),
        packed: 0,
    };
    for dedupe in works.clone().filter_map(|work| work.dedupe.as_ref()) {
        sealed.write.guards.push(Guard::Absent(dedupe.identity.key.clone()));
        sealed.add(Op::put_leased(dedupe.identity.key.clone(), dedupe.value.clone(), lease));
    }
    let mut segments: BTreeMap<ShardId, Builder> = BTreeMap::new();
    for part in works.flat_map(|work| &work.parts) {
        segments.entry(part.shard).or_default().add(part);
    }
    for (shard, builder) in segments {
        sealed.add(Op::put(
            key::segment(shard, writer, sequence),
            stored::pack(builder.segment),
        ));
        if !sealed.fits() {
            // It will not be sent: no need to pack the rest.
            break;
        }
    }
    sealed
}

impl Sealed {
    fn add(&mut self, op: Op) {
        self.packed += op.size();
        self.write.ops.push(op);
    }
}

/// One shard's segment as it grows.
#[derive(Default)]
struct Builder {
    segment: Segment,
    targets: HashMap<Uid, usize>,
}

impl Builder {
    fn add(&mut self, part: &Part) {
        let base = u32::try_from(self.segment.events.len()).unwrap_or(u32::MAX);
        self.segment.events.extend_from_slice(&part.events);
        for share in &part.shares {
            let webhook = &share.subscriber.webhook;
            let index = *self.targets.entry(webhook.uid.clone()).or_insert_with(|| {
                self.segment.targets.push(Target {
                    account: webhook.account.clone(),
                    webhook: webhook.id.clone(),
                    webhook_uid: webhook.uid.clone(),
                    webhook_revision: share.subscriber.revision,
                    deliveries: Vec::new(),
                });
                self.segment.targets.len() - 1
            });
            if let Some(target) = self.segment.targets.get_mut(index) {
                // Two requests may have met two configurations: the later one is the one that must be known.
                target.webhook_revision = target.webhook_revision.max(share.subscriber.revision);
                target.deliveries.extend(share.events.iter().map(|event| Delivery {
                    event: base.saturating_add(*event),
                    state: DeliveryState::default(),
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests;
