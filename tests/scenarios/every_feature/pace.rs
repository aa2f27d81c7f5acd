//! When requests go, and when they do not: a breaker, a receiver that asks to be left alone, a retired webhook, an event that expires.

use std::time::Duration;

use http::StatusCode;
use postrider_common::time::{Clock as _, SystemClock};
use postrider_proto::v1::webhook::WhenInactive;
use postrider_proto::v1::{DeliveryOptions, Webhook};
use postrider_tests::receiver::Answer;
use postrider_tests::wait;

use super::{World, numbered, refusal, taken};
use crate::{ACCOUNT, FLOW, SOON};

/// Dead letters in the end: the event that expires.
pub(super) const DEAD: i64 = 1;

/// Events behind a breaker.
const BACKLOG: usize = 200;

/// Requests that a receiver which is down may get of one agent: 32 under way at once, and some probes.
const TRIED: usize = 60;

/// Events of a webhook that is retired, or asks to be left alone.
const EVENTS: usize = 5;

/// How long a receiver asks to be left alone: until long after the shard has another owner.
const REST: Duration = Duration::from_secs(25);

/// When an event expires: before the shard has another owner, whose predecessor's lease runs out no sooner than three seconds after its death.
const EXPIRES: Duration = Duration::from_secs(2);

pub(super) async fn set_up(world: &World) {
    let down = Answer::status(StatusCode::INTERNAL_SERVER_ERROR);
    world.create("breaker", world.plain("breaker"), [down]).await;
    world.publish("breaker", 0, BACKLOG).await;
    // The last of these are probes.
    world.until_tried("breaker", 34).await;

    let held = Webhook {
        when_inactive: WhenInactive::Hold.into(),
        ..world.plain("held")
    };
    world.create("held", held, [taken()]).await;
    world.update("held", active(false), &["active"]).await;
    world.publish("held", 0, EVENTS).await;
    wait::until("the events to be held", SOON, async || {
        (world.cluster.standing(ACCOUNT, "held").await.parked == EVENTS).then_some(())
    })
    .await;
}

/// What holds for some seconds only.
pub(super) async fn set_up_what_is_short(world: &World) {
    let one_by_one = Webhook {
        delivery: Some(DeliveryOptions {
            max_in_flight: 1,
            ..DeliveryOptions::default()
        }),
        ..world.plain("later")
    };
    let later = Answer::status(StatusCode::TOO_MANY_REQUESTS).with("retry-after", &REST.as_secs().to_string());
    world.create("later", one_by_one, [later, taken()]).await;
    world.create("expiring", world.plain("expiring"), [refusal()]).await;
    world.publish("later", 0, EVENTS).await;
    wait::until("the refused one to be parked", SOON, async || {
        (world.cluster.standing(ACCOUNT, "later").await.parked > 0).then_some(())
    })
    .await;
    let mut events = vec![numbered("expiring", 0), numbered("expiring", 1)];
    let expires = SystemClock.now() + EXPIRES;
    events[1].expire_time = Some(prost_types::Timestamp {
        seconds: expires.as_seconds(),
        nanos: i32::try_from(expires.as_millis().rem_euclid(1000)).unwrap() * 1_000_000,
    });
    world.client.publish(ACCOUNT, events).await;
    world.until_tried("expiring", 2).await;
}

fn active(active: bool) -> Webhook {
    Webhook {
        active: Some(active),
        ..Webhook::default()
    }
}

pub(super) async fn look(world: &World) {
    look_at_breaker(world).await;
    assert!(world.requests("held").is_empty(), "nothing is sent while it is retired");
    world.update("held", active(true), &["active"]).await;
    world.until_taken("held", EVENTS).await;
    look_at_expiring(world).await;
    look_at_later(world).await;
}

async fn look_at_breaker(world: &World) {
    let requests = world.requests("breaker");
    let before = requests.iter().filter(|one| one.arrived <= world.killed).count();
    // Enough for the next agent to find out.
    world.until_tried("breaker", before + 6).await;
    let tried = world.requests("breaker").len() - before;
    assert!(
        before <= TRIED && tried <= TRIED,
        "{before} and {tried} requests to a receiver that is down"
    );
    world.takes("breaker");
    world.until_taken("breaker", BACKLOG).await;
}

async fn look_at_expiring(world: &World) {
    wait::until("the event to be dead", FLOW, async || {
        (world.cluster.standing(ACCOUNT, "expiring").await.dead == 1).then_some(())
    })
    .await;
    world.takes("expiring");
    world.until_taken("expiring", 1).await;
    let requests = world.requests("expiring");
    let mut since = requests.iter().filter(|one| one.arrived > world.killed);
    assert!(
        since.all(|one| one.header("webhook-id") == "expiring-0"),
        "it was sent though it had expired"
    );
}

async fn look_at_later(world: &World) {
    world.until_taken("later", EVENTS).await;
    let requests = world.requests("later");
    let asked = requests[0].arrived;
    for request in &requests[1..] {
        let rested = request.arrived.duration_since(asked);
        // Times are cut to milliseconds.
        assert!(
            rested + Duration::from_millis(10) >= REST,
            "it was left alone for {rested:?} only"
        );
    }
}
