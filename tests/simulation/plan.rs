//! What a seed stands for: the cluster, its webhooks, what is published, and everything that goes wrong. Pure: the same seed, the same plan.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use postrider_common::entropy::{Entropy, SystemEntropy};

/// Chance for one simulation.
pub(crate) struct Dice(SystemEntropy);

impl Dice {
    /// The dice of a seed; different ones for different uses.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self(SystemEntropy::seeded(seed.wrapping_mul(1_000_003).wrapping_add(stream)))
    }

    /// A number below `count`.
    pub(crate) fn below(&self, count: usize) -> usize {
        usize::try_from(self.0.next_u64() % (count.max(1) as u64)).unwrap_or(0)
    }

    /// A number from `from` to `to`.
    pub(crate) fn between(&self, from: u64, to: u64) -> u64 {
        from + self.0.next_u64() % (to - from + 1)
    }

    /// Whether something of this probability happens.
    pub(crate) fn chance(&self, probability: f64) -> bool {
        self.0.fraction() < probability
    }

    /// A time from `from` to `to` milliseconds.
    pub(crate) fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.between(from, to))
    }

    /// One of some things.
    pub(crate) fn one<T: Copy>(&self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A host of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    /// A member of etcd.
    Etcd(u8),
    /// A control plane.
    Control(u8),
    /// An agent.
    Agent(u8),
    /// The receiver of all webhooks.
    Receiver,
    /// Who publishes and administers.
    Client,
}

impl Host {
    /// Its address. The receiver's is a public one, so that the usual rules of egress let it be reached.
    pub(crate) const fn ip(self) -> IpAddr {
        IpAddr::V4(match self {
            Self::Etcd(number) => Ipv4Addr::new(192, 168, 1, 1 + number),
            Self::Control(number) => Ipv4Addr::new(192, 168, 2, 1 + number),
            Self::Agent(number) => Ipv4Addr::new(192, 168, 3, 1 + number),
            Self::Receiver => Ipv4Addr::new(93, 184, 216, 34),
            Self::Client => Ipv4Addr::new(192, 168, 4, 1),
        })
    }

    /// Where it listens.
    pub(crate) const fn address(self) -> SocketAddr {
        let port = match self {
            Self::Etcd(_) => 2379,
            Self::Control(_) => 50051,
            Self::Agent(_) | Self::Receiver | Self::Client => 80,
        };
        SocketAddr::new(self.ip(), port)
    }
}

/// Members of etcd.
pub(crate) const MEMBERS: u8 = 3;

/// One thing that goes wrong, for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A host is killed, and started again after the time.
    Kill(Host),
    /// A program is asked to stop, and started again after the time.
    Stop(Host),
    /// Nothing gets through between two hosts.
    Cut(Host, Host),
    /// Nothing gets through between a host and all of etcd.
    CutOff(Host),
    /// Nothing gets from a host to etcd, but what etcd sends arrives.
    CutOffOut(Host),
    /// Nothing gets from etcd to a host, but what the host sends arrives.
    CutOffIn(Host),
    /// What goes between a host and etcd arrives only after the time.
    Hold(Host),
    /// Now and then the store's answer to a write is lost, or the write is.
    LostWrites,
    /// Half of what a host writes is answered as lost, and done some time later.
    LateWrites(Host),
    /// etcd has no space left.
    Full,
    /// The members of etcd have no leader; the one they have after the time gives all leases their whole time again.
    Election,
    /// All that has happened so far is compacted away; the time means nothing.
    Compact,
}

/// When something goes wrong, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// When.
    pub(crate) at: Duration,
    /// For how long.
    pub(crate) lasts: Duration,
    /// What.
    pub(crate) fault: Fault,
}

impl Trouble {
    /// Whether agents cannot reach etcd, or some of it.
    const fn is_outage(&self) -> bool {
        matches!(self.fault, Fault::Kill(Host::Etcd(_)) | Fault::Election)
    }

    /// Whether less time lies between two than an agent needs to renew its lease.
    fn is_near(&self, other: &Self) -> bool {
        const RENEWED: Duration = Duration::from_secs(3);
        self.at < other.at + other.lasts + RENEWED && other.at < self.at + self.lasts + RENEWED
    }
}

/// In which order a webhook wants its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Any.
    None,
    /// Of each key.
    PerKey,
    /// All.
    Strict,
}

/// How events share requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Not at all.
    Single,
    /// What waits goes together.
    Coalesced,
    /// In batches.
    Batched,
}

/// How a webhook's receiver behaves while there is trouble.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    /// It takes everything.
    Good,
    /// It fails this part of the requests, in various ways; also by taking them and answering too late, if `late`.
    Flaky {
        /// Which part.
        fails: f64,
        /// Whether it answers too late.
        late: bool,
    },
    /// It fails everything for a time.
    Down(Duration, Duration),
    /// It refuses one in so many events for good.
    Picky(usize),
}

/// Which events a webhook wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    /// All but the second of each request.
    NotTheSecond,
    /// The first two of each request.
    FirstTwo,
    /// Those that have a key and are not the fourth of their request.
    Keyed,
}

