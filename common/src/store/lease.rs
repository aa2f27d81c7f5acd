//! Leases kept alive, and what is known about them.
//!
//! A lease lives as long as an answer to a keep-alive says, counted from the moment the keep-alive was *sent*, by this machine's monotonic
//! clock. Whoever acts on a lease asks [`Held`] first: it turns false before the store can have let the lease run out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{LeaseError, LeaseId, ReadError, SharedStore, Store};
use crate::planted::{self, Bug};
use crate::task;

/// Keep-alives in the time that a lease lives. Etcd answers none while its members elect a leader, which takes two seconds and sometimes four: a lease of
/// five must have been renewed shortly before, or its shards move at each of these.
const KEEP_ALIVES: u32 = 15;

/// The part of a lease's life after which an answer is late, as a divisor, and the question is asked again beside it: of another member, if the first is
/// given up by then. Each has a deadline of the store's, so there are never more than a few.
const ANSWER_PART: u32 = 5;

/// Pause after a keep-alive that failed at once: a store that is away is asked ten times a second, no more.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The part of a lease's life that its holder leaves unused, as a divisor. In it attempts are cancelled and their last bytes leave the machine, and it
/// covers what clocks of two machines may run apart within one life.
const MARGIN_PART: u32 = 10;

/// The least margin: a busy machine may notice this late that a timer is due.
const LEAST_MARGIN: Duration = Duration::from_millis(500);

/// What the holder of a lease knows about it. Clones are of the same lease.
#[derive(Debug, Clone)]
pub struct Held {
    id: LeaseId,
    life: Arc<Life>,
    lost: CancellationToken,
}

/// How long a lease is certain to live. Asked several times in every attempt, so without a lock.
#[derive(Debug)]
pub struct Life {
    since: Instant,
    /// For so many nanoseconds from then; 0 once it is lost.
    nanos: AtomicU64,
}

impl Life {
    /// Whether it is certain to live at this moment.
    pub fn is_safe(&self) -> bool {
        let nanos = self.nanos.load(Ordering::SeqCst);
        self.nanos_to(Instant::now()) < nanos || nanos != 0 && planted::is(Bug::LeaseLossUnnoticed)
    }

    fn nanos_to(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.since).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Held {
    /// A lease that is certain to live until `safe_until`.
    pub fn new(id: LeaseId, safe_until: Instant) -> Self {
        let life = Life {
            since: Instant::now(),
            nanos: AtomicU64::new(0),
        };
        life.nanos.store(life.nanos_to(safe_until), Ordering::SeqCst);
        Self {
            id,
            life: Arc::new(life),
            lost: CancellationToken::new(),
        }
    }

    /// The lease's name.
    pub const fn id(&self) -> LeaseId {
        self.id
    }

    /// Until when the lease is certain to live, as known now.
    fn safe_until(&self) -> Instant {
        self.life.since + Duration::from_nanos(self.life.nanos.load(Ordering::SeqCst))
    }

    /// Whether the lease is certain to live at this moment.
    pub fn is_safe(&self) -> bool {
        self.life.is_safe()
    }

    /// How long it is certain to live, for those who need to know nothing else.
    pub const fn life(&self) -> &Arc<Life> {
        &self.life
    }

    /// Cancelled once the lease is not certain to live any more. It never comes back: take a new lease.
    pub const fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Notes that the lease lives until `safe_until` at least, unless it is lost.
    pub fn extend(&self, safe_until: Instant) {
        let later = self.life.nanos_to(safe_until);
        // An error means that it is lost, or known to live as long.
        let _ = self
            .life
            .nanos
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |until| {
                (until != 0 && later > until).then_some(later)
            });
    }

    /// Notes that the lease is not certain to live any more.
    pub fn lose(&self) {
        self.life.nanos.store(0, Ordering::SeqCst);
        self.lost.cancel();
    }

    /// Ends the lease: first for its holder, then in the store, with all its keys.
    ///
    /// # Errors
    /// [`ReadError`] if the store did not answer; the lease then runs out by itself.
    pub async fn revoke(&self, store: &dyn Store) -> Result<(), ReadError> {
        self.lose();
        store.revoke(self.id).await
    }
}

