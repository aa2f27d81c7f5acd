//! A trial: a cluster, a course of events published to it, what is done to it meanwhile, and the judgement.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::shard;
use postrider_common::time::{Clock, SystemClock, Timestamp};
use postrider_proto::v1::{GetAccountUsageRequest, ListDeadLettersRequest, ListShardsRequest, Shard};
use tokio::time::Instant;

use super::checker::{self, Arrival, Counts, Event, Fault, Micros, Report, Run, Webhook};
use super::course::{ACCOUNT, Course, event_number, event_type, webhook_id};
use super::journal::Journal;
use super::kills::{Kill, Victim};
use super::witness::{Log, Witness};
use crate::client::Client;
use crate::cluster::{Cluster, LEASE_TTL};
use crate::wait;

/// How long one request may take to be accepted, whatever happens to the control planes and the store.
const PATIENCE: Duration = Duration::from_secs(120);

/// Requests to a webhook that may be under way at once: the default of `delivery.max_in_flight`.
pub const IN_FLIGHT: usize = 32;

/// How long what a receiver answered may stay unrecorded, in microseconds: tens of milliseconds, and room for a debug build on a busy machine.
const UNRECORDED: Micros = 1_000_000;

/// How long after its death a program's requests may still be read, in microseconds: they are in the buffers of the kernel, and a busy machine reads late.
const BUFFERED: Micros = 1_000_000;

/// A running trial.
pub struct Trial {
    /// The system.
    pub cluster: Cluster,
    /// What is published.
    pub course: Course,
    /// The receiver.
    pub witness: Witness,
    /// The publishers' log.
    pub journal: Journal,
    faults: Vec<Fault>,
    /// What was accepted in this time is lost by what was done, and not judged.
    forgotten: Option<Range<Micros>>,
    /// The wall time when the run began.
    began: Timestamp,
}

impl Trial {
    /// Creates the course's webhooks, and waits until every control plane knows them.
    pub async fn of(cluster: Cluster, course: Course) -> Self {
        let witness = Witness::start(&course, Ipv4Addr::LOCALHOST, None, Duration::ZERO);
        Self::with(cluster, course, witness).await
    }

    /// The same, with this receiver.
    pub async fn with(cluster: Cluster, course: Course, witness: Witness) -> Self {
        let began = SystemClock.now().as_millis() - i64::try_from(witness.now() / 1000).expect("a run is short");
        let began = Timestamp::from_millis(began);
        let client = cluster.client(0);
        let most = i32::try_from(course.webhooks()).expect("not that many") + 1000;
        client.create_account(ACCOUNT, most).await;
        let mut secrets = Vec::new();
        for number in 0..course.webhooks() {
            let webhook = course.webhook(number, &witness.url());
            let created = client.create_webhook(ACCOUNT, &webhook_id(number), webhook).await;
            secrets.push(client.signing_secret(&created.name).await);
        }
        witness.learn(&secrets);
        for kind in 0..course.kinds {
            let webhooks = i32::try_from(course.wanted_by(kind).len()).expect("not that many");
            cluster.matching(ACCOUNT, &event_type(kind), webhooks).await;
        }
        let journal = Journal::new(&course, witness.start_of_run());
        Self {
            cluster,
            course,
            witness,
            journal,
            faults: Vec::new(),
            forgotten: None,
            began,
        }
    }

    /// Publishes the course, until all is accepted or the journal is told to stop. Borrows nothing, so that the cluster can be changed meanwhile.
    pub fn publishing(&self) -> impl Future<Output = ()> + Send + use<> {
        self.publishing_by(Client::new)
    }

