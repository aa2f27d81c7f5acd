//! One simulation: hosts, trouble, and the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postrider_common::admin::Readiness;
use postrider_common::entropy::{SharedEntropy, SystemEntropy};
use postrider_common::id::{AgentId, ControlPlaneId};
use postrider_common::key;
use postrider_common::secret::Keyring;
use postrider_common::store::etcd::{EtcdConfig, EtcdStore};
use postrider_common::store::memory::MemoryStore;
use postrider_common::store::{Guard, Op, Revision, SharedStore, Store as _, Write};
use postrider_common::task::Group;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use turmoil::Sim;

use crate::etcd::Mishaps;
use crate::net::{self, NoNames, SimDialer, SkewedClock, elapsed};
use crate::plan::{Dice, Fault, Host, MEMBERS, Plan, Trouble};
use crate::world::World;
use crate::{driver, etcd, judge, receiver};

/// How long a lease lives without its owner: the default of the programs.
const LEASE_TTL: Duration = Duration::from_secs(5);

/// What time is cut into: everything on the network takes at least as long.
const TICK: Duration = Duration::from_millis(5);

/// How long a simulation may take, in its own time.
const LONGEST: Duration = Duration::from_secs(400);

/// How long a program that was asked to stop may take.
const STOP_FOR: Duration = Duration::from_secs(20);

/// How one simulation ended.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// What was wrong; nothing, if all promises held.
    pub(crate) wrong: Vec<String>,
    /// The hash of everything that was noted.
    pub(crate) hash: String,
    /// What was noted, if that was asked for.
    pub(crate) log: Vec<String>,
    /// Events accepted.
    pub(crate) accepted: usize,
    /// Deliveries that a receiver took more than once.
    pub(crate) repeats: usize,
    /// How often a shard was taken.
    pub(crate) takes: usize,
    /// How often each kind of fault struck.
    pub(crate) struck: BTreeMap<String, usize>,
    /// How long it took, in its own time.
    pub(crate) lasted: Duration,
}

/// What the hosts stand on.
struct Ground {
    plan: Arc<Plan>,
    world: Arc<World>,
    store: MemoryStore,
    mishaps: Arc<Mishaps>,
    /// How the programs that run are told to stop.
    stops: Mutex<BTreeMap<Host, CancellationToken>>,
    keyring: Vec<u8>,
}

/// A runtime that ends drops its tasks in an order that depends on their numbers, of which a process has one sequence: makes it begin alike.
fn align_tasks() {
    /// Lists of tasks that a runtime of one thread has.
    const LISTS: u64 = 4;
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
        return;
    };
    runtime.block_on(async {
        loop {
            let number = JoinSet::new().spawn(async {}).id().to_string().parse::<u64>();
            if number.is_ok_and(|number| number % LISTS == 0) {
                return;
            }
        }
    });
}

/// Runs the simulation of a plan. For the same plan to give the same run nothing else may run in the process.
pub(crate) fn run(plan: Plan, keep_log: bool) -> Outcome {
    align_tasks();
    let plan = Arc::new(plan);
    let world = Arc::new(World::new(keep_log));
    let entropy = SystemEntropy::seeded(plan.seed);
    let ground = Arc::new(Ground {
        store: MemoryStore::timed(never_back()),
        mishaps: Arc::new(Mishaps {
            on: AtomicBool::new(false),
            dice: Dice::new(plan.seed, 3),
        }),
        stops: Mutex::default(),
        keyring: Keyring::generate(&entropy).as_bytes().to_vec(),
        plan: plan.clone(),
        world: world.clone(),
    });
    let mut sim = turmoil::Builder::new()
        .rng_seed(plan.seed)
        .tick_duration(TICK)
        .simulation_duration(LONGEST)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(plan.latency)
        .tcp_capacity(4096)
        .build();
    populate(&mut sim, &ground);
    let mut weather = Weather::new(&ground);
    let lasted = loop {
        match sim.step() {
            Ok(true) => break sim.elapsed(),
            Ok(false) => weather.change(&mut sim),
            Err(error) => {
                world.seen().failures.push(error.to_string());
                break sim.elapsed();
            }
        }
    };
    drop(sim);
    let leftovers = judge::leftovers(&ground.store);
    let seen = world.seen();
    let mut wrong = judge::judge(&plan, &seen);
    wrong.extend(leftovers);
    let (hash, log) = world.log();
    Outcome {
        wrong,
        hash,
        log,
        accepted: seen.published.len(),
        repeats: judge::repeats(&seen),
        takes: seen.takes.len(),
        struck: weather.struck,
        lasted,
    }
}