/// Takes a lease of `ttl` (the store may grant another, which counts) and keeps it alive until the group is told to stop, the lease is lost, or
/// it is revoked. When the group stops the lease is left to run out: [`Held::revoke`] is the holder's deliberate act.
///
/// # Errors
/// [`ReadError`] if the store granted none within `ttl`.
pub async fn keep(group: &task::Group, store: SharedStore, ttl: Duration) -> Result<Held, ReadError> {
    let sent = Instant::now();
    let grant = timeout(ttl, store.grant(ttl))
        .await
        .map_err(|_| ReadError::Away("no lease was granted in time".to_owned()))??;
    let held = Held::new(grant.id, safe_until(sent, grant.ttl));
    let keeper = held.clone();
    let stop = group.token().clone();
    group.spawn("lease", async move {
        tokio::select! {
            () = stop.cancelled() => return,
            () = keeper.lost.cancelled() => return,
            // By a timer of its own: a call that hangs must not keep the holder from hearing of the end.
            () = over(&keeper) => {}
            () = renew(&*store, &keeper, sent, grant.ttl) => {}
        }
        if planted::is(Bug::LeaseLossUnnoticed) {
            return;
        }
        tracing::warn!(lease = keeper.id.0, "the lease is lost");
        keeper.lose();
    });
    Ok(held)
}

/// Until when a lease is certain to live that lives `ttl` from the moment `sent`.
fn safe_until(sent: Instant, ttl: Duration) -> Instant {
    let margin = (ttl / MARGIN_PART).max(LEAST_MARGIN).min(ttl / 2);
    sent + (ttl - margin)
}

/// Returns when the lease is not certain to live any more.
async fn over(held: &Held) {
    while Instant::now() < held.safe_until() {
        sleep_until(held.safe_until()).await;
    }
}

/// Sends keep-alives; returns when the lease is gone.
async fn renew(store: &dyn Store, held: &Held, mut sent: Instant, mut ttl: Duration) {
    loop {
        sleep_until(sent + ttl / KEEP_ALIVES).await;
        let Some(kept) = ask(store, held.id, ttl).await else {
            return;
        };
        (sent, ttl) = kept;
        held.extend(safe_until(sent, ttl));
    }
}

