//! The keys of the history. Pure.

use super::Key;
use crate::shard::ShardId;
use crate::time::Timestamp;

/// The history of all shards.
pub fn all_history() -> Key {
    Key::from_stored("history/")
}

/// The history of one shard, oldest first.
pub fn history(shard: ShardId) -> Key {
    Key::new(format!("history/{:04}/", shard.0))
}

/// Stands before the history of one shard that was written at `time` or later.
pub fn history_since(shard: ShardId, time: Timestamp) -> Key {
    Key::new(format!("history/{:04}/t-{:015}", shard.0, time.as_millis().max(0)))
}

/// Where a history segment stands: everything its key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct History {
    /// The shard.
    pub shard: ShardId,
    /// When it was written, by the clock of the shard's owner: after everything in it.
    pub time: Timestamp,
    /// Unique within the shard: the epoch of the owner that wrote it, and a number of the owner's.
    pub epoch: u64,
    /// The owner's number.
    pub number: u64,
    /// Bytes of its value, so that an index needs no values.
    pub bytes: u32,
}

/// One history segment.
pub fn history_segment(at: &History) -> Key {
    Key::new(format!(
        "history/{:04}/t-{:015}-{:x}-{:x}-{:x}",
        at.shard.0,
        at.time.as_millis().max(0),
        at.epoch,
        at.number,
        at.bytes
    ))
}

/// What a key made by [`history_segment`] says.
pub fn parse_history(key: &Key) -> Option<History> {
    let (shard, last) = key.as_str().strip_prefix("history/")?.split_once('/')?;
    let mut fields = last.strip_prefix("t-")?.split('-');
    let (time, epoch, number, bytes) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if fields.next().is_some() {
        return None;
    }
    Some(History {
        shard: ShardId(shard.parse().ok()?),
        time: Timestamp::from_millis(time.parse().ok()?),
        epoch: u64::from_str_radix(epoch, 16).ok()?,
        number: u64::from_str_radix(number, 16).ok()?,
        bytes: u32::from_str_radix(bytes, 16).ok()?,
    })
}
