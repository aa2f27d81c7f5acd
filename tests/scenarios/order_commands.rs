//! Commands about ordered webhooks whose agents are killed over them: what is decided stays decided, the order is kept, and the line goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use http::StatusCode;
use postrider_proto::v1::delivery_options::{OnFailure, Ordering};
use postrider_proto::v1::{CancelDeliveryRequest, RedriveDeadLettersRequest, RetryDeliveryRequest, Webhook};
use postrider_tests::client::Client;
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Receiver};
use postrider_tests::wait;

use crate::accounting::{assert_adds_up, counts_of, usage};
use crate::commands::patient;
use crate::order::{assert_in_order, numbers, ordered, per_key, publish, seen, strict, with};
use crate::{ACCOUNT, FLOW, SOON};

/// What an administrator does about the delivery that all others wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Retry,
    Cancel,
}

/// The webhooks: how they keep an order, and what is done about the first event of each.
const BLOCKED: [(&str, Ordering, Wish); 4] = [
    ("strict-retry", Ordering::Strict, Wish::Retry),
    ("strict-cancel", Ordering::Strict, Wish::Cancel),
    ("keys-retry", Ordering::PerKey, Wish::Retry),
    ("keys-cancel", Ordering::PerKey, Wish::Cancel),
];

/// How long a receiver takes that answers after its agent has died. Nobody waits for it.
const LONG: Duration = Duration::from_secs(30);

async fn tell(client: &Client, webhook: &str, event: &str, wish: Wish) {
    let name = format!("accounts/{ACCOUNT}/webhooks/{webhook}/deliveries/{event}");
    match wish {
        Wish::Retry => {
            let request = RetryDeliveryRequest { name };
            client.deliveries().retry_delivery(request).await.expect("it is tried");
        }
        Wish::Cancel => {
            let request = CancelDeliveryRequest { name };
            client
                .deliveries()
                .cancel_delivery(request)
                .await
                .expect("it is dropped");
        }
    }
}

/// The numbers of what a path has taken, in the order of arrival.
fn taken_in_turn(receiver: &Receiver, path: &str) -> Vec<usize> {
    let log = receiver.log();
    let taken = log.of(path).into_iter().filter(|request| request.status.is_success());
    taken.flat_map(numbers).collect()
}

fn event_name(webhook: &str) -> String {
    webhook.to_uppercase().replace('-', "_")
}

