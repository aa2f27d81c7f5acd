//! Waiting for a condition, with a deadline. The only place of the tests that lets time pass.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// How often a condition that cannot announce itself is looked at: often enough not to slow a test down, rarely enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The time between two looks, for a loop with a deadline of its own that must be `Send`, which [`until`] is not.
pub async fn between_looks() {
    sleep(LOOK_EVERY).await;
}

/// Waits for a moment: for publishers that keep a pace, and for what is done at a chosen moment of a run. Nothing may be concluded from its having passed.
pub async fn moment(at: Instant) {
    sleep_until(at).await;
}

/// Lets time pass on a simulated clock, which costs none: for what a simulation does at moments of its plan.
pub async fn simulated(time: Duration) {
    sleep(time).await;
}

/// Waits until `condition` holds, looking whenever `changed` tells its waiters; false after `deadline`.
pub async fn notified(changed: &Notify, deadline: Duration, condition: impl Fn() -> bool) -> bool {
    let waiting = async {
        loop {
            let changed = changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that nothing happens unseen in between.
            changed.as_mut().enable();
            if condition() {
                return;
            }
            changed.await;
        }
    };
    timeout(deadline, waiting).await.is_ok()
}

/// Looks until `probe` gives a value, and returns it.
///
/// # Panics
/// After `deadline`, saying `what` was waited for.
pub async fn until<T>(what: &str, deadline: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    let looking = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            between_looks().await;
        }
    };
    match timeout_at(end, looking).await {
        Ok(value) => value,
        Err(_) => panic!("gave up after {deadline:?} waiting for {what}"),
    }
}
