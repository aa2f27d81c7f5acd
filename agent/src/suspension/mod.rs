//! Switches webhooks off: of a receiver that answered 410, or that has only failed for too long.
//!
//! The owner of the webhook's shard asks; one task writes. The write is guarded by the webhook's revision and by the shard's epoch, and is made only for
//! the very configuration that the attempts were made with: whoever changes a webhook at the same moment wins. Nothing depends on a request being carried
//! out: while a webhook goes on failing it is asked for again, by this agent or the next owner.

use std::time::Duration;

use bytes::Bytes;
use postrider_common::id::{AccountId, Uid, WebhookId};
use postrider_common::key;
use postrider_common::model::webhook::{Suspension, Webhook};
use postrider_common::store::{Entry, Guard, NotApplied, Op, ReadError, SharedStore, Write, WriteError};
use postrider_common::task;
use postrider_common::time::{SharedClock, Timestamp};
use postrider_common::wire::stored;
use tokio::sync::mpsc;

use crate::shard::Tenure;

/// Requests that may wait: as many receivers as may go down together before some have to ask again.
const QUEUE: usize = 256;

/// Pause before a store that did not answer, or whose answer was lost, is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// A webhook to be switched off.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whose.
    pub account: AccountId,
    /// Which.
    pub webhook: WebhookId,
    /// Its uid.
    pub uid: Uid,
    /// The generation that the attempts were made with.
    pub generation: u64,
    /// One of [`postrider_common::model::webhook::suspended`].
    pub reason: &'static str,
    /// What happened, for people. It is shown to the webhook's owner.
    pub detail: String,
    /// The right to the webhook's shard.
    pub tenure: Tenure,
}

/// Takes requests. Clones are of the same task.
#[derive(Debug, Clone)]
pub struct Suspender {
    requests: mpsc::Sender<Request>,
}

impl Suspender {
    /// Starts the task. It ends when the group is told to stop, whatever waits then.
    pub fn spawn(group: &task::Group, store: SharedStore, clock: SharedClock) -> Self {
        let (requests, mut waiting) = mpsc::channel::<Request>(QUEUE);
        let stop = group.token().clone();
        group.spawn("suspender", async move {
            let work = async {
                while let Some(request) = waiting.recv().await {
                    let lost = request.tenure.lease.lost().clone();
                    lost.run_until_cancelled(suspend(&store, &clock, &request)).await;
                }
            };
            stop.run_until_cancelled(work).await;
        });
        Self { requests }
    }

    /// Asks for a webhook to be switched off, without waiting. False if too many wait: ask again after the next failure.
    pub fn suspend(&self, request: Request) -> bool {
        self.requests.try_send(request).is_ok()
    }
}

/// What a request comes to, given what the store holds.
enum Decision {
    /// Write this.
    Write(Write),
    /// Nothing is left to do: the reason, for the log.
    Over(&'static str),
}

async fn suspend(store: &SharedStore, clock: &SharedClock, request: &Request) {
    let (account, webhook) = (&request.account, &request.webhook);
    loop {
        let error = match turn(store, clock.now(), request).await {
            Ok(None) => return,
            // Somebody's write went first: whose, and what it means, is in the store.
            Ok(Some(WriteError::Conflict)) => continue,
            Ok(Some(
                error @ WriteError::NotApplied(NotApplied::Full | NotApplied::LeaseGone | NotApplied::Invalid(_)),
            )) => {
                tracing::warn!(%account, %webhook, %error, "a webhook could not be suspended");
                return;
            }
            Ok(Some(error @ (WriteError::Unknown(_) | WriteError::NotApplied(NotApplied::Away(_))))) => {
                error.to_string()
            }
            Err(error) => error.to_string(),
        };
        tracing::debug!(error, "a webhook cannot be suspended for now");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads, decides, writes. `None` if the request is over.
async fn turn(store: &SharedStore, now: Timestamp, request: &Request) -> Result<Option<WriteError>, ReadError> {
    let (account, webhook) = (&request.account, &request.webhook);
    let keys = [key::webhook(account, webhook), key::owner(request.tenure.shard)];
    let (mut entries, _) = store.get_all(&keys).await?;
    let (owner, entry) = (entries.pop().flatten(), entries.pop().flatten());
    match decide(request, entry, owner, now) {
        Decision::Over(why) => {
            tracing::debug!(%account, %webhook, why, "a webhook is not suspended");
            Ok(None)
        }
        Decision::Write(write) => match store.write(write).await {
            Ok(_) => {
                tracing::info!(%account, %webhook, reason = request.reason, "a webhook is suspended");
                Ok(None)
            }
            Err(error) => Ok(Some(error)),
        },
    }
}

fn decide(request: &Request, entry: Option<Entry>, owner: Option<Entry>, now: Timestamp) -> Decision {
    if owner.is_none_or(|owner| owner.create_revision != request.tenure.epoch) {
        return Decision::Over("the shard is another's");
    }
    let Some(entry) = entry else {
        return Decision::Over("it was deleted");
    };
    let decoded = stored::decode_webhook(request.account.clone(), request.webhook.clone(), entry.value.clone());
    let Ok(webhook) = decoded else {
        return Decision::Over("it cannot be read");
    };
    if webhook.uid != request.uid || webhook.generation != request.generation {
        return Decision::Over("it has changed");
    }
    if !webhook.is_serving() {
        return Decision::Over("it is switched off");
    }
    Decision::Write(Write {
        guards: vec![
            Guard::Modified(entry.key.clone(), entry.mod_revision),
            Guard::Created(key::owner(request.tenure.shard), request.tenure.epoch),
        ],
        ops: vec![Op::put(entry.key, suspended(&entry.value, &webhook, request, now))],
    })
}

fn suspended(stored: &Bytes, webhook: &Webhook, request: &Request, now: Timestamp) -> Bytes {
    let suspension = Suspension::begin(webhook.suspension.as_ref(), request.reason, &request.detail, now);
    stored::suspend_webhook(stored, webhook, &suspension)
}

#[cfg(test)]
mod tests;
