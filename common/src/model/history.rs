//! The history of deliveries: what each attempt came to, and what became of the deliveries it carried. Pure.
//!
//! History is told, not kept by: nothing that is delivered depends on it, and some of it may be missing.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::id::{AccountId, EventId, EventName, Uid, WebhookId};
use crate::time::Timestamp;

/// A stable, upper-case reason.
pub type Reason = Cow<'static, str>;

/// Entries of one shard, in the order in which they were written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chapter {
    entries: Vec<Entry>,
    /// The events of all entries, one entry's after the other's: an entry costs no allocation of its own.
    events: Vec<Carried>,
    /// Successes that were left out, to stay within the shard's share.
    pub left_out: u64,
}

/// One attempt, or one delivery that ended without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The webhook's account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// Its uid: a later webhook of the same name has a history of its own.
    pub uid: Uid,
    /// When the attempt started, or the delivery ended.
    pub time: Timestamp,
    /// The attempt; `None` if the deliveries ended without one.
    pub attempt: Option<Attempt>,
    /// How many events follow: set by the chapter.
    count: u32,
}

/// One HTTP request, or what prevented it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attempt {
    /// Which attempt of these deliveries, from 1.
    pub number: u32,
    /// The `webhook-id` if it was not the id of the first event: a batch's.
    pub message: Option<Arc<str>>,
    /// The generation of the webhook's configuration that it was made by.
    pub generation: u64,
    /// How long it took in all; kept to a tenth of a millisecond.
    pub duration: Duration,
    /// The address that was dialled.
    pub address: Option<SocketAddr>,
    /// The HTTP status.
    pub status: Option<u16>,
    /// Why it failed; empty if everything was delivered.
    pub reason: Reason,
    /// The ids of the secrets that signed.
    pub secrets: Vec<Arc<str>>,
    /// In words, why there was no answer.
    pub detail: Option<String>,
    /// What the receiver said, of attempts that failed.
    pub answer: Option<Box<Answer>>,
}

/// What a receiver said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Headers, as far as they were kept.
    pub headers: Vec<(String, String)>,
    /// The beginning of the body.
    pub body: String,
    /// There was more than was kept.
    pub truncated: bool,
}

impl Answer {
    /// Bytes that it takes, about.
    pub fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len());
        headers.sum::<usize>() + self.body.len()
    }
}

/// An event of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// Its id.
    pub event: EventId,
    /// Its name.
    pub name: EventName,
    /// When it happened.
    pub timestamp: Timestamp,
    /// When it was accepted.
    pub accept_time: Timestamp,
    /// What became of its delivery.
    pub fate: Fate,
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The receiver took it.
    Delivered,
    /// It is tried again at this time.
    Waiting(Timestamp),
    /// It is a dead letter.
    Dead(Reason),
    /// It ended for another reason: see [`crate::model::usage::Dropped`].
    Dropped(Reason),
}

impl Entry {
    /// An entry of a webhook.
    pub fn new(
        (account, webhook, uid): (AccountId, WebhookId, Uid),
        time: Timestamp,
        attempt: Option<Attempt>,
    ) -> Self {
        Self {
            account,
            webhook,
            uid,
            time,
            attempt,
            count: 0,
        }
    }

    /// How many events it has.
    pub const fn event_count(&self) -> u32 {
        self.count
    }

    /// Whether it tells of an attempt that delivered everything: what is left out first.
    pub fn is_success(&self) -> bool {
        self.attempt.as_ref().is_some_and(|attempt| attempt.reason.is_empty())
    }
}

impl Chapter {
    /// An empty chapter, of which so many successes were left out.
    pub fn leaving_out(left_out: u64) -> Self {
        Self {
            left_out,
            ..Self::default()
        }
    }

    /// Adds an entry. Its events follow with [`Chapter::carry`].
    pub fn open(&mut self, entry: Entry) {
        self.entries.push(Entry { count: 0, ..entry });
    }

    /// Adds an event to the last entry.
    pub fn carry(&mut self, carried: Carried) {
        if let Some(entry) = self.entries.last_mut() {
            entry.count = entry.count.saturating_add(1);
            self.events.push(carried);
        }
    }

    /// The entry at a place, to be completed.
    pub fn entry_mut(&mut self, place: usize) -> Option<&mut Entry> {
        self.entries.get_mut(place)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory that it takes, about.
    pub fn size(&self) -> usize {
        let answers = self.entries.iter().filter_map(|entry| entry.attempt.as_ref());
        let answers = answers.filter_map(|attempt| attempt.answer.as_ref());
        self.entries.len() * size_of::<Entry>()
            + self.events.len() * size_of::<Carried>()
            + answers.map(|answer| answer.size()).sum::<usize>()
    }

    /// Keeps the entries that `keep` wants, which may take something out of them; counts the others as left out.
    pub fn thin(&mut self, mut keep: impl FnMut(&mut Entry) -> bool) {
        let mut events = std::mem::take(&mut self.events).into_iter();
        let mut left_out = 0;
        let kept = &mut self.events;
        self.entries.retain_mut(|entry| {
            let own = events.by_ref().take(entry.count as usize);
            if keep(entry) {
                kept.extend(own);
                return true;
            }
            own.for_each(drop);
            left_out += 1;
            false
        });
        self.left_out += left_out;
    }

    /// Adds all of another chapter, which is empty afterwards and keeps its memory for what comes.
    pub fn append(&mut self, other: &mut Self) {
        self.entries.append(&mut other.entries);
        self.events.append(&mut other.events);
        self.left_out += std::mem::take(&mut other.left_out);
    }

    /// Takes the first `count` entries out.
    pub fn take_first(&mut self, count: usize) -> Self {
        if count >= self.entries.len() {
            return std::mem::take(self);
        }
        let counts = self.entries.iter().take(count).map(|entry| entry.count as usize);
        let events = counts.sum::<usize>();
        Self {
            entries: self.entries.drain(..count).collect(),
            events: self.events.drain(..events).collect(),
            left_out: 0,
        }
    }

    /// Each entry with its events.
    pub fn iter(&self) -> impl Iterator<Item = (&Entry, &[Carried])> {
        let mut rest = self.events.as_slice();
        self.entries.iter().map(move |entry| {
            let (events, after) = rest.split_at_checked(entry.count as usize).unwrap_or((rest, &[]));
            rest = after;
            (entry, events)
        })
    }
}
