//! The one task that changes the file: while one commit runs, the next batch fills; leases that ran out are ended here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::engine::{Done, Engine, Failure, OpenDatabase, Snapshot, Task};
use super::history::{History, Step};
use crate::store::{Grant, LeaseId, NotApplied, Revision, WriteError};

/// Tasks that may wait for the commit under way, and most that one commit takes: far more than a process has writers, and no
/// more than some 90 MB if all of them were as large as allowed.
pub(super) const MAX_WAITING: usize = 64;

/// Pause before a full disk is tried again: each trial may cost the repair of the file.
const FULL_PAUSE: Duration = Duration::from_secs(5);

/// A task, and where its outcome goes.
pub(super) struct Job {
    pub(super) task: Task,
    pub(super) reply: oneshot::Sender<Done>,
}

/// What readers, watchers and the writer share.
pub(super) struct Shared {
    view: Mutex<View>,
    leases: Mutex<BTreeMap<LeaseId, Lease>>,
    /// There was no room on the disk when it was written to last.
    pub(super) full: AtomicBool,
    /// The newest revision; changes wake the watchers.
    pub(super) changed: watch::Sender<Revision>,
}

/// What readers see.
pub(super) struct View {
    /// What happened lately.
    pub(super) history: History,
    /// The newest commit, or why there is none to be seen.
    pub(super) newest: Result<Arc<Snapshot>, String>,
}

#[derive(Clone, Copy)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
}

impl Shared {
    /// What a store shows that has just been opened: its leases have their full time again.
    pub(super) fn new(snapshot: Snapshot, leases: Vec<Grant>) -> Self {
        let revision = snapshot.revision;
        let shared = Self {
            view: Mutex::new(View {
                history: History::new(revision),
                newest: Ok(Arc::new(snapshot)),
            }),
            leases: Mutex::default(),
            full: AtomicBool::new(false),
            changed: watch::Sender::new(revision),
        };
        leases.into_iter().for_each(|grant| shared.granted(grant));
        shared
    }

