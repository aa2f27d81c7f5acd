//! Looking deliveries up: bad input, and what is seen of a store that was filled by hand.

use std::time::Duration;

use futures_util::StreamExt as _;
use postrider_common::id::{AccountId, EventId, EventName, WebhookId};
use postrider_common::key::{self, Parked, ParkedKind};
use postrider_common::model::event_type::Category;
use postrider_common::model::history::{Answer, Attempt, Carried, Chapter, Entry as Told, Fate};
use postrider_common::model::segment::{Delivery, DeliveryState, Event, Segment, Target};
use postrider_common::shard::ShardId;
use postrider_common::store::{Op, Write};
use postrider_common::time::{Clock as _, Timestamp};
use postrider_common::wire::stored::{encode, pack, pack_history};
use postrider_proto::stored as pb;
use v1::delivery::State;
use v1::explain_delivery_response::Cause;

use super::*;

mod explained;
mod refused;

const PARENT: &str = "accounts/1010/webhooks/a";

fn names(event: &str) -> String {
    format!("{PARENT}/deliveries/{event}")
}

fn second(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

/// Puts things where agents and control planes put them.
struct Filler {
    server: Server,
    webhook: v1::Webhook,
    shard: ShardId,
    number: u64,
}

impl Filler {
    async fn new() -> Self {
        let mut server = serve().await;
        let webhook = server.create("a", valid()).await;
        let (account, id) = (AccountId::new("1010").unwrap(), WebhookId::new("a").unwrap());
        let shard = postrider_common::shard::of(&account, &id, NonZeroU16::new(64).unwrap());
        Self {
            server,
            webhook,
            shard,
            number: 0,
        }
    }

    async fn put(&self, key: Key, value: bytes::Bytes) {
        let write = Write {
            guards: Vec::new(),
            ops: vec![Op::put(key, value)],
        };
        self.server.store.write(write).await.unwrap();
    }

    fn segment(&self, event: Event, state: DeliveryState) -> Segment {
        Segment {
            events: vec![Arc::new(event)],
            targets: vec![Target {
                account: AccountId::new("1010").unwrap(),
                webhook: WebhookId::new("a").unwrap(),
                webhook_uid: Uid::new(&self.webhook.uid).unwrap(),
                webhook_revision: Revision(1),
                deliveries: vec![Delivery { event: 0, state }],
            }],
            batch: None,
        }
    }

    async fn pending(&mut self, event: Event) {
        self.number += 1;
        let segment = self.segment(event, DeliveryState::default());
        self.put(key::segment(self.shard, "p", self.number), pack(segment))
            .await;
    }

    async fn parked(&mut self, event: Event, state: DeliveryState, kind: ParkedKind) {
        let at = self.at(state.due, kind);
        let segment = self.segment(event, state);
        self.put(key::parked_segment(&at), pack(segment)).await;
    }

    async fn dead(&mut self, event: Event, state: DeliveryState) {
        let at = self.at(state.due, ParkedKind::Single);
        let segment = self.segment(event, state);
        self.put(key::dead_segment(&at), pack(segment)).await;
    }

    fn at(&mut self, due: Timestamp, kind: ParkedKind) -> Parked {
        self.number += 1;
        Parked {
            shard: self.shard,
            account: AccountId::new("1010").unwrap(),
            webhook: WebhookId::new("a").unwrap(),
            due,
            epoch: 1,
            number: self.number,
            count: 1,
            kind,
        }
    }

    async fn told(&mut self, event: &Event, number: u32, fate: Fate, attempt: Option<Attempt>) {
        self.number += 1;
        let mut chapter = Chapter::default();
        let of = (
            AccountId::new("1010").unwrap(),
            WebhookId::new("a").unwrap(),
            Uid::new(&self.webhook.uid).unwrap(),
        );
        let time = event.accept_time + Duration::from_secs(number.into());
        let attempt = attempt.map(|attempt| Attempt { number, ..attempt });
        chapter.open(Told::new(of, time, attempt));
        chapter.carry(Carried {
            event: event.id.clone(),
            name: event.name.clone(),
            timestamp: event.timestamp,
            accept_time: event.accept_time,
            fate,
        });
        let at = key::History {
            shard: self.shard,
            time,
            epoch: 1,
            number: self.number,
            bytes: 1,
        };
        self.put(key::history_segment(&at), pack_history(chapter.iter(), 0))
            .await;
    }

    async fn owned(&self) {
        let owner = pb::Owner {
            agent: "agent-7".into(),
        };
        self.put(key::owner(self.shard), encode(&owner)).await;
    }

    async fn get(&mut self, event: &str) -> v1::Delivery {
        let request = v1::GetDeliveryRequest {
            name: names(event),
            view: v1::delivery::View::Full.into(),
        };
        self.server.deliveries.get_delivery(request).await.unwrap().into_inner()
    }

    async fn explain(&mut self, event: &str) -> v1::ExplainDeliveryResponse {
        let request = v1::ExplainDeliveryRequest { name: names(event) };
        self.server
            .deliveries
            .explain_delivery(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn listed(&mut self, request: v1::ListDeliveriesRequest) -> Vec<String> {
        let request = v1::ListDeliveriesRequest {
            parent: PARENT.into(),
            ..request
        };
        let page = self
            .server
            .deliveries
            .list_deliveries(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(page.next_page_token, "");
        page.deliveries.into_iter().map(|delivery| delivery.event_id).collect()
    }

    async fn set_active(&mut self, active: bool) {
        let request = v1::UpdateWebhookRequest {
            webhook: Some(v1::Webhook {
                name: PARENT.into(),
                active: Some(active),
                ..v1::Webhook::default()
            }),
            update_mask: mask(&["active"]),
            validate_only: false,
        };
        self.server.webhooks.update_webhook(request).await.unwrap();
    }
}

fn event(id: &str, accepted: i64) -> Event {
    let accept_time = Timestamp::from_millis(accepted * 1000);
    Event {
        account: AccountId::new("1010").unwrap(),
        id: EventId::new(id).unwrap(),
        name: EventName::new(if id.contains('x') { "OTHER" } else { "COURSE_E" }).unwrap(),
        timestamp: accept_time,
        ordering_key: None,
        expire_time: None,
        not_before_time: None,
        event_info: None,
        data: "{\"secret\":7}".into(),
        accept_time,
        traceparent: None,
        category: Category::default(),
    }
}

fn failed_once(due: Timestamp) -> DeliveryState {
    DeliveryState {
        attempts: 1,
        due,
        reason: "STATUS".into(),
        status: Some(503),
        alone: true,
        ..DeliveryState::default()
    }
}

fn failed(status: u16) -> Attempt {
    Attempt {
        status: Some(status),
        reason: "STATUS".into(),
        duration: Duration::from_millis(12),
        address: Some("127.0.0.1:80".parse().unwrap()),
        secrets: vec!["s-1".into()],
        generation: 3,
        answer: Some(Box::new(Answer {
            headers: vec![("retry-after".into(), "x".into())],
            body: "no".into(),
            truncated: true,
        })),
        ..Attempt::default()
    }
}

#[tokio::test]
async fn deliveries_are_found_where_they_stand_with_all_that_is_known() {
    let mut filler = Filler::new().await;
    filler.pending(event("p", 10)).await;
    let due = Timestamp::from_millis(4_000_000_000_000);
    filler
        .parked(event("w", 20), failed_once(due), ParkedKind::Single)
        .await;
    filler
        .told(&event("w", 20), 1, Fate::Waiting(due), Some(failed(503)))
        .await;
    filler
        .dead(event("d", 30), failed_once(Timestamp::from_millis(99_000)))
        .await;
    let taken = Attempt {
        status: Some(204),
        ..Attempt::default()
    };
    filler.told(&event("t", 40), 2, Fate::Delivered, Some(taken)).await;
    filler
        .told(&event("c", 50), 1, Fate::Dropped("CANCELLED".into()), None)
        .await;
    let pending = filler.get("p").await;
    assert_eq!((pending.state(), pending.attempts), (State::Pending, 0));
    assert_eq!(pending.name, names("p"));
    let body = pending.event.unwrap().body.unwrap();
    assert_eq!(body, v1::event::Body::DataJson("{\"secret\":7}".into()));
    let waiting = filler.get("w").await;
    assert_eq!(
        (waiting.state(), waiting.attempts, waiting.status_code),
        (State::Waiting, 1, 503)
    );
    assert_eq!(
        (waiting.reason.as_str(), waiting.next_attempt_time.unwrap().seconds),
        ("STATUS", 4_000_000_000)
    );
    let dead = filler.get("d").await;
    assert_eq!((dead.state(), dead.end_time.unwrap().seconds), (State::Dead, 99));
    let delivered = filler.get("t").await;
    assert_eq!(
        (delivered.state(), delivered.attempts, delivered.status_code),
        (State::Delivered, 2, 204)
    );
    assert_eq!((delivered.reason.as_str(), delivered.event), ("", None));
    let dropped = filler.get("c").await;
    assert_eq!(
        (dropped.state(), dropped.reason.as_str()),
        (State::Dropped, "CANCELLED")
    );
    let request = v1::ListAttemptsRequest {
        parent: names("w"),
        ..Default::default()
    };
    let attempts = filler
        .server
        .deliveries
        .list_attempts(request)
        .await
        .unwrap()
        .into_inner()
        .attempts;
    let [attempt] = &attempts[..] else {
        panic!("{attempts:?}")
    };
    assert_eq!(
        (attempt.number, attempt.status_code, attempt.reason.as_str()),
        (1, 503, "STATUS")
    );
    assert_eq!(
        (attempt.address.as_str(), attempt.response_body.as_str()),
        ("127.0.0.1:80", "no")
    );
    assert_eq!(
        (attempt.webhook_generation, &attempt.secret_ids[..]),
        (3, &["s-1".to_owned()][..])
    );
    assert_eq!(attempt.duration.unwrap().nanos, 12_000_000);
    assert!(attempt.response_truncated);
    let [result] = &attempt.results[..] else {
        panic!("{attempt:?}")
    };
    assert_eq!(
        (result.delivery.as_str(), result.state()),
        (names("w").as_str(), State::Waiting)
    );
    let request = v1::ListDeadLettersRequest {
        parent: PARENT.into(),
        ..Default::default()
    };
    let page = filler
        .server
        .deliveries
        .list_dead_letters(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(page.dead_letters.len(), 1);
    assert_eq!(
        (page.dead_letters[0].event_id.as_str(), &page.dead_letters[0].event),
        ("d", &None)
    );
    let request = v1::ListDeadLettersRequest {
        view: v1::delivery::View::Full.into(),
        ..request
    };
    let page = filler
        .server
        .deliveries
        .list_dead_letters(request)
        .await
        .unwrap()
        .into_inner();
    assert!(page.dead_letters[0].event.is_some());
}

#[tokio::test]
async fn a_filter_chooses_by_state_type_event_and_time_of_acceptance() {
    let mut filler = Filler::new().await;
    filler.pending(event("p", 10)).await;
    filler.pending(event("px", 11)).await;
    filler
        .dead(event("d", 20), failed_once(Timestamp::from_millis(99_000)))
        .await;
    filler
        .told(&event("t", 30), 1, Fate::Delivered, Some(Attempt::default()))
        .await;
    filler
        .told(&event("tx", 31), 1, Fate::Delivered, Some(Attempt::default()))
        .await;
    let all = v1::ListDeliveriesRequest::default;
    assert_eq!(filler.listed(all()).await, ["p", "px", "d", "tx", "t"]);
    let states = |states: &[State]| v1::ListDeliveriesRequest {
        states: states.iter().map(|state| (*state).into()).collect(),
        ..all()
    };
    assert_eq!(
        filler.listed(states(&[State::Delivered, State::Dead])).await,
        ["d", "tx", "t"]
    );
    // An enum that is left out in JSON is no filter.
    assert_eq!(filler.listed(states(&[State::Unspecified])).await.len(), 5);
    let types = |types: &[&str]| v1::ListDeliveriesRequest {
        event_types: types.iter().map(ToString::to_string).collect(),
        ..all()
    };
    assert_eq!(filler.listed(types(&["OTHER"])).await, ["px", "tx"]);
    assert_eq!(filler.listed(types(&["COURSE_*", "OTHER"])).await.len(), 5);
    let one = v1::ListDeliveriesRequest {
        event_id: "tx".into(),
        ..all()
    };
    assert_eq!(filler.listed(one).await, ["tx"]);
    let between = v1::ListDeliveriesRequest {
        start_time: second(11),
        end_time: second(31),
        ..all()
    };
    assert_eq!(filler.listed(between).await, ["px", "d", "t"]);
}

#[tokio::test]
async fn a_page_token_belongs_to_its_filter_and_a_page_may_be_of_another_size() {
    let mut filler = Filler::new().await;
    for number in 0..5 {
        filler.pending(event(&format!("p-{number}"), number)).await;
    }
    let request = v1::ListDeliveriesRequest {
        parent: PARENT.into(),
        page_size: 2,
        ..Default::default()
    };
    let client = &mut filler.server.deliveries;
    let first = client.list_deliveries(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.deliveries.len(), 2);
    let next = v1::ListDeliveriesRequest {
        page_token: first.next_page_token,
        page_size: 3,
        ..request
    };
    let second = client.list_deliveries(next.clone()).await.unwrap().into_inner();
    assert_eq!((second.deliveries.len(), second.next_page_token.as_str()), (3, ""));
    let other = v1::ListDeliveriesRequest {
        states: vec![State::Pending.into()],
        ..next
    };
    let status = client.list_deliveries(other).await.unwrap_err();
    assert_eq!(mistakes(&status), [("page_token".to_owned(), "MALFORMED".to_owned())]);
}

#[tokio::test]
async fn of_several_deliveries_of_one_name_one_that_has_not_ended_is_shown_else_the_last() {
    let mut filler = Filler::new().await;
    filler
        .told(&event("e", 10), 1, Fate::Delivered, Some(Attempt::default()))
        .await;
    filler
        .told(&event("e", 50), 1, Fate::Delivered, Some(Attempt::default()))
        .await;
    assert_eq!(filler.get("e").await.accept_time, second(50));
    filler
        .dead(event("e", 60), failed_once(Timestamp::from_millis(99_000)))
        .await;
    assert_eq!(filler.get("e").await.state(), State::Dead);
    filler.pending(event("e", 5)).await;
    assert_eq!(filler.get("e").await.state(), State::Pending);
    let listed = filler.listed(v1::ListDeliveriesRequest::default()).await;
    assert_eq!(listed, ["e", "e", "e", "e"]);
}

#[tokio::test]
async fn a_dead_letter_that_is_no_longer_kept_is_known_from_the_history() {
    let mut filler = Filler::new().await;
    filler.told(&event("e", 10), 1, Fate::Dead("AGE".into()), None).await;
    let dead = filler.get("e").await;
    assert_eq!((dead.state(), dead.reason.as_str()), (State::Dead, "AGE"));
    assert!(filler.listed(v1::ListDeliveriesRequest::default()).await.is_empty());
}
