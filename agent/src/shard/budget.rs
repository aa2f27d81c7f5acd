//! A limit on the memory that loaded deliveries take, shared by all workers of an agent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Bytes that may be loaded in all.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
    waiting: AtomicUsize,
    /// Who waits for how many bytes to be in use at most.
    waiters: Mutex<Vec<(usize, Arc<Notify>)>>,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            waiters: Mutex::new(Vec::new()),
        }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    /// Bytes that there are in all.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Whether less than `most` bytes are in use; if not, `waiter` is notified when they are.
    fn is_below(&self, most: usize, waiter: &Arc<Notify>) -> bool {
        if self.used() < most {
            return true;
        }
        {
            let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
            if !waiters
                .iter()
                .any(|(known, other)| *known == most && Arc::ptr_eq(other, waiter))
            {
                waiters.push((most, waiter.clone()));
            }
            self.waiting.store(waiters.len(), Ordering::SeqCst);
        }
        // Room may have been made before we stood in the list.
        self.used() < most
    }

    fn put(&self, bytes: usize) {
        let left = self.used.fetch_sub(bytes, Ordering::SeqCst).saturating_sub(bytes);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
            waiters.retain(|(most, waiter)| {
                let still = left >= *most;
                if !still {
                    waiter.notify_one();
                }
                still
            });
            self.waiting.store(waiters.len(), Ordering::SeqCst);
        }
    }
}

/// What one worker has taken of a budget; the rest is given back when the last clone of its `Arc` is dropped.
#[derive(Debug)]
pub struct Purse {
    budget: Arc<Budget>,
    held: AtomicUsize,
}

impl Purse {
    /// An empty purse.
    pub const fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            held: AtomicUsize::new(0),
        }
    }

    /// Takes bytes: what is loaded has to be counted even if it is more than was expected. Ask [`Purse::has_room`] first.
    pub fn take(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::SeqCst);
        self.budget.used.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Gives bytes back that were taken.
    pub fn put(&self, bytes: usize) {
        if bytes > 0 {
            self.held.fetch_sub(bytes, Ordering::SeqCst);
            self.budget.put(bytes);
        }
    }

    /// Whether something of the queue may be loaded; if not, `waiter` is notified when it may.
    pub fn has_room(&self, waiter: &Arc<Notify>) -> bool {
        self.budget.is_below(self.budget.limit, waiter)
    }

    /// Whether something parked may be loaded; if not, `waiter` is notified when it may. A quarter is left for the queue, so that the backlog of slow
    /// receivers, which is what is mostly parked, cannot take the memory that the others' events flow through.
    pub fn has_room_for_parked(&self, waiter: &Arc<Notify>) -> bool {
        self.budget.is_below(self.budget.limit / 4 * 3, waiter)
    }

    /// Bytes in use by all, and how many there are.
    pub fn level(&self) -> (usize, usize) {
        (self.budget.used(), self.budget.limit())
    }
}

impl Drop for Purse {
    fn drop(&mut self) {
        self.budget.put(*self.held.get_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_room_is_told_and_a_dropped_purse_gives_everything_back() {
        let budget = Arc::new(Budget::new(100));
        let (first, second) = (Purse::new(budget.clone()), Purse::new(budget.clone()));
        let waiter = Arc::new(Notify::new());
        first.take(150);
        assert!(!second.has_room(&waiter));
        first.put(60);
        waiter.notified().await;
        assert!(second.has_room(&waiter));
        second.take(20);
        assert!(!second.has_room(&waiter));
        drop(first);
        waiter.notified().await;
        assert_eq!(budget.used(), 20);
    }
}
