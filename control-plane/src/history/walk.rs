//! Goes through the places where deliveries are, in order, until a page is full or has read enough.

use bytes::Bytes;
use postrider_common::id::EventId;
use postrider_common::key::{self, Key};
use postrider_common::model::history::{Attempt, Carried, Chapter, Entry as Told};
use postrider_common::store::{Entry, ReadError};
use postrider_common::wire::stored;

use super::filter::Filter;
use super::place::{PHASES, Phase, Place};
use super::shelves::Shelves;
use super::standing::{self, Standing, State, WithDead};

/// History segments read in one request.
const TOLD_AT_ONCE: usize = 16;

/// What a walk brings.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The deliveries, each with the segment that it stands in.
    pub(crate) deliveries: Vec<(Standing, Option<Entry>)>,
    /// Where the rest is; `None` if there is none.
    pub(crate) next: Option<Place>,
}

/// How much a walk brings at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Most {
    /// Deliveries.
    pub(crate) deliveries: usize,
    /// Bytes of bodies, if they are shown; one delivery may go beyond.
    pub(crate) body_bytes: usize,
}

/// A walk.
pub(crate) struct Walk<'a, 'b> {
    /// What is read.
    pub(crate) shelves: &'b mut Shelves<'a>,
    /// What is wanted.
    pub(crate) filter: &'b Filter,
    /// Which phases.
    pub(crate) phases: &'b [Phase],
    /// How much.
    pub(crate) most: Most,
    /// Whether dead letters are looked for in the history too.
    pub(crate) with_dead: WithDead,
}

impl Walk<'_, '_> {
    /// Walks on from a place.
    ///
    /// # Errors
    /// When the store is away.
    pub(crate) async fn from(mut self, from: Place) -> Result<Found, ReadError> {
        let mut found = Found::default();
        for phase in PHASES {
            if phase < from.phase || !self.phases.contains(&phase) || !self.filter.wants_state(self.states(phase)) {
                continue;
            }
            let from = if phase == from.phase {
                from.clone()
            } else {
                Place::beginning(phase)
            };
            found.next = match phase {
                Phase::Pending | Phase::Waiting | Phase::Dead => self.standing(from, &mut found).await?,
                Phase::Ended => self.ended(from, &mut found).await?,
            };
            if found.next.is_some() {
                break;
            }
        }
        Ok(found)
    }

    const fn states(&self, phase: Phase) -> &'static [State] {
        match phase {
            Phase::Pending => &[State::Pending],
            Phase::Waiting => &[State::Waiting],
            Phase::Dead => &[State::Dead],
            Phase::Ended => match self.with_dead {
                WithDead::Yes => &[State::Delivered, State::Dropped, State::Dead],
                WithDead::No => &[State::Delivered, State::Dropped],
            },
        }
    }

    /// Goes through the segments in which deliveries stand. Answers where it stopped; `None` at the end.
    async fn standing(&mut self, from: Place, found: &mut Found) -> Result<Option<Place>, ReadError> {
        let subject = self.shelves.subject();
        let prefix = match from.phase {
            Phase::Pending => key::queue(subject.shard),
            Phase::Waiting => key::parked_of(subject.shard, &subject.account, &subject.webhook),
            Phase::Dead | Phase::Ended => key::dead_of(subject.shard, &subject.account, &subject.webhook),
        };
        let mut after = from.key.clone();
        if let (Some(key), Some(number)) = (&from.key, from.number)
            && let Some(entry) = self.shelves.one(key).await?
            && let Some(stop) = self.segment(from.phase, &entry, Some(number), found).await?
        {
            return Ok(Some(stop));
        }
        loop {
            let page = self.shelves.next(&prefix, after.as_ref()).await?;
            for entry in &page.entries {
                if let Some(stop) = self.segment(from.phase, entry, None, found).await? {
                    return Ok(Some(stop));
                }
                after = Some(entry.key.clone());
            }
            if !page.more {
                return Ok(None);
            }
            if self.shelves.is_used_up() {
                return Ok(Some(Place {
                    phase: from.phase,
                    key: after,
                    number: None,
                }));
            }
        }
    }

    /// Takes what is wanted of one segment. Answers where it stopped, if the page is full.
    async fn segment(
        &mut self,
        phase: Phase,
        entry: &Entry,
        from: Option<u32>,
        found: &mut Found,
    ) -> Result<Option<Place>, ReadError> {
        let Ok(segment) = stored::unpack(entry.value.clone()).inspect_err(|error| unreadable(&entry.key, error)) else {
            return Ok(None);
        };
        let subject = self.shelves.subject();
        let deliveries = match phase {
            Phase::Pending => standing::pending(subject, &segment, &self.shelves.done(&entry.key).await?),
            Phase::Waiting => match key::parse_parked(&entry.key) {
                Some(at) => standing::waiting(subject, &at, &segment, &self.shelves.done(&entry.key).await?),
                None => Vec::new(),
            },
            Phase::Dead | Phase::Ended => standing::dead(subject, &segment),
        };
        let head = Entry {
            value: Bytes::new(),
            ..entry.clone()
        };
        Ok(self.take(phase, &entry.key, from, deliveries, Some(&head), found))
    }

    /// Goes through the history, newest first.
    async fn ended(&mut self, from: Place, found: &mut Found) -> Result<Option<Place>, ReadError> {
        let (subject, with_dead) = (self.shelves.subject(), self.with_dead);
        let mut before = from.key.clone();
        if let (Some(key), Some(number)) = (&from.key, from.number) {
            for entry in self.shelves.told(std::slice::from_ref(key)).await? {
                let chapter = chapter(&entry);
                let deliveries = standing::ended(subject, &chapter, with_dead);
                if let Some(stop) = self.take(from.phase, &entry.key, Some(number), deliveries, None, found) {
                    return Ok(Some(stop));
                }
            }
        }
        loop {
            let keys = self.shelves.told_before(before.as_ref(), self.filter.start).await?;
            if keys.is_empty() {
                return Ok(None);
            }
            for keys in keys.chunks(TOLD_AT_ONCE) {
                for entry in self.shelves.told(keys).await? {
                    let deliveries = standing::ended(subject, &chapter(&entry), with_dead);
                    if let Some(stop) = self.take(from.phase, &entry.key, None, deliveries, None, found) {
                        return Ok(Some(stop));
                    }
                }
                before = keys.last().cloned();
                if self.shelves.is_used_up() {
                    return Ok(Some(Place {
                        phase: from.phase,
                        key: before,
                        number: None,
                    }));
                }
            }
        }
    }

    /// Takes the wanted ones among the deliveries of one segment, from number `from` on. Answers where it stopped, if the page is full: at the first that is
    /// wanted and has no room, so that the last page says that it is the last.
    fn take(
        &mut self,
        phase: Phase,
        key: &Key,
        from: Option<u32>,
        deliveries: Vec<(u32, Standing)>,
        segment: Option<&Entry>,
        found: &mut Found,
    ) -> Option<Place> {
        for (number, delivery) in deliveries {
            if from.is_some_and(|from| number < from) || !self.filter.wants(&delivery) {
                continue;
            }
            let size = delivery.body.as_ref().map_or(0, |event| event.data.len());
            let full = found.deliveries.len() >= self.most.deliveries;
            if full || size > self.most.body_bytes && !found.deliveries.is_empty() {
                return Some(Place {
                    phase,
                    key: Some(key.clone()),
                    number: Some(number),
                });
            }
            self.most.body_bytes = self.most.body_bytes.saturating_sub(size);
            found.deliveries.push((delivery, segment.cloned()));
        }
        None
    }
}

