//! How much of what happens in a shard its history keeps. Pure.
//!
//! A shard's share of the history would be turned over within minutes by a shard at full speed, and with it all that is of interest. So what is written
//! has a ration: a quarter of the share at once after a quiet time, a sixteenth of it a minute on average.

use std::time::Duration;

use postrider_common::model::history::{Chapter, Entry};

/// The part of the share that may be written at once: bursts are kept whole.
const BURST: f64 = 0.25;

/// The part of the share that may be written in a minute: so the history reaches back a quarter of an hour at least.
const A_MINUTE: f64 = 1.0 / 16.0;

/// Bytes that an event takes in the store, about: see the test of the stored form.
const EVENT_BYTES: f64 = 25.0;

/// Bytes that an entry takes besides its events, about, when it has more to tell than the usual.
const ENTRY_BYTES: f64 = 8.0;

/// What one shard may still write.
#[derive(Debug, Clone)]
pub struct Ration {
    share: f64,
    left: f64,
}

impl Ration {
    /// The ration of a shard that may have `share` bytes of history.
    #[allow(clippy::cast_precision_loss)] // Of bytes.
    pub fn new(share: u64) -> Self {
        let share = share as f64;
        Self {
            share,
            left: share * BURST,
        }
    }

    /// Time has passed.
    pub fn refill(&mut self, passed: Duration) {
        let more = self.share * A_MINUTE * passed.as_secs_f64() / 60.0;
        self.left = (self.left + more).min(self.share * BURST);
    }

    /// Whether a success may be told of. Asked before anything is put together of it: at full speed most are left out.
    pub fn affords_success(&mut self) -> bool {
        let affords = self.left > 0.0;
        if affords {
            self.left -= ENTRY_BYTES + EVENT_BYTES;
        }
        affords
    }

    /// Takes out of a chapter what is beyond the ration: successes as a whole, of failures what the receiver said.
    pub fn thin(&mut self, chapter: &mut Chapter) {
        chapter.thin(|entry| self.keeps(entry));
    }

    fn keeps(&mut self, entry: &mut Entry) -> bool {
        if self.left <= 0.0 {
            if entry.is_success() {
                return false;
            }
            if let Some(attempt) = &mut entry.attempt {
                attempt.answer = None;
            }
        }
        // What is owed is bounded too: when failures end, successes are to be seen again soon.
        self.left = (self.left - cost(entry)).max(-self.share * BURST);
        true
    }
}

/// Bytes that an entry will take in the store, about.
#[allow(clippy::cast_precision_loss)] // Of bytes.
fn cost(entry: &Entry) -> f64 {
    let answer = entry.attempt.as_ref().and_then(|attempt| attempt.answer.as_ref());
    // Text is packed to half of itself, about.
    let answer = answer.map_or(0.0, |answer| answer.size() as f64 / 2.0);
    ENTRY_BYTES + f64::from(entry.event_count()) * EVENT_BYTES + answer
}

#[cfg(test)]
mod tests {
    use postrider_common::id::{AccountId, EventId, EventName, Uid, WebhookId};
    use postrider_common::model::history::{Answer, Attempt, Carried, Fate};
    use postrider_common::time::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn add(chapter: &mut Chapter, failed: bool, said: usize) {
        let of = (
            AccountId::new("a").unwrap(),
            WebhookId::new("w").unwrap(),
            Uid::new("00000000-0000-7000-8000-000000000001").unwrap(),
        );
        let attempt = Attempt {
            number: 1,
            reason: if failed { "STATUS".into() } else { "".into() },
            answer: failed.then(|| {
                Box::new(Answer {
                    body: "x".repeat(said),
                    ..Answer::default()
                })
            }),
            ..Attempt::default()
        };
        let time = Timestamp::from_millis(1);
        chapter.open(Entry::new(of, time, Some(attempt)));
        chapter.carry(Carried {
            event: EventId::new("e").unwrap(),
            name: EventName::new("E").unwrap(),
            timestamp: time,
            accept_time: time,
            fate: if failed { Fate::Waiting(time) } else { Fate::Delivered },
        });
    }

    proptest! {
        #[test]
        fn a_ration_bounds_successes_and_words_keeps_every_failure_and_counts_the_rest(
            share in 1_000_u64..1_000_000, seconds in proptest::collection::vec(proptest::collection::vec((any::<bool>(), 0_usize..2_000), 0..60), 1..20),
        ) {
            let mut ration = Ration::new(share);
            let (mut successes, mut words, mut failures) = (0.0, 0.0, 0);
            let passed = seconds.len();
            for second in &seconds {
                ration.refill(Duration::from_secs(1));
                let mut chapter = Chapter::default();
                second.iter().for_each(|(failed, said)| add(&mut chapter, *failed, *said));
                let before = chapter.len();
                ration.thin(&mut chapter);
                prop_assert_eq!(chapter.len() as u64 + chapter.left_out, before as u64);
                for (entry, events) in chapter.iter() {
                    prop_assert_eq!(events.len(), 1);
                    if entry.is_success() {
                        successes += cost(entry);
                    } else {
                        failures += 1;
                        words += cost(entry) - ENTRY_BYTES - EVENT_BYTES;
                    }
                }
            }
            prop_assert_eq!(failures, seconds.iter().flatten().filter(|(failed, _)| *failed).count());
            let share = share as f64;
            // One entry may go beyond.
            let most = share * BURST + share * A_MINUTE * passed as f64 / 60.0 + 2_000.0;
            prop_assert!(successes + words <= most, "{} and {} of {}", successes, words, most);
        }
    }
}