/// Asks to keep a lease alive until there is an answer, and again beside each question whose answer is late: a store that is slow answers some of them, and
/// none would be answered if each were given up for the next. Gives when the question was sent and how long the lease lives since; nothing if it is gone.
async fn ask(store: &dyn Store, lease: LeaseId, ttl: Duration) -> Option<(Instant, Duration)> {
    let mut questions = FuturesUnordered::new();
    loop {
        let sent = Instant::now();
        questions.push(async move { (sent, store.keep_alive(lease).await) });
        let next = sleep(ttl / ANSWER_PART);
        tokio::pin!(next);
        loop {
            let answer = tokio::select! {
                Some(answer) = questions.next() => answer,
                () = &mut next => break,
            };
            match answer {
                (sent, Ok(lives)) if !lives.is_zero() => return Some((sent, lives)),
                (_, Ok(_) | Err(LeaseError::Gone)) if !planted::is(Bug::KeepAliveAssumed) => return None,
                (_, Err(LeaseError::Away(why))) => {
                    tracing::debug!(why, "a keep-alive failed");
                    let soon = Instant::now() + RETRY_PAUSE;
                    if soon < next.deadline() {
                        next.as_mut().reset(soon);
                    }
                }
                (_, Ok(_) | Err(LeaseError::Gone)) => break,
            }
        }
        if planted::is(Bug::KeepAliveAssumed) {
            return Some((sent, ttl));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::store::link::Link;
    use crate::store::memory::MemoryStore;
    use crate::store::{Op, Write};

    const TTL: Duration = Duration::from_secs(5);

    struct Setup {
        store: MemoryStore,
        link: Link,
        group: task::Group,
    }

    impl Setup {
        fn new() -> Self {
            let store = MemoryStore::default();
            let link = Link::new(Arc::new(store.clone()));
            let group = task::Group::default();
            Self { store, link, group }
        }

        async fn keep(&self) -> Held {
            let held = keep(&self.group, Arc::new(self.link.clone()), TTL).await.unwrap();
            let ops = vec![Op::put_leased(key(), "", held.id())];
            let write = Write {
                guards: Vec::new(),
                ops,
            };
            self.store.write(write).await.unwrap();
            held
        }

        async fn lives(&self) -> bool {
            self.store.get(&key()).await.unwrap().0.is_some()
        }
    }

    fn key() -> Key {
        Key::from_stored("k")
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_lease_outlives_its_ttl_many_times() {
        let setup = Setup::new();
        let held = setup.keep().await;
        for _ in 0..100 {
            sleep(TTL / 2).await;
            assert!(held.is_safe());
        }
        assert!(setup.lives().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_lost_to_its_holder_before_the_store_lets_it_run_out() {
        for cut_after in [0, 100, 1_600, 1_700, 3_333, 4_900, 12_345] {
            let setup = Setup::new();
            let held = setup.keep().await;
            sleep(Duration::from_millis(cut_after)).await;
            setup.link.cut();
            held.lost().cancelled().await;
            assert!(!held.is_safe());
            assert!(setup.lives().await, "cut after {cut_after} ms");
            // The margin is not wider than it says.
            sleep(TTL / MARGIN_PART + Duration::from_millis(1)).await;
            assert!(!setup.lives().await, "cut after {cut_after} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_does_not_come_back_with_the_store() {
        let setup = Setup::new();
        let held = setup.keep().await;
        setup.link.cut();
        held.lost().cancelled().await;
        setup.link.join();
        sleep(TTL * 3).await;
        assert!(!held.is_safe());
        assert!(!setup.lives().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_cut_costs_nothing() {
        let setup = Setup::new();
        let held = setup.keep().await;
        for _ in 0..20 {
            setup.link.cut();
            sleep(TTL / 3).await;
            setup.link.join();
            sleep(TTL / 10).await;
        }
        assert!(held.is_safe());
        assert!(setup.lives().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_always_answers_late_costs_nothing() {
        let setup = Setup::new();
        let held = setup.keep().await;
        // Each question is answered after a second and a half at the latest: later than the next is asked.
        for _ in 0..40 {
            setup.link.cut();
            sleep(Duration::from_millis(1450)).await;
            setup.link.join();
            sleep(Duration::from_millis(10)).await;
        }
        assert!(held.is_safe());
        assert!(setup.lives().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_gone_is_lost_with_the_next_keep_alive() {
        let setup = Setup::new();
        let held = setup.keep().await;
        setup.store.revoke(held.id()).await.unwrap();
        let begun = Instant::now();
        held.lost().cancelled().await;
        assert!(begun.elapsed() < TTL / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_lease_is_lost_and_its_keys_are_gone() {
        let setup = Setup::new();
        let held = setup.keep().await;
        held.revoke(&setup.link).await.unwrap();
        assert!(held.lost().is_cancelled());
        assert!(!setup.lives().await);
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_group_stops_the_lease_runs_out() {
        let setup = Setup::new();
        let held = setup.keep().await;
        setup.group.shut_down(TTL).await;
        assert!(setup.lives().await);
        sleep(TTL).await;
        assert!(!setup.lives().await);
        assert!(!held.is_safe());
    }

    #[test]
    fn even_a_very_short_lease_can_be_used() {
        let now = Instant::now();
        assert_eq!(
            safe_until(now, Duration::from_millis(600)),
            now + Duration::from_millis(300)
        );
        assert_eq!(
            safe_until(now, Duration::from_secs(1)),
            now + Duration::from_millis(500)
        );
        assert_eq!(
            safe_until(now, Duration::from_secs(5)),
            now + Duration::from_millis(4500)
        );
    }
}
