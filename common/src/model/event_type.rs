//! Event types: the catalogue. Pure.

use bytes::Bytes;

use crate::id::{EventName, Uid};
use crate::time::Timestamp;

/// How events of a type are sent to webhooks that have no delivery mode of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Category {
    /// At once.
    #[default]
    RealTime,
    /// In batches at specified times.
    NonRealTime,
}

/// An entry of the event catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventType {
    /// The name that events carry.
    pub name: EventName,
    /// Unique for ever.
    pub uid: Uid,
    /// Counts the changes, from 1.
    pub generation: u64,
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: String,
    /// How events of this type are sent.
    pub category: Category,
    /// JSON Schema of the body, as JSON text.
    pub schema: Option<Bytes>,
    /// An example of a body, as JSON text.
    pub example: Option<Bytes>,
    /// Should not be asked for any more.
    pub deprecated: bool,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
}
