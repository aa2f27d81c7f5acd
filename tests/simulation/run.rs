//! One simulation: hosts, trouble, and the end.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postrider_common::admin::Readiness;
use postrider_common::entropy::{SharedEntropy, SystemEntropy};
use postrider_common::id::{AgentId, ControlPlaneId};
use postrider_common::key;
use postrider_common::secret::Keyring;
use postrider_common::store::etcd::{EtcdConfig, EtcdStore};
use postrider_common::store::memory::MemoryStore;
use postrider_common::store::{Guard, Op, Revision, SharedStore, Write};
use postrider_common::task::Group;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use turmoil::Sim;

use crate::mishaps::Mishaps;
use crate::net::{self, NoNames, SimDialer, SkewedClock, elapsed};
use crate::plan::{Dice, Host, MEMBERS, Plan};
use crate::weather::Weather;
use crate::world::World;
use crate::{driver, etcd, judge, receiver};

/// How long a lease lives without its owner: the default of the programs.
const LEASE_TTL: Duration = Duration::from_secs(5);

/// What time is cut into: everything on the network takes at least as long.
const TICK: Duration = Duration::from_millis(5);

/// How long a simulation may take, in its own time.
const LONGEST: Duration = Duration::from_secs(400);

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
pub(crate) struct Ground {
    /// What is to happen.
    pub(crate) plan: Arc<Plan>,
    /// What everybody shares.
    pub(crate) world: Arc<World>,
    /// What etcd holds.
    pub(crate) store: MemoryStore,
    /// What goes wrong in etcd.
    pub(crate) mishaps: Arc<Mishaps>,
    /// How the programs that run are told to stop.
    pub(crate) stops: Mutex<BTreeMap<Host, CancellationToken>>,
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
        mishaps: Arc::new(Mishaps::new(Dice::new(plan.seed, 3))),
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
        schedule: Arc::new(SkewedClock { skew }),
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