/// A webhook.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hook {
    /// Its order.
    pub(crate) order: Order,
    /// Whether what is used up becomes a dead letter, in an order.
    pub(crate) dead_letters: bool,
    /// Attempts until an event is used up; 0 means no limit.
    pub(crate) max_attempts: i32,
    /// How events share requests.
    pub(crate) sharing: Sharing,
    /// Whether requests are signed.
    pub(crate) signed: bool,
    /// Whether events are numbered.
    pub(crate) numbered: bool,
    /// Requests under way at once.
    pub(crate) max_in_flight: i32,
    /// Which events it wants, if not all.
    pub(crate) filter: Option<Filter>,
    /// Its receiver.
    pub(crate) manner: Manner,
}

impl Hook {
    /// Whether what is used up stays, and holds up what follows it.
    pub(crate) fn blocks(&self) -> bool {
        self.order != Order::None && !self.dead_letters
    }
}

/// What an administrator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Retires a webhook, which holds what is published meanwhile, and activates it again after the time.
    Retire(usize, Duration),
    /// Changes a webhook's description.
    Touch(usize),
    /// Changes a webhook's listener URL.
    Move(usize),
    /// Gives a webhook another secret.
    Rotate(usize),
    /// Redrives a webhook's dead letters.
    Redrive(usize),
    /// Cancels an event that was published so many requests ago.
    Cancel(usize, usize),
    /// Deletes a webhook, and after the time, if there is one, creates another of the same name.
    Delete(usize, Option<Duration>),
}

impl Act {
    /// Whether one of two things would be undone by the other, or done to another webhook than the one that is judged by it.
    fn disturbs(self, other: Self) -> bool {
        match (self, other) {
            (Self::Retire(one, _), Self::Retire(two, _)) => one == two,
            (
                Self::Delete(one, _),
                Self::Retire(two, _) | Self::Move(two) | Self::Rotate(two) | Self::Delete(two, _),
            )
            | (Self::Retire(two, _) | Self::Move(two) | Self::Rotate(two), Self::Delete(one, _)) => one == two,
            _ => false,
        }
    }
}

/// All of it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// What it was drawn from.
    pub(crate) seed: u64,
    /// Nothing goes wrong that may make a receiver see an event twice.
    pub(crate) gentle: bool,
    /// Control planes.
    pub(crate) controls: u8,
    /// Agents.
    pub(crate) agents: u8,
    /// Shards.
    pub(crate) shards: u16,
    /// Longest way through the network.
    pub(crate) latency: Duration,
    /// Milliseconds that each agent's clock is ahead.
    pub(crate) skews: Vec<i64>,
    /// The webhooks.
    pub(crate) hooks: Vec<Hook>,
    /// Publishers, each of which publishes one request after the other.
    pub(crate) publishers: usize,
    /// Requests of each publisher.
    pub(crate) requests: usize,
    /// How long there is trouble.
    pub(crate) storm: Duration,
    /// What goes wrong.
    pub(crate) troubles: Vec<Trouble>,
    /// What administrators do.
    pub(crate) acts: Vec<(Duration, Act)>,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let dice = Dice::new(seed, 0);
        let gentle = dice.chance(0.3);
        let (controls, agents) = (dice.one(&[1, 2, 2, 3]), dice.one(&[1, 2, 2, 3]));
        let storm = dice.millis(6_000, 10_000);
        let hooks: Vec<Hook> = (0..dice.between(3, 6)).map(|_| hook(&dice, gentle, storm)).collect();
        let mut plan = Self {
            seed,
            gentle,
            controls,
            agents,
            shards: dice.one(&[1, 4, 8]),
            latency: Duration::from_millis(dice.one(&[5, 20, 60])),
            skews: (0..agents).map(|_| dice.one(&[0, 0, -700, 900])).collect(),
            publishers: usize::try_from(dice.between(1, 3)).unwrap_or(1),
            requests: usize::try_from(dice.between(8, 16)).unwrap_or(8),
            storm,
            troubles: Vec::new(),
            acts: Vec::new(),
            hooks,
        };
        for _ in 0..dice.between(2, 7) {
            let fault = fault(&dice, &plan);
            let trouble = Trouble {
                at: dice.millis(1_500, u64::try_from(storm.as_millis()).unwrap_or(6_000)),
                lasts: dice.millis(100, if plan.gentle { 1_000 } else { 7_000 }),
                fault,
            };
            // Together they could cost an agent its lease.
            let together = |other: &Trouble| other.is_outage() && trouble.is_outage() && trouble.is_near(other);
            if !(plan.gentle && plan.troubles.iter().any(together)) {
                plan.troubles.push(trouble);
            }
        }
        for _ in 0..dice.between(0, 4) {
            let at = dice.millis(1_500, 9_000);
            let act = act(&dice, &plan);
            if !plan.acts.iter().any(|(_, other)| act.disturbs(*other)) {
                plan.acts.push((at, act));
            }
        }
        // Dice of their own: a seed without races is drawn as if there were none.
        let dice = Dice::new(seed, 4);
        if dice.chance(0.3) {
            plan.troubles.extend(race(&dice, &plan));
        }
        plan.troubles.sort_by_key(|trouble| trouble.at);
        plan.acts.sort_by_key(|(at, _)| *at);
        plan
    }
}

