//! Publishing: in requests of one event, of many, or on streams; as fast as accepted, or at a rate.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use postrider_proto::v1::publish_stream_response::Result as StreamResult;
use postrider_proto::v1::{Event, PublishStreamRequest};
use postrider_tests::client::{Client, event};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::sink::{ID, Sink};
use crate::yardstick::{histogram, micros};
use crate::{ACCOUNT, Mode, Options};

/// Different bodies that are published in turn: enough that compression does not find one in the other's place.
const BODIES: usize = 1024;

/// How long a publisher that was told to wait waits.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// The rate of mode idle, events a second.
const IDLE_RATE: f64 = 100.0;

/// What is to be published, and what has been.
pub(crate) struct Plan {
    sink: Sink,
    mode: Mode,
    publishers: usize,
    per_request: usize,
    window: usize,
    events: usize,
    webhooks: usize,
    rate: Option<f64>,
    start: Instant,
    end: Instant,
    bodies: Vec<Bytes>,
    next: AtomicUsize,
    refused: AtomicUsize,
    /// For each event, when its request was to start, on the sink's clock; 0 means never.
    intended: Vec<AtomicU64>,
    /// For each event, when it was accepted, on the sink's clock; 0 means never.
    accepted: Vec<AtomicU64>,
}

/// What publishing came to.
pub(crate) struct Published {
    /// Events accepted.
    pub(crate) accepted: usize,
}

/// What the run came to.
pub(crate) struct Outcome {
    /// Events accepted.
    pub(crate) accepted: usize,
    /// Events that arrived.
    pub(crate) arrived: usize,
    /// Events that were accepted and did not arrive.
    pub(crate) lost: usize,
    /// How often an event came again, and requests that named no event.
    pub(crate) doubled: usize,
    /// How often a publisher was told to wait.
    pub(crate) refused: usize,
    /// Whether all that was accepted arrived before the wait was given up.
    pub(crate) in_time: bool,
    /// Requests at the sink, those of the raw limit included.
    pub(crate) requests: usize,
    /// Events accepted a second.
    pub(crate) accepted_per_second: f64,
    /// Events delivered a second.
    pub(crate) delivered_per_second: f64,
    /// Microseconds from the intended start to the answer.
    pub(crate) ack: Histogram<u64>,
    /// Microseconds from the intended start to the arrival.
    pub(crate) arrival: Histogram<u64>,
}

impl Plan {
    /// A plan by `options`; its clock starts now.
    pub(crate) fn new(options: &Options, sink: Sink) -> Self {
        let zeros = || {
            std::iter::repeat_with(AtomicU64::default)
                .take(options.events)
                .collect()
        };
        let start = Instant::now();
        Self {
            mode: options.mode,
            publishers: options.publishers,
            per_request: if options.mode == Mode::Batch {
                options.batch.max(1)
            } else {
                1
            },
            window: options.window.max(1),
            events: options.events,
            webhooks: options.webhooks,
            rate: options.rate.or((options.mode == Mode::Idle).then_some(IDLE_RATE)),
            start,
            end: start + Duration::from_secs(options.seconds),
            bodies: (0..BODIES).map(|seed| body(seed as u64, options.size)).collect(),
            next: AtomicUsize::default(),
            refused: AtomicUsize::default(),
            intended: zeros(),
            accepted: zeros(),
            sink,
        }
    }

    /// The events of the next request, and when it should start; `None` when the plan is done.
    fn next(&self) -> Option<(Range<usize>, Instant)> {
        let now = Instant::now();
        let first = self.next.fetch_add(self.per_request, Ordering::Relaxed);
        let range = first..(first + self.per_request).min(self.events);
        let start = self
            .rate
            .map_or(now, |rate| self.start + Duration::from_secs_f64(first as f64 / rate));
        (first < self.events && start < self.end && now < self.end).then_some((range, start))
    }

    fn request(&self, range: Range<usize>) -> Vec<Event> {
        let one = |number: usize| {
            let name = format!("LOAD_{}", number % self.webhooks);
            event(&format!("{ID}{number}"), &name, self.bodies[number % BODIES].clone())
        };
        range.map(one).collect()
    }

    fn note_start(&self, range: Range<usize>, start: Instant) {
        let start = self.sink.at(start);
        range.for_each(|number| self.intended[number].store(start, Ordering::Relaxed));
    }

    fn note_accepted(&self, range: Range<usize>) {
        let now = self.sink.now();
        range.for_each(|number| self.accepted[number].store(now, Ordering::Relaxed));
    }

