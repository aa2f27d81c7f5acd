//! Publishing: from a request to a durable answer.
//!
//! ```text
//! request ▸ admission ▸ fan-out ▸ queue ▸ lane: batch ▸ pack ▸ one transaction ▸ answers
//!            mistakes    catalog   full?   (two of them)         applies once
//! ```
//!
//! Admission, fan-out and the line are passed without waiting; from there on the request is the writer's: whoever waits for the answer may go away
//! without changing what happens. An account that was never heard of is no mistake: it has no webhooks, so nothing needs to be stored for it, and
//! it need not be created. Events that no webhook wants are accepted and forgotten; only the answer to a request with an id is stored.
//!
//! A request id is not looked up first: its key is guarded `absent` in the transaction, and read only if that guard does not hold, or if the request is
//! found to be mistaken, as one may be by now that was accepted when it came first.

mod admission;
mod backlog;
mod batch;
mod fanout;
mod idempotency;
mod json;
mod judge;
mod operational;
mod queue;
mod screen;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use postrider_common::entropy::SharedEntropy;
use postrider_common::id::ControlPlaneId;
use postrider_common::store::SharedStore;
use postrider_common::task::Group;
use postrider_common::time::SharedClock;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::status::{Error, Violations};
use crate::catalog::Catalog;
use crate::catalog::dedupe::DedupeLease;
use crate::fullness::{self, Fullness};
pub(crate) use admission::{Request, lone, traceparent};
pub(crate) use backlog::Backlog;
pub(crate) use batch::Answer;
pub(crate) use queue::{Outcome, Published};
pub(crate) use writer::Counters;

use admission::{Admitted, Identity};
use batch::Work;
use fanout::Fanout;
use queue::Queue;

/// How long a request waits for the catalog's first listing after a start.
const CATALOG_DEADLINE: Duration = Duration::from_secs(5);

/// What publishing stands on.
pub(crate) struct Deps {
    /// Where events go.
    pub(crate) store: SharedStore,
    /// Who wants them.
    pub(crate) catalog: Catalog,
    /// Wall time, for the moment of acceptance.
    pub(crate) clock: SharedClock,
    /// Chance, for event ids and the names of lanes.
    pub(crate) entropy: SharedEntropy,
    /// The lease of stored answers.
    pub(crate) lease: Arc<DedupeLease>,
    /// Part of the names of lanes.
    pub(crate) control_plane: ControlPlaneId,
    /// Bytes that the store may grow to, if it does not say so itself; `None` means without limit.
    pub(crate) quota: Option<u64>,
    /// What it counts.
    pub(crate) counters: Arc<Counters>,
    /// Whose backlog is full: kept up to date by the publisher.
    pub(crate) backlog: Arc<Backlog>,
    /// How full the store is: kept up to date by the publisher.
    pub(crate) fullness: Arc<Fullness>,
}

/// Takes requests in. Clones are of the same writer.
#[derive(Clone)]
pub(crate) struct Publisher {
    catalog: Catalog,
    clock: SharedClock,
    entropy: SharedEntropy,
    store: SharedStore,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    backlog: Arc<Backlog>,
    fullness: Arc<Fullness>,
    stop: CancellationToken,
}

impl Publisher {
    /// Starts the writer's lanes on `group`. When the group is told to stop they take nothing new, commit what was accepted, and end.
    pub(crate) fn spawn(group: &Group, deps: Deps) -> Self {
        let counters = deps.counters;
        let queue = Arc::new(Queue::new(counters.clone()));
        for _ in 0..writer::LANES {
            let writer = writer::Writer {
                queue: queue.clone(),
                store: deps.store.clone(),
                lease: deps.lease.clone(),
                entropy: deps.entropy.clone(),
                counters: counters.clone(),
                control_plane: deps.control_plane.clone(),
            };
            group.spawn("publish lane", writer.run(group.token().clone()));
        }
        let (backlog, fullness) = (deps.backlog, deps.fullness);
        let stop = group.token();
        let watch = fullness::watch(deps.store.clone(), deps.quota, fullness.clone(), stop.clone());
        group.spawn("store usage", watch);
        let watch = backlog::watch(deps.store.clone(), deps.catalog.clone(), backlog.clone(), stop.clone());
        group.spawn("backlogs", watch);
        Self {
            catalog: deps.catalog,
            clock: deps.clock,
            entropy: deps.entropy,
            store: deps.store,
            queue,
            counters,
            backlog,
            fullness,
            stop: group.token().clone(),
        }
    }

