//! Tests of looking things up: every delivery is shown once, where it stands, however the store is laid out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postrider_common::id::{AccountId, EventId, EventName, Uid, WebhookId};
use postrider_common::key::{self, Key, Parked, ParkedKind};
use postrider_common::model::bits::Bits;
use postrider_common::model::event_type::Category;
use postrider_common::model::history::{Attempt, Carried, Chapter, Entry as Told, Fate};
use postrider_common::model::segment::{Delivery, DeliveryState, Event, Segment, Target};
use postrider_common::shard::ShardId;
use postrider_common::store::memory::MemoryStore;
use postrider_common::store::{Op, Revision, Store as _, Write};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;
use postrider_proto::stored as pb;
use proptest::collection::vec;
use proptest::prelude::*;

use super::Subject;
use super::filter::Filter;
use super::place::{PHASES, Phase, Place};
use super::shelves::Shelves;
use super::standing::{State, WithDead};
use super::walk::{self, Most, Walk};
use super::watch::{End, Follower, MISSED};

const BEGIN: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// Webhooks and uids that share the shard: the first is asked about.
const OTHERS: [(&str, u8); 3] = [("w", 1), ("w", 2), ("v", 1)];

fn uid(number: u8) -> Uid {
    Uid::new(&format!("00000000-0000-7000-8000-{number:012}")).unwrap()
}

fn account() -> AccountId {
    AccountId::new("a").unwrap()
}

fn subject() -> Subject {
    Subject {
        account: account(),
        webhook: WebhookId::new("w").unwrap(),
        uid: uid(1),
        shard: ShardId(1),
    }
}

fn event(id: &str) -> Arc<Event> {
    Arc::new(Event {
        account: account(),
        id: EventId::new(id).unwrap(),
        name: EventName::new("E").unwrap(),
        timestamp: BEGIN,
        ordering_key: None,
        expire_time: None,
        not_before_time: None,
        event_info: None,
        data: format!("{{\"id\":\"{id}\"}}").into(),
        accept_time: BEGIN,
        traceparent: None,
        category: Category::default(),
    })
}

/// Fills the shard, and remembers what of it is the subject's.
#[derive(Default)]
struct Filler {
    ops: Vec<Op>,
    progress: Vec<pb::SegmentProgress>,
    number: u64,
    expected: BTreeMap<String, State>,
}

impl Filler {
    /// A segment with, for each delivery, whose it is and whether it is over.
    fn segment(&mut self, phase: Phase, deliveries: &[(usize, bool)]) {
        self.number += 1;
        let mut segment = Segment::default();
        let mut done = Bits::new(u32::try_from(deliveries.len()).unwrap());
        // Those of one webhook stand together, in the queue; elsewhere all are of one webhook name.
        for (whose, (webhook, number)) in OTHERS.iter().enumerate() {
            let own = deliveries.iter().filter(|(of, _)| *of == whose);
            let mut target = Target {
                account: account(),
                webhook: WebhookId::new(webhook).unwrap(),
                webhook_uid: uid(*number),
                webhook_revision: Revision(1),
                deliveries: Vec::new(),
            };
            for (_, over) in own {
                let place = segment.events.len();
                let id = format!("{}-{place}", self.number);
                let over = *over && phase != Phase::Dead;
                if over {
                    done.set(u32::try_from(place).unwrap());
                } else if whose == 0 {
                    let state = match phase {
                        Phase::Pending => State::Pending,
                        Phase::Waiting => State::Waiting,
                        Phase::Dead | Phase::Ended => State::Dead,
                    };
                    self.expected.insert(id.clone(), state);
                }
                segment.events.push(event(&id));
                target.deliveries.push(Delivery {
                    event: u32::try_from(place).unwrap(),
                    state: DeliveryState {
                        due: BEGIN,
                        ..DeliveryState::default()
                    },
                });
            }
            segment.targets.push(target);
        }
        let at = Parked {
            shard: ShardId(1),
            account: account(),
            webhook: WebhookId::new("w").unwrap(),
            due: BEGIN + Duration::from_millis(self.number % 7),
            epoch: 1,
            number: self.number,
            count: done.total(),
            kind: ParkedKind::Single,
        };
        let key = match phase {
            Phase::Pending => key::segment(ShardId(1), "p", self.number),
            Phase::Waiting => key::parked_segment(&at),
            Phase::Dead | Phase::Ended => key::dead_segment(&at),
        };
        if done.is_partial() {
            self.progress.push(pb::SegmentProgress {
                key: key.as_str().to_owned(),
                done: done.as_bytes().to_vec().into(),
            });
        }
        if !done.is_full() {
            self.ops.push(Op::put(key, stored::pack(segment)));
        } else {
            self.expected
                .retain(|id, _| !id.starts_with(&format!("{}-", self.number)));
        }
    }

