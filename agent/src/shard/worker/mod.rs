//! The task of one shard: feeds the state, makes the attempts it asks for, hands its records to the ledger.

mod arrivals;
mod attempts;
mod find;
mod intake;
mod orders;
mod singles;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_common::key::Key;
use postrider_common::planted::{self, Bug};
use postrider_common::task;
use postrider_common::time::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, OwnedSemaphorePermit, broadcast, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::arrivals::Arrivals;
use self::attempts::{PermitWait, wait};
use self::orders::Orders;
use self::singles::Singles;
use super::Tenure;
use super::budget::Purse;
use super::counters::Tally;
use super::delivery::{Effects, Known, Load};
use super::feed::{self, Feed, Found, Got};
use super::ledger::Pen;
use super::pace::Turn;
use super::shards::{Command, Shards};
use super::state::{AttemptId, State};
use crate::attempt::Made;
use crate::catalog::Changed;
use crate::history::Journal;
use crate::history::ration::Ration;
use crate::suspension;

/// The longest sleep: the wall clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// How long a shard that is given up waits for its progress to be written. A store that takes nothing, full or away, must not keep the shard from
/// everybody; what is not written by then is repeated by the next owner.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// How long a shard that is given up waits for the last of its history to be written: it answers within milliseconds, or is dropped.
const HISTORY_DEADLINE: Duration = Duration::from_millis(500);

/// How often in a row ended attempts are taken in before everything else that may have happened is looked at.
const ENDED_IN_A_ROW: u32 = 16;

/// How long the tasks of a worker that ends may take to notice.
const STOP_GRACE: Duration = Duration::from_millis(100);

/// How a worker ended.
#[derive(Debug)]
pub(super) enum End {
    Released,
    Abandoned,
    LeaseLost,
    Fenced,
}

/// A read that was under way.
struct Read {
    of: Of,
    got: Vec<Got>,
    /// What was taken of the budget in advance.
    reserved: usize,
}

/// What is read.
enum Of {
    /// Parked segments.
    Parked(Load),
    /// The queue: which of the reads, in the order of acceptance.
    Queue(u64),
}

pub(super) struct Worker {
    shards: Shards,
    tenure: Tenure,
    state: State,
    effects: Effects,
    pen: Pen,
    journal: Journal,
    /// How many successes the history has room for, as of when; `None` if there is no history.
    successes: Option<(Ration, Timestamp)>,
    purse: Arc<Purse>,
    wake: Arc<Notify>,
    feed: Feed,
    attempts: JoinSet<(AttemptId, Made)>,
    reads: JoinSet<Read>,
    queue_reads: usize,
    /// What was read of the queue and waits for what was accepted before it.
    arrivals: Arrivals<Read>,
    /// All that the queue held when the shard was taken was read.
    caught_up: bool,
    loads: VecDeque<Load>,
    /// Bits, as stored, of segments that are still to be read.
    progress: BTreeMap<Key, Bytes>,
    next_source: u64,
    permit: Option<OwnedSemaphorePermit>,
    permit_wait: Option<PermitWait>,
    /// The shard's turn to begin attempts to receivers that did not answer last time.
    pace: Option<Turn>,
    /// When the next look is due although nothing else happens.
    look_at: Option<Timestamp>,
    orders: Orders,
    singles: Singles,
    /// How many shards the cell has, if that is known.
    shard_count: Option<NonZeroU16>,
}

impl Worker {
    /// Works until told otherwise, or until the tenure is over.
    pub(super) async fn run(
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
            // What is redriven goes before what the queue holds.
            shards.deps.commands.synced().await;
            feed::find(&shards.deps.store, &shards.deps.catalog, tenure.shard).await
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
        // First of all: nothing more is sent.
        worker.attempts.abort_all();
        group.shut_down(STOP_GRACE).await;
        worker.reads.shutdown().await;
        if !matches!(end, End::Released) {
            worker.attempts.shutdown().await;
            return end;
        }
        // Some had their answer before they were cut.
        if let Some(first) = worker.attempts.join_next().await {
            worker.attempts_ended(first);
            while let Some(next) = worker.attempts.join_next().await {
                worker.attempts_ended(next);
            }
        }
        worker.record();
        tokio::select! {
            () = worker.pen.flushed() => {}
            () = lost.cancelled() => {}
            () = tokio::time::sleep(FLUSH_DEADLINE) => {
                tracing::warn!(shard = %worker.tenure.shard, "a shard is given up before its progress was written");
            }
        }
        // Nobody waits long for what is only told.
        let _ = tokio::time::timeout(HISTORY_DEADLINE, worker.journal.close()).await;
        end
    }