/// The time since the beginning, as far as any host has come.
fn never_back() -> postrider_common::store::memory::Elapsed {
    let latest = AtomicU64::new(0);
    Box::new(move || {
        let now = u64::try_from(elapsed().as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(latest.fetch_max(now, Ordering::Relaxed).max(now))
    })
}

fn populate(sim: &mut Sim<'_>, ground: &Arc<Ground>) {
    let witness = witness(ground.clone());
    for number in 0..MEMBERS {
        let host = Host::Etcd(number);
        let (ground, witness) = (ground.clone(), witness.clone());
        sim.host(host.ip(), move || {
            let member = etcd::Member {
                store: ground.store.clone(),
                entropy: Arc::new(SystemEntropy::seeded(ground.plan.seed ^ u64::from(number))),
                witness: witness.clone(),
                mishaps: ground.mishaps.clone(),
                tasks: Group::default(),
            };
            async move {
                member.serve(net::listen(host.address().port()).await?).await?;
                Ok(())
            }
        });
    }
    let (plan, world) = (ground.plan.clone(), ground.world.clone());
    sim.host(Host::Receiver.ip(), move || {
        let serving = receiver::serve(plan.clone(), world.clone());
        async move { Ok(serving.await?) }
    });
    for number in 0..ground.plan.controls {
        let ground = ground.clone();
        sim.host(Host::Control(number).ip(), move || control(ground.clone(), number));
    }
    for number in 0..ground.plan.agents {
        let ground = ground.clone();
        sim.host(Host::Agent(number).ip(), move || agent(ground.clone(), number));
    }
    let (plan, world) = (ground.plan.clone(), ground.world.clone());
    sim.client(Host::Client.ip(), async move {
        driver::drive(&plan, &world).await;
        Ok(())
    });
}

impl Ground {
    fn start(&self, host: Host) -> (CancellationToken, SharedEntropy, u64) {
        let stop = CancellationToken::new();
        let mut stops = self.stops.lock().unwrap_or_else(PoisonError::into_inner);
        stops.insert(host, stop.clone());
        let start = self.world.next_start();
        let entropy = SystemEntropy::seeded(self.plan.seed.wrapping_mul(31).wrapping_add(start));
        self.world.note(format_args!("{host:?} starts"));
        (stop, Arc::new(entropy), start)
    }

    async fn store(&self, number: u8) -> Result<SharedStore, io::Error> {
        // Each begins with another member.
        let members = (0..MEMBERS).map(|other| Host::Etcd((number + other) % MEMBERS).address().to_string());
        let config = EtcdConfig::new(members.collect(), "");
        let store = EtcdStore::connect_by(config, Some(Arc::new(SimDialer))).await;
        Ok(Arc::new(store.map_err(io::Error::other)?))
    }

    fn keyring(&self) -> Result<Arc<Keyring>, io::Error> {
        let text = std::str::from_utf8(&self.keyring).map_err(io::Error::other)?;
        Ok(Arc::new(Keyring::parse(text).map_err(io::Error::other)?))
    }
}

async fn control(ground: Arc<Ground>, number: u8) -> turmoil::Result {
    let host = Host::Control(number);
    let (stop, entropy, start) = ground.start(host);
    let config = postrider_control_plane::config::Config {
        id: ControlPlaneId::new(&format!("control-{number}-{start}")).map_err(io::Error::other)?,
        shard_count: NonZeroU16::new(ground.plan.shards),
        lease_ttl: LEASE_TTL,
        store_quota: None,
        egress: postrider_common::egress::Policy::default(),
    };
    let deps = postrider_control_plane::Deps {
        store: ground.store(number).await?,
        clock: net::true_clock(),
        entropy,
        keyring: ground.keyring()?,
        metrics: postrider_control_plane::Metrics::register(&mut Registry::default()),
        readiness: Readiness::default(),
    };
    let incoming = net::listen(host.address().port()).await?;
    postrider_control_plane::run(config, deps, incoming, stop).await?;
    ground.world.note(format_args!("{host:?} ends"));
    Ok(())
}

async fn agent(ground: Arc<Ground>, number: u8) -> turmoil::Result {
    let host = Host::Agent(number);
    let (stop, entropy, start) = ground.start(host);
    let config = postrider_agent::config::Config {
        id: AgentId::new(&format!("agent-{number}-{start}")).map_err(io::Error::other)?,
        weight: postrider_agent::config::DEFAULT_WEIGHT,
        lease_ttl: LEASE_TTL,
        egress: postrider_common::egress::Policy::default(),
        release_grace: Duration::from_millis(800),
        suspend_after: Duration::from_secs(86_400),
        dead_letter_retention: Duration::from_secs(86_400),
        history: postrider_agent::history::Limits::default(),
        roots: postrider_agent::Roots::BuiltIn,
        extra_roots: Vec::new(),
    };
    let skew = ground.plan.skews.get(usize::from(number)).copied().unwrap_or(0);
    let deps = postrider_agent::Deps {
        store: ground.store(number).await?,
        clock: Arc::new(SkewedClock { skew }),
        entropy,
        keyring: ground.keyring()?,
        dialer: Arc::new(SimDialer),
        resolver: Arc::new(NoNames),
        metrics: postrider_agent::Metrics::register(&mut Registry::default()),
        readiness: Readiness::default(),
    };
    postrider_agent::run(config, deps, stop).await?;
    ground.world.note(format_args!("{host:?} ends"));
    Ok(())
}

/// Sees that no agent writes anything of a shard but under an ownership of its own.
fn witness(ground: Arc<Ground>) -> etcd::Witness {
    let owners: Mutex<BTreeMap<(String, Revision), IpAddr>> = Mutex::default();
    Arc::new(move |peer: IpAddr, write: &Write, at: Revision| {
        let mut owners = owners.lock().unwrap_or_else(PoisonError::into_inner);
        for op in &write.ops {
            if matches!(op, Op::Put { .. }) && op.key().as_str().starts_with(key::owners().as_str()) {
                owners.insert((op.key().to_string(), at), peer);
                ground.world.note(format_args!("{peer} takes {}", op.key()));
                ground.world.seen().takes.push((elapsed(), op.key().to_string(), peer));
            }
        }
        if !(0..ground.plan.agents).any(|number| Host::Agent(number).ip() == peer) {
            return;
        }
        let of_shards = [
            key::all_progress(),
            key::all_parked(),
            key::all_dead(),
            key::all_queues(),
            key::commands(),
        ];
        for op in &write.ops {
            let touched = op.key();
            if !of_shards
                .iter()
                .any(|prefix| touched.as_str().starts_with(prefix.as_str()))
            {
                continue;
            }
            let shard = touched.as_str().split('/').nth(1).unwrap_or_default();
            let owner = format!("{}{shard}", key::owners());
            let by_its_owner = write.guards.iter().any(|guard| match guard {
                Guard::Created(key, epoch) if key.as_str() == owner => owners
                    .get(&(owner.clone(), *epoch))
                    .is_some_and(|taken_by| *taken_by == peer),
                Guard::Created(..) | Guard::Absent(_) | Guard::Modified(..) => false,
            });
            if !by_its_owner {
                let wrong = format!("{peer} wrote {touched} at revision {at} without owning {owner}");
                ground.world.seen().wrong_writes.push(wrong);
            }
        }
    })
}

/// What goes wrong, as time passes.
struct Weather {
    ground: Arc<Ground>,
    /// When trouble may begin.
    begins: Option<Duration>,
    /// Trouble still to come, latest first.
    coming: Vec<Trouble>,
    /// Trouble that goes on, and when it ends.
    going_on: Vec<(Duration, Fault)>,
    /// Hosts that are down.
    down: BTreeSet<Host>,
    is_over: bool,
    /// How often each kind of fault struck.
    struck: BTreeMap<String, usize>,
}

impl Weather {
    fn new(ground: &Arc<Ground>) -> Self {
        let mut coming = ground.plan.troubles.clone();
        coming.reverse();
        Self {
            ground: ground.clone(),
            begins: None,
            coming,
            going_on: Vec::new(),
            down: BTreeSet::new(),
            is_over: false,
            struck: BTreeMap::new(),
        }
    }

    fn change(&mut self, sim: &mut Sim<'_>) {
        let now = sim.elapsed();
        if self.is_over || !self.ground.world.is_settled() {
            return;
        }
        let begins = *self.begins.get_or_insert(now);
        let storm_is_over = now >= begins + self.ground.plan.storm;
        let mut lasting = Vec::new();
        for (until, fault) in std::mem::take(&mut self.going_on) {
            if now < until && !storm_is_over || !self.undo(sim, until, fault) {
                lasting.push((until, fault));
            }
        }
        self.going_on = lasting;
        if storm_is_over {
            if self.going_on.is_empty() {
                self.ground.world.note_at(now, format_args!("the trouble is over"));
                self.ground.world.end_trouble();
                self.is_over = true;
            }
            return;
        }
        while self.coming.last().is_some_and(|next| begins + next.at <= now) {
            let Some(next) = self.coming.pop() else { return };
            if self.strike(sim, next.fault) {
                self.ground
                    .world
                    .note_at(now, format_args!("{:?} for {:?}", next.fault, next.lasts));
                self.going_on.push((now + next.lasts, next.fault));
                let kind = format!("{:?}", next.fault);
                let kind: String = kind.chars().filter(|symbol| !symbol.is_ascii_digit()).collect();
                *self.struck.entry(kind.replace("()", "")).or_default() += 1;
            }
        }
    }

    /// The host whose network or life a fault touches.
    const fn victim(fault: Fault) -> Option<Host> {
        match fault {
            Fault::Kill(host) | Fault::Stop(host) | Fault::CutOff(host) | Fault::CutOffOut(host) => Some(host),
            Fault::CutOffIn(host) | Fault::Hold(host) | Fault::Cut(host, _) => Some(host),
            Fault::LostWrites | Fault::Compact => None,
        }
    }

    /// Lets a fault strike; false if it cannot now.
    fn strike(&mut self, sim: &mut Sim<'_>, fault: Fault) -> bool {
        let members: Vec<IpAddr> = (0..MEMBERS).map(|number| Host::Etcd(number).ip()).collect();
        let victim = Self::victim(fault);
        let busy = |host| {
            self.going_on
                .iter()
                .any(|(_, other)| Self::victim(*other) == Some(host))
        };
        let is_member = |host: &Host| matches!(host, Host::Etcd(_));
        if victim.is_some_and(busy) || victim.as_ref().is_some_and(is_member) && self.down.iter().any(is_member) {
            return false;
        }
        match fault {
            Fault::Kill(host) => {
                sim.crash(host.ip());
                self.down.insert(host);
            }
            Fault::Stop(host) => {
                let stops = self.ground.stops.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(stop) = stops.get(&host) else { return false };
                stop.cancel();
                self.down.insert(host);
            }
            Fault::Cut(one, other) => sim.partition(one.ip(), other.ip()),
            Fault::CutOff(host) => members.iter().for_each(|member| sim.partition(host.ip(), *member)),
            Fault::CutOffOut(host) => members
                .iter()
                .for_each(|member| sim.partition_oneway(host.ip(), *member)),
            Fault::CutOffIn(host) => members
                .iter()
                .for_each(|member| sim.partition_oneway(*member, host.ip())),
            Fault::Hold(host) => members.iter().for_each(|member| sim.hold(host.ip(), *member)),
            Fault::LostWrites => self.ground.mishaps.on.store(true, Ordering::Relaxed),
            Fault::Compact => {
                use futures_util::FutureExt as _;
                let store = &self.ground.store;
                let latest = store.get(&key::cell()).now_or_never().and_then(Result::ok);
                let at = latest.map_or(Revision::default(), |(_, at)| at);
                // The store in memory answers at once.
                let _ = store.compact(at).now_or_never();
            }
        }
        true
    }

    fn start_again(&mut self, sim: &mut Sim<'_>, host: Host) {
        self.down.remove(&host);
        // The program says how to stop it as soon as it runs.
        let mut stops = self.ground.stops.lock().unwrap_or_else(PoisonError::into_inner);
        stops.remove(&host);
        drop(stops);
        sim.bounce(host.ip());
    }

    /// Ends a fault; false if that takes longer.
    fn undo(&mut self, sim: &mut Sim<'_>, since: Duration, fault: Fault) -> bool {
        let members: Vec<IpAddr> = (0..MEMBERS).map(|number| Host::Etcd(number).ip()).collect();
        match fault {
            Fault::Kill(host) => {
                self.start_again(sim, host);
            }
            Fault::Stop(host) => {
                if sim.is_host_running(host.ip()) {
                    if sim.elapsed() > since + STOP_FOR {
                        self.ground
                            .world
                            .seen()
                            .failures
                            .push(format!("{host:?} does not stop"));
                    }
                    return false;
                }
                self.start_again(sim, host);
            }
            Fault::Cut(one, other) => sim.repair(one.ip(), other.ip()),
            Fault::CutOff(host) => members.iter().for_each(|member| sim.repair(host.ip(), *member)),
            Fault::CutOffOut(host) => members.iter().for_each(|member| sim.repair_oneway(host.ip(), *member)),
            Fault::CutOffIn(host) => members.iter().for_each(|member| sim.repair_oneway(*member, host.ip())),
            Fault::Hold(host) => members.iter().for_each(|member| sim.release(host.ip(), *member)),
            Fault::LostWrites => self.ground.mishaps.on.store(false, Ordering::Relaxed),
            Fault::Compact => {}
        }
        true
    }
}
