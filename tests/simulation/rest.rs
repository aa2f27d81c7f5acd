//! Whether the counts add up while there is trouble, how the cluster comes to rest, and what is left then.

use std::collections::BTreeSet;
use std::time::Duration;

use postrider_proto::v1::{GetAccountUsageRequest, ListDeadLettersRequest};
use postrider_tests::wait::simulated;

use crate::driver::Driver;
use crate::forms::{ACCOUNT, add_all_up, name};
use crate::net::elapsed;
use crate::world::Counts;

/// How long it may take, after all trouble, until nothing waits any more.
const CALM: Duration = Duration::from_secs(150);

/// How long the cluster is left alone before what is left is looked at.
const LAST: Duration = Duration::from_secs(5);

/// How often used-up events of ordered webhooks are tried anew then.
const NUDGE: Duration = Duration::from_secs(10);

impl Driver<'_> {
    /// Looks, while there is trouble, whether the counts add up.
    pub(crate) async fn audit(&self) -> Result<(), String> {
        while !self.world.is_over() {
            let client = self.clients.first().cloned().ok_or("no control plane")?;
            let request = GetAccountUsageRequest {
                name: format!("accounts/{ACCOUNT}"),
            };
            if let Ok(usage) = client.accounts().get_account_usage(request).await {
                add_all_up(usage.into_inner(), self.plan.hooks.len())?;
            }
            simulated(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// Waits until nothing waits any more.
    pub(crate) async fn calm(&self) -> Result<(), String> {
        let (mut nudged, end) = (Duration::ZERO, elapsed() + CALM);
        loop {
            let (usage, deleted) = self.usage().await?;
            let waiting: Vec<usize> = (0..usage.len()).filter(|hook| usage[*hook].waiting > 0).collect();
            if waiting.is_empty() && deleted.waiting + deleted.dead == 0 {
                // Commands that had nothing to do are put away.
                simulated(LAST).await;
                return Ok(());
            }
            if elapsed() > end {
                return Err(format!(
                    "it does not come to rest: {usage:?}, of what was deleted {deleted:?}"
                ));
            }
            if elapsed() > nudged + NUDGE {
                nudged = elapsed();
                self.world.note(format_args!("waiting: {waiting:?}"));
                for hook in waiting {
                    // What is used up holds up what follows it until the webhook is changed. Where nothing is, nothing must be.
                    let lives = self.world.seen().lives.get(hook).map_or(0, Vec::len);
                    if lives > 1 && self.plan.hooks[hook].blocks() {
                        continue;
                    }
                    self.update(hook, &["active", "description"], |webhook| {
                        webhook.active = Some(true);
                        webhook.description = format!("nudged at {nudged:?}");
                    })
                    .await?;
                }
            }
            simulated(Duration::from_millis(500)).await;
        }
    }

    /// The counts of all webhooks, and of those that were deleted.
    async fn usage(&self) -> Result<(Vec<Counts>, Counts), String> {
        let request = GetAccountUsageRequest {
            name: format!("accounts/{ACCOUNT}"),
        };
        let usage = self
            .call("reading the usage", 0, |client| {
                let request = request.clone();
                async move { client.accounts().get_account_usage(request).await }
            })
            .await?
            .into_inner();
        add_all_up(usage, self.plan.hooks.len())
    }

    /// Notes the counts and the dead letters.
    pub(crate) async fn dump(&self) -> Result<(), String> {
        let (counts, deleted) = self.usage().await?;
        for hook in 0..self.plan.hooks.len() {
            let is_gone = {
                let seen = self.world.seen();
                let lives = seen.lives.get(hook).and_then(|lives| lives.last());
                lives.is_some_and(|life| life.ended.is_some())
            };
            if is_gone {
                self.world.seen().dead.push(BTreeSet::new());
                continue;
            }
            let mut dead = BTreeSet::new();
            let mut page_token = String::new();
            loop {
                let request = ListDeadLettersRequest {
                    parent: name(hook),
                    page_size: 1000,
                    page_token,
                    ..ListDeadLettersRequest::default()
                };
                let page = self
                    .call("listing dead letters", 0, |client| {
                        let request = request.clone();
                        async move { client.deliveries().list_dead_letters(request).await }
                    })
                    .await?
                    .into_inner();
                for letter in page.dead_letters {
                    if !dead.insert(letter.event_id.clone()) {
                        return Err(format!("{} is a dead letter of w{hook} twice", letter.event_id));
                    }
                }
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            self.world.seen().dead.push(dead);
        }
        self.world
            .note(format_args!("{counts:?}, of what was deleted {deleted:?}"));
        let mut seen = self.world.seen();
        (seen.counts, seen.deleted) = (counts, deleted);
        Ok(())
    }
}
