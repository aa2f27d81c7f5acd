//! Where deliveries stand, out of what is stored. Pure.

use std::sync::Arc;

use postrider_common::id::{EventId, EventName};
use postrider_common::key::{Parked, ParkedKind};
use postrider_common::model::bits::Bits;
use postrider_common::model::history::{Attempt, Carried, Chapter, Entry, Fate};
use postrider_common::model::segment::{Event, Segment};
use postrider_common::time::Timestamp;

use super::Subject;

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum State {
    /// In the queue.
    Pending,
    /// Parked.
    Waiting,
    /// A dead letter.
    Dead,
    /// The receiver took it.
    Delivered,
    /// Ended for another reason.
    Dropped,
}

/// One delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The event's id.
    pub(crate) event: EventId,
    /// The event's name.
    pub(crate) name: EventName,
    /// When it happened.
    pub(crate) timestamp: Timestamp,
    /// When it was accepted.
    pub(crate) accept_time: Timestamp,
    /// Where it stands.
    pub(crate) state: State,
    /// Attempts that have ended.
    pub(crate) attempts: u32,
    /// When it is due, if it waits.
    pub(crate) due: Option<Timestamp>,
    /// Why the last attempt failed, or why it ended; empty if there is nothing to say.
    pub(crate) reason: String,
    /// HTTP status of the last attempt.
    pub(crate) status: Option<u16>,
    /// When it ended.
    pub(crate) end: Option<Timestamp>,
    /// What it waits for, and in which batch.
    pub(crate) kind: ParkedKind,
    /// The id of the batch that it is part of.
    pub(crate) batch: Option<Arc<str>>,
    /// The whole event, where it is still kept.
    pub(crate) body: Option<Arc<Event>>,
}

/// The deliveries of `subject` in a segment of the queue, with their numbers there.
pub(crate) fn pending(subject: &Subject, segment: &Segment, done: &[u8]) -> Vec<(u32, Standing)> {
    of_segment(subject, segment, done, |event, _| Standing {
        state: State::Pending,
        ..of_event(event)
    })
}

/// The deliveries of `subject` in a parked segment.
pub(crate) fn waiting(subject: &Subject, at: &Parked, segment: &Segment, done: &[u8]) -> Vec<(u32, Standing)> {
    of_segment(subject, segment, done, |event, state| Standing {
        state: State::Waiting,
        attempts: state.attempts,
        due: Some(state.due),
        reason: state.reason.clone(),
        status: state.status,
        kind: at.kind,
        batch: segment.batch.clone(),
        ..of_event(event)
    })
}

/// The dead letters of `subject` in a segment.
pub(crate) fn dead(subject: &Subject, segment: &Segment) -> Vec<(u32, Standing)> {
    of_segment(subject, segment, &[], |event, state| Standing {
        state: State::Dead,
        attempts: state.attempts,
        reason: state.reason.clone(),
        status: state.status,
        end: Some(state.due),
        ..of_event(event)
    })
}

/// The deliveries of `subject` that ended, as a chapter of the history tells, newest first; dead letters too if `dead`. With their numbers: how many
/// events of the chapter come after them.
pub(crate) fn ended(subject: &Subject, chapter: &Chapter, with_dead: WithDead) -> Vec<(u32, Standing)> {
    let events = chapter
        .iter()
        .flat_map(|(entry, events)| events.iter().map(move |event| (entry, event)));
    let events: Vec<_> = events.collect();
    let newest_first = (0_u32..).zip(events.into_iter().rev());
    let own = newest_first.filter(|(_, (entry, _))| is_of(subject, entry));
    own.filter_map(|(number, (entry, carried))| Some((number, end(entry, carried, with_dead)?)))
        .collect()
}

/// Whether dead letters are looked for in the history: where they stand they are found otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WithDead {
    /// Yes.
    Yes,
    /// No.
    No,
}

/// The attempts in a chapter that carried `event` to `subject`, newest first, with their numbers.
pub(crate) fn attempts<'a>(
    subject: &Subject,
    chapter: &'a Chapter,
    event: &EventId,
) -> Vec<(u32, &'a Entry, &'a Attempt, &'a [Carried])> {
    let entries: Vec<_> = chapter.iter().collect();
    let newest_first = (0_u32..).zip(entries.into_iter().rev());
    let carried = newest_first
        .filter(|(_, (entry, events))| is_of(subject, entry) && events.iter().any(|carried| carried.event == *event));
    carried
        .filter_map(|(number, (entry, events))| Some((number, entry, entry.attempt.as_ref()?, events)))
        .collect()
}

fn is_of(subject: &Subject, entry: &Entry) -> bool {
    entry.uid == subject.uid && entry.webhook == subject.webhook && entry.account == subject.account
}

fn end(entry: &Entry, carried: &Carried, with_dead: WithDead) -> Option<Standing> {
    let (state, reason) = match &carried.fate {
        Fate::Delivered => (State::Delivered, String::new()),
        Fate::Dropped(reason) => (State::Dropped, reason.clone().into_owned()),
        Fate::Dead(reason) if with_dead == WithDead::Yes => (State::Dead, reason.clone().into_owned()),
        Fate::Dead(_) | Fate::Waiting(_) => return None,
    };
    let attempt = entry.attempt.as_ref();
    Some(Standing {
        event: carried.event.clone(),
        name: carried.name.clone(),
        timestamp: carried.timestamp,
        accept_time: carried.accept_time,
        state,
        attempts: attempt.map_or(0, |attempt| attempt.number),
        due: None,
        reason,
        status: attempt.and_then(|attempt| attempt.status),
        end: Some(entry.time + attempt.map_or_else(Default::default, |attempt| attempt.duration)),
        kind: ParkedKind::Single,
        batch: None,
        body: None,
    })
}

fn of_segment(
    subject: &Subject,
    segment: &Segment,
    done: &[u8],
    standing: impl Fn(&Arc<Event>, &postrider_common::model::segment::DeliveryState) -> Standing,
) -> Vec<(u32, Standing)> {
    let total = u32::try_from(segment.delivery_count()).unwrap_or(u32::MAX);
    let done = Bits::read(done, total);
    let mut found = Vec::new();
    let mut number = 0;
    for target in &segment.targets {
        let own =
            target.webhook_uid == subject.uid && target.webhook == subject.webhook && target.account == subject.account;
        for delivery in &target.deliveries {
            let event = segment.events.get(delivery.event as usize);
            if let Some(event) = event.filter(|_| own && !done.get(number)) {
                found.push((number, standing(event, &delivery.state)));
            }
            number += 1;
        }
    }
    found
}

fn of_event(event: &Arc<Event>) -> Standing {
    Standing {
        event: event.id.clone(),
        name: event.name.clone(),
        timestamp: event.timestamp,
        accept_time: event.accept_time,
        state: State::Pending,
        attempts: 0,
        due: None,
        reason: String::new(),
        status: None,
        end: None,
        kind: ParkedKind::Single,
        batch: None,
        body: Some(event.clone()),
    }
}