    /// A history segment of attempts, each with events: whose, and what became of them.
    fn history(&mut self, attempts: &[Vec<(usize, Fate)>]) {
        self.number += 1;
        let mut chapter = Chapter::default();
        let mut place = 0;
        for events in attempts {
            let whose = events.first().map_or(0, |(whose, _)| *whose);
            let (webhook, number) = OTHERS[whose];
            let of = (account(), WebhookId::new(webhook).unwrap(), uid(number));
            let attempt = Attempt {
                number: 1,
                ..Attempt::default()
            };
            chapter.open(Told::new(of, BEGIN, Some(attempt)));
            for (_, fate) in events {
                let id = format!("{}-{place}", self.number);
                place += 1;
                let state = match fate {
                    Fate::Delivered => Some(State::Delivered),
                    Fate::Dropped(_) => Some(State::Dropped),
                    Fate::Waiting(_) | Fate::Dead(_) => None,
                };
                if let Some(state) = state.filter(|_| whose == 0) {
                    self.expected.insert(id.clone(), state);
                }
                chapter.carry(Carried {
                    event: EventId::new(&id).unwrap(),
                    name: EventName::new("E").unwrap(),
                    timestamp: BEGIN,
                    accept_time: BEGIN,
                    fate: fate.clone(),
                });
            }
        }
        let value = stored::pack_history(chapter.iter(), 0);
        self.ops.push(Op::put(told(self.number), value));
    }

    async fn store(mut self) -> (MemoryStore, BTreeMap<String, State>) {
        let store = MemoryStore::default();
        if !self.progress.is_empty() {
            let progress = pb::Progress {
                usage: Vec::new(),
                segments: self.progress,
            };
            self.ops
                .push(Op::put(key::progress(ShardId(1)), stored::encode(&progress)));
        }
        for op in self.ops {
            write(&store, op).await;
        }
        (store, self.expected)
    }
}

fn told(number: u64) -> Key {
    key::history_segment(&key::History {
        shard: ShardId(1),
        time: BEGIN + Duration::from_millis(number / 3),
        epoch: 1,
        number,
        bytes: 1,
    })
}

async fn write(store: &MemoryStore, op: Op) -> Revision {
    let write = Write {
        guards: Vec::new(),
        ops: vec![op],
    };
    store.write(write).await.unwrap()
}

/// What a listing shows, page by page.
async fn listed(store: &MemoryStore, filter: &Filter, size: usize, reads: usize) -> Vec<(String, State)> {
    let subject = subject();
    let (mut place, mut revision) = (Place::beginning(Phase::Pending), None);
    let mut shown = Vec::new();
    for _ in 0..1_000 {
        let mut shelves = Shelves::new(store, &subject, revision, reads);
        let walk = Walk {
            shelves: &mut shelves,
            filter,
            phases: &PHASES,
            most: Most {
                deliveries: size,
                body_bytes: usize::MAX,
            },
            with_dead: WithDead::No,
        };
        let found = walk.from(place).await.unwrap();
        assert!(found.deliveries.len() <= size);
        let found_here = found.deliveries.iter();
        shown.extend(found_here.map(|(delivery, _)| (delivery.event.to_string(), delivery.state)));
        revision = Some(shelves.revision());
        let Some(next) = found.next else { return shown };
        // As a token would keep it.
        place = Place::parse(&next.to_string()).unwrap();
    }
    panic!("a listing without an end");
}

fn layouts() -> impl Strategy<Value = Vec<Vec<(usize, bool)>>> {
    vec(vec((0_usize..3, any::<bool>()), 1..8), 0..6)
}

