//! How far a shard's owner got, as the store holds it. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use postrider_proto::stored as pb;

use super::usage::read_usage_entry;
use super::{Unreadable, decode, encode, usage_entry};
use crate::key::Key;
use crate::model::usage::{Name, Usage};

/// What `progress/S` holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Of each segment with some, but not all, deliveries over: one bit for each delivery, lowest bit of the first byte first; 1 means over.
    pub segments: BTreeMap<Key, Bytes>,
    /// Counts that are newer than those of their own keys. An empty one says that its key, if there is one, counts nothing any more.
    pub usage: BTreeMap<Name, Usage>,
}

/// Encodes it.
pub fn encode_progress<'a>(
    segments: impl Iterator<Item = (&'a Key, &'a [u8])>,
    usage: impl Iterator<Item = (&'a Name, &'a Usage)>,
) -> Bytes {
    let segment = |(key, done): (&Key, &[u8])| pb::SegmentProgress {
        key: key.as_str().to_owned(),
        done: Bytes::copy_from_slice(done),
    };
    encode(&pb::Progress {
        segments: segments.map(segment).collect(),
        usage: usage.map(|(name, usage)| usage_entry(name, usage)).collect(),
    })
}

/// Decodes it.
///
/// # Errors
/// [`Unreadable`] if the bytes are not of that message.
pub fn decode_progress(bytes: Bytes) -> Result<Progress, Unreadable> {
    let stored: pb::Progress = decode(bytes)?;
    let segments = stored.segments.into_iter();
    Ok(Progress {
        segments: segments
            .map(|segment| (Key::from_stored(&segment.key), segment.done))
            .collect(),
        usage: stored
            .usage
            .into_iter()
            .map(read_usage_entry)
            .collect::<Result<_, _>>()?,
    })
}
