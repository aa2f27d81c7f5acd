//! ExplainDelivery.

use postrider_common::key;
use postrider_common::model::failing::Failing;
use postrider_common::wire::stored::{decode, decode_failing};
use postrider_proto::{stored, v1};
use v1::explain_delivery_response::Cause as Shown;

use super::get::find;
use super::rules::Bodies;
use super::{Deliveries, SEARCH_READS, messages, named};
use crate::api::convert;
use crate::api::status::Error;
use crate::history::explain::{Cause, Facts, explain};
use crate::history::place::{Phase, Place};
use crate::history::shelves::Shelves;
use crate::history::standing::State;
use crate::history::{Subject, walk};

impl Deliveries {
    pub(super) async fn explain(
        &self,
        request: &v1::ExplainDeliveryRequest,
    ) -> Result<v1::ExplainDeliveryResponse, Error> {
        let (account, id, event) = named("name", &request.name)?;
        let (webhook, subject) = self.subject(&(account, id)).await?;
        let (owner, failing) = self.surroundings(&subject).await?;
        let mut shelves = Shelves::new(&*self.deps.store, &subject, None, SEARCH_READS);
        let found = find(&mut shelves, &event).await?;
        let segment = found.as_ref().and_then(|(_, segment)| segment.as_ref());
        let pending = found
            .as_ref()
            .is_some_and(|(standing, _)| standing.state == State::Pending);
        let ahead = match segment.filter(|_| pending) {
            Some(segment) => shelves.ahead_of(segment).await?,
            None => 0,
        };
        let (last, _) = walk::attempts(&mut shelves, &event, Place::beginning(Phase::Ended), 1).await?;
        let failing = failing.filter(|failing| failing.uid == webhook.uid && failing.generation == webhook.generation);
        let now = self.deps.clock.now();
        let explanation = explain(&Facts {
            webhook: &webhook,
            shard: subject.shard,
            owner: owner.as_deref(),
            delivery: found.as_ref().map(|(standing, _)| standing),
            last: last.first(),
            failing: failing.as_ref(),
            ahead,
            now,
        });
        Ok(v1::ExplainDeliveryResponse {
            cause: shown(explanation.cause).into(),
            summary: explanation.summary,
            details: explanation.details,
            delivery: found
                .as_ref()
                .map(|(standing, _)| messages::delivery(&subject, standing, Bodies::Hidden)),
            webhook_state: convert::webhook(&webhook, now).state,
            shard: i32::from(subject.shard.0),
            owner_agent: owner.unwrap_or_default(),
            segments_ahead: convert::number(ahead),
            failing_since: failing.map(|failing| convert::timestamp(failing.since)),
        })
    }

    /// Who owns the shard, and since when the webhook only fails.
    async fn surroundings(&self, subject: &Subject) -> Result<(Option<String>, Option<Failing>), Error> {
        let keys = [
            key::owner(subject.shard),
            key::failing_of(subject.shard, &subject.account, &subject.webhook),
        ];
        let (entries, _) = self.deps.store.get_all(&keys).await?;
        let mut entries = entries.into_iter();
        let owner = entries.next().flatten();
        let owner = owner.map(|entry| decode::<stored::Owner>(entry.value)).transpose()?;
        let failing = entries.next().flatten();
        let failing = failing.map(|entry| decode_failing(entry.value)).transpose()?;
        Ok((owner.map(|owner| owner.agent), failing))
    }
}

const fn shown(cause: Cause) -> Shown {
    match cause {
        Cause::Delivered => Shown::Delivered,
        Cause::Dead => Shown::Dead,
        Cause::Dropped => Shown::Dropped,
        Cause::WebhookRetired => Shown::WebhookRetired,
        Cause::WebhookSuspended => Shown::WebhookSuspended,
        Cause::NoOwner => Shown::NoOwner,
        Cause::Retry => Shown::Retry,
        Cause::Batch => Shown::Batch,
        Cause::NotBefore => Shown::NotBefore,
        Cause::InTurn => Shown::InTurn,
        Cause::Unknown => Shown::Unknown,
    }
}