    /// Looks at, or changes, what readers see. Not to be held while the disk is touched.
    pub(super) fn view<T>(&self, look: impl FnOnce(&mut View) -> T) -> T {
        look(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Prolongs a lease, unless it has run out.
    pub(super) fn keep_alive(&self, lease: LeaseId) -> Option<Duration> {
        let now = Instant::now();
        self.leases(|leases| {
            let lease = leases.get_mut(&lease).filter(|lease| lease.deadline > now)?;
            lease.deadline = now + lease.ttl;
            Some(lease.ttl)
        })
    }

    fn leases<T>(&self, look: impl FnOnce(&mut BTreeMap<LeaseId, Lease>) -> T) -> T {
        look(&mut self.leases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn granted(&self, grant: Grant) {
        let lease = Lease {
            ttl: grant.ttl,
            deadline: Instant::now() + grant.ttl,
        };
        self.leases(|leases| leases.insert(grant.id, lease));
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.leases(|leases| leases.values().map(|lease| lease.deadline).min())
    }

    fn expired(&self) -> Vec<LeaseId> {
        let now = Instant::now();
        let is_over = |(id, lease): (&LeaseId, &Lease)| (lease.deadline <= now).then_some(*id);
        self.leases(|leases| leases.iter().filter_map(is_over).collect())
    }
}

/// The writer.
pub(super) struct Writer {
    shared: Arc<Shared>,
    open: OpenDatabase,
    engine: Result<Engine, Refusal>,
    /// Until when a full disk is not tried again.
    full_until: Option<Instant>,
}

/// Why the file cannot be written.
#[derive(Clone)]
enum Refusal {
    /// The disk was full, and the file could not be opened again: that is tried later.
    Full,
    /// For ever: after a failed fsync nothing tells what is on the disk until the process starts anew.
    Broken(String),
}

/// What a batch changed for readers.
enum News {
    Nothing,
    Steps(Vec<Step>, Snapshot),
    /// The file was opened again and is where it was, or somewhere else.
    Reopened(Snapshot),
    Away(String),
}

impl Writer {
    pub(super) const fn new(shared: Arc<Shared>, open: OpenDatabase, engine: Engine) -> Self {
        Self {
            shared,
            open,
            engine: Ok(engine),
            full_until: None,
        }
    }

    /// Works until all senders of jobs are gone.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut batch = Vec::with_capacity(MAX_WAITING);
        loop {
            let deadline = match &self.engine {
                Ok(_) | Err(Refusal::Full) => self.shared.next_deadline().max(self.full_until),
                // Nothing will ever be ended again.
                Err(Refusal::Broken(_)) => None,
            };
            let lease_ends = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                taken = jobs.recv_many(&mut batch, MAX_WAITING) => if taken == 0 { return },
                () = lease_ends => {}
            }
            self.full_until = self.full_until.filter(|until| *until > Instant::now());
            let (mut tasks, mut replies): (Vec<Task>, Vec<Option<oneshot::Sender<Done>>>) =
                batch.drain(..).map(|job| (job.task, Some(job.reply))).unzip();
            if self.full_until.is_some() {
                replies.into_iter().flatten().zip(&tasks).for_each(|(reply, task)| {
                    let _ = reply.send(refused(task, &Refusal::Full));
                });
                continue;
            }
            for lease in self.shared.expired() {
                tasks.push(Task::End(lease));
                replies.push(None);
            }
            let (shared, work) = (Arc::clone(&self.shared), move || self.work(&tasks));
            let worked = tokio::task::spawn_blocking(work).await;
            let Ok((writer, done, news)) = worked else {
                // A panic inside the database: readers and writers are told, the jobs' senders are dropped.
                shared.publish(News::Away("the embedded database failed".into()));
                return;
            };
            self = writer;
            self.shared.publish(news);
            for (done, reply) in done.into_iter().zip(replies) {
                self.note(&done);
                if let Some(reply) = reply {
                    let _ = reply.send(done);
                }
            }
        }
    }

    /// Commits a batch. Blocking.
    fn work(mut self, tasks: &[Task]) -> (Self, Vec<Done>, News) {
        let refuse = |refusal: &Refusal| tasks.iter().map(|task| refused(task, refusal)).collect();
        let mut reopened = None;
        if let Err(Refusal::Full) = &self.engine {
            reopened = Some(self.reopen());
        }
        let engine = match &mut self.engine {
            Ok(engine) => engine,
            Err(refusal) => {
                let done = refuse(refusal);
                return (self, done, reopened.unwrap_or(News::Nothing));
            }
        };
        let before = engine.revision();
        let committed = engine.commit(tasks);
        let full = matches!(&committed, Err(failure) if failure.full);
        // Shown to people only: nothing is ordered by it.
        self.shared.full.store(full, Ordering::Relaxed);
        match committed {
            Ok((done, steps)) if steps.is_empty() => (self, done, reopened.unwrap_or(News::Nothing)),
            Ok((done, steps)) => match engine.snapshot() {
                Ok(snapshot) => (self, done, News::Steps(steps, snapshot)),
                Err(error) => {
                    let why = error.to_string();
                    self.engine = Err(Refusal::Broken(why.clone()));
                    (self, done, News::Away(why))
                }
            },
            Err(failure) => {
                let (done, news) = self.fail(before, failure, tasks);
                (self, done, news)
            }
        }
    }

    fn fail(&mut self, before: Revision, failure: Failure, tasks: &[Task]) -> (Vec<Done>, News) {
        let Failure { why, full, begun } = failure;
        tracing::error!(error = why, full, "the store file could not be written");
        let (refusal, news) = if full {
            // The database refuses everything after an error until it is opened anew, which also shows what the commit left.
            self.engine = Err(Refusal::Full);
            self.full_until = Some(Instant::now() + FULL_PAUSE);
            (Refusal::Full, self.reopen())
        } else {
            self.engine = Err(Refusal::Broken(why.clone()));
            (Refusal::Broken(why.clone()), News::Away(why.clone()))
        };
        let is_settled = matches!(&self.engine, Ok(engine) if engine.revision() == before);
        let outcome = |task: &Task| match task {
            Task::Write(_) if begun && !is_settled => Done::Written(Err(WriteError::Unknown(why.clone()))),
            task => refused(task, &refusal),
        };
        (tasks.iter().map(outcome).collect(), news)
    }

    fn reopen(&mut self) -> News {
        // The old database has been dropped, so its lock on the file is gone.
        let opened = Engine::open(&self.open).and_then(|(engine, _)| Ok((engine.snapshot()?, engine)));
        match opened {
            Ok((snapshot, engine)) => {
                self.engine = Ok(engine);
                News::Reopened(snapshot)
            }
            Err(error) => {
                self.full_until = Some(Instant::now() + FULL_PAUSE);
                News::Away(error.to_string())
            }
        }
    }

    fn note(&self, done: &Done) {
        match done {
            Done::Granted(Ok(grant)) => self.shared.granted(*grant),
            Done::Ended(Ok(lease)) => {
                self.shared.leases(|leases| leases.remove(lease));
            }
            Done::Written(_) | Done::Granted(Err(_)) | Done::Ended(Err(_)) => {}
        }
    }
}

impl Shared {
    /// Shows readers and watchers what a batch did.
    fn publish(&self, news: News) {
        let shown = *self.changed.borrow();
        let revision = self.view(|view| match news {
            News::Nothing => None,
            News::Steps(steps, snapshot) => {
                if let Some(step) = steps.first()
                    && step.revision != shown.next()
                {
                    view.history = History::new(Revision(step.revision.0 - 1));
                }
                let revision = snapshot.revision;
                steps.into_iter().for_each(|step| view.history.push(step));
                view.newest = Ok(Arc::new(snapshot));
                Some(revision)
            }
            News::Reopened(snapshot) => {
                let revision = snapshot.revision;
                if revision != shown {
                    // A commit that was reported as unknown turned out to be there; what it changed is not remembered.
                    view.history = History::new(revision);
                }
                view.newest = Ok(Arc::new(snapshot));
                Some(revision)
            }
            News::Away(why) => {
                view.newest = Err(why);
                Some(shown)
            }
        });
        if let Some(revision) = revision {
            self.changed.send_replace(revision);
        }
    }
}

fn refused(task: &Task, refusal: &Refusal) -> Done {
    let (why, not_applied) = match refusal {
        Refusal::Full => ("the disk is full".to_owned(), NotApplied::Full),
        Refusal::Broken(why) => (why.clone(), NotApplied::Away(why.clone())),
    };
    match task {
        Task::Write(_) => Done::Written(Err(WriteError::NotApplied(not_applied))),
        Task::Grant(_) => Done::Granted(Err(why)),
        Task::End(_) => Done::Ended(Err(why)),
    }
}
