//! Says once what is wrong with how a program is let into etcd, and once that it is right again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long nothing may be refused before it is right again: some requests are let through while others are not.
const QUIET: Duration = Duration::from_secs(10);

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Etcd's authentication is enabled, and the program has no user.
    NoUser,
    /// The password cannot be read.
    PasswordUnread,
    /// Etcd does not take the user and the password, or its authentication is not enabled.
    LoginRefused,
    /// The user may not do what the program needs.
    NotPermitted,
}

/// What some releases of etcd let only root do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Task {
    /// Forgetting history.
    Compact,
    /// Telling how large it is, and whether it takes more.
    Status,
}

/// What is wrong now, if anything.
#[derive(Debug)]
pub(super) struct Troubles {
    user: String,
    /// What was said to be only for root.
    for_root: Mutex<BTreeSet<Task>>,
    /// With when it was met last.
    now: Mutex<Option<(Trouble, Instant)>>,
    /// Whether there is any: asked after each call, so without a lock.
    any: AtomicBool,
}

impl Troubles {
    /// None yet, of this user.
    pub(super) fn of(user: Option<String>) -> Self {
        Self {
            user: user.unwrap_or_default(),
            for_root: Mutex::default(),
            now: Mutex::default(),
            any: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Trouble, Instant)>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that this is wrong; says so if it was not known.
    pub(super) fn are(&self, trouble: Trouble, why: &str) {
        let mut now = self.lock();
        let known = now.replace((trouble, Instant::now()));
        self.any.store(true, Ordering::Relaxed);
        drop(now);
        if known.is_some_and(|(known, _)| known == trouble) {
            return;
        }
        let user = self.user.as_str();
        match trouble {
            Trouble::NoUser => {
                tracing::error!(
                    why,
                    "etcd wants a user and a password: see --etcd-user and --etcd-password-file"
                );
            }
            Trouble::PasswordUnread => tracing::error!(why, user, "the password for etcd cannot be read"),
            Trouble::LoginRefused => tracing::error!(why, user, "etcd does not take the user and the password"),
            Trouble::NotPermitted => tracing::error!(why, user, "etcd does not permit the user what is needed"),
        }
    }

    /// Notes that etcd lets only root do this; says so once.
    pub(super) fn only_for_root(&self, task: Task, why: &str) {
        let mut said = self.for_root.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = said.insert(task);
        drop(said);
        let user = self.user.as_str();
        match task {
            Task::Compact if is_new => {
                tracing::error!(
                    why,
                    user,
                    "etcd does not let the user compact: let it do so by itself (--auto-compaction-mode)"
                );
            }
            Task::Status if is_new => {
                tracing::error!(
                    why,
                    user,
                    "etcd does not tell the user how full it is: publishing goes on until it is full"
                );
            }
            Task::Compact | Task::Status => {}
        }
    }

    /// Notes that etcd took the user and the password.
    pub(super) fn let_in(&self) {
        if self.any.load(Ordering::Relaxed) {
            self.end_if(|trouble, _| trouble != Trouble::NotPermitted);
        }
    }

    /// Notes that a request was let through. While the password is refused that says nothing.
    pub(super) fn may_be_over(&self) {
        if self.any.load(Ordering::Relaxed) {
            let of_requests = [Trouble::NoUser, Trouble::NotPermitted];
            self.end_if(|trouble, last| of_requests.contains(&trouble) && last.elapsed() >= QUIET);
        }
    }

    fn end_if(&self, is_over: impl FnOnce(Trouble, Instant) -> bool) {
        let mut now = self.lock();
        if now.take_if(|(trouble, last)| is_over(*trouble, *last)).is_some() {
            self.any.store(false, Ordering::Relaxed);
            drop(now);
            tracing::info!("etcd lets the program in again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Troubles {
        fn now(&self) -> Option<Trouble> {
            self.lock().map(|(trouble, _)| trouble)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_let_through_end_a_trouble_once_none_is_refused_any_more() {
        let troubles = Troubles::of(None);
        troubles.are(Trouble::NotPermitted, "");
        tokio::time::advance(QUIET / 2).await;
        troubles.are(Trouble::NotPermitted, "");
        tokio::time::advance(QUIET / 2).await;
        troubles.may_be_over();
        troubles.let_in();
        assert_eq!(troubles.now(), Some(Trouble::NotPermitted));
        tokio::time::advance(QUIET / 2).await;
        troubles.may_be_over();
        assert_eq!(troubles.now(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_password_is_over_only_once_it_is_taken() {
        let troubles = Troubles::of(None);
        troubles.are(Trouble::LoginRefused, "");
        tokio::time::advance(QUIET * 2).await;
        troubles.may_be_over();
        assert_eq!(troubles.now(), Some(Trouble::LoginRefused));
        troubles.let_in();
        assert_eq!(troubles.now(), None);
    }
}
