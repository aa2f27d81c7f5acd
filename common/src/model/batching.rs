//! When the events of a webhook are sent, and how many share a request. Pure.

use std::num::NonZeroU32;
use std::time::Duration;

use super::event_type::Category;
use crate::schedule::Schedule;
use crate::time::Timestamp;

/// Events of one batch unless the webhook says otherwise.
pub const DEFAULT_BATCH_EVENTS: usize = 100;

/// Bytes of the events of one request with several, unless the webhook says otherwise: what common servers take without being told to.
pub const DEFAULT_BATCH_BYTES: usize = 256 << 10;

/// How long events of a batch webhook without a schedule wait for others, unless it says otherwise.
pub const DEFAULT_BATCH_DELAY: Duration = Duration::from_mins(5);

/// When events are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// As the category of each event's type says.
    #[default]
    ByType,
    /// At once, whatever the type.
    RealTime,
    /// In batches, whatever the type.
    Batch,
}

/// When the events of a webhook are sent, and how many share a request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batching {
    /// When events are sent.
    pub mode: Mode,
    /// Events of one request; `None` means [`DEFAULT_BATCH_EVENTS`] for what is sent in batches, and 1 for what is sent at once.
    pub max_events: Option<NonZeroU32>,
    /// Bytes of the events of one request with several; `None` means [`DEFAULT_BATCH_BYTES`].
    pub max_bytes: Option<NonZeroU32>,
    /// How long an event of a batch waits for others where there is no schedule; `None` means [`DEFAULT_BATCH_DELAY`].
    pub max_delay: Option<Duration>,
    /// The specified times of batches.
    pub schedule: Option<Schedule>,
}

impl Batching {
    /// Whether events of this category are gathered into batches.
    pub fn gathers(&self, category: Category) -> bool {
        match self.mode {
            Mode::ByType => category == Category::NonRealTime,
            Mode::RealTime => false,
            Mode::Batch => true,
        }
    }

    /// When an event that is gathered, and was accepted at `accepted`, is sent at the latest if its receiver is well.
    pub fn due(&self, accepted: Timestamp) -> Timestamp {
        let scheduled = self
            .schedule
            .as_ref()
            .and_then(|schedule| schedule.next_after(accepted));
        scheduled.unwrap_or_else(|| accepted + self.max_delay.unwrap_or(DEFAULT_BATCH_DELAY))
    }

    /// Events of one batch at most.
    pub fn batch_events(&self) -> usize {
        self.max_events.map_or(DEFAULT_BATCH_EVENTS, |most| most.get() as usize)
    }

    /// Events that are sent at once and may share a request.
    pub fn coalesced_events(&self) -> usize {
        self.max_events.map_or(1, |most| most.get() as usize)
    }

    /// Bytes of the events of one request with several.
    pub fn batch_bytes(&self) -> usize {
        self.max_bytes.map_or(DEFAULT_BATCH_BYTES, |most| most.get() as usize)
    }
}
