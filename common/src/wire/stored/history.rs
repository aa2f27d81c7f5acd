//! The stored form of the history: columns and tables, packed. Pure.
//!
//! A delivery that went well takes some 25 bytes in it, of which its event's id is the most. What a stranger might have written is unreadable, never a
//! panic, and never more in memory than a packed value may unpack to.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_proto::stored as pb;

use super::{Unreadable, decode, pack_message, unpack_message, unreadable};
use crate::id::{AccountId, EventId, EventName, Uid, WebhookId};
use crate::model::history::{Answer, Attempt, Carried, Chapter, Entry, Fate, Reason};
use crate::time::Timestamp;

/// The unit of stored durations: finer would cost a byte for each delivery and tell nobody more.
const TENTH: u64 = 100;

/// Packs entries. `left_out` is how many others were left out.
pub fn pack_history<'a>(entries: impl Iterator<Item = (&'a Entry, &'a [Carried])>, left_out: u64) -> Bytes {
    let mut writer = Writer {
        segment: pb::HistorySegment {
            left_out,
            ..pb::HistorySegment::default()
        },
        ..Writer::default()
    };
    for (entry, events) in entries {
        writer.entry(entry, events);
    }
    pack_message(&writer.segment)
}

/// Unpacks them.
///
/// # Errors
/// [`Unreadable`] if the bytes are not of a version that this release reads.
pub fn unpack_history(bytes: Bytes) -> Result<Chapter, Unreadable> {
    read(decode(unpack_message(bytes)?)?)
}

/// Gives each different thing a number, from 0.
struct Table<T> {
    numbers: HashMap<T, u32>,
    /// Neighbours are mostly alike, and comparing costs less than hashing.
    last: Option<(T, u32)>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            last: None,
        }
    }
}

impl<T: Copy + Eq + Hash> Table<T> {
    /// The number of a thing; `add` is called if it is new.
    fn number(&mut self, thing: T, add: impl FnOnce(&T)) -> u32 {
        if let Some((_, number)) = self.last.filter(|(last, _)| *last == thing) {
            return number;
        }
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(thing).or_insert_with_key(|thing| {
            add(thing);
            next
        });
        self.last = Some((thing, number));
        number
    }
}

type Origin<'a> = (&'a AccountId, &'a WebhookId, &'a Uid, u64, &'a [Arc<str>]);

#[derive(Default)]
struct Writer<'a> {
    segment: pb::HistorySegment,
    last: i64,
    origins: Table<Origin<'a>>,
    names: Table<&'a EventName>,
    addresses: Table<SocketAddr>,
    reasons: Table<&'a str>,
}

impl<'a> Writer<'a> {
    fn entry(&mut self, entry: &'a Entry, events: &'a [Carried]) {
        let place = u32::try_from(self.segment.origin.len()).unwrap_or(u32::MAX);
        let attempt = entry.attempt.as_ref();
        let origin = (
            &entry.account,
            &entry.webhook,
            &entry.uid,
            attempt.map_or(0, |attempt| attempt.generation),
            attempt.map_or(&[][..], |attempt| &attempt.secrets),
        );
        let origins = &mut self.segment.origins;
        let origin = self.origins.number(origin, |origin| origins.push(write_origin(origin)));
        self.segment.origin.push(origin);
        let time = entry.time.as_millis();
        self.segment.time.push(time.saturating_sub(self.last));
        self.last = time;
        let number = attempt.map_or(0, |attempt| attempt.number);
        self.segment.number.push(number);
        let tenths = attempt.map_or(0, |attempt| attempt.duration.as_micros() / u128::from(TENTH));
        self.segment.duration.push(u64::try_from(tenths).unwrap_or(u64::MAX));
        let status = attempt.and_then(|attempt| attempt.status);
        self.segment.status.push(status.map_or(0, u32::from));
        let reason = attempt.map_or("", |attempt| &attempt.reason);
        let reason = self.reason(reason);
        self.segment.reason.push(reason);
        let address = attempt.and_then(|attempt| attempt.address);
        let addresses = &mut self.segment.addresses;
        let address = address.map(|address| {
            self.addresses
                .number(address, |address| addresses.push(address.to_string()))
        });
        self.segment.address.push(address.map_or(0, |number| number + 1));
        let count = u32::try_from(events.len()).unwrap_or(u32::MAX);
        self.segment.event_count.push(count);
        for carried in events {
            self.event(time, carried);
        }
        if let Some(attempt) = attempt
            && (attempt.message.is_some() || attempt.detail.is_some() || attempt.answer.is_some())
        {
            self.segment.details.push(detail(place, attempt));
        }
    }

