//! RetryDelivery, CancelDelivery, RedriveDeadLetters, PurgeDeadLetters: commands to the owner of the webhook's shard.
//!
//! A command is put into the store, where the owner sees it, carries it out and deletes it. The answer waits for that for a while; the command stays in any case.

use std::time::Duration;

use postrider_common::id::{AccountId, EventId, WebhookId};
use postrider_common::key::{self, Key};
use postrider_common::model::command::{Action, Command, Filter};
use postrider_common::store::{Guard, ListRequest, NotApplied, Op, Write, WriteError};
use postrider_common::wire::stored;
use postrider_proto::v1;
use tokio::time::Instant;

use super::get::find;
use super::rules::{self, Bodies};
use super::{Deliveries, SEARCH_READS, messages, named, not_found};
use crate::api::names;
use crate::api::status::{Error, Violations};
use crate::catalog::edit::Resource as _;
use crate::history::Subject;
use crate::history::shelves::Shelves;
use crate::history::standing::{Standing, State};

/// How long an answer waits for the owner of the shard. Longer than a hand-over takes.
const CARRIED_OUT_WITHIN: Duration = Duration::from_secs(5);

/// How often it looks meanwhile: first, and at most.
const LOOK_AFTER: Duration = Duration::from_millis(10);

/// See [`LOOK_AFTER`].
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Commands to one shard that may wait to be carried out: they are meant to be given by people.
const WAITING_COMMANDS: usize = 100;

/// Values of dead letters read at once: some megabyte.
const PAGE: usize = 16;

/// What an administrator wants of a single delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Retry,
    Cancel,
}

impl Deliveries {
    pub(super) async fn retry(&self, request: &v1::RetryDeliveryRequest) -> Result<v1::Delivery, Error> {
        self.deal_with(&request.name, Wish::Retry).await
    }

    pub(super) async fn cancel(&self, request: &v1::CancelDeliveryRequest) -> Result<v1::Delivery, Error> {
        self.deal_with(&request.name, Wish::Cancel).await
    }

    async fn deal_with(&self, text: &str, wish: Wish) -> Result<v1::Delivery, Error> {
        let name = named("name", text)?;
        let (_, subject) = self.subject(&(name.0.clone(), name.1.clone())).await?;
        let before = self.standing(&subject, &name).await?;
        let wrong = |reason, description: &str| Error::WrongState {
            reason,
            name: text.to_owned(),
            description: description.to_owned(),
        };
        match before.state {
            State::Delivered | State::Dropped => {
                return Err(wrong("DELIVERY_ENDED", "it has ended, and its body is not kept"));
            }
            State::Pending | State::Waiting | State::Dead => {}
        }
        if wish == Wish::Cancel && before.batch.is_some() {
            return Err(wrong(
                "BATCHED",
                "it goes in a batch that is frozen, and is not dropped alone",
            ));
        }
        let action = match wish {
            Wish::Retry => Action::Retry(name.2.clone()),
            Wish::Cancel => Action::Cancel(name.2.clone()),
        };
        if !self.command(&subject, action).await? {
            return Err(Error::Unserved {
                reason: "NOT_YET_CARRIED_OUT",
                description: "the command is stored, and will be carried out as soon as an agent can",
            });
        }
        let after = self.standing(&subject, &name).await;
        // The history comes about a second late: what stands nowhere has ended as it was to.
        let after = match after {
            Err(Error::NotFound { .. }) => Standing {
                state: match wish {
                    Wish::Retry => State::Delivered,
                    Wish::Cancel => State::Dropped,
                },
                due: None,
                reason: String::new(),
                ..before
            },
            after => after?,
        };
        Ok(messages::delivery(&subject, &after, Bodies::Hidden))
    }

    async fn standing(&self, subject: &Subject, name: &(AccountId, WebhookId, EventId)) -> Result<Standing, Error> {
        let mut shelves = Shelves::new(&*self.deps.store, subject, None, SEARCH_READS);
        let found = find(&mut shelves, &name.2).await?;
        found.map(|(standing, _)| standing).ok_or_else(|| not_found(name))
    }

    pub(super) async fn redrive(
        &self,
        request: &v1::RedriveDeadLettersRequest,
    ) -> Result<v1::RedriveDeadLettersResponse, Error> {
        let mut violations = Violations::default();
        let id = names::webhook("parent", &request.parent, &mut violations);
        let filter = rules::dead_letters(request.filter.as_ref(), &mut violations);
        let rate = rules::rate("max_per_second", request.max_per_second, &mut violations);
        let (webhook, subject) = self.subject(&violations.with(id)?).await?;
        if rate.is_some() && webhook.order.is_kept() {
            return Err(Error::WrongState {
                reason: "ORDERED",
                name: request.parent.clone(),
                description: "it keeps an order, in which dead letters go first: slow it down with delivery.rate_limit"
                    .to_owned(),
            });
        }
        let action = Action::Redrive(filter.clone(), rate);
        let (matched_count, complete) = self.all(&subject, &filter, action, request.validate_only).await?;
        Ok(v1::RedriveDeadLettersResponse {
            matched_count,
            complete,
        })
    }

