//! Deliveries that move into one stored segment together. Pure.

use std::sync::Arc;

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key::{self, Parked, ParkedKind};
use postrider_common::model::order::Lined;
use postrider_common::model::segment;
use postrider_common::shard::ShardId;
use postrider_common::store::Op;
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;

use crate::shard::delivery::{Delivery, Destination};

/// Deliveries of one parked or dead segment.
pub const PACK_DELIVERIES: usize = 256;

/// Bytes of events in one parked or dead segment, unless it holds just one event.
pub const PACK_BYTES: usize = 64 << 10;

/// What deliveries that go into one stored segment have in common: of one webhook, under one order, with nearly the same due time.
pub(super) type Group<'a> = (Destination, u32, u32, &'a AccountId, &'a WebhookId);

/// Deliveries of one stored segment: of one webhook, with nearly the same due time, or all of a batch.
pub(super) struct Pack<'a> {
    /// Where they go.
    pub(super) to: Destination,
    /// In order.
    pub(super) deliveries: Vec<&'a Delivery>,
    /// Bytes of their events.
    pub(super) bytes: usize,
    /// The id of the batch that they make up.
    pub(super) batch: Option<&'a Arc<str>>,
}

impl Pack<'_> {
    /// Whether another delivery fits, whose event takes `size` bytes.
    pub(super) const fn has_room(&self, size: usize) -> bool {
        self.deliveries.len() < PACK_DELIVERIES && self.bytes + size <= PACK_BYTES
    }
}

/// Which due times go into one segment: those whose delays from now are within a quarter of each other, so that what is read when the first is due does
/// not wait long in memory.
fn bucket(now: Timestamp, due: Timestamp) -> u32 {
    let delay = u64::try_from(due.saturating_since(now).as_millis()).unwrap_or(u64::MAX);
    let Some(log) = delay.checked_ilog2().filter(|log| *log >= 9) else {
        return 0;
    };
    let quarter = u32::try_from((delay >> (log - 2)) & 3).unwrap_or(0);
    log * 4 + quarter
}

/// Which deliveries go into one segment. In a line those that only wait for their turn are kept apart from those that wait for a time, so that each segment
/// holds what follows each other; and one that was used up is alone.
pub(super) fn group(to: Destination, now: Timestamp, state: &segment::DeliveryState) -> u32 {
    match to {
        Destination::Parked | Destination::Gathering => bucket(now, state.due),
        Destination::Ordered(_) if state.blocked != 0 => u32::MAX,
        Destination::Ordered(_) if state.attempts == 0 && state.due <= now => 0,
        Destination::Ordered(_) => 1 + bucket(now, state.due),
        Destination::Dead | Destination::Rest => 0,
    }
}

/// The write of a pack, and where it stands then. `None` for a pack that is empty.
pub(super) fn store(pack: &Pack<'_>, shard: ShardId, epoch: u64, number: u64) -> Option<(Op, Parked)> {
    let first = pack.deliveries.first()?;
    let origin = &first.origin;
    let at = Parked {
        shard,
        account: origin.account.clone(),
        webhook: origin.webhook.clone(),
        due: pack.deliveries.iter().map(|delivery| delivery.state.due).min()?,
        epoch,
        number,
        count: u32::try_from(pack.deliveries.len()).unwrap_or(u32::MAX),
        kind: match pack.to {
            Destination::Ordered(line) => ParkedKind::Ordered(Lined {
                line,
                first: pack.deliveries.iter().map(|delivery| delivery.state.position).min()?,
                blocked: first.state.blocked,
            }),
            _ if pack.batch.is_some() => ParkedKind::Batch,
            Destination::Gathering => ParkedKind::Gathering(u32::try_from(pack.bytes).unwrap_or(u32::MAX)),
            Destination::Parked | Destination::Dead => ParkedKind::Single,
            Destination::Rest => ParkedKind::Rest,
        },
    };
    let mut segment = segment_of(pack.deliveries.iter().copied());
    segment.batch = pack.batch.cloned();
    let value = stored::pack(segment);
    let key = match pack.to {
        Destination::Parked | Destination::Gathering | Destination::Ordered(_) => key::parked_segment(&at),
        Destination::Dead | Destination::Rest => key::dead_segment(&at),
    };
    Some((Op::put(key, value), at))
}

fn segment_of<'a>(deliveries: impl Iterator<Item = &'a Delivery>) -> segment::Segment {
    let mut segment = segment::Segment::default();
    for delivery in deliveries {
        let event = u32::try_from(segment.events.len()).unwrap_or(u32::MAX);
        segment.events.push(delivery.event.clone());
        let entry = segment::Delivery {
            event,
            state: delivery.state.clone(),
        };
        let origin = &delivery.origin;
        let same = |target: &&mut segment::Target| {
            target.webhook_uid == origin.uid && target.webhook_revision == origin.revision
        };
        // Only neighbours are joined: it finds nearly all, at no cost.
        match segment.targets.last_mut().filter(same) {
            Some(target) => target.deliveries.push(entry),
            None => segment.targets.push(segment::Target {
                account: origin.account.clone(),
                webhook: origin.webhook.clone(),
                webhook_uid: origin.uid.clone(),
                webhook_revision: origin.revision,
                deliveries: vec![entry],
            }),
        }
    }
    segment
}
