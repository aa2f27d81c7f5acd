//! What a worker is told to do with dead letters, and what it does with them by itself: one job at a time, a few segments at a time.
//!
//! ```text
//!     commands/S/… ──┐                                                           ┌─▶ kept in dead/S/…
//!     deleted ───────┼─▶ job ▸ keys of dead/S/… ▸ a few values ▸ rewrite ▸ ledger ┼─▶ parked/S/…
//!     every hour ────┘              ▲                                   │        └─▶ counted as dropped
//!                                   └────── when it is written ─────────┘
//! ```
//!
//! A command is deleted after everything that it asks for; until then whoever owns the shard carries it out. What was done already is no dead letter any
//! more; with each part of it the command notes when it was begun and how many were revived, so that a rate is kept and nothing is meant that died since.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_common::key::{self, Key, Parked};
use postrider_common::model::command::{Action, Begun, Command, Filter};
use postrider_common::model::segment::Segment;
use postrider_common::model::usage::Dropped;
use postrider_common::shard::{self, ShardId};
use postrider_common::store::{Entry, ReadError, Revision, SharedStore, list_all};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;
use tokio::task::{JoinError, JoinSet};

use super::Worker;
use crate::catalog::{Changed, Name};
use crate::shard::dead::{Search, rewrite};
use crate::shard::delivery::{Known, Record};
use crate::shard::feed;

/// Values read in one go: a quarter of a megabyte.
const AT_ONCE: usize = 4;

/// When dead letters are first looked through after a shard was taken, and how often from then on, if they are kept for longer. Usually it is for weeks.
const TIDY_AFTER: Duration = Duration::from_secs(60);

/// See [`TIDY_AFTER`].
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// Pause before a store that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// What is to be done, and what was done of it.
pub(super) struct Orders {
    /// Commands that were carried out, and whose deletion has not been seen.
    finished: BTreeSet<Key>,
    /// Commands to redrive that are not carried out.
    redrives: BTreeMap<Key, Name>,
    /// Webhooks that do not exist any more, as of a revision.
    former: BTreeMap<Name, Revision>,
    /// It was asked which webhooks have dead letters: some may have been deleted while nobody owned the shard, or its owner died over it.
    asked: bool,
    tidy_at: Timestamp,
    job: Option<Job>,
    reads: JoinSet<Read>,
    /// Segments that were handed to the ledger to be replaced.
    rewritten: usize,
    /// The commands may have changed since they were looked at.
    news: bool,
}

/// One job.
struct Job {
    /// The command that asks for it.
    command: Option<(Key, Arc<Command>)>,
    search: Search,
    /// Which dead letters may be meant.
    prefix: Key,
    /// Segments of which the first died later are not.
    until: Timestamp,
    /// Segments that are still to be looked at; `None` until they are known.
    left: Option<VecDeque<Parked>>,
    begun: Begun,
}

/// What was read.
pub(super) enum Read {
    /// Where the segments of a job stand; and the command that asks for it, if there still is one.
    Index(Vec<Parked>, Option<Command>),
    /// Some of them.
    Segments(Vec<(Parked, Segment)>),
    /// The first dead letters of each webhook that has some.
    Webhooks(Vec<Parked>),
}

impl Orders {
    /// Nothing is to be done yet. Dead letters are kept for `retention`.
    pub(super) fn new(now: Timestamp, retention: Duration) -> Self {
        Self {
            finished: BTreeSet::new(),
            redrives: BTreeMap::new(),
            former: BTreeMap::new(),
            asked: false,
            tidy_at: now + TIDY_AFTER.min(retention),
            job: None,
            reads: JoinSet::new(),
            rewritten: 0,
            news: true,
        }
    }

    /// The commands have changed.
    pub(super) const fn changed(&mut self) {
        self.news = true;
    }

    /// The next thing that was read.
    pub(super) async fn next(&mut self) -> Option<Result<Read, JoinError>> {
        self.reads.join_next().await
    }

