//! What goes wrong in etcd itself while it is switched on: writes and answers are lost or late, there is no space left, there is no leader.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postrider_common::store::NotApplied;
use tokio::sync::watch;
use tonic::Status;

use crate::messages::refused;
use crate::plan::Dice;

/// Milliseconds after which a write is done at the latest that is late without an election: long enough for another owner to be there.
const LATEST: u64 = 2_500;

/// What may go wrong, and does while it is switched on.
pub(crate) struct Mishaps {
    dice: Dice,
    loses: AtomicBool,
    /// Whose writes are late.
    late: Mutex<BTreeSet<IpAddr>>,
    full: Mutex<Option<Full>>,
    leader: watch::Sender<bool>,
}

/// An etcd without space.
struct Full {
    /// So many more requests that need space are carried out, and refused all the same: those that were under way when the first of them filled it.
    filling: usize,
    /// What is refused then.
    refuses: Refuses,
}

/// What an etcd without space refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refuses {
    /// What needs space, as the releases since 3.5.7 do.
    Puts,
    /// That, and every transaction, as the releases before do.
    Transactions,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Space: it puts something, or makes a lease.
    Space,
    /// No space, but it is a transaction.
    Transaction,
}

/// What becomes of a request that changes something.
pub(crate) enum Fate {
    /// It is carried out, and answered.
    Usual,
    /// Nothing is done, and this is answered.
    Refused(Status),
    /// It is carried out, and this is answered all the same.
    Denied(Status),
    /// This is answered; it is carried out so long afterwards, if there is a leader, or after there is one again.
    Late(Status, Duration),
}

impl Mishaps {
    /// None go on.
    pub(crate) fn new(dice: Dice) -> Self {
        Self {
            dice,
            loses: AtomicBool::new(false),
            late: Mutex::default(),
            full: Mutex::default(),
            leader: watch::Sender::new(true),
        }
    }

    /// From now on writes and their answers are lost now and then, or no more.
    pub(crate) fn lose_writes(&self, loses: bool) {
        self.loses.store(loses, Ordering::Relaxed);
    }

    /// From now on half of what a host writes is answered as lost, and done later; or no more.
    pub(crate) fn delay_writes(&self, host: IpAddr, delays: bool) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if delays {
            late.insert(host);
        } else {
            late.remove(&host);
        }
    }

    fn is_late(&self, host: IpAddr) -> bool {
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.contains(&host) && self.dice.chance(0.5)
    }

    /// The space is used up by somebody, and the alarm is raised.
    pub(crate) fn fill(&self) {
        *self.full() = Some(Full {
            filling: self.dice.one(&[0, 0, 1, 3]),
            refuses: self.dice.one(&[Refuses::Puts, Refuses::Puts, Refuses::Transactions]),
        });
    }

    /// Somebody has made space, and disarmed the alarm.
    pub(crate) fn disarm(&self) {
        *self.full() = None;
    }

    /// Whether the alarm is raised.
    pub(crate) fn is_full(&self) -> bool {
        self.full().is_some()
    }

    /// What is answered to every transaction if there is no space and this etcd is one that then refuses them all.
    ///
    /// # Errors
    /// That answer.
    pub(crate) fn takes_transactions(&self) -> Result<(), Status> {
        match &*self.full() {
            Some(full) if full.refuses == Refuses::Transactions => Err(refused(&NotApplied::Full)),
            Some(_) | None => Ok(()),
        }
    }

    /// The members have no leader from now on, or have one again.
    pub(crate) fn lead(&self, has_leader: bool) {
        self.leader.send_replace(has_leader);
    }

    /// What is answered instead of anything while there is no leader.
    ///
    /// # Errors
    /// That answer.
    pub(crate) fn led(&self) -> Result<(), Status> {
        if *self.leader.borrow() {
            return Ok(());
        }
        let said = if self.dice.chance(0.2) {
            "etcdserver: leader changed"
        } else {
            "etcdserver: no leader"
        };
        Err(Status::unavailable(said))
    }

    /// Tells of leaders that come and go.
    pub(crate) fn leaders(&self) -> watch::Receiver<bool> {
        self.leader.subscribe()
    }

    /// Waits until there is a leader.
    pub(crate) async fn elected(&self) {
        // The sender is here.
        let _ = self.leaders().wait_for(|has_leader| *has_leader).await;
    }

    /// Whether a watch outlives the loss of the leader: etcd ends those that ask for one, but not at once.
    pub(crate) fn ends_watch(&self) -> bool {
        self.dice.chance(0.7)
    }

    /// What becomes of a request of a host that changes something.
    pub(crate) fn fate(&self, host: IpAddr, needs: Needs) -> Fate {
        if let Err(status) = self.led() {
            // What was proposed before the leader was lost may still be committed by the next.
            let is_late = self.dice.chance(0.3);
            let changed = || Status::unavailable("etcdserver: leader changed");
            return if is_late {
                Fate::Late(changed(), self.dice.millis(0, 300))
            } else {
                Fate::Refused(status)
            };
        }
        if let Some(full) = self.full().as_mut() {
            let no_space = refused(&NotApplied::Full);
            match needs {
                Needs::Space if full.filling > 0 => {
                    full.filling -= 1;
                    return Fate::Denied(no_space);
                }
                Needs::Transaction if full.refuses == Refuses::Puts => {}
                Needs::Space | Needs::Transaction => return Fate::Refused(no_space),
            }
        }
        let timed_out = || Status::unavailable("etcdserver: request timed out");
        if self.is_late(host) {
            return Fate::Late(timed_out(), self.dice.millis(0, LATEST));
        }
        if !self.loses.load(Ordering::Relaxed) {
            return Fate::Usual;
        }
        match self.dice.below(100) {
            0..5 => Fate::Refused(timed_out()),
            5..8 => Fate::Refused(Status::unavailable("etcdserver: no leader")),
            8..14 => Fate::Denied(timed_out()),
            _ => Fate::Usual,
        }
    }

    fn full(&self) -> MutexGuard<'_, Option<Full>> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
