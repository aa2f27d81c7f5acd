//! Tests of webhooks: asks a live agent, through the store, and waits for what it saw.
//!
//! ```text
//!     caller ──▶ ask ▸ choose an agent ▸ tests/G/ID ─────────▶ agent
//!            ◀── transcript ◀── waiting ◀── mirror ◀── test-answers/ID
//!                                  └─ agents/G goes: once more, by another agent
//! ```
//!
//! All of a test hangs on one lease, which is revoked when the caller has the answer or has gone away. A test is asked for only of an agent that lives: the
//! write is guarded by the agent's entry. Who made the first request is not waited for once its entry is gone, so a receiver may get a second one.

mod roster;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use postrider_common::entropy::SharedEntropy;
use postrider_common::id::{AccountId, AgentId, Uid};
use postrider_common::key::{self, Key};
use postrider_common::model::testing::{BODY_PATIENCE, TURN, Test, Transcript};
use postrider_common::model::webhook::DEFAULT_TIMEOUT;
use postrider_common::store::mirror::{self, Update};
use postrider_common::store::{Change, Entry, Guard, LeaseId, Op, ReadError, Revision, SharedStore, Write, WriteError};
use postrider_common::task::Group;
use postrider_common::time::SharedClock;
use postrider_common::wire::stored::{Unreadable, decode_transcript, encode_test};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use self::roster::Roster;

/// Tests of one account that are under way at once, on this control plane: a person tries one or two.
pub(crate) const MAX_PER_ACCOUNT: usize = 4;

/// What a test may take beyond the webhook's timeout, its turn and the answer's body: two writes, and two watches that tell of them.
const SLACK: Duration = Duration::from_secs(3);

/// How many agents are asked: a second one if the first is gone.
const TURNS: u32 = 2;

/// How often an agent is chosen anew because the one that was chosen has gone meanwhile, in all.
const CHOICES: u32 = 5;

/// How long an agent may take to appear: after a start of this control plane the roster is not read yet.
const ROSTER_DEADLINE: Duration = Duration::from_secs(2);

/// Pause before an agent is chosen anew: about the lag of the roster.
const PAUSE: Duration = Duration::from_millis(50);

/// How long the end of a lease may take: else it runs out by itself.
const REVOKE_DEADLINE: Duration = Duration::from_secs(1);

/// What tests need.
pub(crate) struct Deps {
    /// The store.
    pub(crate) store: SharedStore,
    /// Names tests.
    pub(crate) clock: SharedClock,
    /// Names tests, and chooses agents.
    pub(crate) entropy: SharedEntropy,
}

/// Why there is no transcript.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The account has as many tests under way as it may.
    #[error("too many tests are under way")]
    TooMany,
    /// No agent is alive that takes tests.
    #[error("no agent is alive")]
    NoAgent,
    /// Agents are alive, but none answered.
    #[error("no agent answered")]
    Unanswered,
    /// The store did not answer.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The test could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The agent's answer is of another release.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// This control plane is stopping.
    #[error("stopping")]
    Stopping,
}

/// Who waits for the answers to which tests.
type Waiting = Arc<Mutex<HashMap<Uid, oneshot::Sender<Bytes>>>>;

/// Makes tests. Clones are the same.
#[derive(Clone)]
pub(crate) struct Tests(Arc<Shared>);

struct Shared {
    deps: Deps,
    group: Group,
    roster: watch::Receiver<Roster>,
    synced: mirror::Handle,
    waiting: Waiting,
    under_way: Mutex<HashMap<AccountId, usize>>,
}

impl Tests {
    /// Starts to follow who is alive and what is answered. When the group is told to stop, tests under way are given up.
    pub(crate) fn spawn(group: &Group, deps: Deps) -> Self {
        let (rosters, roster) = watch::channel(Roster::default());
        let synced = mirror::spawn(
            group,
            "agents",
            Arc::clone(&deps.store),
            key::agents(),
            false,
            move |update| rosters.send_modify(|roster| roster.apply(update)),
        );
        let waiting = Waiting::default();
        let told = Arc::clone(&waiting);
        let store = Arc::clone(&deps.store);
        mirror::spawn(
            group,
            "test answers",
            store,
            key::test_answers(),
            false,
            move |update| {
                for entry in entries(update) {
                    // Most are for other control planes.
                    let waits = key::parse_test_answer(&entry.key).and_then(|id| lock(&told).remove(&id));
                    if let Some(waits) = waits {
                        let _ = waits.send(entry.value);
                    }
                }
            },
        );
        Self(Arc::new(Shared {
            deps,
            group: group.clone(),
            roster,
            synced,
            waiting,
            under_way: Mutex::default(),
        }))
    }

    /// Has a test made. Dropping the future gives the test up.
    ///
    /// # Errors
    /// [`Error`]. What the receiver does is none.
    pub(crate) async fn make(&self, test: Test) -> Result<Transcript, Error> {
        let place = Place::take(&self.0, &test.webhook.account).ok_or(Error::TooMany)?;
        let (mut answer, answered) = oneshot::channel();
        let shared = Arc::clone(&self.0);
        // On a task of its own: the lease must be given back also when the caller has gone away.
        self.0.group.spawn("test", async move {
            let _place = place;
            let stop = shared.group.token();
            let given_up = async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = answer.closed() => {}
                }
            };
            let made = shared.conduct(test, given_up).await;
            let _ = answer.send(made);
        });
        answered.await.unwrap_or(Err(Error::Stopping))
    }
}