fn fates() -> impl Strategy<Value = Vec<Vec<Vec<(usize, Fate)>>>> {
    let fate = prop_oneof![
        3 => Just(Fate::Delivered),
        1 => Just(Fate::Waiting(BEGIN)),
        1 => Just(Fate::Dead("STATUS".into())),
        1 => Just(Fate::Dropped("CANCELLED".into())),
    ];
    vec(vec(vec((0_usize..3, fate), 1..4), 1..5), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_delivery_is_listed_once_in_its_state_however_small_the_pages_and_whatever_happens_meanwhile(
        pending in layouts(), waiting in layouts(), dead in layouts(), history in fates(),
        size in 1_usize..9, reads in 1_usize..20_000, state in proptest::option::of(0_usize..5),
    ) {
        let mut filler = Filler::default();
        for (phase, layouts) in [(Phase::Pending, pending), (Phase::Waiting, waiting), (Phase::Dead, dead)] {
            layouts.iter().for_each(|layout| filler.segment(phase, layout));
        }
        history.iter().for_each(|attempts| filler.history(attempts));
        let states = [State::Pending, State::Waiting, State::Dead, State::Delivered, State::Dropped];
        let filter = Filter {
            states: state.map(|index| states[index]).into_iter().collect(),
            ..Filter::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (shown, expected) = runtime.block_on(async {
            let (store, expected) = filler.store().await;
            (listed(&store, &filter, size, reads).await, expected)
        });
        let expected: BTreeMap<_, _> = expected.into_iter().filter(|(_, state)| filter.wants_state(&[*state])).collect();
        prop_assert_eq!(shown.len(), expected.len(), "{:?}", shown);
        let order = |state: &State| states.iter().position(|other| other == state).unwrap().min(3);
        prop_assert!(shown.is_sorted_by_key(|(_, state)| order(state)));
        prop_assert_eq!(shown.into_iter().collect::<BTreeMap<_, _>>(), expected);
    }

    #[test]
    fn every_attempt_of_an_event_is_listed_once_newest_first(history in fates(), size in 1_usize..4, reads in 1_usize..20_000) {
        let mut filler = Filler::default();
        // All attempts carry the same event besides their own.
        let mut expected = 0;
        for attempts in &history {
            filler.history(attempts);
            expected += attempts.iter().filter(|events| events[0].0 == 0).count();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(async {
            let (store, _) = filler.store().await;
            let subject = subject();
            let mut found = Vec::new();
            let mut ids = Vec::new();
            for segment in 1..=history.len() {
                for place in 0..24 {
                    ids.push(EventId::new(&format!("{segment}-{place}")).unwrap());
                }
            }
            for id in ids {
                let (mut place, mut revision) = (Place::beginning(Phase::Ended), None);
                loop {
                    let mut shelves = Shelves::new(&store, &subject, revision, reads);
                    let (made, next) = walk::attempts(&mut shelves, &id, place, size).await.unwrap();
                    found.extend(made.into_iter().map(|made| (id.clone(), made.events)));
                    revision = Some(shelves.revision());
                    let Some(next) = next else { break };
                    place = next;
                }
            }
            found
        });
        prop_assert!(found.iter().all(|(id, events)| events.iter().any(|carried| carried.event == *id)));
        // Once for each of its events.
        let carried: usize = found.iter().map(|(_, events)| events.len()).sum();
        let squares: usize = history.iter().flatten().filter(|events| events[0].0 == 0).map(|events| events.len() * events.len()).sum();
        prop_assert_eq!(carried, squares);
        prop_assert!(found.len() >= expected);
    }
}

#[tokio::test]
async fn a_listing_whose_revision_is_compacted_goes_on_with_what_is_there() {
    let mut filler = Filler::default();
    for _ in 0..6 {
        filler.segment(Phase::Waiting, &[(0, false), (0, false)]);
    }
    let (store, _) = filler.store().await;
    let subject = subject();
    let filter = Filter::default();
    let page = async |revision, place| {
        let mut shelves = Shelves::new(&store, &subject, revision, usize::MAX);
        let walk = Walk {
            shelves: &mut shelves,
            filter: &filter,
            phases: &PHASES,
            most: Most {
                deliveries: 5,
                body_bytes: usize::MAX,
            },
            with_dead: WithDead::No,
        };
        (walk.from(place).await.unwrap(), shelves.revision())
    };
    let (first, old) = page(None, Place::beginning(Phase::Pending)).await;
    let next = first.next.clone().unwrap();
    // The segment in which the page ended goes, and the revision too.
    write(&store, Op::delete(next.key.clone().unwrap())).await;
    let newest = write(&store, Op::put(Key::from_stored("x"), "")).await;
    store.compact(newest).await.unwrap();
    let (second, new) = page(Some(old), next).await;
    assert_eq!(second.deliveries.len(), 5);
    assert!(new > old);
    let ids = |found: &walk::Found| {
        let ids = found.deliveries.iter().map(|(delivery, _)| delivery.event.to_string());
        ids.collect::<std::collections::BTreeSet<_>>()
    };
    assert!(ids(&first).is_disjoint(&ids(&second)));
}

#[tokio::test]
async fn a_page_with_bodies_ends_before_they_are_too_much_but_never_shows_nothing() {
    let mut filler = Filler::default();
    filler.segment(Phase::Dead, &[(0, false), (0, false), (0, false)]);
    let (store, _) = filler.store().await;
    let subject = subject();
    let size = event("1-0").data.len();
    for (body_bytes, expected) in [(1, 1), (size, 1), (size * 2, 2), (size * 3, 3)] {
        let mut shelves = Shelves::new(&store, &subject, None, usize::MAX);
        let walk = Walk {
            shelves: &mut shelves,
            filter: &Filter::default(),
            phases: &[Phase::Dead],
            most: Most {
                deliveries: 100,
                body_bytes,
            },
            with_dead: WithDead::No,
        };
        let found = walk.from(Place::beginning(Phase::Dead)).await.unwrap();
        assert_eq!(found.deliveries.len(), expected, "{body_bytes}");
        assert_eq!(found.next.is_some(), expected < 3);
    }
}

async fn tell(store: &MemoryStore, number: u64) -> Revision {
    let value = stored::pack_history(Chapter::default().iter(), number);
    write(store, Op::put(told(number), value)).await
}

/// The number of each segment that the follower shows next, until there are `count`.
async fn followed(follower: &mut Follower, count: usize) -> Vec<u64> {
    let mut shown = Vec::new();
    while shown.len() < count {
        let news = follower.next().await.unwrap();
        assert_eq!(follower.seen(), news.revision);
        let segments = news.segments.into_iter();
        shown.extend(segments.map(|segment| walk::chapter(&segment).left_out));
    }
    shown
}

#[tokio::test(start_paused = true)]
async fn a_follower_shows_each_segment_once_from_where_it_began_and_whatever_is_compacted() {
    let store = MemoryStore::default();
    tell(&store, 1).await;
    let shared: Arc<MemoryStore> = Arc::new(store.clone());
    let mut follower = Follower::begin(shared.clone(), key::all_history()).await.unwrap();
    for number in 2..5 {
        tell(&store, number).await;
    }
    assert_eq!(followed(&mut follower, 3).await, [2, 3, 4]);
    let token = follower.seen();
    drop(follower);
    // Somebody who comes back after a long time misses nothing, and sees nothing twice.
    for number in 5..60 {
        tell(&store, number).await;
    }
    write(&store, Op::delete(told(5))).await;
    let newest = tell(&store, 60).await;
    store.compact(newest).await.unwrap();
    let mut follower = Follower::resume(shared, key::history(ShardId(1)), token);
    assert_eq!(followed(&mut follower, 55).await, (6..=60).collect::<Vec<u64>>());
    tell(&store, 61).await;
    assert_eq!(followed(&mut follower, 1).await, [61]);
    // Nothing happens: a sign of life.
    let news = follower.next().await.unwrap();
    assert!(news.segments.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_missed_too_much_is_told_and_nobody_who_missed_less() {
    for (missed, is_told) in [(MISSED, false), (MISSED + 1, true)] {
        let store = MemoryStore::default();
        let token = tell(&store, 1).await;
        let value = stored::pack_history(Chapter::default().iter(), 0);
        let numbers: Vec<usize> = (0..missed).collect();
        for some in numbers.chunks(100) {
            let ops = some
                .iter()
                .map(|number| Op::put(told(2 + *number as u64), value.clone()));
            let write = Write {
                guards: Vec::new(),
                ops: ops.collect(),
            };
            store.write(write).await.unwrap();
        }
        let newest = tell(&store, 1).await;
        store.compact(newest).await.unwrap();
        let mut follower = Follower::resume(Arc::new(store), key::history(ShardId(1)), token);
        let next = follower.next().await;
        assert_eq!(next.err(), is_told.then_some(End::TooMuch), "{missed}");
    }
}
