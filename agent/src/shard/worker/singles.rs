//! Commands about single deliveries: each is looked for in the store, marked, and looked for again until the mark is obeyed or it is nowhere.
//!
//! ```text
//!     command ▸ find ──waits──▶ mark, fetch ──▶ obeyed: the command is carried out
//!                 ▲  └─nowhere─▶ among the dead letters, as a job   │
//!                 └───────────────────── a second later ◀───────────┘ not yet
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postrider_common::key::Key;
use postrider_common::model::command::{Action, Command};
use postrider_common::time::Timestamp;
use tokio::task::{JoinError, JoinSet};

use super::Worker;
use super::find::{self, Standing};
use crate::shard::state::marks::{Mark, Marked};

/// How often a delivery is looked for whose mark is not obeyed: it may wait for its turn, or for its webhook to be well.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Commands about single deliveries.
#[derive(Default)]
pub(super) struct Singles {
    waiting: BTreeMap<Key, Single>,
    finding: JoinSet<(Key, Standing)>,
    /// Those whose delivery has ended: it may be a dead letter.
    ended: BTreeMap<Key, Arc<Command>>,
}

struct Single {
    command: Arc<Command>,
    marked: Marked,
    mark: Mark,
    look_at: Timestamp,
    /// It was found, and was given its mark.
    is_marked: bool,
}

impl Singles {
    /// Takes a command on, if it is about a single delivery.
    pub(super) fn take_on(&mut self, key: &Key, command: &Arc<Command>, now: Timestamp) -> bool {
        let (event, mark) = match &command.action {
            Action::Retry(event) => (event, Mark::Retry),
            Action::Cancel(event) => (event, Mark::Cancel),
            Action::Redrive(..) | Action::Purge(_) => return false,
        };
        let single = Single {
            marked: Marked {
                account: command.account.clone(),
                webhook: command.webhook.clone(),
                uid: command.uid.clone(),
                event: event.clone(),
            },
            command: command.clone(),
            mark,
            look_at: now,
            is_marked: false,
        };
        self.waiting.insert(key.clone(), single);
        true
    }

    /// Whether a command was taken on, and is not carried out.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.waiting.contains_key(key) || self.ended.contains_key(key)
    }

    /// A command whose delivery has ended.
    pub(super) fn pop_ended(&mut self) -> Option<(Key, Arc<Command>)> {
        self.ended.pop_first()
    }

    /// Where a delivery was found.
    pub(super) async fn next(&mut self) -> Option<Result<(Key, Standing), JoinError>> {
        self.finding.join_next().await
    }

    /// When the next one is to be looked for.
    pub(super) fn next_alarm(&self) -> Option<Timestamp> {
        let looks = self.waiting.values().map(|single| single.look_at);
        looks.min().filter(|_| self.finding.is_empty())
    }
}

impl Worker {
    /// Ends what was obeyed, and looks for the next delivery.
    pub(super) fn look_for_singles(&mut self, now: Timestamp) {
        if self.singles.waiting.is_empty() {
            return;
        }
        let obeyed = |single: &Single| single.is_marked && !self.state.is_marked(&single.marked);
        let done: Vec<Key> = self
            .singles
            .waiting
            .iter()
            .filter(|(_, single)| obeyed(single))
            .map(|(key, _)| key.clone())
            .collect();
        for key in done {
            if let Some(single) = self.singles.waiting.remove(&key) {
                self.carried_out(key, &single.command);
            }
        }
        if !self.singles.finding.is_empty() {
            return;
        }
        let next = self.singles.waiting.iter().find(|(_, single)| single.look_at <= now);
        if let Some((key, single)) = next {
            let (key, marked) = (key.clone(), single.marked.clone());
            let (store, shard) = (self.shards.deps.store.clone(), self.tenure.shard);
            self.singles
                .finding
                .spawn(async move { (key, find::find(store, shard, marked).await) });
        }
    }

    /// Takes in where a delivery was found.
    pub(super) fn single_found(&mut self, found: Result<(Key, Standing), JoinError>) {
        let now = self.now();
        let (key, standing) = match found {
            Ok(found) => found,
            // It is looked for again.
            Err(error) => return tracing::error!(%error, shard = %self.tenure.shard, "looking for a delivery failed"),
        };
        let Some(single) = self.singles.waiting.get_mut(&key) else {
            return;
        };
        single.look_at = now + LOOK_EVERY;
        let obeyed = single.is_marked && !self.state.is_marked(&single.marked);
        if obeyed {
            // What was found was about to go.
            return self.wake.notify_one();
        }
        match standing {
            Standing::Nowhere => {
                self.state.unmark(&single.marked);
                if let Some(single) = self.singles.waiting.remove(&key) {
                    self.singles.ended.insert(key, single.command);
                }
            }
            Standing::Queued => {
                single.is_marked = true;
                self.state.mark(single.marked.clone(), single.mark);
            }
            Standing::Parked(parked) => {
                single.is_marked = true;
                self.state.mark(single.marked.clone(), single.mark);
                self.state.fetch(&parked, single.mark, now, &mut self.effects);
            }
        }
        self.wake.notify_one();
    }
}