    fn event(&mut self, time: i64, carried: &'a Carried) {
        self.segment.event_ids.push_str(carried.event.as_str());
        self.segment.event_ids.push('\n');
        let names = &mut self.segment.event_names;
        let name = self
            .names
            .number(&carried.name, |name| names.push(name.as_str().to_owned()));
        self.segment.event_name.push(name);
        let accepted = carried.accept_time.as_millis();
        self.segment.wait.push(time.saturating_sub(accepted));
        let lag = accepted.saturating_sub(carried.timestamp.as_millis());
        self.segment.lag.push(lag);
        let fate = match &carried.fate {
            Fate::Delivered => 0,
            Fate::Waiting(until) => {
                let pause = until.as_millis().saturating_sub(time);
                self.segment.fate_time.push(pause);
                1
            }
            Fate::Dead(reason) => self.fate_reason(reason, 2),
            Fate::Dropped(reason) => self.fate_reason(reason, 3),
        };
        self.segment.fate.push(fate);
    }

    fn fate_reason(&mut self, reason: &'a Reason, fate: u32) -> u32 {
        let reason = self.reason(reason);
        self.segment.fate_reason.push(reason);
        fate
    }

    fn reason(&mut self, reason: &'a str) -> u32 {
        if reason.is_empty() {
            return 0;
        }
        let reasons = &mut self.segment.reasons;
        let number = self.reasons.number(reason, |reason| reasons.push((*reason).to_owned()));
        number + 1
    }
}

fn write_origin((account, webhook, uid, generation, secrets): &Origin<'_>) -> pb::HistoryOrigin {
    pb::HistoryOrigin {
        account: account.as_str().to_owned(),
        webhook: webhook.as_str().to_owned(),
        uid: uid.as_str().to_owned(),
        generation: *generation,
        secret_ids: secrets.iter().map(ToString::to_string).collect(),
    }
}

fn detail(entry: u32, attempt: &Attempt) -> pb::HistoryDetail {
    let header = |(name, value): &(String, String)| pb::Header {
        name: name.clone(),
        value: value.clone(),
    };
    let answer = attempt.answer.as_deref();
    pb::HistoryDetail {
        entry,
        message_id: attempt.message.as_deref().unwrap_or_default().to_owned(),
        answered: answer.is_some(),
        headers: answer.map_or_else(Vec::new, |answer| answer.headers.iter().map(header).collect()),
        body: answer.map_or_else(String::new, |answer| answer.body.clone()),
        truncated: answer.is_some_and(|answer| answer.truncated),
        detail: attempt.detail.clone().unwrap_or_default(),
    }
}

fn read(segment: pb::HistorySegment) -> Result<Chapter, Unreadable> {
    let origins: Vec<_> = segment.origins.iter().map(read_origin).collect::<Result<_, _>>()?;
    let mut addresses = Vec::with_capacity(segment.addresses.len());
    for address in &segment.addresses {
        addresses.push(address.parse::<SocketAddr>().map_err(unreadable)?);
    }
    let count = segment.origin.len();
    let columns = [
        segment.time.len(),
        segment.number.len(),
        segment.duration.len(),
        segment.status.len(),
        segment.reason.len(),
        segment.address.len(),
        segment.event_count.len(),
    ];
    if columns.iter().any(|length| *length != count) {
        return Err(Unreadable("columns of different lengths".into()));
    }
    let mut events = Events::new(&segment)?;
    let mut details = segment.details.iter().peekable();
    let mut chapter = Chapter::leaving_out(segment.left_out);
    let mut time = 0_i64;
    for (place, origin) in segment.origin.iter().enumerate() {
        time = time.saturating_add(at(&segment.time, place)?);
        let (account, webhook, uid, generation, secrets) = origins
            .get(*origin as usize)
            .ok_or_else(|| Unreadable("an entry of nobody".into()))?
            .clone();
        let detail = details.next_if(|detail| detail.entry as usize == place);
        let number = at(&segment.number, place)?;
        let attempt = if number == 0 {
            None
        } else {
            let address = match at(&segment.address, place)? {
                0 => None,
                index => Some(at(&addresses, index as usize - 1)?),
            };
            Some(Attempt {
                number,
                message: detail.and_then(|detail| text(&detail.message_id)),
                generation,
                duration: Duration::from_micros(at(&segment.duration, place)?.saturating_mul(TENTH)),
                address,
                status: u16::try_from(at(&segment.status, place)?)
                    .ok()
                    .filter(|status| *status != 0),
                reason: reason(&segment, at(&segment.reason, place)?)?,
                secrets,
                detail: detail
                    .map(|detail| detail.detail.clone())
                    .filter(|detail| !detail.is_empty()),
                answer: detail.filter(|detail| detail.answered).map(answer),
            })
        };
        let time = Timestamp::from_millis(time);
        chapter.open(Entry::new((account, webhook, uid), time, attempt));
        for _ in 0..at(&segment.event_count, place)? {
            chapter.carry(events.next(time)?);
        }
    }
    if details.next().is_some() {
        return Err(Unreadable("a detail of no entry".into()));
    }
    Ok(chapter)
}

