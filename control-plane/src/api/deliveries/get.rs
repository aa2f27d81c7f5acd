//! GetDelivery.

use postrider_common::id::EventId;
use postrider_common::store::Entry;
use postrider_proto::v1;

use super::rules::{self};
use super::{Deliveries, SEARCH_READS, messages, not_found};
use crate::api::names;
use crate::api::status::{Error, Violations};
use crate::history::Subject;
use crate::history::filter::Filter;
use crate::history::place::{Phase, Place};
use crate::history::shelves::Shelves;
use crate::history::standing::{Standing, WithDead};
use crate::history::walk::{Most, Walk};

/// Deliveries of one event to one webhook that are compared: an id that was published more often has no newest one worth finding.
const SAME_ID: usize = 1_000;

impl Deliveries {
    pub(super) async fn get(&self, request: &v1::GetDeliveryRequest) -> Result<v1::Delivery, Error> {
        let mut violations = Violations::default();
        let name = names::delivery("name", &request.name, &mut violations);
        let bodies = rules::shows_bodies(request.view, &mut violations);
        let name = violations.with(name)?;
        let (_, subject) = self.subject(&(name.0.clone(), name.1.clone())).await?;
        let mut shelves = Shelves::new(&*self.deps.store, &subject, None, SEARCH_READS);
        let (standing, _) = find(&mut shelves, &name.2).await?.ok_or_else(|| not_found(&name))?;
        Ok(messages::delivery(&subject, &standing, bodies))
    }
}

/// Finds a delivery: of several of one event one that has not ended, else the one that ended last. With the segment that it stands in, if it stands.
pub(super) async fn find(
    shelves: &mut Shelves<'_>,
    event: &EventId,
) -> Result<Option<(Standing, Option<Entry>)>, Error> {
    let filter = Filter {
        event: Some(event.clone()),
        ..Filter::default()
    };
    // Where they cost least to find first.
    for phases in [&[Phase::Waiting][..], &[Phase::Pending]] {
        let found = search(shelves, &filter, phases, SAME_ID).await?;
        let newest = found.into_iter().max_by_key(|(standing, _)| standing.accept_time);
        if newest.is_some() {
            return Ok(newest);
        }
    }
    let dead = search(shelves, &filter, &[Phase::Dead], SAME_ID).await?;
    let told = search(shelves, &filter, &[Phase::Ended], 1).await?;
    // Of the same end, where it stands says more than what is told of it.
    let ended = told.into_iter().chain(dead);
    Ok(ended.max_by_key(|(standing, segment)| (standing.end, segment.is_some())))
}

async fn search(
    shelves: &mut Shelves<'_>,
    filter: &Filter,
    phases: &[Phase],
    most: usize,
) -> Result<Vec<(Standing, Option<Entry>)>, Error> {
    let subject: &Subject = shelves.subject();
    let account = format!("accounts/{}", subject.account);
    let Some(first) = phases.first() else {
        return Ok(Vec::new());
    };
    let mut place = Some(Place::beginning(*first));
    let mut all = Vec::new();
    while let Some(from) = place.take() {
        let walk = Walk {
            shelves,
            filter,
            phases,
            most: Most {
                deliveries: most,
                body_bytes: usize::MAX,
            },
            with_dead: WithDead::Yes,
        };
        let found = walk.from(from).await?;
        all.extend(found.deliveries);
        if all.len() >= most {
            break;
        }
        if found.next.is_some() && shelves.is_used_up() {
            return Err(Error::Quota {
                subject: account,
                reason: "SEARCH_LIMIT",
                description: "too much waits or is told in the webhook's shard to be searched in one call; use ListDeliveries with event_id, page by page"
                    .into(),
                retry_after: None,
            });
        }
        place = found.next;
    }
    Ok(all)
}