    /// What became of every event.
    pub(crate) fn outcome(&self, published: &Published, in_time: bool) -> Outcome {
        let (mut ack, mut arrival) = (histogram(), histogram());
        let (mut lost, mut arrived, mut last_accepted, mut last_arrived) = (0, 0, 0, 0);
        let between = |from: u64, to: u64| micros(Duration::from_nanos(to.saturating_sub(from)));
        for number in 0..self.events {
            let intended = self.intended[number].load(Ordering::Relaxed);
            let accepted = self.accepted[number].load(Ordering::Relaxed);
            if accepted > 0 {
                ack.saturating_record(between(intended, accepted));
                last_accepted = last_accepted.max(accepted);
            }
            match self.sink.arrival(number) {
                Some(at) => {
                    arrival.saturating_record(between(intended, at));
                    last_arrived = last_arrived.max(at);
                    arrived += 1;
                }
                None if accepted > 0 => lost += 1,
                None => {}
            }
        }
        let start = self.sink.at(self.start);
        let per_second = |count: usize, end: u64| {
            count as f64 / Duration::from_nanos(end.saturating_sub(start).max(1)).as_secs_f64()
        };
        Outcome {
            accepted: published.accepted,
            arrived,
            lost,
            doubled: self.sink.doubled() + self.sink.strangers(),
            refused: self.refused.load(Ordering::Relaxed),
            in_time,
            requests: self.sink.requests(),
            accepted_per_second: per_second(published.accepted, last_accepted),
            delivered_per_second: per_second(arrived, last_arrived),
            ack,
            arrival,
        }
    }
}

/// A JSON body of about `size` bytes: the same words, other numbers, as events of one kind have.
pub(crate) fn body(seed: u64, size: usize) -> Bytes {
    let mut text = format!("{{\"userId\":{}", 4_000_000 + seed);
    let mut state = seed.wrapping_add(1);
    while text.len() + 48 < size {
        // Steele and Vigna's splitmix64: cheap, and the same in every run.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        text.push_str(&format!(
            ",\"loId{}\":\"course:{}\"",
            text.len(),
            (mixed ^ (mixed >> 27)) % 10_000_000
        ));
    }
    let padding = size.saturating_sub(text.len() + 10);
    text.push_str(&format!(",\"pad\":\"{}\"}}", "x".repeat(padding)));
    text.into()
}

/// Publishes by the plan, each publisher with a client of its own.
pub(crate) async fn run(plan: &Arc<Plan>, client: impl Fn() -> Client) -> Published {
    let mut publishers = JoinSet::new();
    for _ in 0..plan.publishers {
        let (plan, client) = (plan.clone(), client());
        publishers.spawn(async move {
            match plan.mode {
                Mode::Unary | Mode::Batch | Mode::Idle | Mode::Backlog => by_requests(&plan, &client).await,
                Mode::Stream => by_stream(&plan, &client).await,
            }
        });
    }
    let mut accepted = 0;
    while let Some(each) = publishers.join_next().await {
        accepted += each.expect("a publisher ends well");
    }
    Published { accepted }
}

async fn by_requests(plan: &Plan, client: &Client) -> usize {
    let mut accepted = 0;
    while let Some((range, start)) = plan.next() {
        sleep_until(start).await;
        plan.note_start(range.clone(), start);
        while let Err(status) = client.try_publish(ACCOUNT, plan.request(range.clone()), "").await {
            assert_eq!(status.code(), Code::ResourceExhausted, "publishing failed: {status:?}");
            plan.refused.fetch_add(1, Ordering::Relaxed);
            sleep(REFUSED_PAUSE).await;
        }
        plan.note_accepted(range.clone());
        accepted += range.len();
    }
    accepted
}

async fn by_stream(plan: &Plan, client: &Client) -> usize {
    let (sender, receiver) = mpsc::channel(plan.window);
    let send = async |range: Range<usize>| {
        let request = PublishStreamRequest {
            parent: format!("accounts/{ACCOUNT}"),
            events: plan.request(range),
            ..PublishStreamRequest::default()
        };
        sender.send(request).await.expect("the stream is open");
    };
    let mut under_way = VecDeque::new();
    let mut accepted = 0;
    // The first request goes before the stream is open: some servers answer nothing until there is one.
    let Some((range, start)) = plan.next() else { return 0 };
    sleep_until(start).await;
    plan.note_start(range.clone(), start);
    send(range.clone()).await;
    under_way.push_back(range);
    let mut answers = client
        .publishing()
        .publish_stream(ReceiverStream::new(receiver))
        .await
        .expect("the stream opens")
        .into_inner();
    let mut next = plan.next();
    while next.is_some() || !under_way.is_empty() {
        let start = next.as_ref().map(|(_, start)| *start);
        tokio::select! {
            biased;
            () = sleep_until(start.unwrap_or(plan.end)), if start.is_some() && under_way.len() < plan.window => {
                if let Some((range, start)) = next.take() {
                    plan.note_start(range.clone(), start);
                    send(range.clone()).await;
                    under_way.push_back(range);
                    next = plan.next();
                }
            }
            answer = answers.message(), if !under_way.is_empty() => {
                let answer = answer.expect("the stream goes on").expect("the stream ends after its last answer");
                let range = under_way.pop_front().expect("an answer follows its request");
                match answer.result {
                    Some(StreamResult::Response(_)) => {
                        plan.note_accepted(range.clone());
                        accepted += range.len();
                    }
                    Some(StreamResult::Error(error)) if error.code == i32::from(Code::ResourceExhausted) => {
                        plan.refused.fetch_add(1, Ordering::Relaxed);
                        sleep(REFUSED_PAUSE).await;
                        send(range.clone()).await;
                        under_way.push_back(range);
                    }
                    other => panic!("publishing failed: {other:?}"),
                }
            }
        }
    }
    accepted
}

#[cfg(test)]
mod tests;