    /// When there is something to do although nothing else happens.
    pub(super) const fn next_alarm(&self) -> Timestamp {
        self.tidy_at
    }
}

impl Worker {
    /// Goes on with the job in hand, or begins the next one.
    pub(super) fn order(&mut self, now: Timestamp) {
        self.look_for_singles(now);
        if self.orders.job.is_none() {
            self.orders.job = self.next_job(now);
        }
        // What was read before must be written before more is read: else it would be found again.
        let written = self.pen.rewritten() == self.orders.rewritten;
        if !self.orders.reads.is_empty() || !written || !self.pen.may_start() {
            return;
        }
        let store = self.shards.deps.store.clone();
        if !std::mem::replace(&mut self.orders.asked, true) {
            let shard = self.tenure.shard;
            self.orders
                .reads
                .spawn(async move { Read::Webhooks(webhooks(store, shard).await) });
            return;
        }
        let Some(job) = &mut self.orders.job else { return };
        match &mut job.left {
            None => {
                let prefix = job.prefix.clone();
                let command = job.command.as_ref().map(|(key, _)| key.clone());
                self.orders.reads.spawn(async move {
                    let command = match command {
                        Some(key) => stands(&store, &key).await,
                        None => None,
                    };
                    Read::Index(index(store, prefix).await, command)
                });
            }
            Some(left) if left.is_empty() => {
                let done = self.orders.job.take().and_then(|job| job.command);
                if let Some((key, command)) = done {
                    self.carried_out(key, &command);
                }
                self.wake.notify_one();
            }
            Some(left) => {
                let some: Vec<Parked> = left.drain(..left.len().min(AT_ONCE)).collect();
                self.orders
                    .reads
                    .spawn(async move { Read::Segments(segments(store, some).await) });
            }
        }
    }

    /// A webhook of any shard does not exist any more.
    pub(super) fn webhook_deleted(&mut self, name: Name, at: Revision) {
        if self.is_ours(&name) {
            self.effects.records.push(Record::Gone(name.0.clone(), name.1.clone()));
            self.orders.former.insert(name, at);
        }
    }

    /// If what changed is that a webhook of any shard does not exist any more, but another of its name does.
    pub(super) fn webhook_replaced(&mut self, changed: Option<&Changed>) {
        if let Some(Changed::Replaced(name)) = changed
            && self.is_ours(name)
        {
            let since = self.shards.deps.catalog.since(name);
            self.orders.former.insert(name.clone(), since);
        }
    }

    fn is_ours(&self, (account, webhook): &Name) -> bool {
        let ours = |count| shard::of(account, webhook, count) == self.tenure.shard;
        self.shard_count.is_none_or(ours)
    }

    /// A command is deleted, after everything that it asked for.
    pub(super) fn carried_out(&mut self, key: Key, command: &Command) {
        tracing::info!(account = %command.account, webhook = %command.webhook, "a command was carried out");
        self.effects.records.push(Record::Discard(key.clone()));
        self.finished(key);
    }

    fn finished(&mut self, key: Key) {
        if let Some(name) = self.orders.redrives.remove(&key) {
            let more = self.orders.redrives.values().any(|other| *other == name);
            if !more {
                let now = self.now();
                self.state.redrive_ends(&name, now, &mut self.effects);
            }
        }
        self.orders.finished.insert(key);
    }

    /// Notes which webhooks are to be redriven, before anything of them starts.
    pub(super) fn look_for_redrives(&mut self) {
        if !self.orders.news {
            return;
        }
        for (key, command) in self.shards.deps.commands.of(self.tenure.shard) {
            if matches!(command.action, Action::Redrive(..)) && !self.orders.finished.contains(&key) {
                let name = (command.account.clone(), command.webhook.clone());
                self.state.redrive_begins(name.clone());
                self.orders.redrives.insert(key, name);
            }
        }
    }