fn hook(dice: &Dice, gentle: bool, storm: Duration) -> Hook {
    let order = dice.one(&[Order::None, Order::None, Order::PerKey, Order::Strict]);
    let sharing = match order {
        Order::None => dice.one(&[Sharing::Single, Sharing::Coalesced, Sharing::Batched]),
        Order::Strict => dice.one(&[Sharing::Single, Sharing::Coalesced]),
        Order::PerKey => Sharing::Single,
    };
    let from = dice.millis(1_000, 3_000);
    // An answer that comes too late makes a repeat: not where there must be none.
    let manner = match dice.below(5) {
        0 | 1 => Manner::Good,
        2 => Manner::Flaky {
            fails: dice.one(&[0.1, 0.3, 0.6]),
            late: !gentle,
        },
        3 => Manner::Down(from, (from + dice.millis(500, 5_000)).min(storm)),
        _ => Manner::Picky(dice.one(&[3, 7])),
    };
    // What is refused for good must come to an end some day.
    let picky = matches!(manner, Manner::Picky(_));
    Hook {
        order,
        dead_letters: dice.chance(0.5) || picky,
        max_attempts: if picky { 2 } else { dice.one(&[0, 0, 2, 4]) },
        sharing,
        signed: dice.chance(0.5),
        numbered: sharing == Sharing::Single && dice.chance(0.3),
        max_in_flight: dice.one(&[0, 1, 4]),
        filter: dice
            .chance(0.3)
            .then(|| dice.one(&[Filter::NotTheSecond, Filter::FirstTwo, Filter::Keyed])),
        manner,
    }
}

fn fault(dice: &Dice, plan: &Plan) -> Fault {
    let number = |count: u8| u8::try_from(dice.below(count.into())).unwrap_or(0);
    let member = Host::Etcd(number(MEMBERS));
    let control = Host::Control(number(plan.controls));
    let agent = Host::Agent(number(plan.agents));
    if plan.gentle {
        return match dice.below(8) {
            0 => Fault::Kill(member),
            1 => Fault::Kill(control),
            2 => Fault::Stop(control),
            3 => Fault::Stop(agent),
            4 => Fault::LostWrites,
            5 => Fault::Full,
            6 => Fault::Election,
            _ => Fault::Compact,
        };
    }
    let program = dice.one(&[control, agent, agent]);
    match dice.below(18) {
        0 => Fault::Kill(member),
        1 => Fault::Kill(control),
        2 | 3 => Fault::Kill(agent),
        4 => Fault::Stop(program),
        5 => Fault::Cut(program, member),
        6 => Fault::CutOff(program),
        7 => Fault::CutOffOut(program),
        8 => Fault::CutOffIn(program),
        9 => Fault::Hold(program),
        10 => Fault::Cut(agent, Host::Receiver),
        11 => Fault::Cut(Host::Client, control),
        12 => Fault::LostWrites,
        13 | 14 => Fault::Full,
        15 | 16 => Fault::Election,
        _ => Fault::Compact,
    }
}

/// Agents come and go, so that shards change hands fast, while what another writes is done late: its takes when the shard is somebody else's already.
fn race(dice: &Dice, plan: &Plan) -> Vec<Trouble> {
    let late = dice.below(plan.agents.into());
    // The next after it, wrapped around: a single agent races with what it was before.
    let agent = |after: usize| {
        let number = (late + after) % usize::from(plan.agents);
        Host::Agent(u8::try_from(number).unwrap_or(0))
    };
    let mut at = dice.millis(1_500, 3_000);
    let mut troubles = Vec::new();
    // Not where nothing may be repeated: an agent that must go writes its progress for a while, not for ever.
    if !plan.gentle {
        troubles.push(Trouble {
            at,
            lasts: dice.millis(4_000, 8_000),
            fault: Fault::LateWrites(agent(0)),
        });
    }
    for _ in 0..dice.between(2, 4) {
        let restless = agent(1 + dice.below(usize::from(plan.agents).saturating_sub(1)));
        troubles.push(Trouble {
            at,
            lasts: dice.millis(100, 600),
            fault: Fault::Stop(restless),
        });
        at += dice.millis(900, 2_500);
    }
    troubles
}

fn act(dice: &Dice, plan: &Plan) -> Act {
    let hook = dice.below(plan.hooks.len());
    match dice.below(8) {
        0 => Act::Retire(hook, dice.millis(500, 14_000)),
        1 => Act::Touch(hook),
        2 => Act::Move(hook),
        3 => Act::Rotate(hook),
        4 => Act::Redrive(hook),
        5 | 6 => Act::Delete(hook, dice.chance(0.7).then(|| dice.millis(0, 4_000))),
        _ => Act::Cancel(hook, dice.below(5)),
    }
}