    fn new(shards: Shards, tenure: Tenure, group: &task::Group, found: Found, fenced: CancellationToken) -> Self {
        let wake = Arc::new(Notify::new());
        let purse = Arc::new(Purse::new(shards.budget.clone()));
        let mut progress = found.book.progress.clone().unwrap_or_default();
        if planted::is(Bug::ProgressForgotten) {
            progress.clear();
        }
        let counted: Vec<_> = found.book.counts.numbered().collect();
        let pen = shards
            .ledger
            .open(tenure.clone(), found.book, wake.clone(), purse.clone(), fenced);
        let journal = shards.history.open(&tenure, pen.written());
        let mut state = State::new(tenure.shard, tenure.epoch, shards.limits.suspend_after);
        let mut effects = Effects::default();
        let now = shards.deps.clock.now();
        counted.iter().for_each(|(name, usage)| state.counted(name, usage));
        for ((account, webhook), failing) in found.failing {
            let known = shards.deps.catalog.current(&(account.clone(), webhook.clone()));
            let known = Some(known).filter(|known| !matches!(known, Known::Absent(_)));
            state.failing((&account, &webhook), failing, known.as_ref());
        }
        for parked in found.parked {
            let known = shards
                .deps
                .catalog
                .current(&(parked.account.clone(), parked.webhook.clone()));
            let gone = found.gone.get(&(parked.account.clone(), parked.webhook.clone()));
            // That the mirror holds none may be its lag.
            let known = match known {
                Known::Absent(_) => gone.copied().map(Known::Absent),
                other => Some(other),
            };
            state.parked(&parked, known.as_ref(), now, &mut effects);
        }
        let ration = shards.limits.history.share(found.shard_count).map(Ration::new);
        let feed = Feed::spawn(group, shards.deps.store.clone(), tenure.shard, wake.clone());
        let retention = shards.limits.dead_letter_retention;
        Self {
            shards,
            tenure,
            state,
            effects,
            pen,
            journal,
            successes: ration.map(|ration| (ration, now)),
            purse,
            wake,
            feed,
            attempts: JoinSet::new(),
            reads: JoinSet::new(),
            queue_reads: 0,
            arrivals: Arrivals::default(),
            caught_up: false,
            loads: VecDeque::new(),
            progress,
            next_source: 0,
            permit: None,
            permit_wait: None,
            pace: None,
            look_at: None,
            orders: Orders::new(now, retention),
            singles: Singles::default(),
            shard_count: found.shard_count,
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
        let mut orders = self.shards.deps.commands.changes();
        let mut in_a_row = 0;
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
            // Mostly it is an attempt that has ended, and nothing else needs to be asked. But a flood of them holds up nothing else for long.
            tokio::select! {
                biased;
                Some(ended) = self.attempts.join_next(), if in_a_row < ENDED_IN_A_ROW => {
                    in_a_row += 1;
                    self.attempts_ended(ended);
                }
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
                // Whatever it says: the next turn looks.
                _ = orders.recv(), if deadline.is_none() => self.orders.changed(),
                Some(found) = self.singles.next(), if deadline.is_none() => self.single_found(found),
                Some(read) = self.orders.next(), if deadline.is_none() => self.order_read(read),
                Some(read) = self.reads.join_next(), if deadline.is_none() => self.read_ended(read),
                () = wake.notified() => {}
                () = &mut sleep => if deadline.is_some() {
                    return End::Released;
                },
                () = std::future::ready(()), if in_a_row >= ENDED_IN_A_ROW => in_a_row = 0,
            }
        }
    }

    /// One turn: whatever can be done now.
    fn turn(&mut self) {
        let now = self.now();
        self.look_at = None;
        self.state.allow(self.allowance());
        self.state.written(&self.pen.take_written(), now, &mut self.effects);
        self.state.tick(now, &mut self.effects);
        self.look_for_redrives();
        self.read_on(now);
        self.start_attempts(now);
        // What was started may have made room.
        self.load_parked();
        self.order(now);
    }

    fn now(&self) -> Timestamp {
        self.shards.deps.clock.now()
    }

    fn sleep_until(&self) -> Instant {
        let at = [
            self.state.next_alarm(),
            self.look_at,
            Some(self.orders.next_alarm()),
            self.singles.next_alarm(),
        ];
        let at = at.into_iter().flatten().min();
        // To the whole millisecond above, so that it is due when the sleep is over.
        let pause = at.map_or(LONGEST_SLEEP, |at| at.saturating_since(self.now()).min(LONGEST_SLEEP));
        Instant::now() + pause
    }

    fn changed(&mut self, changed: Result<Changed, RecvError>) {
        let now = self.now();
        self.webhook_replaced(changed.as_ref().ok());
        let names = match changed {
            Ok(Changed::One(name) | Changed::Replaced(name)) => vec![name],
            Ok(Changed::All) | Err(RecvError::Lagged(_)) => {
                let lanes = self.state.lanes();
                lanes.map(|lane| (lane.account.clone(), lane.webhook.clone())).collect()
            }
            // The catalog lives as long as its workers.
            Err(RecvError::Closed) => return,
        };
        for name in names {
            let known = self.shards.deps.catalog.current(&name);
            if self.state.has_lane(&name) {
                self.state.changed(&name.0, &name.1, &known, now, &mut self.effects);
            }
            if let Known::Absent(at) = known {
                self.webhook_deleted(name, at);
            }
        }
    }

    /// Hands on what the state recorded.
    fn record(&mut self) {
        self.purse.put(std::mem::take(&mut self.effects.freed));
        self.pen.record(&mut self.effects.records);
        self.journal.add(&mut self.effects.history);
        for suspend in self.effects.suspensions.drain(..) {
            // If too many wait, the next failure asks again.
            self.shards.deps.suspender.suspend(suspension::Request {
                account: suspend.webhook.account.clone(),
                webhook: suspend.webhook.id.clone(),
                uid: suspend.webhook.uid.clone(),
                generation: suspend.webhook.generation,
                reason: suspend.cause.reason,
                detail: suspend.cause.detail,
                tenure: self.tenure.clone(),
            });
        }
        let tally = std::mem::take(&mut self.state.tally);
        if tally != Tally::default() {
            self.shards.counters.add(&tally);
        }
    }
}
