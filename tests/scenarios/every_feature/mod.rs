//! Every feature of a webhook in one cluster, of which all agents are killed at once: each goes on as if nothing had happened.
//!
//! ```text
//!     set up: webhooks, events ▸ none is delivered ▸ kill -9 ▸ other agents ▸ receivers take what comes ▸ each feature is looked at
//! ```
//!
//! Until the agents are dead the receivers take nothing, so everything that is delivered is the work of agents that have to find out from the store
//! how things stand, and nothing may come twice.

mod pace;
mod several;
mod wire;

use http::StatusCode;
use postrider_proto::v1::{Event, RetryPolicy, UpdateWebhookRequest, Webhook};
use postrider_tests::client::{Client, event, millis, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Received, Receiver};
use tokio::time::Instant;

use crate::accounting::{assert_adds_up, usage};
use crate::{ACCOUNT, FLOW, SOON};

/// One cluster, and the receiver of all its webhooks: webhook `id` is at the path `/id`, and asks for events called like it.
struct World {
    cluster: Cluster,
    receiver: Receiver,
    client: Client,
    /// When the last agent was killed.
    killed: Instant,
}

/// The name of the events that are for webhook `id`.
fn name(id: &str) -> String {
    id.to_uppercase().replace('-', "_")
}

/// The path of webhook `id`.
fn path(id: &str) -> String {
    format!("/{id}")
}

/// What speaks against an event, and not against its receiver.
const fn refusal() -> Answer {
    Answer::status(StatusCode::UNPROCESSABLE_ENTITY)
}

const fn taken() -> Answer {
    Answer::status(StatusCode::OK)
}

impl World {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let client = cluster.client(0);
        client.create_account(ACCOUNT, 40).await;
        Self {
            cluster,
            receiver: Receiver::start(),
            client,
            killed: Instant::now(),
        }
    }

    /// A webhook `id` that is tried again soon.
    fn plain(&self, id: &str) -> Webhook {
        Webhook {
            retry: Some(RetryPolicy {
                initial_delay: Some(millis(100)),
                max_delay: Some(millis(500)),
                ..RetryPolicy::default()
            }),
            ..webhook(&self.receiver.url(&path(id)), &[&name(id)], no_auth())
        }
    }

    /// Creates webhook `id`, whose receiver answers `answers` for now.
    async fn create(&self, id: &str, webhook: Webhook, answers: impl IntoIterator<Item = Answer>) {
        self.receiver.script(&path(id), answers);
        self.client.create_webhook(ACCOUNT, id, webhook).await;
        self.cluster.matching(ACCOUNT, &name(id), 1).await;
    }

    /// Publishes events number `from` to `to` for webhook `id`.
    async fn publish(&self, id: &str, from: usize, to: usize) {
        let events = (from..to).map(|number| numbered(id, number)).collect();
        self.client.publish(ACCOUNT, events).await;
    }

    /// Changes fields of webhook `id`.
    async fn update(&self, id: &str, fields: Webhook, mask: &[&str]) {
        let request = UpdateWebhookRequest {
            webhook: Some(Webhook {
                name: format!("accounts/{ACCOUNT}/webhooks/{id}"),
                ..fields
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: mask.iter().map(ToString::to_string).collect(),
            }),
            validate_only: false,
        };
        self.client.webhooks().update_webhook(request).await.unwrap();
    }

    /// Waits until webhook `id` has got so many requests.
    async fn until_tried(&self, id: &str, requests: usize) {
        let path = path(id);
        self.receiver
            .until(&format!("{requests} requests at {path}"), SOON, |log| {
                log.of(&path).len() >= requests
            })
            .await;
    }

    /// Waits until webhook `id` has taken so many requests.
    async fn until_taken(&self, id: &str, requests: usize) {
        let path = path(id);
        self.receiver
            .until(&format!("{requests} requests taken at {path}"), FLOW, |log| {
                let taken = log.of(&path).into_iter().filter(|request| request.status.is_success());
                taken.count() >= requests
            })
            .await;
    }

    /// The requests that webhook `id` has got.
    fn requests(&self, id: &str) -> Vec<Received> {
        self.receiver.log().of(&path(id)).into_iter().cloned().collect()
    }

    /// The requests that webhook `id` has taken.
    fn taken(&self, id: &str) -> Vec<Received> {
        let mut requests = self.requests(id);
        requests.retain(|request| request.status.is_success());
        requests
    }

    /// From now on webhook `id` takes everything.
    fn takes(&self, id: &str) {
        self.receiver.script(&path(id), [taken()]);
    }
}

/// Event `number` for webhook `id`.
fn numbered(id: &str, number: usize) -> Event {
    event(&format!("{id}-{number}"), &name(id), format!("{{\"n\":{number}}}"))
}

/// The ids of a request's events.
fn ids(request: &Received) -> Vec<String> {
    let body = request.json();
    let events = body["events"].as_array().expect("an envelope").iter();
    events
        .map(|event| event["eventId"].as_str().expect("an id").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_feature_outlives_all_agents() {
    let mut world = World::start().await;
    let wire = wire::set_up(&world).await;
    several::set_up(&world).await;
    pace::set_up(&world).await;
    // The last, so that the agents die soon after it.
    pace::set_up_what_is_short(&world).await;
    while !world.cluster.agents.is_empty() {
        world.cluster.kill_agent(0).await;
    }
    world.killed = Instant::now();
    let before = world.receiver.log().distinct();
    assert_eq!(before, several::TAKEN_BEFORE, "nothing else was delivered before");
    for _ in 0..2 {
        world.cluster.add_agent().await;
    }
    world.cluster.settled().await;

    wire::look(&world, &wire).await;
    several::look(&world).await;
    pace::look(&world).await;
    world.cluster.drained(FLOW).await;
    assert_eq!(
        world.receiver.log().repeats(),
        0,
        "nothing had been taken when the agents died"
    );
    let usage = usage(&world.client).await;
    assert_adds_up(&usage);
    let total = usage.total.unwrap();
    assert_eq!((total.waiting, total.dead), (0, pace::DEAD));
}