/// One attempt, as the history tells of it.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    /// When it started, and whose it is.
    pub(crate) entry: Told,
    /// What it was.
    pub(crate) attempt: Attempt,
    /// What it came to.
    pub(crate) events: Vec<Carried>,
}

/// The attempts that carried `event`, newest first, from a place on; and where the rest is.
///
/// # Errors
/// When the store is away.
pub(crate) async fn attempts(
    shelves: &mut Shelves<'_>,
    event: &EventId,
    from: Place,
    most: usize,
) -> Result<(Vec<Made>, Option<Place>), ReadError> {
    let subject = shelves.subject();
    let mut found = Vec::new();
    let mut take = |entry: &Entry, from: Option<u32>| {
        let chapter = chapter(entry);
        for (number, told, attempt, events) in standing::attempts(subject, &chapter, event) {
            if from.is_some_and(|from| number < from) {
                continue;
            }
            if found.len() >= most {
                return Some(Place {
                    phase: Phase::Ended,
                    key: Some(entry.key.clone()),
                    number: Some(number),
                });
            }
            found.push(Made {
                entry: told.clone(),
                attempt: attempt.clone(),
                events: events.to_vec(),
            });
        }
        None
    };
    let mut before = from.key.clone();
    if let (Some(key), Some(number)) = (&from.key, from.number) {
        for entry in shelves.told(std::slice::from_ref(key)).await? {
            if let Some(stop) = take(&entry, Some(number)) {
                return Ok((found, Some(stop)));
            }
        }
    }
    loop {
        let keys = shelves.told_before(before.as_ref(), None).await?;
        if keys.is_empty() {
            return Ok((found, None));
        }
        for keys in keys.chunks(TOLD_AT_ONCE) {
            for entry in shelves.told(keys).await? {
                if let Some(stop) = take(&entry, None) {
                    return Ok((found, Some(stop)));
                }
            }
            before = keys.last().cloned();
            if shelves.is_used_up() {
                let place = Place {
                    phase: Phase::Ended,
                    key: before,
                    number: None,
                };
                return Ok((found, Some(place)));
            }
        }
    }
}

/// What a history segment tells; nothing if this release cannot read it.
pub(crate) fn chapter(entry: &Entry) -> Chapter {
    let read = stored::unpack_history(entry.value.clone());
    read.inspect_err(|error| unreadable(&entry.key, error))
        .unwrap_or_default()
}

fn unreadable(key: &Key, error: &stored::Unreadable) {
    tracing::error!(%key, %error, "a segment cannot be read: it is left out");
}
