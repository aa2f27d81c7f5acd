//! Leadership: one control plane of a cell leads, for a term that ends with its lease.
//!
//! Every replica campaigns: it waits until the `leader` key is gone and creates it on a lease of its own. The key's create revision names the
//! term and guards all its writes, so a leader that was replaced can write nothing. Work of a term is told to end when the lease is lost, before the
//! store can let anybody else lead.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use postrider_common::id::ControlPlaneId;
use postrider_common::store::lease::{self, Held};
use postrider_common::store::mirror::{self, Update};
use postrider_common::store::{Change, Guard, Op, ReadError, Revision, SharedStore, Write, WriteError};
use postrider_common::wire::stored;
use postrider_common::{key, task};
use postrider_proto::stored as pb;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Pause between campaigns: a lost campaign means that another one has just won, so there is no haste.
const CAMPAIGN_PAUSE: Duration = Duration::from_millis(200);

/// How long a term's work may take to end once it was told to. It only drops what it is doing.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// How long the end of the lease may take: else it runs out by itself.
const RESIGN_DEADLINE: Duration = Duration::from_secs(1);

/// One time of leading.
#[derive(Debug, Clone)]
pub struct Term {
    /// The create revision of the leader key.
    pub revision: Revision,
    /// The lease that the key dies with.
    pub held: Held,
}

impl Term {
    /// Must hold for every write of the term.
    pub fn guard(&self) -> Guard {
        Guard::Created(key::leader(), self.revision)
    }
}

/// Tells whether this control plane leads. Clones are of the same campaign.
#[derive(Debug, Clone)]
pub struct Handle {
    leading: watch::Receiver<bool>,
}

impl Handle {
    /// Whether it leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        *self.leading.borrow()
    }
}

/// Campaigns until the group is told to stop. For each term won `on_term` is called with a token; the future it returns is the term's work. It must end
/// soon after the token is cancelled; if it ends before, the term is given up. On stop the leader key is deleted, so that another can lead at once.
pub fn spawn(
    group: &task::Group,
    store: SharedStore,
    id: ControlPlaneId,
    lease_ttl: Duration,
    on_term: impl Fn(Term, CancellationToken) -> BoxFuture<'static, ()> + Send + Sync + 'static,
) -> Handle {
    let vacant = Arc::new(watch::Sender::new(false));
    let tell = Arc::clone(&vacant);
    mirror::spawn(
        group,
        "leader-mirror",
        Arc::clone(&store),
        key::leader(),
        true,
        move |update| {
            if let Some(now) = vacancy(&update) {
                tell.send_replace(now);
            }
        },
    );
    let (leading, handle) = watch::channel(false);
    let campaign = Campaign {
        store,
        id,
        lease_ttl,
        vacant: vacant.subscribe(),
        leading,
        on_term,
    };
    group.spawn("leader", campaign.run(group.token().clone()));
    Handle { leading: handle }
}

/// What an update says about the leader key: whether it is absent, if it says anything.
fn vacancy(update: &Update) -> Option<bool> {
    let leader = key::leader();
    match update {
        Update::Reset(entries, _) => Some(!entries.iter().any(|entry| entry.key == leader)),
        Update::Changes(changes) => {
            let last = changes.changes.iter().rfind(|change| *change.key() == leader)?;
            Some(matches!(last, Change::Delete(_)))
        }
    }
}

struct Campaign<F> {
    store: SharedStore,
    id: ControlPlaneId,
    lease_ttl: Duration,
    vacant: watch::Receiver<bool>,
    leading: watch::Sender<bool>,
    on_term: F,
}

/// Why a campaign was not won.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl<F: Fn(Term, CancellationToken) -> BoxFuture<'static, ()>> Campaign<F> {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let vacant = stop
                .run_until_cancelled(self.vacant.wait_for(|vacant| *vacant))
                .await
                .is_some_and(|vacant| vacant.is_ok());
            if !vacant {
                return;
            }
            // Not the caller's group: the lease must outlive the stop until the term's work has ended.
            let keeper = task::Group::default();
            match self.campaign(&keeper).await {
                Ok(term) => self.lead(term, &stop).await,
                Err(Error::Write(WriteError::Conflict)) => tracing::debug!("another control plane leads"),
                Err(error) => tracing::debug!(%error, "campaign failed"),
            }
            keeper.shut_down(RESIGN_DEADLINE).await;
            if stop.run_until_cancelled(sleep(CAMPAIGN_PAUSE)).await.is_none() {
                return;
            }
        }
    }

    async fn campaign(&self, keeper: &task::Group) -> Result<Term, Error> {
        let held = lease::keep(keeper, Arc::clone(&self.store), self.lease_ttl).await?;
        match self.create_key(&held).await {
            Ok(revision) => Ok(Term { revision, held }),
            Err(error) => {
                self.resign(&held).await;
                Err(error)
            }
        }
    }

    async fn create_key(&self, held: &Held) -> Result<Revision, Error> {
        let value = stored::encode(&pb::Leader {
            control_plane: self.id.as_str().to_owned(),
        });
        let write = Write {
            guards: vec![Guard::Absent(key::leader())],
            ops: vec![Op::put_leased(key::leader(), value, held.id())],
        };
        match self.store.write(write).await {
            Ok(revision) => Ok(revision),
            Err(error @ WriteError::Unknown(_)) => {
                // The lease is this campaign's alone, so a key on it is this campaign's. One that comes later dies with the lease.
                let (entry, _) = self.store.get(&key::leader()).await?;
                let mine = entry.filter(|entry| entry.lease == Some(held.id()));
                mine.map(|entry| entry.create_revision).ok_or(Error::Write(error))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn lead(&self, term: Term, stop: &CancellationToken) {
        tracing::info!(term = term.revision.0, "leading");
        let held = term.held.clone();
        let over = CancellationToken::new();
        let mut work = (self.on_term)(term, over.clone());
        self.leading.send_replace(true);
        let ended = tokio::select! {
            () = &mut work => true,
            () = held.lost().cancelled() => false,
            () = stop.cancelled() => false,
        };
        self.leading.send_replace(false);
        over.cancel();
        if !ended && timeout(TERM_GRACE, work).await.is_err() {
            tracing::warn!("the work of a term did not end in time and was dropped");
        }
        self.resign(&held).await;
        tracing::info!("no longer leading");
    }

    /// Ends the lease, and with it the leader key.
    async fn resign(&self, held: &Held) {
        if !matches!(timeout(RESIGN_DEADLINE, held.revoke(&*self.store)).await, Ok(Ok(()))) {
            tracing::debug!("the leader's lease is left to run out");
        }
    }
}

#[cfg(test)]
mod tests;