    pub(super) async fn purge(
        &self,
        request: &v1::PurgeDeadLettersRequest,
    ) -> Result<v1::PurgeDeadLettersResponse, Error> {
        let mut violations = Violations::default();
        let id = names::webhook("parent", &request.parent, &mut violations);
        let filter = rules::dead_letters(request.filter.as_ref(), &mut violations);
        let (_, subject) = self.subject(&violations.with(id)?).await?;
        let action = Action::Purge(filter.clone());
        let (matched_count, complete) = self.all(&subject, &filter, action, request.validate_only).await?;
        Ok(v1::PurgeDeadLettersResponse {
            matched_count,
            complete,
        })
    }

    /// Counts dead letters, and gives the command about them.
    async fn all(
        &self,
        subject: &Subject,
        filter: &Filter,
        action: Action,
        validate_only: bool,
    ) -> Result<(i64, bool), Error> {
        let matched = self.matching(subject, filter).await?;
        let complete = !validate_only && (matched == 0 || self.command(subject, action).await?);
        Ok((i64::try_from(matched).unwrap_or(i64::MAX), complete))
    }

    /// How many dead letters of a webhook are meant.
    async fn matching(&self, subject: &Subject, filter: &Filter) -> Result<usize, Error> {
        let mut request = ListRequest {
            prefix: key::dead_of(subject.shard, &subject.account, &subject.webhook),
            after: None,
            limit: PAGE,
            revision: None,
            keys_only: false,
        };
        let mut matched = 0;
        loop {
            let page = self.deps.store.list(request.clone()).await?;
            request.after = page.entries.last().map(|entry| entry.key.clone());
            for entry in page.entries {
                let segment = stored::unpack(entry.value)?;
                let ours = segment
                    .targets
                    .iter()
                    .filter(|target| target.webhook_uid == subject.uid);
                let fits = |delivery: &&postrider_common::model::segment::Delivery| {
                    let event = segment.events.get(delivery.event as usize);
                    event.is_some_and(|event| filter.fits(event, &delivery.state))
                };
                matched += ours.flat_map(|target| &target.deliveries).filter(fits).count();
            }
            if !page.more {
                return Ok(matched);
            }
        }
    }

    /// Gives a command. Says whether it was carried out while the answer could wait.
    async fn command(&self, subject: &Subject, action: Action) -> Result<bool, Error> {
        let store = &*self.deps.store;
        let waiting = ListRequest {
            prefix: key::commands_to(subject.shard),
            after: None,
            limit: WAITING_COMMANDS,
            revision: None,
            keys_only: true,
        };
        if store.list(waiting).await?.entries.len() >= WAITING_COMMANDS {
            return Err(Error::Quota {
                subject: postrider_common::model::webhook::Webhook::name(&(
                    subject.account.clone(),
                    subject.webhook.clone(),
                )),
                reason: "COMMANDS",
                description: format!("{WAITING_COMMANDS} commands to its shard are not carried out yet"),
                retry_after: Some(CARRIED_OUT_WITHIN),
            });
        }
        let now = self.deps.clock.now();
        let key = key::command(subject.shard, &self.deps.entropy.uid(now));
        let command = Command {
            account: subject.account.clone(),
            webhook: subject.webhook.clone(),
            uid: subject.uid.clone(),
            create_time: now,
            action,
            begun: None,
        };
        let write = Write {
            guards: vec![Guard::Absent(key.clone())],
            ops: vec![Op::put(key.clone(), stored::encode_command(&command))],
        };
        match store.write(write).await {
            Ok(_) => {}
            // The write that fills an etcd is applied, and answered with NOSPACE; one whose answer was lost may be applied too.
            Err(error @ (WriteError::NotApplied(NotApplied::Full) | WriteError::Unknown(_))) => {
                if store.get(&key).await?.0.is_none() {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        self.is_carried_out(&key).await
    }

    async fn is_carried_out(&self, key: &Key) -> Result<bool, Error> {
        let deadline = Instant::now() + CARRIED_OUT_WITHIN;
        let mut pause = LOOK_AFTER;
        while Instant::now() < deadline {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_EVERY);
            if self.deps.store.get(key).await?.0.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
