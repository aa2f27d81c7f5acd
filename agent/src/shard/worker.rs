//! The task of one shard: feeds the state, makes the attempts it asks for, hands its records to the ledger.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use postrider_common::entropy::SharedEntropy;
use postrider_common::id::AgentId;
use postrider_common::key::{self, Key};
use postrider_common::store::SharedStore;
use postrider_common::task;
use postrider_common::time::{SharedClock, Timestamp};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore, broadcast, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, Purse};
use super::counters::{Counters, Tally};
use super::delivery::{Effects, Known, Load, Place, Source, SourceId};
use super::feed::{self, Feed, Found, Got, Wanted};
use super::lane::LANE_LIMIT;
use super::ledger::{Ledger, Pen};
use super::queue::Waiting;
use super::state::{AttemptId, Start, State};
use super::{Running, Tenure, Work};
use crate::attempt::{Attempt, Outcome, Sender, Sent};
use crate::catalog::{Catalog, Changed};

/// Queue segments taken in before attempts are started again: the first ones should not wait for the last.
const SEGMENTS_A_TURN: usize = 8;

/// Queue segments read in one request, and requests under way at once: enough to hide the store's latency behind a backlog, few enough to stay within
/// the budget by little.
const SEGMENTS_A_READ: usize = 4;

/// See [`SEGMENTS_A_READ`].
const READS_AT_ONCE: usize = 2;

/// Reads of parked segments under way at once in one worker.
const LOADS_AT_ONCE: usize = 4;

/// Bytes that a queue segment is expected to take until it was read: the usual 70 KB, unpacked.
const QUEUE_ESTIMATE: usize = 256 << 10;

/// Bytes that a parked segment is expected to take until it was read: see `batch::PACK_BYTES`.
const PARKED_ESTIMATE: usize = 64 << 10;

/// Sources that a shard should have open: each that is not over costs some seventy bytes in every progress write. Lanes get less room the more there are.
const OPEN_SOURCES: usize = 2048;

/// The longest sleep: the wall clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// When to look again after the lease was not certain to live: its keep-alive answers within some milliseconds, or it is lost.
const UNSAFE_PAUSE: Duration = Duration::from_millis(20);

/// How long the tasks of a worker that ends may take to notice.
const STOP_GRACE: Duration = Duration::from_millis(100);

/// What an agent may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of deliveries in memory, approximately.
    pub bytes: usize,
    /// Attempts under way.
    pub attempts: usize,
    /// How long attempts under way may still take when a shard is released; then they are cut, and repeated by the next owner.
    pub grace: Duration,
}

impl Default for Limits {
    /// 64 MiB, 8,192 attempts (each is a socket and some 50 KB), 800 ms (a receiver that is well answers in that time, and a shard is handed over within
    /// a second).
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            attempts: 8192,
            grace: Duration::from_millis(800),
        }
    }
}

/// What workers need.
#[derive(Clone)]
pub struct Deps {
    /// The store.
    pub store: SharedStore,
    /// The agent's name: begins the name of the ledger's marks.
    pub agent: AgentId,
    /// Makes attempts.
    pub sender: Arc<dyn Sender>,
    /// All webhooks.
    pub catalog: Catalog,
    /// Wall time.
    pub clock: SharedClock,
    /// Chance.
    pub entropy: SharedEntropy,
    /// What is counted.
    pub counters: Arc<Counters>,
}

/// Starts workers: all that an agent's workers share.
#[derive(Clone)]
pub struct Shards {
    deps: Deps,
    limits: Limits,
    group: task::Group,
    ledger: Ledger,
    budget: Arc<Budget>,
    attempts: Arc<Semaphore>,
    counters: Arc<Counters>,
}

impl Shards {
    /// Starts the ledger; workers will be tasks of `group`. They end when they are released or abandoned: release them before the group is shut down.
    pub fn new(deps: Deps, limits: Limits, group: &task::Group) -> Self {
        let counters = deps.counters.clone();
        let ledger = Ledger::spawn(
            group,
            deps.store.clone(),
            deps.agent.clone(),
            deps.clock.clone(),
            deps.entropy.clone(),
            counters.clone(),
        );
        Self {
            deps,
            limits,
            group: group.clone(),
            ledger,
            budget: Arc::new(Budget::new(limits.bytes)),
            attempts: Arc::new(Semaphore::new(limits.attempts)),
            counters,
        }
    }

