//! Tests of webhooks: makes the requests that control planes ask this agent for, and tells what it saw.
//!
//! ```text
//!     control plane ──▶ tests/G/ID ──mirror──▶ wanted ▸ run (16 at once) ▸ sender ──POST──▶ receiver
//!                   ◀── test-answers/ID ◀─────────────────── transcript ◀──┘
//! ```
//!
//! Both keys are on a lease of the control plane: once the caller has the answer, or has gone away, the lease is revoked, both keys go, and a request that is
//! under way is cut. A test is none of a delivery: no shard, state or ledger hears of it. Whether an agent drains makes no difference here:
//! a control plane does not ask one that does.

mod wanted;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use postrider_common::id::AgentId;
use postrider_common::key::{self, Key};
use postrider_common::model::testing::Transcript;
use postrider_common::store::{Entry, Guard, Op, SharedStore, Write, WriteError, mirror};
use postrider_common::task;
use postrider_common::wire::stored::{decode_test, encode_transcript};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::wanted::Wanted;
use crate::attempt::sender::HttpSender;

/// Tests under way at once: people ask for them, a few at a time; whoever asks for hundreds waits, and costs deliveries nothing.
const AT_ONCE: usize = 16;

/// Pause before a store that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// What tests need.
pub struct Deps {
    /// The store.
    pub store: SharedStore,
    /// The agent's name.
    pub agent: AgentId,
    /// Makes the requests, as it makes attempts.
    pub sender: Arc<HttpSender>,
}

/// Starts to make tests, until the group is told to stop; then those under way are cut.
pub fn spawn(group: &task::Group, deps: Deps) {
    let wanted: Arc<Mutex<Wanted>> = Arc::default();
    let changed = Arc::new(Notify::new());
    let (apply_to, tell) = (Arc::clone(&wanted), Arc::clone(&changed));
    let prefix = key::tests_of(&deps.agent);
    // Keys only: a value is read when its turn comes, so however many wait, memory stays bounded.
    mirror::spawn(group, "tests", Arc::clone(&deps.store), prefix, true, move |update| {
        apply_to.lock().unwrap_or_else(PoisonError::into_inner).apply(update);
        tell.notify_one();
    });
    let stop = group.token().clone();
    let deps = Arc::new(deps);
    group.spawn("tests", async move {
        stop.run_until_cancelled_owned(work(deps, wanted, changed)).await;
    });
}

async fn work(deps: Arc<Deps>, wanted: Arc<Mutex<Wanted>>, changed: Arc<Notify>) {
    let mut running: JoinSet<Key> = JoinSet::new();
    loop {
        {
            let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some(key) = wanted.next(AT_ONCE) {
                let (deps, test) = (Arc::clone(&deps), key.clone());
                let handle = running.spawn(async move {
                    run(&deps, &test).await;
                    test
                });
                wanted.started(&key, handle);
            }
        }
        tokio::select! {
            () = changed.notified() => {}
            Some(ended) = running.join_next() => {
                let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
                match ended {
                    Ok(key) => wanted.ended(&key),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => tracing::error!(%error, "a test was lost"),
                }
            }
        }
    }
}

/// Makes a test and writes what was seen. Given up, by being dropped, when the test is no longer asked for.
async fn run(deps: &Deps, key: &Key) {
    let Some(entry) = read(deps, key).await else { return };
    let test = match decode_test(entry.value.clone()) {
        Ok(test) => test,
        Err(error) => {
            // Of a later release: the control plane asks another agent, or says that none answered.
            tracing::warn!(%error, "a test cannot be read");
            return;
        }
    };
    let sending = AssertUnwindSafe(deps.sender.test(&deps.agent, test)).catch_unwind();
    match sending.await {
        Ok(transcript) => answer(deps, &entry, transcript).await,
        Err(_) => tracing::error!("a test panicked"),
    }
}

async fn read(deps: &Deps, key: &Key) -> Option<Entry> {
    loop {
        match deps.store.get(key).await {
            Ok((entry, _)) => return entry,
            Err(error) => tracing::debug!(%error, "a test cannot be read for now"),
        }
        sleep(PAUSE).await;
    }
}

/// Writes the answer: once, and only while it is asked for.
async fn answer(deps: &Deps, test: &Entry, transcript: Transcript) {
    let (Some(id), Some(lease)) = (key::parse_test(&test.key), test.lease) else {
        return;
    };
    let key = key::test_answer(&id);
    let write = Write {
        guards: vec![
            Guard::Created(test.key.clone(), test.create_revision),
            Guard::Absent(key.clone()),
        ],
        ops: vec![Op::put_leased(key, encode_transcript(transcript), lease)],
    };
    loop {
        match deps.store.write(write.clone()).await {
            // A conflict: it is answered already, also where the answer to this write was lost, or nobody asks any more.
            Ok(_) | Err(WriteError::Conflict) => return,
            Err(error) => tracing::debug!(%error, "a test is not answered yet"),
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests;