    /// Notes of which webhooks these dead letters are that do not exist any more, though another of the name may.
    fn find_former(&mut self, dead: &[Parked]) {
        let catalog = &self.shards.deps.catalog;
        for at in dead {
            let name = (at.account.clone(), at.webhook.clone());
            let since = catalog.since(&name);
            let is_gone = matches!(catalog.current(&name), Known::Absent(_));
            // Written by an owner that began before the present webhook was there.
            let is_older = Revision(i64::try_from(at.epoch).unwrap_or(i64::MAX)) < since;
            if is_gone || is_older {
                self.orders.former.insert(name, since);
            }
        }
    }

    fn next_job(&mut self, now: Timestamp) -> Option<Job> {
        let shard = self.tenure.shard;
        if std::mem::take(&mut self.orders.news) {
            let commands = self.shards.deps.commands.of(shard);
            self.orders.finished.retain(|key| commands.contains_key(key));
            for (key, command) in commands {
                let known = self.orders.finished.contains(&key) || self.singles.has(&key);
                if !known && !self.singles.take_on(&key, &command, now) {
                    // There may be more.
                    self.orders.news = true;
                    return Some(Job::of(key, command, shard, now));
                }
            }
            self.look_for_singles(now);
        }
        if let Some((key, command)) = self.singles.pop_ended() {
            return Some(Job::of(key, command, shard, now));
        }
        if let Some(((account, webhook), as_of)) = self.orders.former.pop_first() {
            let prefix = key::dead_of(shard, &account, &webhook);
            return Some(Job::own(Search::Former(as_of), prefix, now));
        }
        if self.orders.tidy_at > now {
            return None;
        }
        self.orders.tidy_at = now + TIDY_EVERY.min(self.shards.limits.dead_letter_retention);
        let retention = self.shards.limits.dead_letter_retention;
        let before = now.as_millis() - i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let before = Timestamp::from_millis(before);
        Some(Job::own(Search::Expire(before), key::dead(shard), before))
    }

    /// Takes in what was read for the job in hand.
    pub(super) fn order_read(&mut self, read: Result<Read, JoinError>) {
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                // The job begins anew.
                tracing::error!(%error, shard = %self.tenure.shard, "reading dead letters failed");
                self.orders.job = None;
                return;
            }
        };
        match (read, &mut self.orders.job) {
            (Read::Webhooks(dead), _) => {
                self.find_former(&dead);
                self.wake.notify_one();
            }
            (Read::Index(..) | Read::Segments(_), None) => {}
            (Read::Index(found, command), Some(job)) => {
                if let Some((key, known)) = &mut job.command {
                    let Some(command) = command else {
                        // The last owner has carried it out, which the mirror does not know yet.
                        let key = key.clone();
                        self.orders.job = None;
                        self.finished(key);
                        return self.wake.notify_one();
                    };
                    let begun = command.begun;
                    *known = Arc::new(command);
                    begun.into_iter().for_each(|begun| job.resume(begun));
                }
                let until = job.until;
                let meant = found.iter().filter(|parked| parked.due <= until);
                job.left = Some(meant.cloned().collect());
                if matches!(job.search, Search::Expire(_)) {
                    // Those of webhooks whose deletion nobody saw.
                    self.find_former(&found);
                }
            }
            (Read::Segments(segments), Some(job)) => {
                let uid = job.command.as_ref().map(|(_, command)| &command.uid);
                for (at, segment) in segments {
                    if let Some(mut rewrite) = rewrite(&at, &segment, &job.search, uid, &mut job.begun.revived) {
                        rewrite.note = job.note();
                        let revived: usize = rewrite.revived.iter().map(Vec::len).sum();
                        let revived = u32::try_from(revived).unwrap_or(u32::MAX);
                        self.state.reviving(&at.account, &at.webhook, revived);
                        let expired = rewrite.dropped.iter().filter(|(_, why, _)| *why == Dropped::Expired);
                        self.state.tally.expired += expired.map(|(.., count)| count).sum::<u64>();
                        self.effects.records.push(Record::Rewrite(Box::new(rewrite)));
                        self.orders.rewritten += 1;
                    }
                }
            }
        }
    }
}

