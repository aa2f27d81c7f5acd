//! Backlogs: what the deliveries of one dead webhook cost while they wait, and what another webhook feels of it, and of their redrive.

use std::time::Duration;

use hdrhistogram::Histogram;
use postrider_common::key;
use postrider_common::shard::ShardId;
use postrider_proto::v1::{RedriveDeadLettersRequest, RetryPolicy, Webhook};
use postrider_tests::client::{Client, event, no_auth, webhook};
use postrider_tests::{port, wait};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::publish::body;
use crate::sink::{ID, REFUSED_PATH, Sink};
use crate::system::{Snapshot, System};
use crate::yardstick::{histogram, micros};
use crate::{ACCOUNT, Options, Store};

/// Events a second of the webhook that is well.
const RATE: u32 = 100;

/// How many of them a latency is told from.
const WELL_EVENTS: usize = 1500;

/// How long a step of 100,000 deliveries may take.
const STEP: Duration = Duration::from_secs(180);

/// Queue segments that the deliveries come from which one lane keeps in memory, at most.
const IN_MEMORY: usize = 100;

/// Events in each request that makes the backlog.
const BATCH: usize = 100;

struct Bench<'a> {
    options: &'a Options,
    sink: Sink,
    client: Client,
    /// The number of the next event.
    next: usize,
}

/// Measures it, and prints it; gives the figures.
pub(crate) async fn run(options: &Options) -> Value {
    let system = System::start(Store::Etcd).await;
    let mut bench = Bench {
        options,
        sink: Sink::start(2 * options.events + 4 * WELL_EVENTS),
        client: system.client(),
        next: 0,
    };
    bench.create(&port::Reserved::new()).await;
    let alone = bench.well("alone").await;
    let before = system.usage().await;
    bench.pile_up("DEAD").await;
    until_parked(&system).await;
    let after = system.usage().await;
    let behind = bench.well("beside a backlog").await;
    bench.sink.refuse(true);
    bench.pile_up("REFUSED").await;
    bench.until_dead(options.events).await;
    bench.sink.refuse(false);
    let (redriven, took) = bench.redrive().await;
    let used = |snapshot: &Snapshot, name: &str| snapshot.processes[name].resident_bytes;
    let agent = used(&after, "agent").saturating_sub(used(&before, "agent"));
    let stored = after.stored_bytes.unwrap_or_default() - before.stored_bytes.unwrap_or_default();
    let figures = json!({
        "deliveries": options.events,
        "bytes_of_each_event": options.size,
        "agent_bytes_for_the_backlog": agent,
        "etcd_bytes_in_use_for_the_backlog": stored,
        "well_alone": latency(&alone),
        "well_beside_a_backlog": latency(&behind),
        "well_beside_a_redrive": latency(&redriven),
        "redrive_seconds": took.as_secs_f64(),
        "p99_beside_a_backlog_to_alone": ratio(&behind, &alone),
        "p99_beside_a_redrive_to_alone": ratio(&redriven, &alone),
    });
    println!("{figures:#}");
    figures
}

impl Bench<'_> {
    async fn create(&self, nobody: &port::Reserved) {
        self.client.create_account(ACCOUNT, 10).await;
        let well = webhook(&self.sink.url("/well"), &["WELL"], no_auth());
        self.client.create_webhook(ACCOUNT, "well", well).await;
        let dead = webhook(&format!("http://{}/", nobody.address()), &["DEAD"], no_auth());
        self.client.create_webhook(ACCOUNT, "dead", dead).await;
        let refused = Webhook {
            retry: Some(RetryPolicy {
                max_attempts: 1,
                ..RetryPolicy::default()
            }),
            ..webhook(&self.sink.url(REFUSED_PATH), &["REFUSED"], no_auth())
        };
        self.client.create_webhook(ACCOUNT, "refused", refused).await;
    }

    fn events(&mut self, name: &str, count: usize) -> Vec<postrider_proto::v1::Event> {
        let first = self.next;
        self.next += count;
        let one = |number: usize| event(&format!("{ID}{number}"), name, body(number as u64, self.options.size));
        (first..self.next).map(one).collect()
    }

    async fn pile_up(&mut self, name: &str) {
        println!("publishing {} events of type {name}", self.options.events);
        for _ in 0..self.options.events / BATCH {
            let events = self.events(name, BATCH);
            self.client.publish(ACCOUNT, events).await;
        }
    }

    /// How long events of the webhook that is well take, from when they were to be published.
    async fn well(&mut self, when: &str) -> Histogram<u64> {
        println!("measuring the webhook that is well, {when}");
        let mut latency = histogram();
        let (start, first) = (Instant::now(), self.next);
        let mut intended = Vec::with_capacity(WELL_EVENTS);
        for number in 0..u32::try_from(WELL_EVENTS).expect("not that many") {
            let at = start + Duration::from_secs(1) * number / RATE;
            sleep_until(at).await;
            intended.push(self.sink.at(at));
            let events = self.events("WELL", 1);
            self.client.publish(ACCOUNT, events).await;
        }
        for (number, intended) in (first..).zip(intended) {
            let arrival = wait::until("an event to arrive", STEP, async || self.sink.arrival(number)).await;
            latency.saturating_record(micros(Duration::from_nanos(arrival.saturating_sub(intended))));
        }
        latency
    }

    async fn until_dead(&self, count: usize) {
        println!("waiting for {count} dead letters");
        wait::until("all to be dead letters", STEP, async || {
            (self.redrive_request(true).await == count).then_some(())
        })
        .await;
    }

    async fn redrive_request(&self, validate_only: bool) -> usize {
        let request = RedriveDeadLettersRequest {
            parent: format!("accounts/{ACCOUNT}/webhooks/refused"),
            validate_only,
            ..RedriveDeadLettersRequest::default()
        };
        let answer = self.client.deliveries().redrive_dead_letters(request).await;
        let matched = answer.expect("dead letters are redriven").into_inner().matched_count;
        usize::try_from(matched).expect("a count")
    }

    /// Redrives everything, and measures the webhook that is well meanwhile.
    async fn redrive(&mut self) -> (Histogram<u64>, Duration) {
        let start = Instant::now();
        let (first, last) = (self.next - self.options.events, self.next);
        assert_eq!(self.redrive_request(false).await, self.options.events);
        let latency = self.well("beside a redrive").await;
        for number in first..last {
            wait::until("a redriven event to arrive", STEP, async || self.sink.arrival(number)).await;
        }
        (latency, start.elapsed())
    }
}

/// What a lane keeps in memory stays in its queue segments.
async fn until_parked(system: &System) {
    let etcd = system.etcd().expect("there is an etcd");
    let queue = key::queue(ShardId(0));
    let folder = format!("/{}/", queue.as_str().split('/').next().unwrap_or_default());
    wait::until("the backlog to be parked", STEP, async || {
        let keys = etcd.keys_with("scenario/").await.ok()?;
        (keys.iter().filter(|key| key.contains(&folder)).count() <= IN_MEMORY).then_some(())
    })
    .await;
}

fn latency(histogram: &Histogram<u64>) -> Value {
    json!({
        "p50_us": histogram.value_at_quantile(0.5),
        "p99_us": histogram.value_at_quantile(0.99),
        "max_us": histogram.max(),
    })
}

fn ratio(one: &Histogram<u64>, other: &Histogram<u64>) -> f64 {
    one.value_at_quantile(0.99) as f64 / other.value_at_quantile(0.99).max(1) as f64
}
