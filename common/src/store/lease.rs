//! Leases kept alive, and what is known about them.
//!
//! A lease lives as long as an answer to a keep-alive says, counted from the moment the keep-alive was *sent*, by this machine's monotonic
//! clock. Whoever acts on a lease asks [`Held`] first: it turns false before the store can have let the lease run out.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::LeaseId;

/// What the holder of a lease knows about it. Clones are of the same lease.
#[derive(Debug, Clone)]
pub struct Held {
    id: LeaseId,
    safe_until: Arc<watch::Sender<Instant>>,
    lost: CancellationToken,
}

impl Held {
    /// A lease that is certain to live until `safe_until`.
    pub fn new(id: LeaseId, safe_until: Instant) -> Self {
        Self {
            id,
            safe_until: Arc::new(watch::Sender::new(safe_until)),
            lost: CancellationToken::new(),
        }
    }

    /// The lease's name.
    pub const fn id(&self) -> LeaseId {
        self.id
    }

    /// Until when the lease is certain to live, as known now.
    pub fn safe_until(&self) -> Instant {
        *self.safe_until.borrow()
    }

    /// Whether the lease is certain to live at this moment.
    pub fn is_safe(&self) -> bool {
        !self.lost.is_cancelled() && Instant::now() < self.safe_until()
    }

    /// Cancelled once the lease is not certain to live any more. It never comes back: take a new lease.
    pub const fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Notes that the lease lives until `safe_until` at least.
    pub fn extend(&self, safe_until: Instant) {
        self.safe_until.send_if_modified(|until| {
            let later = safe_until > *until;
            *until = safe_until.max(*until);
            later
        });
    }
}