    /// Waits until events can be matched: at once, but for the first moments after a start.
    ///
    /// # Errors
    /// [`Error::StoreAway`] if the webhooks could not be read in time.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        if self.catalog.is_synced() {
            return Ok(());
        }
        let synced = tokio::time::timeout(CATALOG_DEADLINE, self.catalog.synced()).await;
        synced.map_err(|_| Error::StoreAway("the webhooks have not been read yet".into()))
    }

    /// Checks a request and puts it in line, without waiting. Requests that are submitted one after the other are stored in that order or in one
    /// transaction, as far as they are stored at all, unless both lanes are in use.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Quota`], [`Error::StoreFull`], [`Error::Stopping`]; [`Error::StoreAway`] before [`Publisher::ready`].
    pub(crate) fn submit(&self, request: Request) -> Result<Pending, Error> {
        if self.stop.is_cancelled() {
            return Err(Error::Stopping);
        }
        let checked = match self.check(request) {
            Ok(checked) => checked,
            // Accepted once, it is accepted: that its events have expired since, say, or a schema has changed, does not undo it.
            Err(Refused {
                error,
                identity: Some(identity),
            }) => return Ok(Pending(State::Refused(error, *identity, self.store.clone()))),
            Err(Refused { error, identity: None }) => return Err(error),
        };
        if !checked.fanout.parts.is_empty() {
            let account = &checked.admitted.account;
            let quota = || self.catalog.backlog_quota(account);
            self.backlog
                .check(account, quota)
                .inspect_err(|_| Counters::count(&self.counters.refused_backlog, 1))?;
        }
        self.enqueue(checked)
    }

    fn enqueue(&self, checked: Checked) -> Result<Pending, Error> {
        let Checked {
            admitted,
            fanout,
            strangers,
        } = checked;
        if self.fullness.is_full() {
            Counters::count(&self.counters.refused_store, 1);
            return Err(Error::StoreFull);
        }
        Counters::count(&self.counters.filter_errors, fanout.filter_errors);
        Counters::count(&self.counters.filter_skips, fanout.filter_skips);
        let answer = answer(&admitted, &fanout);
        let dedupe = admitted.identity.map(|identity| idempotency::dedupe(identity, &answer));
        if fanout.parts.is_empty() && dedupe.is_none() {
            Counters::count(&self.counters.unknown_type_events, strangers);
            self.counters.accepted(fanout.matched.into_iter());
            return Ok(Pending::ready(answer));
        }
        let work = Work {
            parts: fanout.parts,
            dedupe,
            answer,
        };
        let outcome = self.queue.submit(work);
        let outcome = outcome.inspect_err(|_| Counters::count(&self.counters.refused_queue, 1))?;
        Counters::count(&self.counters.unknown_type_events, strangers);
        Ok(Pending(State::Waiting(outcome, self.counters.clone())))
    }

    /// Checks a request and says what would be accepted. Stores nothing.
    ///
    /// # Errors
    /// As [`Publisher::submit`], as far as the request is to blame.
    pub(crate) fn preview(&self, request: Request) -> Result<Published, Error> {
        let checked = self.check(request).map_err(|refused| refused.error)?;
        Ok(Published {
            answer: answer(&checked.admitted, &checked.fanout),
            duplicate: false,
        })
    }

    /// Cancelled when no more requests are taken.
    pub(crate) const fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    #[cfg(test)]
    pub(crate) const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn check(&self, request: Request) -> Result<Checked, Refused> {
        if !self.catalog.is_synced() {
            let error = Error::StoreAway("the webhooks have not been read yet".into());
            return Err(Refused { error, identity: None });
        }
        let begun = Instant::now();
        let mut admitted =
            admission::admit(request, self.clock.now(), self.entropy.as_ref()).map_err(|refused| Refused {
                error: Error::Invalid(refused.violations),
                identity: refused.identity.map(Box::new),
            })?;
        let identity = admitted.identity.clone().map(Box::new);
        let refused = |error| Refused { error, identity };
        let unknown = self.catalog.unknown_event_types(&admitted.account);
        let strangers = match screen::screen(&mut admitted.events, &self.catalog.types(), unknown) {
            Ok(strangers) => strangers,
            Err(violations) => return Err(refused(Error::Invalid(violations))),
        };
        let table = self.catalog.table(&admitted.account);
        let fanout = match fanout::fan_out(&admitted.events, &table, &|| begun.elapsed()) {
            Ok(fanout) => fanout,
            Err(_) => return Err(refused(too_wide())),
        };
        Ok(Checked {
            admitted,
            fanout,
            strangers,
        })
    }
}

/// A request that can be accepted.
struct Checked {
    admitted: Admitted,
    fanout: Fanout,
    /// How many of its events are of types that the catalogue does not hold.
    strangers: usize,
}

/// A request that cannot be accepted, unless it was before.
struct Refused {
    error: Error,
    identity: Option<Box<Identity>>,
}

fn answer(admitted: &Admitted, fanout: &Fanout) -> Answer {
    let ids = admitted.events.iter().map(|event| event.id.clone());
    Answer {
        events: ids.zip(fanout.matched.iter().copied()).collect(),
        publish_time: admitted.accept_time,
    }
}

fn too_wide() -> Error {
    let mut violations = Violations::default();
    let description = format!(
        "more than {} deliveries, or webhooks in more than {} shards; split the request",
        fanout::MAX_DELIVERIES,
        fanout::MAX_SHARDS
    );
    violations.add("events", "TOO_MANY_DELIVERIES", description);
    Error::Invalid(violations)
}

/// An answer that is still to come. Dropping it changes nothing of what is stored.
#[must_use]
pub(crate) struct Pending(State);

enum State {
    Ready(Published),
    Waiting(oneshot::Receiver<Outcome>, Arc<Counters>),
    /// It is answered so, unless an answer is stored.
    Refused(Error, Identity, SharedStore),
}

impl Pending {
    fn ready(answer: Answer) -> Self {
        Self(State::Ready(Published {
            answer,
            duplicate: false,
        }))
    }

    /// Waits until the request is durable or has failed: at most twice the deadline of a transaction and its time in line.
    ///
    /// # Errors
    /// As the store's writes; [`Error::Exists`] for a request id that was used with other events.
    pub(crate) async fn outcome(self) -> Outcome {
        match self.0 {
            State::Ready(published) => Ok(published),
            State::Waiting(outcome, counters) => {
                let outcome = outcome.await;
                let outcome = outcome.unwrap_or_else(|_| Err(Error::OutcomeUnknown("the writer has ended".into())));
                if outcome.as_ref().is_ok_and(|published| published.duplicate) {
                    Counters::count(&counters.duplicates, 1);
                }
                outcome
            }
            State::Refused(error, identity, store) => match store.get(&identity.key).await?.0 {
                Some(entry) => Ok(Published {
                    answer: idempotency::stored_answer(&identity, entry)?,
                    duplicate: true,
                }),
                None => Err(error),
            },
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
