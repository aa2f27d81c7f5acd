//! A session: all that an agent does with its shards under one lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use postrider_common::id::AgentId;
use postrider_common::key;
use postrider_common::planted::{self, Bug};
use postrider_common::shard::ShardId;
use postrider_common::store::{Guard, LeaseId, Op, Revision, SharedStore, Write, WriteError, mirror};
use postrider_common::wire::stored;
use postrider_proto::stored as pb;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Deps;
use super::reconcile::{Action, Stage, reconcile};
use super::view::View;
use crate::presence::Presence;
use crate::shard::{Running, Tenure, Work};

/// Pause after a write that failed: the store is away, or the view behind.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How long abandoned workers may take to stop. They have been told by then, and their epoch keeps them from writing.
const ABANDON_DEADLINE: Duration = Duration::from_secs(1);

/// How long the view may take to show a write. Nothing depends on it but needless attempts.
const VIEW_DEADLINE: Duration = Duration::from_secs(1);

/// How a session ended.
pub(super) enum End {
    /// All shards were released and the agent has left.
    Stopped,
    /// The lease is lost, and all shards were abandoned.
    Lost,
}

/// See the file's head.
pub(super) struct Session {
    store: SharedStore,
    agent: AgentId,
    work: Arc<dyn Work>,
    presence: Arc<Presence>,
    owners: mirror::Handle,
    mine: BTreeMap<ShardId, Mine>,
    tasks: JoinSet<Done>,
}

/// A shard that the agent has, or is about to have or to lose.
enum Mine {
    Changing,
    Held {
        epoch: Revision,
        running: Box<dyn Running>,
        fence: AbortHandle,
    },
}

/// What a task of the session has found out.
enum Done {
    /// A take ended, with the epoch if the shard is this agent's.
    Taken(ShardId, Option<Revision>),
    /// The shard is not this agent's any more.
    Gone(ShardId),
    /// The worker of that epoch says that its tenure is over.
    Fenced(ShardId, Revision),
    /// That the agent drains was told.
    Told,
}

impl Session {
    pub(super) fn new(deps: &Deps, presence: Arc<Presence>, owners: mirror::Handle) -> Self {
        Self {
            store: Arc::clone(&deps.store),
            agent: deps.agent.clone(),
            work: Arc::clone(&deps.work),
            presence,
            owners,
            mine: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Runs until the lease is lost, or `stop` is cancelled and everything has been released.
    pub(super) async fn run(mut self, mut view: watch::Receiver<View>, stop: &CancellationToken) -> End {
        let lost = self.presence.held().lost().clone();
        let nothing = View::nothing();
        let mut stopping = false;
        loop {
            let seen = view.borrow_and_update().clone();
            // Whatever else is on the lease goes with it.
            self.act(if stopping { &nothing } else { &seen });
            if stopping && self.mine.is_empty() {
                self.tasks.shutdown().await;
                self.presence.leave().await;
                return End::Stopped;
            }
            tokio::select! {
                biased;
                () = lost.cancelled() => return self.abandon_all().await,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    let presence = Arc::clone(&self.presence);
                    self.tasks.spawn(async move {
                        presence.set_draining().await;
                        Done::Told
                    });
                }
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.note(done),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => {
                        // Which shard it was about is not known any more: begin anew with all of them.
                        tracing::error!(%error, "a task of the assignment panicked");
                        return self.abandon_all().await;
                    }
                },
                changed = view.changed() => if changed.is_err() {
                    return self.abandon_all().await;
                },
            }
        }
    }

    fn act(&mut self, view: &View) {
        let stage = |mine: &Mine| match mine {
            Mine::Changing => Stage::Changing,
            Mine::Held { .. } => Stage::Held,
        };
        let stages = self.mine.iter().map(|(shard, mine)| (*shard, stage(mine))).collect();
        let actions = reconcile(view, self.presence.held().id(), &stages);
        if !actions.0.is_empty() {
            tracing::info!(%actions, "shards");
        }
        for action in actions.0 {
            match action {
                Action::Take(shard) => self.take(shard),
                Action::Release(shard) => self.end_worker(shard, Running::release),
                Action::Clear(shard, epoch) => self.give_up(shard, epoch, async {}),
            }
        }
    }

    fn note(&mut self, done: Done) {
        match done {
            Done::Taken(shard, Some(epoch)) => self.start(shard, epoch),
            Done::Taken(shard, None) | Done::Gone(shard) => {
                self.mine.remove(&shard);
            }
            Done::Fenced(shard, fenced) => {
                let of = self.mine.get(&shard);
                if matches!(of, Some(Mine::Held { epoch, .. }) if *epoch == fenced) {
                    tracing::warn!(%shard, epoch = fenced.0, "fenced");
                    self.end_worker(shard, Running::abandon);
                }
            }
            Done::Told => {}
        }
    }

    fn take(&mut self, shard: ShardId) {
        self.mine.insert(shard, Mine::Changing);
        let (store, owners) = (Arc::clone(&self.store), self.owners.clone());
        let (agent, lease) = (self.agent.clone(), self.presence.held().id());
        self.tasks
            .spawn(async move { Done::Taken(shard, create_key(&store, &owners, &agent, lease, shard).await) });
    }