/// Kills all agents, and starts others.
async fn change_agents(cluster: &mut Cluster) {
    while !cluster.agents.is_empty() {
        cluster.kill_agent(0).await;
    }
    for _ in 0..2 {
        cluster.add_agent().await;
    }
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_about_a_delivery_stands_though_its_owner_is_killed_right_after_the_answer() {
    const EVENTS: usize = 40;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    // The first attempt is refused, the second is never answered: its agent dies under it.
    let answers = || {
        let lost = Answer::status(StatusCode::SERVICE_UNAVAILABLE).after(LONG);
        let refused = Answer::status(StatusCode::UNPROCESSABLE_ENTITY);
        [refused, lost, Answer::status(StatusCode::OK)]
    };
    for (id, ordering, _) in BLOCKED {
        let (path, name) = (format!("/{id}"), event_name(id));
        let blocking = with(
            &receiver.url(&path),
            &name,
            1,
            ordered(ordering, OnFailure::Unspecified, 0),
        );
        client.create_webhook(ACCOUNT, id, blocking).await;
        cluster.matching(ACCOUNT, &name, 1).await;
        receiver.script(&path, answers());
        publish(&client, &name, 0, 1).await;
    }
    // One without an order, which waits for an hour.
    client
        .create_webhook(ACCOUNT, "w", patient(&receiver.url("/w"), 0))
        .await;
    cluster.matching(ACCOUNT, "A", 1).await;
    receiver.script("/w", answers());
    publish(&client, "A", 0, 1).await;
    let names = BLOCKED.map(|(id, ..)| id).into_iter().chain(["w"]);
    for id in names.clone() {
        wait::until("the first to have failed", SOON, async || {
            (cluster.standing(ACCOUNT, id).await.parked == 1).then_some(())
        })
        .await;
    }
    for (id, ordering, _) in BLOCKED {
        if ordering == Ordering::PerKey {
            // Other keys take their turn: what is still to come is for the key that waits.
            receiver.script(&format!("/{id}"), [Answer::status(StatusCode::OK)]);
        }
        publish(&client, &event_name(id), 1, EVENTS).await;
    }
    let others = (1..EVENTS).filter(|number| per_key(*number) != Some(0)).count();
    receiver
        .until("the other keys", SOON, |log| {
            ["/keys-retry", "/keys-cancel"]
                .iter()
                .all(|path| log.of(path).len() > others)
        })
        .await;
    for (id, _, wish) in BLOCKED {
        let lost = Answer::status(StatusCode::SERVICE_UNAVAILABLE).after(LONG);
        receiver.script(&format!("/{id}"), [lost, Answer::status(StatusCode::OK)]);
        tell(&client, id, &format!("{}-0", event_name(id)), wish).await;
    }
    tell(&client, "w", "A-0", Wish::Retry).await;
    change_agents(&mut cluster).await;

    for (id, ordering, wish) in BLOCKED {
        let dropped = usize::from(wish == Wish::Cancel);
        wait::until("the line to go on to its end", FLOW, async || {
            let usage = usage(&client).await;
            assert_adds_up(&usage);
            let counts = counts_of(&usage, id);
            (usize::try_from(counts.delivered) == Ok(EVENTS - dropped)).then_some(())
        })
        .await;
        let path = format!("/{id}");
        let line = |number: usize| {
            let line = match ordering {
                Ordering::PerKey => per_key(number),
                Ordering::Strict | Ordering::None | Ordering::Unspecified => strict(number),
            };
            line.filter(|_| number >= dropped)
        };
        let tries = seen(&receiver, &path).into_iter().filter(|number| *number == 0).count();
        match wish {
            Wish::Retry => {
                assert_in_order(&receiver, &path, line);
                assert!((2..=3).contains(&tries), "{id}: {tries} attempts");
            }
            Wish::Cancel => {
                assert_in_order(&receiver, &path, line);
                assert_eq!(tries, 1, "{id}: it was sent though it was dropped");
            }
        }
    }
    receiver
        .until("what waited for an hour", SOON, |log| log.has("/w", "A-0"))
        .await;
    cluster.drained(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_redriven_goes_before_what_was_accepted_since_though_its_owner_is_killed_amid_it() {
    const DEAD: usize = 400;
    const EVENTS: usize = DEAD + 40;
    for ordering in [Ordering::Strict, Ordering::PerKey] {
        let mut cluster = Cluster::start().await;
        let receiver = Receiver::start();
        let client = cluster.client(0);
        let webhook: Webhook = with(&receiver.url("/w"), "A", 1, ordered(ordering, OnFailure::DeadLetter, 0));
        client.create_webhook(ACCOUNT, "w", webhook).await;
        cluster.matching(ACCOUNT, "A", 1).await;
        receiver.script("/w", [Answer::status(StatusCode::UNPROCESSABLE_ENTITY)]);
        for number in 0..DEAD {
            publish(&client, "A", number, number + 1).await;
        }
        wait::until("all to be dead", FLOW, async || {
            (cluster.standing(ACCOUNT, "w").await.dead == DEAD).then_some(())
        })
        .await;
        receiver.script("/w", [Answer::status(StatusCode::OK)]);
        let owner = cluster.owner_of(ACCOUNT, "w").await;
        let request = RedriveDeadLettersRequest {
            parent: format!("accounts/{ACCOUNT}/webhooks/w"),
            ..RedriveDeadLettersRequest::default()
        };
        let redriving = async { client.deliveries().redrive_dead_letters(request).await.unwrap() };
        let killing = async {
            wait::until("the first to be redriven", SOON, async || {
                (cluster.standing(ACCOUNT, "w").await.dead < DEAD).then_some(())
            })
            .await;
            cluster.kill_agent(owner).await;
            let left = cluster.standing(ACCOUNT, "w").await.dead;
            println!("{left} of {DEAD} dead letters were left");
            assert!(0 < left, "it was killed too late");
            // Accepted since: the redrive stands in the store.
            publish(&client, "A", DEAD, EVENTS).await;
        };
        tokio::join!(redriving, killing);
        receiver.until("all events", FLOW, |log| log.distinct() == EVENTS).await;
        cluster.drained(SOON).await;
        let numbers = taken_in_turn(&receiver, "/w");
        let before = |number: usize| match ordering {
            Ordering::PerKey => per_key(number),
            Ordering::Strict | Ordering::None | Ordering::Unspecified => strict(number),
        };
        // Of each line, all that was redriven comes before the first that was accepted since.
        let lines: BTreeSet<usize> = (0..EVENTS).filter_map(before).collect();
        for line in lines {
            let of_line: Vec<usize> = numbers
                .iter()
                .copied()
                .filter(|number| before(*number) == Some(line))
                .collect();
            let new = of_line
                .iter()
                .position(|number| *number >= DEAD)
                .expect("there are some");
            let late = of_line[new..].iter().filter(|number| **number < DEAD).count();
            assert_eq!(
                late, 0,
                "{ordering:?}: of line {line} some came after what was accepted since"
            );
        }
        assert_adds_up(&usage(&client).await);
    }
}