impl Shared {
    /// Has a test made, and clears up after it.
    async fn conduct(&self, test: Test, given_up: impl Future<Output = ()>) -> Result<Transcript, Error> {
        let limit = test.webhook.timeout.unwrap_or(DEFAULT_TIMEOUT) + TURN + BODY_PATIENCE + SLACK;
        let lease = self.deps.store.grant(limit * TURNS + SLACK).await?.id;
        let made = tokio::select! {
            made = self.ask(lease, encode_test(test), limit) => made,
            () = given_up => Err(Error::Stopping),
        };
        let revoked = timeout(REVOKE_DEADLINE, self.deps.store.revoke(lease)).await;
        if !matches!(revoked, Ok(Ok(()))) {
            tracing::debug!("the lease of a test is left to run out");
        }
        made
    }

    /// Asks one agent, and another one if the first is gone before it has answered.
    async fn ask(&self, lease: LeaseId, test: Bytes, limit: Duration) -> Result<Transcript, Error> {
        let mut former: Option<Asked> = None;
        for _ in 0..TURNS {
            let mut asked = self.ask_one(lease, &test, former.as_ref()).await?;
            tokio::select! {
                biased;
                answer = &mut asked.answer => {
                    return match answer {
                        Ok(answer) => Ok(decode_transcript(answer)?),
                        Err(_) => Err(Error::Stopping),
                    };
                }
                () = self.gone(&asked.agent, asked.since) => {
                    tracing::info!(agent = %asked.agent, "an agent went while it made a test");
                    former = Some(asked);
                }
                () = sleep(limit) => break,
            }
        }
        Err(Error::Unanswered)
    }

    /// Asks an agent that is alive, and takes back what `former` was asked.
    async fn ask_one(&self, lease: LeaseId, test: &Bytes, former: Option<&Asked>) -> Result<Asked, Error> {
        for _ in 0..CHOICES {
            let (agent, since) = self.choose(former).await.ok_or(Error::NoAgent)?;
            let asked = Asked::new(
                &self.waiting,
                agent,
                since,
                self.deps.entropy.uid(self.deps.clock.now()),
            );
            let taken_back = former.map(|former| Op::delete(former.key()));
            let put = Op::put_leased(asked.key(), test.clone(), lease);
            let write = Write {
                guards: vec![Guard::Created(key::agent(&asked.agent), since)],
                ops: std::iter::once(put).chain(taken_back).collect(),
            };
            match self.deps.store.write(write).await {
                Ok(_) => return Ok(asked),
                // It has gone meanwhile.
                Err(WriteError::Conflict) => sleep(PAUSE).await,
                Err(error @ WriteError::Unknown(_)) => {
                    let (entry, _) = self.deps.store.get(&asked.key()).await?;
                    // If it is still to come, it comes to nothing: the lease will be gone.
                    return entry.map(|_| asked).ok_or(Error::Write(error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::NoAgent)
    }

    /// Any agent that takes tests, in the life that began at this revision; not the one that has just gone.
    async fn choose(&self, former: Option<&Asked>) -> Option<(AgentId, Revision)> {
        if timeout(ROSTER_DEADLINE, self.synced.synced()).await.is_err() {
            return None;
        }
        let roster = self.roster.borrow();
        let gone = former.map(|former| (&former.agent, former.since));
        roster.choose(gone, self.deps.entropy.next_u64())
    }

    /// Returns when an agent's life that began at `since` is over.
    async fn gone(&self, agent: &AgentId, since: Revision) {
        let mut roster = self.roster.clone();
        let gone = roster.wait_for(|roster| !roster.lives(agent, since)).await.is_ok();
        if !gone {
            // The roster is not kept any more: this control plane is stopping, and gives the test up.
            std::future::pending::<()>().await;
        }
    }
}

/// One request to one agent, waited for until it is dropped.
struct Asked {
    agent: AgentId,
    since: Revision,
    id: Uid,
    answer: oneshot::Receiver<Bytes>,
    waiting: Waiting,
}

impl Asked {
    fn new(waiting: &Waiting, agent: AgentId, since: Revision, id: Uid) -> Self {
        let (sender, answer) = oneshot::channel();
        lock(waiting).insert(id.clone(), sender);
        Self {
            agent,
            since,
            id,
            answer,
            waiting: Arc::clone(waiting),
        }
    }

    fn key(&self) -> Key {
        key::test(&self.agent, &self.id)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.id);
    }
}

/// One of the places of an account; given back when dropped.
struct Place(Arc<Shared>, AccountId);

impl Place {
    fn take(shared: &Arc<Shared>, account: &AccountId) -> Option<Self> {
        let mut under_way = lock(&shared.under_way);
        let count = under_way.entry(account.clone()).or_default();
        (*count < MAX_PER_ACCOUNT).then(|| {
            *count += 1;
            Self(Arc::clone(shared), account.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = lock(&self.0.under_way);
        if let Some(count) = under_way.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.1);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entries(update: Update) -> Vec<Entry> {
    match update {
        Update::Reset(entries, _) => entries,
        Update::Changes(changes) => {
            let put = |change| match change {
                Change::Put(entry) => Some(entry),
                Change::Delete(_) => None,
            };
            changes.changes.into_iter().filter_map(put).collect()
        }
    }
}

#[cfg(test)]
mod tests;
