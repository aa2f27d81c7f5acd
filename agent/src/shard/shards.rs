//! What all workers of an agent share, and how they are started and stopped.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use postrider_common::entropy::SharedEntropy;
use postrider_common::id::AgentId;
use postrider_common::store::SharedStore;
use postrider_common::task;
use postrider_common::time::SharedClock;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::budget::Budget;
use super::counters::{Counted, Counters};
use super::ledger::Ledger;
use super::pace::Pace;
use super::worker::Worker;
use super::{Running, Tenure, Work};
use crate::attempt::Sender;
use crate::catalog::Catalog;
use crate::command::Commands;
use crate::history::{self, History};
use crate::limit::failing::SUSPEND_AFTER;
use crate::suspension::Suspender;

/// How long dead letters are kept: long enough for somebody on holiday to come back.
pub const DEAD_LETTER_RETENTION: Duration = Duration::from_hours(30 * 24);

/// What an agent may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of deliveries in memory, approximately.
    pub bytes: usize,
    /// Attempts under way.
    pub attempts: usize,
    /// So many of them only for webhooks whose receiver answered last time.
    pub reserved: usize,
    /// So many of the others may be under way before they are paced.
    pub unpaced: usize,
    /// So many of the others begin in a second when they are paced.
    pub paced_rate: u32,
    /// How long attempts under way may still take when a shard is released; then they are cut, and repeated by the next owner.
    pub grace: Duration,
    /// A webhook is suspended when it has only failed for so long.
    pub suspend_after: Duration,
    /// How long dead letters are kept.
    pub dead_letter_retention: Duration,
    /// How much history is kept.
    pub history: history::Limits,
}

impl Default for Limits {
    /// 64 MiB, 12,288 attempts (each is a socket and some 50 KB), of which ten thousand receivers that never answer leave a sixth; 256 unpaced (receivers that answer within 10 ms
    /// get 25,000 a second) and 500 a second paced (an eighth of a processor to begin them, and as much to end them); 800 ms (a receiver that is well answers in that time, and a shard is handed over within a second).
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            attempts: 12 * 1024,
            reserved: 2 * 1024,
            unpaced: 256,
            paced_rate: 500,
            grace: Duration::from_millis(800),
            suspend_after: SUSPEND_AFTER,
            dead_letter_retention: DEAD_LETTER_RETENTION,
            history: history::Limits::default(),
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
    /// What is counted of the history.
    pub history: Arc<history::Counters>,
    /// Switches webhooks off.
    pub suspender: Suspender,
    /// What it is told to do.
    pub commands: Commands,
}

/// Starts workers: all that an agent's workers share.
#[derive(Clone)]
pub struct Shards {
    pub(super) deps: Deps,
    pub(super) limits: Limits,
    pub(super) group: task::Group,
    pub(super) ledger: Ledger,
    pub(super) history: History,
    pub(super) budget: Arc<Budget>,
    pub(super) attempts: Arc<Semaphore>,
    pub(super) pace: Arc<Pace>,
    pub(super) counters: Arc<Counters>,
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
        let history = History::spawn(
            group,
            deps.store.clone(),
            deps.clock.clone(),
            deps.history.clone(),
            limits.history,
        );
        let budget = Arc::new(Budget::new(limits.bytes));
        // Another one was set only where two agents share their counts.
        let _ = counters.budget.set(budget.clone());
        Self {
            history,
            deps,
            limits,
            group: group.clone(),
            ledger,
            budget,
            attempts: Arc::new(Semaphore::new(limits.attempts)),
            pace: Arc::new(Pace::new(limits.unpaced, limits.paced_rate)),
            counters,
        }
    }

    /// What is counted.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Bytes of deliveries in memory.
    pub fn loaded_bytes(&self) -> usize {
        self.counters.loaded_bytes()
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
            // Also if the worker panics: then its owner must not believe that somebody works on the shard.
            let (_done, _over) = (done.drop_guard(), fenced.clone().drop_guard());
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

/// What a worker is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    Release,
    Abandon,
}
