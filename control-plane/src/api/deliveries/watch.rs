//! WatchAttempts.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use postrider_common::id::{AccountId, WebhookId};
use postrider_common::model::history::{Attempt, Carried, Entry};
use postrider_common::model::webhook::EventPattern;
use postrider_common::store::Revision;
use postrider_common::{key, shard};
use postrider_proto::v1;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Deliveries, WATCHES, messages, rules};
use crate::api::page::{PageKey, Position, Scope};
use crate::api::status::{Error, Violations};
use crate::history::filter::wants_name;
use crate::history::walk::chapter;
use crate::history::watch::{End, Follower, News};

/// When a call may be tried again that found too many others.
const FULL_RETRY: Duration = Duration::from_secs(5);

/// What is followed.
struct Wanted {
    account: AccountId,
    webhook: Option<WebhookId>,
    event_types: Vec<EventPattern>,
    failures_only: bool,
}

impl Wanted {
    fn wants(&self, entry: &Entry, attempt: &Attempt, events: &[Carried]) -> bool {
        entry.account == self.account
            && self.webhook.as_ref().is_none_or(|webhook| *webhook == entry.webhook)
            && !(self.failures_only && attempt.reason.is_empty())
            && events
                .iter()
                .any(|carried| wants_name(&self.event_types, &carried.name))
    }
}

/// One call.
struct Call {
    follower: Follower,
    wanted: Wanted,
    parent: String,
    page_key: PageKey,
    stop: CancellationToken,
    /// The first answer was given.
    begun: bool,
    _place: OwnedSemaphorePermit,
}

impl Deliveries {
    pub(super) async fn watch(
        &self,
        request: &v1::WatchAttemptsRequest,
    ) -> Result<BoxStream<'static, Result<v1::WatchAttemptsResponse, Status>>, Error> {
        let mut violations = Violations::default();
        let parent = rules::followed(&request.parent, &mut violations);
        let event_types = rules::event_types("event_types", &request.event_types, &mut violations);
        let resume = self.resume(request, &mut violations);
        let (account, webhook) = violations.with(parent)?;
        let place = Arc::clone(&self.watches)
            .try_acquire_owned()
            .map_err(|_| Error::Quota {
                subject: format!("control plane {}", self.deps.control_plane),
                reason: "TOO_MANY_WATCHES",
                description: format!("this control plane has room for {WATCHES} calls of WatchAttempts at once"),
                retry_after: Some(FULL_RETRY),
            })?;
        let prefix = match &webhook {
            Some(webhook) => key::history(shard::of(&account, webhook, self.deps.cell.shard_count)),
            None => key::all_history(),
        };
        let store = self.deps.store.clone();
        let follower = match resume {
            Some(revision) => Follower::resume(store, prefix, revision),
            None => Follower::begin(store, prefix).await?,
        };
        let call = Call {
            follower,
            wanted: Wanted {
                account,
                webhook,
                event_types,
                failures_only: request.failures_only,
            },
            parent: request.parent.clone(),
            page_key: self.deps.page_key.clone(),
            stop: self.deps.stop.clone(),
            begun: false,
            _place: place,
        };
        let answers = stream::try_unfold(call, |mut call| async move {
            let answer = call.next().await.map_err(Status::from)?;
            Ok(Some((answer, call)))
        });
        Ok(answers.boxed())
    }

    fn resume(&self, request: &v1::WatchAttemptsRequest, violations: &mut Violations) -> Option<Revision> {
        if request.resume_token.is_empty() {
            return None;
        }
        let position = self.deps.page_key.open(scope(&request.parent), &request.resume_token);
        if position.is_none() {
            violations.add(
                "resume_token",
                "MALFORMED",
                "is not a token of an earlier answer with this parent",
            );
        }
        position.map(|position| position.revision)
    }
}

const fn scope(parent: &str) -> Scope<'_> {
    Scope {
        method: "WatchAttempts",
        parent,
        filter: "",
    }
}

impl Call {
    /// The next answer that says something.
    async fn next(&mut self) -> Result<v1::WatchAttemptsResponse, Error> {
        if !std::mem::replace(&mut self.begun, true) {
            return Ok(self.answer(&News {
                segments: Vec::new(),
                revision: self.follower.seen(),
            }));
        }
        let stop = self.stop.clone();
        loop {
            let Some(news) = stop.run_until_cancelled(self.follower.next()).await else {
                return Err(Error::Stopping);
            };
            let news = news.map_err(|end| match end {
                End::Away(why) => Error::StoreAway(why),
                End::TooMuch => Error::WrongState {
                    reason: "RESUME_TOKEN_TOO_OLD",
                    name: self.parent.clone(),
                    description: "too many attempts were made since resume_token; call again without one".into(),
                },
            })?;
            let answer = self.answer(&news);
            // What concerns others is passed over; a sign of life is not.
            if news.segments.is_empty() || !answer.attempts.is_empty() {
                return Ok(answer);
            }
        }
    }

    fn answer(&self, news: &News) -> v1::WatchAttemptsResponse {
        let mut attempts = Vec::new();
        let mut left_out = 0;
        for segment in &news.segments {
            let chapter = chapter(segment);
            left_out += i64::try_from(chapter.left_out).unwrap_or(i64::MAX);
            for (entry, events) in chapter.iter() {
                if let Some(attempt) = &entry.attempt
                    && self.wanted.wants(entry, attempt, events)
                {
                    attempts.push(messages::attempt(entry, attempt, events));
                }
            }
        }
        let position = Position {
            revision: news.revision,
            after: String::new(),
        };
        v1::WatchAttemptsResponse {
            attempts,
            resume_token: self.page_key.seal(scope(&self.parent), &position),
            left_out,
        }
    }
}
