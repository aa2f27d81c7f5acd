//! The publishers of a course, and their log: when which event was accepted, and how every call ended. They do not give up.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;

use super::checker::{Event, Micros};
use super::course::{ACCOUNT, Course};
use super::witness::micros;
use crate::client::{Client, may_be_sent_again, request_id};
use crate::wait;

/// How one call ended.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// When it was made.
    pub from: Micros,
    /// When it was answered.
    pub to: Micros,
    /// What it was answered; OK means that its events are accepted.
    pub code: Code,
}

/// The publishers' log. Clones are the same one.
#[derive(Clone)]
pub struct Journal {
    course: Arc<Course>,
    start: Instant,
    /// By event, microseconds since the run began; 0 means not accepted.
    accepted: Arc<Vec<AtomicU64>>,
    /// By event, when its request was first made, likewise.
    asked: Arc<Vec<AtomicU64>>,
    done: Arc<AtomicUsize>,
    deliveries: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
    under_way: Arc<AtomicUsize>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Journal {
    /// An empty log of a run that began at `start`.
    pub fn new(course: &Course, start: Instant) -> Self {
        Self {
            course: Arc::new(course.clone()),
            start,
            accepted: Arc::new((0..course.events).map(|_| AtomicU64::new(0)).collect()),
            asked: Arc::new((0..course.events).map(|_| AtomicU64::new(0)).collect()),
            done: Arc::default(),
            deliveries: Arc::default(),
            stopped: Arc::default(),
            held: Arc::default(),
            under_way: Arc::default(),
            calls: Arc::default(),
        }
    }

    /// How many events were accepted so far.
    pub fn accepted(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    /// How many deliveries these cause.
    pub fn deliveries(&self) -> usize {
        self.deliveries.load(Ordering::SeqCst)
    }

    /// When each event was first asked to be accepted; 0 means never.
    pub fn asked(&self) -> Vec<Micros> {
        self.asked.iter().map(|asked| asked.load(Ordering::SeqCst)).collect()
    }

    /// All calls so far, in the order of their ends.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// No further request is made; those under way are still seen through.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Makes no request from now on, and returns when none is under way.
    pub async fn hold(&self, deadline: Duration) {
        self.held.store(true, Ordering::SeqCst);
        wait::until("the requests under way to be answered", deadline, async || {
            (self.under_way.load(Ordering::SeqCst) == 0).then_some(())
        })
        .await;
    }

    /// Makes requests again.
    pub fn go_on(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    /// Counts a request as under way, as soon as requests are made.
    async fn enter(&self) {
        loop {
            self.under_way.fetch_add(1, Ordering::SeqCst);
            if !self.held.load(Ordering::SeqCst) {
                return;
            }
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            wait::between_looks().await;
        }
    }

    /// What the checker is told of the events. What was never asked for is of no kind.
    pub fn events(&self) -> Vec<Event> {
        let one = |number: usize| {
            let accepted = self.accepted[number].load(Ordering::SeqCst);
            let asked = self.asked[number].load(Ordering::SeqCst) > 0;
            let kind = u16::try_from(self.course.kind(number)).ok().filter(|_| asked);
            Event {
                kind: kind.unwrap_or(u16::MAX),
                key: self.course.key(number),
                accepted: (accepted > 0).then_some(accepted),
            }
        };
        (0..self.course.events).map(one).collect()
    }

    /// Publishes the course, each lane by itself, with its own connections to the control planes that `clients` makes. Returns when all is accepted, or
    /// after [`Self::stop`].
    ///
    /// # Panics
    /// If a request is refused for good, or not accepted within `patience`.
    pub async fn publish(&self, clients: impl Fn() -> Vec<Client>, patience: Duration) {
        let mut lanes = JoinSet::new();
        let begun = Instant::now();
        for lane in 0..self.course.lanes {
            let (journal, clients) = (self.clone(), clients());
            lanes.spawn(async move { journal.lane(lane, &clients, begun, patience).await });
        }
        while let Some(lane) = lanes.join_next().await {
            lane.expect("publishing does not fail");
        }
    }

    async fn lane(&self, lane: usize, clients: &[Client], begun: Instant, patience: Duration) {
        let mut turn = lane;
        for numbers in self.course.requests(lane) {
            if let (Some(rate), Some(&first)) = (self.course.rate, numbers.first()) {
                #[allow(clippy::cast_precision_loss, reason = "events are far below 2^52")]
                wait::moment(begun + Duration::from_secs_f64(first as f64 / rate)).await;
            }
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            self.enter().await;
            self.request(&numbers, clients, &mut turn, patience).await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
        }
    }

    async fn request(&self, numbers: &[usize], clients: &[Client], turn: &mut usize, patience: Duration) {
        // The first number of a request is that of no other.
        let id = request_id(numbers[0] as u64);
        let give_up = Instant::now() + patience;
        let asked = self.now().max(1);
        numbers
            .iter()
            .for_each(|&number| self.asked[number].store(asked, Ordering::SeqCst));
        loop {
            let events = numbers.iter().map(|&number| self.course.event(number)).collect();
            let from = self.now();
            let answer = clients[*turn % clients.len()].try_publish(ACCOUNT, events, &id).await;
            let to = self.now();
            let code = answer.as_ref().map_or_else(tonic::Status::code, |_| Code::Ok);
            self.note(Call { from, to, code });
            match answer {
                Ok(answer) => {
                    assert_eq!(answer.events.len(), numbers.len(), "every event is answered");
                    for &number in numbers {
                        self.accepted[number].store(to.max(1), Ordering::SeqCst);
                    }
                    let deliveries = numbers.iter().map(|&number| self.course.deliveries(number)).sum();
                    self.deliveries.fetch_add(deliveries, Ordering::SeqCst);
                    self.done.fetch_add(numbers.len(), Ordering::SeqCst);
                    return;
                }
                Err(status) => {
                    let again = may_be_sent_again(&status) || status.code() == Code::ResourceExhausted;
                    assert!(again, "a request was refused: {status:?}");
                    assert!(
                        Instant::now() < give_up,
                        "a request was not accepted within {patience:?}: {status:?}"
                    );
                    *turn += 1;
                    // A control plane that is gone refuses at once; do not spin while its successor starts.
                    wait::between_looks().await;
                }
            }
        }
    }

    fn now(&self) -> Micros {
        micros(self.start.elapsed())
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}