/// Reads the columns of events, one event after the other.
struct Events<'a> {
    segment: &'a pb::HistorySegment,
    names: Vec<EventName>,
    ids: std::str::Split<'a, char>,
    place: usize,
    times: std::slice::Iter<'a, i64>,
    reasons: std::slice::Iter<'a, u32>,
}

impl<'a> Events<'a> {
    fn new(segment: &'a pb::HistorySegment) -> Result<Self, Unreadable> {
        let names = segment.event_names.iter();
        let names: Result<_, _> = names.map(|name| EventName::new(name).map_err(unreadable)).collect();
        Ok(Self {
            segment,
            names: names?,
            ids: segment.event_ids.split('\n'),
            place: 0,
            times: segment.fate_time.iter(),
            reasons: segment.fate_reason.iter(),
        })
    }

    fn next(&mut self, time: Timestamp) -> Result<Carried, Unreadable> {
        let (segment, place) = (self.segment, self.place);
        self.place += 1;
        let short = || Unreadable("a column is too short".into());
        let reason_of = |number: Option<&u32>| reason(segment, *number.ok_or_else(short)?);
        let wait = at(&segment.wait, place)?;
        let accepted = time.as_millis().saturating_sub(wait);
        let happened = accepted.saturating_sub(at(&segment.lag, place)?);
        let fate = match at(&segment.fate, place)? {
            0 => Fate::Delivered,
            1 => {
                let pause = *self.times.next().ok_or_else(short)?;
                Fate::Waiting(Timestamp::from_millis(time.as_millis().saturating_add(pause)))
            }
            2 => Fate::Dead(reason_of(self.reasons.next())?),
            3 => Fate::Dropped(reason_of(self.reasons.next())?),
            other => return Err(Unreadable(format!("fate {other}"))),
        };
        Ok(Carried {
            event: EventId::new(self.ids.next().unwrap_or_default()).map_err(unreadable)?,
            name: at(&self.names, at(&segment.event_name, place)? as usize)?,
            timestamp: Timestamp::from_millis(happened),
            accept_time: Timestamp::from_millis(accepted),
            fate,
        })
    }
}

type OwnOrigin = (AccountId, WebhookId, Uid, u64, Vec<Arc<str>>);

fn read_origin(origin: &pb::HistoryOrigin) -> Result<OwnOrigin, Unreadable> {
    Ok((
        AccountId::new(&origin.account).map_err(unreadable)?,
        WebhookId::new(&origin.webhook).map_err(unreadable)?,
        Uid::new(&origin.uid).map_err(unreadable)?,
        origin.generation,
        origin.secret_ids.iter().map(|id| id.as_str().into()).collect(),
    ))
}

fn answer(detail: &pb::HistoryDetail) -> Box<Answer> {
    let header = |header: &pb::Header| (header.name.clone(), header.value.clone());
    Box::new(Answer {
        headers: detail.headers.iter().map(header).collect(),
        body: detail.body.clone(),
        truncated: detail.truncated,
    })
}

fn text(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

fn reason(segment: &pb::HistorySegment, number: u32) -> Result<Reason, Unreadable> {
    match number {
        0 => Ok(Cow::Borrowed("")),
        number => at(&segment.reasons, number as usize - 1).map(Cow::Owned),
    }
}

fn at<T: Clone>(column: &[T], place: usize) -> Result<T, Unreadable> {
    let found = column.get(place).cloned();
    found.ok_or_else(|| Unreadable("a column or a table is too short".into()))
}

#[cfg(test)]
mod tests;
