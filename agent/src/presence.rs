//! Presence: the agent's entry among the live ones, on the lease that everything of the agent hangs on.

use std::sync::Arc;
use std::time::Duration;

use postrider_common::id::AgentId;
use postrider_common::store::lease::{self, Held};
use postrider_common::store::{Guard, Op, ReadError, Revision, SharedStore, Write, WriteError};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;
use postrider_common::{key, task};
use postrider_proto::stored as pb;
use tokio::time::{sleep, timeout};

/// Pause before a refused change of the entry is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long the end of a lease may take: else it runs out by itself.
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);

/// What an agent says about itself.
#[derive(Debug, Clone)]
pub struct About {
    /// Its name.
    pub agent: AgentId,
    /// Version of its program.
    pub version: String,
    /// How many shards it should have, relative to the others.
    pub weight: u32,
    /// When it was started.
    pub start_time: Timestamp,
}

/// Why an agent could not register.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An entry of that name lives: of another agent, or of this one's last life, which runs out with its lease.
    #[error("another live agent is named {0}: give each agent an id of its own")]
    Taken(AgentId),
    /// The store did not answer.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The entry could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// An agent's entry. It lives while the lease is kept; once [`Held::lost`] is cancelled everything of this agent is over, and it registers anew.
pub struct Presence {
    store: SharedStore,
    about: About,
    held: Held,
    revision: Revision,
}

impl Presence {
    /// Takes a lease, kept by `group`, and puts the agent's entry on it.
    ///
    /// # Errors
    /// [`Error`]; then no lease is left behind, or one that runs out.
    pub async fn register(
        group: &task::Group,
        store: SharedStore,
        about: About,
        lease_ttl: Duration,
    ) -> Result<Self, Error> {
        let held = lease::keep(group, Arc::clone(&store), lease_ttl).await?;
        match create_entry(&store, &about, &held).await {
            Ok(revision) => Ok(Self {
                store,
                about,
                held,
                revision,
            }),
            Err(error) => {
                end(&held, &store).await;
                Err(error)
            }
        }
    }

    /// The lease.
    pub const fn held(&self) -> &Held {
        &self.held
    }

    /// Says that the agent takes no new shards and wants to be rid of those it has. Tries until it is written or the registration is over.
    pub async fn set_draining(&self) {
        loop {
            let write = Write {
                guards: vec![Guard::Created(key::agent(&self.about.agent), self.revision)],
                ops: vec![entry(&self.about, &self.held, true)],
            };
            match self.store.write(write).await {
                Ok(_) | Err(WriteError::Conflict) => return,
                Err(error) => tracing::debug!(%error, "draining not told yet"),
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Ends the lease, and with it the entry and everything else on it.
    pub async fn leave(&self) {
        end(&self.held, &self.store).await;
    }
}

async fn end(held: &Held, store: &SharedStore) {
    if !matches!(timeout(LEAVE_DEADLINE, held.revoke(&**store)).await, Ok(Ok(()))) {
        tracing::debug!("the agent's lease is left to run out");
    }
}

async fn create_entry(store: &SharedStore, about: &About, held: &Held) -> Result<Revision, Error> {
    let key = key::agent(&about.agent);
    let write = Write {
        guards: vec![Guard::Absent(key.clone())],
        ops: vec![entry(about, held, false)],
    };
    match store.write(write).await {
        Ok(revision) => Ok(revision),
        Err(WriteError::Conflict) => Err(Error::Taken(about.agent.clone())),
        Err(error @ WriteError::Unknown(_)) => {
            // The lease is this registration's alone, so an entry on it is this registration's. One that comes later dies with the lease.
            let (entry, _) = store.get(&key).await?;
            let mine = entry.filter(|entry| entry.lease == Some(held.id()));
            mine.map(|entry| entry.create_revision).ok_or(Error::Write(error))
        }
        Err(error) => Err(error.into()),
    }
}

fn entry(about: &About, held: &Held, draining: bool) -> Op {
    let value = stored::encode(&pb::Agent {
        version: about.version.clone(),
        start_time: about.start_time.as_millis(),
        draining,
        weight: about.weight,
    });
    Op::put_leased(key::agent(&about.agent), value, held.id())
}