impl Job {
    fn of(key: Key, command: Arc<Command>, shard: ShardId, now: Timestamp) -> Self {
        let begun = Begun { time: now, revived: 0 };
        let search = match &command.action {
            Action::Redrive(filter, rate) => Search::Revive {
                filter: filter.clone(),
                rate: *rate,
                from: now,
            },
            Action::Retry(id) => Search::Revive {
                filter: Filter::of_event(id.clone()),
                rate: None,
                from: now,
            },
            Action::Purge(filter) => Search::Drop(filter.clone(), Dropped::Purged),
            Action::Cancel(id) => Search::Drop(Filter::of_event(id.clone()), Dropped::Cancelled),
        };
        Self {
            search,
            prefix: key::dead_of(shard, &command.account, &command.webhook),
            // What dies while it is carried out is not meant, or a redrive of what fails at once would never end.
            until: command.create_time.max(now),
            command: Some((key, command)),
            left: None,
            begun,
        }
    }

    /// What the worker does by itself.
    const fn own(search: Search, prefix: Key, until: Timestamp) -> Self {
        Self {
            command: None,
            search,
            prefix,
            until,
            left: None,
            begun: Begun {
                time: until,
                revived: 0,
            },
        }
    }

    /// An earlier owner began.
    fn resume(&mut self, begun: Begun) {
        self.begun = begun;
        let given = self.command.as_ref().map(|(_, command)| command.create_time);
        self.until = given.map_or(begun.time, |given| given.max(begun.time));
        if let Search::Revive { from, .. } = &mut self.search {
            *from = begun.time;
        }
    }

    /// What the command is to say of what was done so far.
    fn note(&self) -> Option<(Key, Bytes)> {
        let (key, command) = self.command.as_ref()?;
        let noted = Command {
            begun: Some(self.begun),
            ..Command::clone(command)
        };
        Some((key.clone(), stored::encode_command(&noted)))
    }
}

/// A command as it stands in the store, where only the owner of the shard changes it; `None` if it is gone, or cannot be read.
async fn stands(store: &SharedStore, key: &Key) -> Option<Command> {
    loop {
        match store.get(key).await {
            Ok((entry, _)) => return stored::decode_command(entry?.value).ok(),
            Err(error) => pause(&error).await,
        }
    }
}

/// Where the dead letters below a prefix stand.
async fn index(store: SharedStore, prefix: Key) -> Vec<Parked> {
    loop {
        match list_all(store.as_ref(), &prefix, true).await {
            Ok((entries, _)) => return entries.iter().filter_map(|entry| key::parse_dead(&entry.key)).collect(),
            Err(error) => pause(&error).await,
        }
    }
}

/// Which webhooks have dead letters.
async fn webhooks(store: SharedStore, shard: ShardId) -> Vec<Parked> {
    loop {
        match feed::first_dead_letters(&store, shard).await {
            Ok(first) => return first,
            Err(error) => pause(&error).await,
        }
    }
}

/// The segments that stand at some places, those that can be read.
async fn segments(store: SharedStore, places: Vec<Parked>) -> Vec<(Parked, Segment)> {
    let keys: Vec<Key> = places.iter().map(key::dead_segment).collect();
    let entries = loop {
        match store.get_all(&keys).await {
            Ok((entries, _)) => break entries,
            Err(error) => pause(&error).await,
        }
    };
    let read = |(at, entry): (Parked, Option<Entry>)| {
        let entry = entry?;
        let segment = stored::unpack(entry.value).inspect_err(
            |error| tracing::error!(key = %entry.key, %error, "dead letters cannot be read: they are left"),
        );
        Some((at, segment.ok()?))
    };
    places.into_iter().zip(entries).filter_map(read).collect()
}

async fn pause(error: &ReadError) {
    tracing::warn!(%error, "dead letters cannot be read for now");
    tokio::time::sleep(PAUSE).await;
}
