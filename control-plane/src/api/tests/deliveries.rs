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

const PARENT: &str = "accounts/1010/webhooks/a";

fn names(event: &str) -> String {
    format!("{PARENT}/deliveries/{event}")
}

fn second(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

#[tokio::test]
async fn bad_names_are_refused_by_every_method() {
    let mut server = serve().await;
    for (text, expected) in [
        ("", "REQUIRED"),
        ("accounts/1010", "MALFORMED"),
        ("accounts/1010/webhooks/a/", "MALFORMED"),
        ("accounts/1010/webhooks/A", "MALFORMED"),
        ("accounts/1010/webhooks/a/deliveries/", "MALFORMED"),
        ("accounts/1010/webhooks/a/deliveries/a.b", "MALFORMED"),
        ("accounts/1010/webhooks/a/deliveries/a/b", "MALFORMED"),
        ("accounts/-/webhooks/a/deliveries/a", "MALFORMED"),
    ] {
        let wrong = |field: &str, status: Status| {
            assert_eq!(mistakes(&status), [(field.to_owned(), expected.to_owned())], "{text}");
        };
        let client = &mut server.deliveries;
        let parent = text.to_owned();
        let request = v1::ListDeliveriesRequest {
            parent: parent.clone(),
            ..Default::default()
        };
        wrong("parent", client.list_deliveries(request).await.unwrap_err());
        let request = v1::ListDeadLettersRequest {
            parent: parent.clone(),
            ..Default::default()
        };
        wrong("parent", client.list_dead_letters(request).await.unwrap_err());
        let request = v1::ListAttemptsRequest {
            parent: parent.clone(),
            ..Default::default()
        };
        wrong("parent", client.list_attempts(request).await.unwrap_err());
        let request = v1::GetDeliveryRequest {
            name: parent.clone(),
            view: 0,
        };
        wrong("name", client.get_delivery(request).await.unwrap_err());
        let request = v1::ExplainDeliveryRequest { name: parent.clone() };
        wrong("name", client.explain_delivery(request).await.unwrap_err());
        if text != "accounts/1010" {
            let request = v1::WatchAttemptsRequest {
                parent,
                ..Default::default()
            };
            wrong("parent", client.watch_attempts(request).await.unwrap_err());
        }
    }
}

#[tokio::test]
async fn bad_filters_are_refused_with_all_their_mistakes_at_once() {
    type Change = Box<dyn Fn(&mut v1::ListDeliveriesRequest)>;
    let rows: Vec<(Change, &str, &str)> = vec![
        (
            Box::new(|request| request.states = vec![1, 17]),
            "states[1]",
            "UNKNOWN_VALUE",
        ),
        (
            Box::new(|request| request.states = vec![-1]),
            "states[0]",
            "UNKNOWN_VALUE",
        ),
        (
            Box::new(|request| request.event_types = vec!["A".into(), "A*B".into()]),
            "event_types[1]",
            "MALFORMED",
        ),
        (
            Box::new(|request| request.event_types = vec![String::new()]),
            "event_types[0]",
            "MALFORMED",
        ),
        (
            Box::new(|request| request.event_types = vec!["A".into(); 51]),
            "event_types",
            "TOO_MANY",
        ),
        (
            Box::new(|request| request.event_id = "a.b".into()),
            "event_id",
            "MALFORMED",
        ),
        (
            Box::new(|request| request.event_id = "a".repeat(65)),
            "event_id",
            "MALFORMED",
        ),
        (
            Box::new(|request| request.start_time = second(-1)),
            "start_time",
            "OUT_OF_RANGE",
        ),
        (
            Box::new(|request| request.end_time = second(i64::MAX)),
            "end_time",
            "OUT_OF_RANGE",
        ),
        (
            Box::new(|request| {
                request.start_time = Some(prost_types::Timestamp {
                    seconds: 1,
                    nanos: 1_000_000_000,
                })
            }),
            "start_time",
            "OUT_OF_RANGE",
        ),
        (
            Box::new(|request| (request.start_time, request.end_time) = (second(7), second(7))),
            "end_time",
            "INCOMPATIBLE",
        ),
        (Box::new(|request| request.page_size = -1), "page_size", "OUT_OF_RANGE"),
    ];
    let mut server = serve().await;
    server.create("a", valid()).await;
    let mut all = v1::ListDeliveriesRequest::default();
    for (change, field, reason) in &rows {
        let mut request = v1::ListDeliveriesRequest {
            parent: PARENT.into(),
            ..Default::default()
        };
        change(&mut request);
        let status = server.deliveries.list_deliveries(request).await.unwrap_err();
        assert_eq!(mistakes(&status), [((*field).to_owned(), (*reason).to_owned())]);
        change(&mut all);
    }
    let status = server.deliveries.list_deliveries(all).await.unwrap_err();
    let fields: Vec<String> = mistakes(&status).into_iter().map(|(field, _)| field).collect();
    assert_eq!(
        fields,
        [
            "parent",
            "states[0]",
            "end_time",
            "event_types",
            "event_id",
            "page_size"
        ]
    );
}

#[tokio::test]
async fn other_bad_fields_are_refused() {
    let mut server = serve().await;
    server.create("a", valid()).await;
    let client = &mut server.deliveries;
    let wrong = |status: Status, expected: &[(&str, &str)]| {
        let found = mistakes(&status);
        let found: Vec<(&str, &str)> = found.iter().map(|(field, reason)| (&**field, &**reason)).collect();
        assert_eq!(found, expected);
    };
    let request = v1::GetDeliveryRequest {
        name: names("e"),
        view: 3,
    };
    wrong(
        client.get_delivery(request).await.unwrap_err(),
        &[("view", "UNKNOWN_VALUE")],
    );
    let request = v1::ListDeadLettersRequest {
        parent: PARENT.into(),
        view: -1,
        page_size: -2,
        ..Default::default()
    };
    let expected = [("view", "UNKNOWN_VALUE"), ("page_size", "OUT_OF_RANGE")];
    wrong(client.list_dead_letters(request).await.unwrap_err(), &expected);
    let request = v1::ListAttemptsRequest {
        parent: names("e"),
        page_size: -1,
        ..Default::default()
    };
    wrong(
        client.list_attempts(request).await.unwrap_err(),
        &[("page_size", "OUT_OF_RANGE")],
    );
    let request = v1::WatchAttemptsRequest {
        parent: "accounts/1010".into(),
        event_types: vec!["*A".into()],
        resume_token: "x".into(),
        ..Default::default()
    };
    let expected = [("event_types[0]", "MALFORMED"), ("resume_token", "MALFORMED")];
    wrong(client.watch_attempts(request).await.unwrap_err(), &expected);
    let request = v1::ListDeliveriesRequest {
        parent: PARENT.into(),
        page_token: "x".into(),
        ..Default::default()
    };
    wrong(
        client.list_deliveries(request).await.unwrap_err(),
        &[("page_token", "MALFORMED")],
    );
    let request = v1::ListAttemptsRequest {
        parent: names("e"),
        page_token: "x".into(),
        ..Default::default()
    };
    wrong(
        client.list_attempts(request).await.unwrap_err(),
        &[("page_token", "MALFORMED")],
    );
    let request = v1::ListDeadLettersRequest {
        parent: PARENT.into(),
        page_token: "x".into(),
        ..Default::default()
    };
    wrong(
        client.list_dead_letters(request).await.unwrap_err(),
        &[("page_token", "MALFORMED")],
    );
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let mut server = serve().await;
    let client = &mut server.deliveries;
    let not_found = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    let request = v1::ListDeliveriesRequest {
        parent: PARENT.into(),
        ..Default::default()
    };
    assert_eq!(reason(&client.list_deliveries(request).await.unwrap_err()), not_found);
    let request = v1::ListDeadLettersRequest {
        parent: PARENT.into(),
        ..Default::default()
    };
    assert_eq!(reason(&client.list_dead_letters(request).await.unwrap_err()), not_found);
    let request = v1::ListAttemptsRequest {
        parent: names("e"),
        ..Default::default()
    };
    assert_eq!(reason(&client.list_attempts(request).await.unwrap_err()), not_found);
    let request = v1::ExplainDeliveryRequest { name: names("e") };
    assert_eq!(reason(&client.explain_delivery(request).await.unwrap_err()), not_found);
    server.create("a", valid()).await;
    let client = &mut server.deliveries;
    let request = v1::GetDeliveryRequest {
        name: names("e"),
        view: 0,
    };
    let status = client.get_delivery(request).await.unwrap_err();
    assert_eq!(reason(&status), not_found);
    let details = status.get_error_details();
    assert_eq!(details.resource_info().unwrap().resource_name, names("e"));
    let request = v1::ListAttemptsRequest {
        parent: names("e"),
        ..Default::default()
    };
    assert!(
        client
            .list_attempts(request)
            .await
            .unwrap()
            .into_inner()
            .attempts
            .is_empty()
    );
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

#[tokio::test]
async fn explanations_name_the_one_thing_that_it_comes_down_to() {
    let mut filler = Filler::new().await;
    let now = SystemClock.now();
    let later = now + Duration::from_secs(3_600);
    filler.pending(event("first", 10)).await;
    filler.pending(event("second", 11)).await;
    filler
        .parked(event("failed", 20), failed_once(later), ParkedKind::Single)
        .await;
    filler
        .told(&event("failed", 20), 1, Fate::Waiting(later), Some(failed(503)))
        .await;
    filler
        .parked(
            event("due", 20),
            failed_once(Timestamp::from_millis(1)),
            ParkedKind::Single,
        )
        .await;
    let gathers = DeliveryState {
        due: later,
        ..DeliveryState::default()
    };
    filler
        .parked(event("gathers", 30), gathers.clone(), ParkedKind::Gathering(7))
        .await;
    let early = Event {
        not_before_time: Some(later),
        ..event("early", 30)
    };
    filler.parked(early, gathers, ParkedKind::Single).await;
    filler.dead(event("dead", 40), failed_once(now)).await;
    filler
        .told(
            &event("taken", 50),
            2,
            Fate::Delivered,
            Some(Attempt {
                status: Some(200),
                ..Attempt::default()
            }),
        )
        .await;

    let alone = filler.explain("first").await;
    assert_eq!(alone.cause(), Cause::NoOwner);
    assert_eq!(
        (alone.owner_agent.as_str(), alone.shard),
        ("", i32::from(filler.shard.0))
    );
    filler.owned().await;
    for (event, cause, words) in [
        ("first", Cause::InTurn, "about to send"),
        ("second", Cause::InTurn, "about to send"),
        (
            "failed",
            Cause::Retry,
            "attempt 1 failed (STATUS, status 503): it waits for the next one, not before",
        ),
        ("due", Cause::InTurn, "the next one is due"),
        ("gathers", Cause::Batch, "it goes in a batch"),
        ("early", Cause::NotBefore, "not to be sent before"),
        ("dead", Cause::Dead, "it became a dead letter"),
        ("taken", Cause::Delivered, "with 200, at attempt 2"),
        ("nothing", Cause::Unknown, "nothing is known"),
    ] {
        let explained = filler.explain(event).await;
        assert_eq!(explained.cause(), cause, "{event}");
        assert!(explained.summary.contains(words), "{event}: {}", explained.summary);
        assert_eq!(explained.delivery.is_some(), cause != Cause::Unknown);
        assert_eq!(explained.owner_agent, "agent-7");
        assert_eq!(explained.segments_ahead, i32::from(event == "second"));
    }
    let failed = filler.explain("failed").await;
    let last = "attempt 1 at 1970-01-01T00:00:21Z to 127.0.0.1:80 took 12ms and came to STATUS, status 503";
    assert_eq!(failed.details[0], last);
    filler.set_active(false).await;
    let retired = filler.explain("failed").await;
    assert_eq!(
        (retired.cause(), retired.webhook_state()),
        (Cause::WebhookRetired, v1::webhook::State::Retired)
    );
    let unknown = filler.explain("nothing").await;
    assert!(
        unknown.details.iter().any(|detail| detail.contains("when_inactive")),
        "{:?}",
        unknown.details
    );
    assert_eq!(filler.explain("taken").await.cause(), Cause::Delivered);
}

#[tokio::test]
async fn attempts_are_followed_by_whom_they_concern_and_a_stop_ends_it() {
    let mut filler = Filler::new().await;
    let request = |parent: &str| v1::WatchAttemptsRequest {
        parent: parent.to_owned(),
        ..Default::default()
    };
    let client = &mut filler.server.deliveries;
    let mut all = client
        .watch_attempts(request("accounts/1010"))
        .await
        .unwrap()
        .into_inner();
    let mut one = client.watch_attempts(request(PARENT)).await.unwrap().into_inner();
    let failures = v1::WatchAttemptsRequest {
        failures_only: true,
        event_types: vec!["COURSE_*".into()],
        ..request(PARENT)
    };
    let mut failures = client.watch_attempts(failures).await.unwrap().into_inner();
    let mut others = client
        .watch_attempts(request("accounts/2020"))
        .await
        .unwrap()
        .into_inner();
    let mut tokens = Vec::new();
    for stream in [&mut all, &mut one, &mut failures, &mut others] {
        let first = stream.next().await.unwrap().unwrap();
        assert!(first.attempts.is_empty());
        tokens.push(first.resume_token);
    }
    filler
        .told(&event("t", 10), 1, Fate::Delivered, Some(Attempt::default()))
        .await;
    filler
        .told(
            &event("fx", 11),
            1,
            Fate::Waiting(Timestamp::from_millis(1)),
            Some(failed(500)),
        )
        .await;
    filler
        .told(&event("ended", 11), 1, Fate::Dead("AGE".into()), None)
        .await;
    filler
        .told(
            &event("f", 12),
            1,
            Fate::Waiting(Timestamp::from_millis(1)),
            Some(failed(500)),
        )
        .await;
    let seen = async |stream: &mut tonic::Streaming<v1::WatchAttemptsResponse>, count: usize| {
        let mut ids = Vec::new();
        while ids.len() < count {
            let answer = stream.next().await.unwrap().unwrap();
            ids.extend(answer.attempts.into_iter().map(|attempt| attempt.message_id));
        }
        ids
    };
    assert_eq!(seen(&mut all, 3).await, ["t", "fx", "f"]);
    assert_eq!(seen(&mut one, 3).await, ["t", "fx", "f"]);
    assert_eq!(seen(&mut failures, 1).await, ["f"]);
    // From the first token on, all of it again.
    let again = v1::WatchAttemptsRequest {
        resume_token: tokens[0].clone(),
        ..request("accounts/1010")
    };
    let mut again = filler
        .server
        .deliveries
        .watch_attempts(again)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(seen(&mut again, 3).await, ["t", "fx", "f"]);
    let wrong = v1::WatchAttemptsRequest {
        resume_token: tokens[0].clone(),
        ..request(PARENT)
    };
    let status = filler.server.deliveries.watch_attempts(wrong).await.unwrap_err();
    assert_eq!(mistakes(&status), [("resume_token".to_owned(), "MALFORMED".to_owned())]);
    filler.server.stop.cancel();
    for mut stream in [all, one, failures, others, again] {
        let status = loop {
            match stream.next().await.unwrap() {
                Ok(_) => {}
                Err(status) => break status,
            }
        };
        assert_eq!(reason(&status), (Code::Unavailable, "STOPPING".to_owned()));
    }
}

#[tokio::test]
async fn only_so_many_follow_at_once_and_a_place_is_free_when_one_leaves() {
    let mut server = serve().await;
    let request = || v1::WatchAttemptsRequest {
        parent: "accounts/1010".into(),
        ..Default::default()
    };
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = server.deliveries.watch_attempts(request()).await.unwrap().into_inner();
        stream.next().await.unwrap().unwrap();
        streams.push(stream);
    }
    let status = server.deliveries.watch_attempts(request()).await.unwrap_err();
    assert_eq!(
        reason(&status),
        (Code::ResourceExhausted, "TOO_MANY_WATCHES".to_owned())
    );
    assert!(status.get_error_details().retry_info().is_some());
    streams.clear();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while server.deliveries.watch_attempts(request()).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "no place becomes free");
        tokio::task::yield_now().await;
    }
}