    /// What is counted.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Bytes of deliveries in memory.
    pub fn loaded_bytes(&self) -> usize {
        self.budget.used()
    }
}

impl Work for Shards {
    fn start(&self, tenure: Tenure) -> Box<dyn Running> {
        let (command, commands) = oneshot::channel();
        let (done, fenced) = (CancellationToken::new(), CancellationToken::new());
        let handle = Handle {
            command,
            done: done.clone(),
            fenced: fenced.clone(),
        };
        let shards = self.clone();
        self.group.spawn("shard", async move {
            let _done = done.drop_guard();
            let _counted = Counted::new(shards.counters.clone(), |counters| &counters.shards);
            let shard = tenure.shard;
            tracing::debug!(%shard, epoch = %tenure.epoch, "shard started");
            let lost = tenure.lease.lost().clone();
            let end = Worker::run(shards, tenure, commands, fenced.clone(), lost).await;
            tracing::debug!(%shard, ?end, "shard ended");
        });
        Box::new(handle)
    }
}

struct Handle {
    command: oneshot::Sender<Command>,
    done: CancellationToken,
    fenced: CancellationToken,
}

#[async_trait]
impl Running for Handle {
    async fn release(self: Box<Self>) {
        // An error means that the worker has ended.
        let _ = self.command.send(Command::Release);
        self.done.cancelled().await;
    }

    async fn abandon(self: Box<Self>) {
        let _ = self.command.send(Command::Abandon);
        self.done.cancelled().await;
    }

    fn fenced(&self) -> CancellationToken {
        self.fenced.clone()
    }
}

#[derive(Debug, Clone, Copy)]
enum Command {
    Release,
    Abandon,
}

/// How a worker ended.
#[derive(Debug)]
enum End {
    Released,
    Abandoned,
    LeaseLost,
    Fenced,
}

/// Something that is counted while it lives.
struct Counted(Arc<Counters>, fn(&Counters) -> &std::sync::atomic::AtomicI64);