    fn start(&mut self, shard: ShardId, epoch: Revision) {
        let running = self.work.start(Tenure {
            shard,
            epoch,
            lease: self.presence.held().clone(),
        });
        let fenced = running.fenced();
        let fence = self.tasks.spawn(async move {
            fenced.cancelled().await;
            Done::Fenced(shard, epoch)
        });
        self.mine.insert(shard, Mine::Held { epoch, running, fence });
    }

    /// Ends the worker of a shard that is held, then gives up the shard.
    fn end_worker(&mut self, shard: ShardId, end: fn(Box<dyn Running>) -> BoxFuture<'static, ()>) {
        if let Some(Mine::Held { epoch, running, fence }) = self.mine.remove(&shard) {
            fence.abort();
            self.give_up(shard, epoch, end(running));
        }
    }

    /// Deletes the owner key of that epoch after `first`.
    fn give_up(&mut self, shard: ShardId, epoch: Revision, first: impl Future<Output = ()> + Send + 'static) {
        self.mine.insert(shard, Mine::Changing);
        let (store, owners) = (Arc::clone(&self.store), self.owners.clone());
        self.tasks.spawn(async move {
            if planted::is(Bug::ReleasedUnwritten) {
                delete_key(&store, &owners, shard, epoch).await;
            }
            first.await;
            delete_key(&store, &owners, shard, epoch).await;
            Done::Gone(shard)
        });
    }

    async fn abandon_all(mut self) -> End {
        // Workers that are being released learn it from the lease of their tenure, and are dropped here.
        self.tasks.abort_all();
        let workers = std::mem::take(&mut self.mine).into_values();
        let running = workers.filter_map(|mine| match mine {
            Mine::Held { running, .. } => Some(running),
            Mine::Changing => None,
        });
        let all = join_all(running.map(Running::abandon));
        let stopped = timeout(ABANDON_DEADLINE, all).await.is_ok();
        self.tasks.shutdown().await;
        if stopped {
            // Nothing works under the lease any more: others need not wait until it has run out.
            self.presence.leave().await;
        } else {
            tracing::warn!("abandoned workers did not stop in time");
        }
        End::Lost
    }
}

/// Creates the owner key and returns the epoch, if the shard is this agent's now.
async fn create_key(
    store: &SharedStore,
    owners: &mirror::Handle,
    agent: &AgentId,
    lease: LeaseId,
    shard: ShardId,
) -> Option<Revision> {
    let key = key::owner(shard);
    let value = stored::encode(&pb::Owner {
        agent: agent.as_str().to_owned(),
    });
    let write = Write {
        guards: if planted::is(Bug::TakenUnguarded) {
            Vec::new()
        } else {
            vec![Guard::Absent(key.clone())]
        },
        ops: vec![Op::put_leased(key.clone(), value, lease)],
    };
    let unsettled = match store.write(write).await {
        Ok(epoch) => return Some(epoch),
        Err(error @ (WriteError::Conflict | WriteError::Unknown(_))) => error,
        Err(error) => {
            tracing::debug!(%shard, %error, "shard not taken");
            sleep(RETRY_PAUSE).await;
            return None;
        }
    };
    match store.get(&key).await {
        // Only this session writes keys on this lease, and it takes a shard again only when the key of its last tenure is gone: nobody has
        // worked under this one.
        Ok((Some(entry), _)) if entry.lease == Some(lease) => return Some(entry.create_revision),
        Ok((Some(entry), _)) => {
            tracing::debug!(%shard, "another agent has the shard");
            seen(owners, entry.mod_revision).await;
        }
        Ok((None, _)) => {
            tracing::debug!(%shard, error = %unsettled, "shard not taken");
            sleep(RETRY_PAUSE).await;
        }
        Err(error) => {
            tracing::debug!(%shard, %error, "shard not taken");
            sleep(RETRY_PAUSE).await;
        }
    }
    None
}

/// Waits until the view shows a write of an owner key.
async fn seen(owners: &mirror::Handle, revision: Revision) {
    if timeout(VIEW_DEADLINE, owners.reached(revision)).await.is_err() {
        tracing::debug!(%revision, "the view of the owners is late");
    }
}

/// Deletes the owner key of that epoch; returns when it is certain that it is gone, and known to the view.
async fn delete_key(store: &SharedStore, owners: &mirror::Handle, shard: ShardId, epoch: Revision) {
    loop {
        let key = key::owner(shard);
        let write = Write {
            guards: vec![Guard::Created(key.clone(), epoch)],
            ops: vec![Op::delete(key)],
        };
        match store.write(write).await {
            Ok(revision) => {
                return seen(owners, revision).await;
            }
            // It was gone before; at which revision is not known, so the view may be behind for a moment.
            Err(WriteError::Conflict) => return sleep(RETRY_PAUSE).await,
            Err(error) => {
                tracing::debug!(%shard, %error, "shard not given up yet");
                sleep(RETRY_PAUSE).await;
            }
        }
    }
}