    /// The same, by clients of this making.
    pub fn publishing_by<F>(&self, client: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Fn(SocketAddr) -> Client + Send + Sync,
    {
        let (journal, addresses) = (self.journal.clone(), self.cluster.addresses());
        async move {
            let clients = || addresses.iter().map(|address| client(*address)).collect();
            journal.publish(clients, PATIENCE).await;
        }
    }

    /// Microseconds since the run began.
    pub fn now(&self) -> Micros {
        self.witness.now()
    }

    /// Waits until so many events are accepted.
    pub async fn accepted(&self, events: usize, deadline: Duration) {
        let what = format!("{events} events to be accepted");
        wait::until(&what, deadline, async || {
            (self.journal.accepted() >= events).then_some(())
        })
        .await;
    }

    /// Notes that from `from` to `to` what receivers answered may not have been recorded by `victim`, which may cause so many repeats.
    pub fn fault(&mut self, victim: &'static str, from: Micros, to: Micros, repeats: usize) {
        self.faults.push(Fault {
            victim,
            from,
            to,
            repeats,
        });
    }

    /// Notes that the store was put back at `to` to what it was at `from`: what was accepted meanwhile is lost, and what was delivered comes again.
    pub fn forget(&mut self, from: Micros, to: Micros) {
        self.forgotten = Some(from..to);
        self.fault("store", from, to + BUFFERED, usize::MAX);
    }

    /// Which events were accepted, and are not to be judged.
    fn is_forgotten(&self, event: &Event) -> bool {
        let accepted = event.accepted.zip(self.forgotten.as_ref());
        accepted.is_some_and(|(at, forgotten)| forgotten.contains(&at))
    }

    /// Ends an agent with SIGKILL, and returns when that was.
    pub async fn kill_agent(&mut self, agent: usize) -> Micros {
        let at = self.now();
        self.cluster.kill_agent(agent).await;
        self.died("agent", at);
        at
    }

    /// Notes that a program died between `from` and now: its requests under way may come again, and as many that were answered while its ledger wrote.
    pub fn died(&mut self, victim: &'static str, from: Micros) {
        let repeats = 2 * IN_FLIGHT * self.course.webhooks();
        self.fault(victim, from, self.now() + BUFFERED, repeats);
    }

    /// Ends a control plane with SIGKILL and starts it again. That causes no repeat.
    pub async fn kill_control_plane(&mut self, control_plane: usize) {
        let killed = self.cluster.kill_control_plane(control_plane).await;
        self.cluster.restart_control_plane(killed).await;
    }

    /// Ends the only member of etcd with SIGKILL and starts it again on its data.
    pub async fn kill_etcd(&mut self) {
        let at = self.now();
        self.cluster.etcd.kill(0).await;
        self.cluster.etcd.restart(0).await;
        // No agent dies of it. But what was answered meanwhile is recorded only now, so an agent that is killed soon takes it along.
        let to = self.now() + 2 * BUFFERED;
        let repeats = 2 * IN_FLIGHT * self.course.webhooks();
        self.fault("etcd", at, to, repeats);
    }

    /// Ends every program with SIGKILL, and starts all of them again.
    pub async fn kill_everything(&mut self) {
        let (at, agents) = (self.now(), self.cluster.agents.len());
        self.cluster.etcd.kill(0).await;
        for _ in 0..agents {
            self.cluster.kill_agent(0).await;
        }
        let mut killed = Vec::new();
        while !self.cluster.control_planes.is_empty() {
            killed.push(self.cluster.kill_control_plane(0).await);
        }
        self.died("everything", at);
        self.cluster.etcd.restart(0).await;
        for killed in killed {
            self.cluster.restart_control_plane(killed).await;
        }
        for _ in 0..agents {
            self.cluster.add_agent().await;
        }
    }

    /// Waits for the moment of a kill.
    pub async fn moment_of(&self, kill: &Kill, deadline: Duration) {
        self.accepted(kill.at, deadline).await;
        wait::moment(Instant::now() + kill.after).await;
    }

    /// Carries out a kill, and starts what was killed again.
    pub async fn carry_out(&mut self, kill: &Kill) {
        match kill.victim {
            Victim::Agent => {
                let which = kill.which % self.cluster.agents.len();
                self.kill_agent(which).await;
                self.cluster.add_agent().await;
            }
            Victim::ControlPlane => {
                let which = kill.which % self.cluster.control_planes.len();
                self.kill_control_plane(which).await;
            }
            Victim::Etcd => self.kill_etcd().await,
        }
    }

    /// The epoch of each shard: it changes whenever the shard changes hands.
    pub async fn epochs(&self) -> Vec<i64> {
        self.owned().await.into_iter().map(|(_, epoch)| epoch).collect()
    }

    /// The owner of each shard, and its epoch.
    pub async fn owned(&self) -> Vec<(String, i64)> {
        let shards = self.shards().await.expect("shards are listed");
        shards
            .iter()
            .map(|shard| (owner(shard).to_owned(), shard.epoch))
            .collect()
    }

    async fn shards(&self) -> Option<Vec<Shard>> {
        let all = ListShardsRequest {
            page_size: 1000,
            ..ListShardsRequest::default()
        };
        let shards = self.cluster.client(0).cluster().list_shards(all).await.ok()?;
        Some(shards.into_inner().shards)
    }

    /// Which webhooks' shards an agent owns, as a control plane sees it now; nothing if none answers.
    pub async fn owned_by(&self, agent: &str) -> Vec<usize> {
        let shards = self.shards().await.unwrap_or_default();
        let count = u16::try_from(shards.len()).ok().and_then(std::num::NonZeroU16::new);
        let Some(count) = count else {
            return Vec::new();
        };
        let account = AccountId::new(ACCOUNT).expect("it is an account id");
        let owns = |webhook: &usize| {
            let id = WebhookId::new(&webhook_id(*webhook)).expect("it is a webhook id");
            let shard = usize::from(shard::of(&account, &id, count).0);
            owner(&shards[shard]) == agent
        };
        (0..self.course.webhooks()).filter(owns).collect()
    }

    /// Waits until everything that was accepted has arrived, and nothing waits in the store.
    pub async fn quiet(&self, deadline: Duration) {
        let events = (0..).zip(self.journal.events());
        let kept = events.filter(|(_, event)| event.accepted.is_some() && !self.is_forgotten(event));
        let all: Vec<(u16, checker::Number)> = kept
            .flat_map(|(number, event)| {
                let webhooks = self.course.wanted_by(usize::from(event.kind)).into_iter();
                webhooks.filter_map(move |webhook| Some((u16::try_from(webhook).ok()?, number)))
            })
            .collect();
        let have = |log: &Log| log.taken() >= all.len() && all.iter().all(|(webhook, event)| log.has(*webhook, *event));
        self.witness
            .until("all that was accepted to arrive", deadline, have)
            .await;
        self.cluster.drained(deadline).await;
    }

    /// When agents lost their leases without having died: they say so themselves. On a machine that is too busy that happens without any fault.
    pub fn lost_leases(&self) -> Vec<Micros> {
        self.told("the lease is lost")
    }

    /// When agents cut attempts since a lease might have run out. It may have turned out that it had not, and what was cut is made again.
    pub fn doubted_leases(&self) -> Vec<Micros> {
        let mut doubted = self.told("the lease is not certain to live");
        // One for each attempt is more than is needed.
        doubted.sort_unstable();
        doubted.dedup_by_key(|at| *at / BUFFERED);
        doubted
    }

    fn told(&self, what: &str) -> Vec<Micros> {
        let told = self.cluster.told(what);
        let since = |time: &jiff::Timestamp| time.as_millisecond() - self.began.as_millis();
        told.iter()
            .filter_map(|time| Micros::try_from(since(time) * 1000).ok())
            .collect()
    }

    /// What may have caused repeats: what was done, and leases that were lost or in doubt. Who lost its lease may have recorded nothing since it was last
    /// renewed.
    fn causes(&self) -> Vec<Fault> {
        let lease = Micros::try_from(LEASE_TTL.as_micros()).unwrap_or(Micros::MAX);
        let moments = self.lost_leases().into_iter().chain(self.doubted_leases());
        let lost = moments.map(|at| Fault {
            victim: "lease",
            from: at.saturating_sub(lease),
            to: at + BUFFERED,
            repeats: usize::MAX,
        });
        self.faults.iter().cloned().chain(lost).collect()
    }

    /// Judges what happened, when all is quiet.
    pub async fn judge(&self) -> Report {
        checker::judge(&self.run().await)
    }

    /// Asserts that every promise was kept, and returns the figures.
    pub async fn assert_clean(&self) -> Report {
        let report = self.judge().await;
        println!("{report}");
        assert!(report.is_clean(), "{report}");
        report
    }

    /// All that is known of the run.
    pub async fn run(&self) -> Run {
        let client = self.cluster.client(0);
        let mut webhooks = Vec::new();
        for number in 0..self.course.webhooks() {
            webhooks.push(Webhook {
                id: webhook_id(number),
                order: self.course.order(number),
                counts: Counts::default(),
                dead: dead_letters(&client, &webhook_id(number)).await,
            });
        }
        let request = GetAccountUsageRequest {
            name: format!("accounts/{ACCOUNT}"),
        };
        let usage = client.accounts().get_account_usage(request).await;
        let usage = usage.expect("usage is told").into_inner();
        for told in &usage.webhooks {
            let of = webhooks
                .iter_mut()
                .find(|webhook| told.webhook.ends_with(&format!("/{}", webhook.id)));
            if let (Some(webhook), Some(counts)) = (of, &told.counts) {
                let count = |count: i64| u64::try_from(count).unwrap_or(u64::MAX);
                webhook.counts = Counts {
                    accepted: count(counts.accepted),
                    delivered: count(counts.delivered),
                    waiting: count(counts.waiting),
                    dead: count(counts.dead),
                    dropped: counts.dropped.iter().map(|dropped| count(dropped.count)).sum(),
                };
            }
        }
        let mut events = self.journal.events();
        let forgotten: Vec<bool> = events.iter().map(|event| self.is_forgotten(event)).collect();
        for (event, _) in events.iter_mut().zip(&forgotten).filter(|(_, forgotten)| **forgotten) {
            (event.kind, event.accepted) = (u16::MAX, None);
        }
        let is_judged = |arrival: &&Arrival| {
            !forgotten
                .get(arrival.event as usize)
                .is_some_and(|forgotten| *forgotten)
        };
        let log = self.witness.log();
        Run {
            webhooks,
            kinds: (0..self.course.kinds).map(|kind| self.course.wanted_by(kind)).collect(),
            events,
            arrivals: log.arrivals.iter().filter(is_judged).copied().collect(),
            strangers: log.strangers,
            faults: self.causes(),
            unrecorded: UNRECORDED,
        }
    }
}

/// The id of the agent that owns a shard.
fn owner(shard: &Shard) -> &str {
    shard.owner_agent.rsplit('/').next().unwrap_or_default()
}

async fn dead_letters(client: &Client, webhook: &str) -> BTreeSet<checker::Number> {
    let mut numbers = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request = ListDeadLettersRequest {
            parent: format!("accounts/{ACCOUNT}/webhooks/{webhook}"),
            page_size: 1000,
            page_token,
            ..ListDeadLettersRequest::default()
        };
        let page = client.deliveries().list_dead_letters(request).await;
        let page = page.expect("dead letters are listed").into_inner();
        let ids = page
            .dead_letters
            .iter()
            .filter_map(|letter| event_number(letter.name.rsplit('/').next()?));
        numbers.extend(ids);
        if page.next_page_token.is_empty() {
            return numbers;
        }
        page_token = page.next_page_token;
    }
}
