//! Several events in one request: what is frozen stays as it is, what was taken in part does not come again, what is gathered goes together.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use postrider_proto::v1::delivery_options::Mode;
use postrider_proto::v1::event_type::Category;
use postrider_proto::v1::{CreateEventTypeRequest, DeliveryOptions, EventType, Webhook};
use postrider_tests::receiver::{Answer, Received};
use postrider_tests::wait;

use super::{World, ids, name, path, refusal};
use crate::commands::HOUR;
use crate::{ACCOUNT, FLOW, SOON};

/// Requests that were taken before the agents died: the one that was taken in part.
pub(super) const TAKEN_BEFORE: usize = 1;

/// Events that share requests.
const SHARED: usize = 31;

/// Events that are gathered.
const GATHERED: usize = 10;

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

pub(super) async fn set_up(world: &World) {
    set_up_partial(world).await;
    set_up_shared(world).await;
    set_up_gathered(world).await;
}

pub(super) async fn look(world: &World) {
    look_at_partial(world).await;
    look_at_shared(world).await;
    look_at_gathered(world).await;
}

/// A batch is taken in part, and what is left of it is refused.
async fn set_up_partial(world: &World) {
    let batches = Webhook {
        delivery: Some(DeliveryOptions {
            mode: Mode::Batch.into(),
            max_delay: Some(seconds(1)),
            ..DeliveryOptions::default()
        }),
        ..world.plain("partial")
    };
    let part = Answer::status(StatusCode::MULTI_STATUS).saying("{\"failed\":[\"partial-2\",\"partial-5\"]}");
    world.create("partial", batches, [part, refusal()]).await;
    world.publish("partial", 0, 8).await;
    world.until_tried("partial", 3).await;
}

async fn look_at_partial(world: &World) {
    world.takes("partial");
    world.until_taken("partial", 2).await;
    let requests = world.requests("partial");
    assert_eq!(ids(&requests[0]).len(), 8);
    for rest in &requests[1..] {
        assert_eq!(ids(rest), ["partial-2", "partial-5"]);
        assert_eq!(rest.header("webhook-id"), requests[1].header("webhook-id"));
    }
    assert_ne!(requests[0].header("webhook-id"), requests[1].header("webhook-id"));
    assert_frozen(&requests);
}

/// Events that wait for an earlier one go together, and are refused.
async fn set_up_shared(world: &World) {
    let sharing = Webhook {
        delivery: Some(DeliveryOptions {
            max_events: 50,
            max_in_flight: 1,
            ..DeliveryOptions::default()
        }),
        ..world.plain("shared")
    };
    world.create("shared", sharing, [refusal()]).await;
    world.publish("shared", 0, 1).await;
    world.publish("shared", 1, SHARED).await;
    world
        .receiver
        .until("a request of several events", SOON, |log| {
            log.of(&path("shared")).into_iter().any(|one| ids(one).len() > 1)
        })
        .await;
}

async fn look_at_shared(world: &World) {
    world.takes("shared");
    world
        .receiver
        .until("all events", FLOW, |log| {
            let taken = log
                .of(&path("shared"))
                .into_iter()
                .filter(|one| one.status.is_success());
            taken.flat_map(ids).collect::<BTreeSet<_>>().len() == SHARED
        })
        .await;
    let requests = world.requests("shared");
    assert_frozen(&requests);
    let taken: Vec<String> = world.taken("shared").iter().flat_map(ids).collect();
    assert_eq!(taken.len(), SHARED, "none came twice");
    let before = |one: &&Received| one.arrived <= world.killed && ids(one).len() > 1;
    let frozen = requests.iter().find(before).expect("it was waited for");
    assert!(
        world.taken("shared").iter().any(|one| one.body == frozen.body),
        "what was sent together came together"
    );
}

/// Events of a type that is not urgent wait for each other.
async fn set_up_gathered(world: &World) {
    let request = CreateEventTypeRequest {
        event_type_id: name("nightly"),
        event_type: Some(EventType {
            category: Category::NonRealTime.into(),
            ..EventType::default()
        }),
        ..CreateEventTypeRequest::default()
    };
    world.client.event_types().create_event_type(request).await.unwrap();
    let gathering = Webhook {
        delivery: Some(DeliveryOptions {
            max_delay: Some(HOUR),
            ..DeliveryOptions::default()
        }),
        ..world.plain("nightly")
    };
    world.create("nightly", gathering, [refusal()]).await;
    world.publish("nightly", 0, GATHERED).await;
    wait::until("the events to be gathered", SOON, async || {
        let standing = world.cluster.standing(ACCOUNT, "nightly").await;
        (standing.parked == GATHERED).then_some(())
    })
    .await;
}

async fn look_at_gathered(world: &World) {
    assert!(world.requests("nightly").is_empty(), "their time has not come");
    world.takes("nightly");
    let sooner = Webhook {
        delivery: Some(DeliveryOptions {
            max_delay: Some(seconds(1)),
            ..DeliveryOptions::default()
        }),
        ..Webhook::default()
    };
    world.update("nightly", sooner, &["delivery.max_delay"]).await;
    world.until_taken("nightly", 1).await;
    let requests = world.requests("nightly");
    let wanted: Vec<String> = (0..GATHERED).map(|number| format!("nightly-{number}")).collect();
    assert_eq!(requests.iter().map(ids).collect::<Vec<_>>(), [wanted]);
}

/// All requests of one id have the same body.
fn assert_frozen(requests: &[Received]) {
    let mut bodies: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for request in requests {
        let id = request.header("webhook-id");
        let first = bodies.entry(id).or_insert(&request.body);
        assert_eq!(*first, request.body, "{id} had another body before");
    }
}