impl Counted {
    fn new(counters: Arc<Counters>, gauge: fn(&Counters) -> &std::sync::atomic::AtomicI64) -> Self {
        gauge(&counters).fetch_add(1, Ordering::Relaxed);
        Self(counters, gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A read that was under way.
struct Read {
    /// Which parked segments; `None` for the queue.
    load: Option<Load>,
    got: Vec<Got>,
    /// What was taken of the budget in advance.
    reserved: usize,
}

type PermitWait = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

struct Worker {
    shards: Shards,
    tenure: Tenure,
    state: State,
    effects: Effects,
    pen: Pen,
    purse: Arc<Purse>,
    wake: Arc<Notify>,
    feed: Feed,
    attempts: JoinSet<(AttemptId, Outcome)>,
    reads: JoinSet<Read>,
    queue_reads: usize,
    loads: VecDeque<Load>,
    /// Bits, as stored, of segments that are still to be read.
    progress: BTreeMap<Key, Bytes>,
    next_source: u64,
    permit: Option<OwnedSemaphorePermit>,
    permit_wait: Option<PermitWait>,
    /// When the next look is due although nothing else happens.
    look_at: Option<Timestamp>,
}

impl Worker {
    async fn run(
        shards: Shards,
        tenure: Tenure,
        mut commands: oneshot::Receiver<Command>,
        fenced: CancellationToken,
        lost: CancellationToken,
    ) -> End {
        let changes = shards.deps.catalog.changes();
        let prepare = async {
            // Lanes of parked deliveries should know from the start whether their webhook is active.
            shards.deps.catalog.synced().await;
            feed::find(&shards.deps.store, tenure.shard).await
        };
        let found = tokio::select! {
            command = &mut commands => return match command {
                Ok(Command::Release) => End::Released,
                Ok(Command::Abandon) | Err(_) => End::Abandoned,
            },
            () = lost.cancelled() => return End::LeaseLost,
            found = prepare => found,
        };
        let group = task::Group::new(shards.group.token().child_token());
        let mut worker = Self::new(shards, tenure, &group, found, fenced);
        let end = worker.work(commands, changes, lost.clone()).await;
        group.shut_down(STOP_GRACE).await;
        worker.reads.shutdown().await;
        worker.attempts.shutdown().await;
        if !matches!(end, End::Released) {
            return end;
        }
        worker.record();
        tokio::select! {
            () = worker.pen.flushed() => {}
            () = lost.cancelled() => {}
        }
        end
    }

    fn new(shards: Shards, tenure: Tenure, group: &task::Group, found: Found, fenced: CancellationToken) -> Self {
        let wake = Arc::new(Notify::new());
        let purse = Arc::new(Purse::new(shards.budget.clone()));
        let progress = found.progress.clone().unwrap_or_default();
        let pen = shards
            .ledger
            .open(tenure.clone(), found.progress, wake.clone(), purse.clone(), fenced);
        let mut state = State::new(tenure.shard);
        let mut effects = Effects::default();
        let now = shards.deps.clock.now();
        for parked in found.parked {
            let known = shards
                .deps
                .catalog
                .current(&(parked.account.clone(), parked.webhook.clone()));
            // That the mirror holds none may be its lag.
            let known = Some(known).filter(|known| !matches!(known, Known::Absent(_)));
            state.parked(&parked, known.as_ref(), now, &mut effects);
        }
        let feed = Feed::spawn(group, shards.deps.store.clone(), tenure.shard, wake.clone());
        Self {
            shards,
            tenure,
            state,
            effects,
            pen,
            purse,
            wake,
            feed,
            attempts: JoinSet::new(),
            reads: JoinSet::new(),
            queue_reads: 0,
            loads: VecDeque::new(),
            progress,
            next_source: 0,
            permit: None,
            permit_wait: None,
            look_at: None,
        }
    }

    async fn work(
        &mut self,
        mut commands: oneshot::Receiver<Command>,
        mut changes: broadcast::Receiver<Changed>,
        lost: CancellationToken,
    ) -> End {
        let fenced = self.pen.fenced().clone();
        let (lost, fenced) = (lost.cancelled_owned(), fenced.cancelled_owned());
        let sleep = tokio::time::sleep(LONGEST_SLEEP);
        tokio::pin!(lost, fenced, sleep);
        let mut deadline: Option<Instant> = None;
        loop {
            if deadline.is_some() {
                self.permit = None;
                self.permit_wait = None;
                if self.attempts.is_empty() {
                    return End::Released;
                }
            } else {
                self.turn();
            }
            self.record();
            let until = deadline.unwrap_or_else(|| self.sleep_until());
            if sleep.deadline() != until {
                sleep.as_mut().reset(until);
            }
            let wake = self.wake.clone();
            // In this order: what is rare first, so that a flood of ended attempts holds up nothing else.
            tokio::select! {
                biased;
                command = &mut commands, if deadline.is_none() => match command {
                    Ok(Command::Release) => deadline = Some(Instant::now() + self.shards.limits.grace),
                    Ok(Command::Abandon) | Err(_) => return End::Abandoned,
                },
                () = &mut lost => return End::LeaseLost,
                () = &mut fenced => return End::Fenced,
                permit = wait(&mut self.permit_wait) => {
                    self.permit_wait = None;
                    self.permit = permit.ok();
                }
                changed = changes.recv() => self.changed(changed),
                Some(read) = self.reads.join_next(), if deadline.is_none() => self.read_ended(read),
                Some(ended) = self.attempts.join_next() => self.attempts_ended(ended),
                () = wake.notified() => {}
                () = &mut sleep => if deadline.is_some() {
                    return End::Released;
                },
            }
        }
    }

    /// One turn: whatever can be done now.
    fn turn(&mut self) {
        let now = self.now();
        self.look_at = None;
        for parked in self.pen.take_written() {
            self.state.parked(&parked, None, now, &mut self.effects);
        }
        self.state.tick(now, &mut self.effects);
        self.read_on(now);
        self.start_attempts(now);
        // What was started may have made room.
        self.load_parked();
    }

    fn now(&self) -> Timestamp {
        self.shards.deps.clock.now()
    }

    fn sleep_until(&self) -> Instant {
        let at = [self.state.next_alarm(), self.look_at].into_iter().flatten().min();
        // To the whole millisecond above, so that it is due when the sleep is over.
        let pause = at.map_or(LONGEST_SLEEP, |at| at.saturating_since(self.now()).min(LONGEST_SLEEP));
        Instant::now() + pause
    }

    /// Takes in what the queue holds, and asks for what has to be read.
    fn read_on(&mut self, now: Timestamp) {
        self.load_parked();
        for _ in 0..SEGMENTS_A_TURN {
            if !self.may_load() {
                return;
            }
            let Some(waiting) = self.feed.pop_kept() else {
                return self.read_queue();
            };
            let (wanted, value) = self.wanted_from_queue(waiting);
            match feed::open(self.tenure.shard, &wanted, value.unwrap_or_default()) {
                None => self.unreadable(),
                Some(source) => self.take_in(source, now),
            }
        }
        // There may be more: after this turn.
        self.wake.notify_one();
    }

    fn may_load(&self) -> bool {
        self.pen.may_start() && self.purse.has_room(&self.wake)
    }

    fn wanted_from_queue(&mut self, waiting: Waiting) -> (Wanted, Option<Bytes>) {
        let wanted = self.wanted(waiting.key, Place::Queue(waiting.revision));
        (wanted, waiting.value)
    }

    fn wanted(&mut self, key: Key, place: Place) -> Wanted {
        self.next_source += 1;
        Wanted {
            id: SourceId(self.next_source),
            done: self.progress.remove(&key).unwrap_or_default(),
            key,
            place,
        }
    }

    /// Takes in a segment whose value was at hand.
    fn take_in(&mut self, source: Source, now: Timestamp) {
        match feed::peek(&self.shards.deps.catalog, &source) {
            Some(known) => self.loaded(source, &known, now),
            None => {
                let catalog = self.shards.deps.catalog.clone();
                let reserved = source.bytes;
                self.purse.take(reserved);
                self.queue_reads += 1;
                self.reads.spawn(async move {
                    let known = feed::resolve(&catalog, &source).await;
                    Read {
                        load: None,
                        got: vec![Got::Source(source, known)],
                        reserved,
                    }
                });
            }
        }
    }

    fn loaded(&mut self, source: Source, known: &[Known], now: Timestamp) {
        self.purse.take(source.bytes);
        let allowance = self.allowance();
        self.state.loaded(source, known, now, allowance, &mut self.effects);
    }

    /// How many ready deliveries a lane may have at the moment, so that slow receivers cannot take all the memory.
    fn allowance(&self) -> usize {
        let (used, limit) = self.purse.level();
        let eighths = |part: usize, whole: usize| part.saturating_mul(8) / whole.max(1);
        match eighths(used, limit).max(eighths(self.state.open_sources(), OPEN_SOURCES)) {
            0..=3 => LANE_LIMIT,
            4 | 5 => LANE_LIMIT / 8,
            6 => LANE_LIMIT / 64,
            _ => 1,
        }
    }

    fn read_queue(&mut self) {
        while self.queue_reads < READS_AT_ONCE && self.may_load() {
            let waiting = self.feed.pop_unread(SEGMENTS_A_READ);
            if waiting.is_empty() {
                return;
            }
            let wanted = waiting
                .into_iter()
                .map(|waiting| self.wanted_from_queue(waiting).0)
                .collect();
            self.queue_reads += 1;
            self.read(None, wanted, QUEUE_ESTIMATE);
        }
    }

    fn load_parked(&mut self) {
        self.loads.extend(self.effects.loads.drain(..));
        while self.reads.len() < READS_AT_ONCE + LOADS_AT_ONCE && !self.loads.is_empty() && self.may_load() {
            let Some(load) = self.loads.pop_front() else { return };
            let segments = load.segments.iter();
            let wanted = segments
                .map(|parked| self.wanted(key::parked_segment(parked), Place::Parked))
                .collect();
            self.read(Some(load), wanted, PARKED_ESTIMATE);
        }
    }

    fn read(&mut self, load: Option<Load>, wanted: Vec<Wanted>, estimate: usize) {
        let reserved = wanted.len() * estimate;
        self.purse.take(reserved);
        let deps = &self.shards.deps;
        let read = feed::read(deps.store.clone(), deps.catalog.clone(), self.tenure.shard, wanted);
        self.reads.spawn(async move {
            Read {
                load,
                got: read.await,
                reserved,
            }
        });
    }

    fn read_ended(&mut self, read: Result<Read, tokio::task::JoinError>) {
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                // The segments stay in the store, for the next owner.
                tracing::error!(%error, shard = %self.tenure.shard, "reading segments failed");
                return;
            }
        };
        let now = self.now();
        self.purse.put(read.reserved);
        if read.load.is_none() {
            self.queue_reads -= 1;
        }
        for got in read.got {
            match got {
                Got::Source(source, known) => self.loaded(source, &known, now),
                Got::Missing(key) => tracing::warn!(%key, "a segment is not in the store any more"),
                Got::Unreadable(_) => self.unreadable(),
            }
        }
        if let Some(load) = read.load {
            self.state.load_over(&load, now, &mut self.effects);
        }
    }

    fn unreadable(&self) {
        self.shards.counters.unreadable.fetch_add(1, Ordering::Relaxed);
    }

    fn start_attempts(&mut self, now: Timestamp) {
        if !self.state.has_runnable() {
            self.permit = None;
            self.permit_wait = None;
            return;
        }
        if !self.tenure.lease.is_safe() {
            self.look_at = Some(now + UNSAFE_PAUSE);
            return;
        }
        while self.state.has_runnable() && self.permit_wait.is_none() && self.pen.may_start() {
            let attempts = &self.shards.attempts;
            let Some(permit) = self.permit.take().or_else(|| attempts.clone().try_acquire_owned().ok()) else {
                self.permit_wait = Some(Box::pin(attempts.clone().acquire_owned()));
                return;
            };
            match self.state.start(now, &mut self.effects) {
                Some(start) => self.launch(start, permit),
                None => return,
            }
        }
        // One that came after a wait is not kept while it cannot be used.
        self.permit = None;
    }

    fn launch(&mut self, start: Start, permit: OwnedSemaphorePermit) {
        let id = start.attempt;
        let sender = self.shards.deps.sender.clone();
        let counted = Counted::new(self.shards.counters.clone(), |counters| &counters.in_flight);
        let attempt = Attempt {
            id: start.event.id.as_str().to_owned(),
            webhook: start.webhook,
            events: vec![Sent {
                // A source's events all have one: see `Source::new`.
                event_info: start.event.event_info.clone().unwrap_or_default(),
                event: start.event,
            }],
            number: start.number,
        };
        self.attempts.spawn(async move {
            let (_permit, _counted) = (permit, counted);
            let made = AssertUnwindSafe(sender.send(attempt)).catch_unwind().await;
            let outcome = made.unwrap_or_else(|_| Outcome::NotMade {
                why: "the attempt panicked".into(),
            });
            (id, outcome)
        });
    }

    /// Takes in all attempts that have ended: one wake-up is often for several.
    fn attempts_ended(&mut self, first: Result<(AttemptId, Outcome), tokio::task::JoinError>) {
        let now = self.now();
        let mut next = Some(first);
        while let Some(ended) = next {
            match ended {
                Ok((id, outcome)) => self.attempt_ended(id, outcome, now),
                Err(error) => tracing::error!(%error, shard = %self.tenure.shard, "an attempt was lost"),
            }
            next = self.attempts.try_join_next();
        }
    }

    fn attempt_ended(&mut self, id: AttemptId, outcome: Outcome, now: Timestamp) {
        let fraction = match &outcome {
            Outcome::Failed { .. } => self.shards.deps.entropy.fraction(),
            Outcome::NotMade { why } => {
                tracing::warn!(why, shard = %self.tenure.shard, "an attempt could not be made");
                0.0
            }
            Outcome::Delivered { .. } => 0.0,
        };
        self.state.ended(id, outcome, now, fraction, &mut self.effects);
    }

    fn changed(&mut self, changed: Result<Changed, RecvError>) {
        let now = self.now();
        let names = match changed {
            Ok(Changed::One(name)) => vec![name],
            Ok(Changed::All) | Err(RecvError::Lagged(_)) => {
                let lanes = self.state.lanes();
                lanes.map(|lane| (lane.account.clone(), lane.webhook.clone())).collect()
            }
            // The catalog lives as long as its workers.
            Err(RecvError::Closed) => return,
        };
        for name in names
            .iter()
            .filter(|name| self.state.has_lane(name))
            .cloned()
            .collect::<Vec<_>>()
        {
            let known = self.shards.deps.catalog.current(&name);
            self.state.changed(&name.0, &name.1, &known, now, &mut self.effects);
        }
    }

    /// Hands on what the state recorded.
    fn record(&mut self) {
        self.purse.put(std::mem::take(&mut self.effects.freed));
        self.pen.record(&mut self.effects.records);
        let tally = std::mem::take(&mut self.state.tally);
        if tally != Tally::default() {
            self.shards.counters.add(&tally);
        }
    }
}

async fn wait(permit: &mut Option<PermitWait>) -> Result<OwnedSemaphorePermit, AcquireError> {
    match permit {
        Some(permit) => permit.await,
        None => std::future::pending().await,
    }
}
