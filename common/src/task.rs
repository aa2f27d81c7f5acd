//! Owned tasks: every task belongs to a group, has a name, is joined, and is told to stop by one token.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A group of tasks that are stopped and joined together. Clones are the same group.
#[derive(Debug, Clone)]
pub struct Group {
    tasks: Arc<Mutex<JoinSet<()>>>,
    stop: CancellationToken,
}

impl Default for Group {
    fn default() -> Self {
        Self::new(CancellationToken::new())
    }
}

impl Group {
    /// A group that is told to stop by `stop`.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            tasks: Arc::default(),
            stop,
        }
    }

    /// Tells the group's tasks to stop.
    pub const fn token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts a task. A task that panics is reported with its name; the others go on.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = tasks.try_join_next() {
            report(ended);
        }
        tasks.spawn(async move {
            future.await;
            tracing::trace!(task = name, "task ended");
        });
    }

    /// Tells all tasks to stop and waits for their end; after `grace` the rest are aborted.
    pub async fn shut_down(&self, grace: Duration) {
        self.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                report(ended);
            }
        };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!(left = tasks.len(), "tasks did not stop in time");
            tasks.shutdown().await;
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task panicked");
    }
}
