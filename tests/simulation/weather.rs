//! What goes wrong in a simulation, as time passes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use postrider_common::key;
use postrider_common::store::{Revision, Store as _};
use turmoil::Sim;

use crate::plan::{Fault, Host, MEMBERS, Trouble};
use crate::run::Ground;

/// How long a program that was asked to stop may take.
const STOP_FOR: Duration = Duration::from_secs(20);

/// What goes wrong, as time passes.
pub(crate) struct Weather {
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
    pub(crate) struck: BTreeMap<String, usize>,
}

impl Weather {
    /// What a plan says.
    pub(crate) fn new(ground: &Arc<Ground>) -> Self {
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

    /// Lets begin and end what is due.
    pub(crate) fn change(&mut self, sim: &mut Sim<'_>) {
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
            // Whatever else happens to its host.
            Fault::LateWrites(_) => None,
            Fault::LostWrites | Fault::Full | Fault::Election | Fault::Compact => None,
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
        let of_all = |fault| matches!(fault, Fault::LostWrites | Fault::Full | Fault::Election);
        if of_all(fault) && self.going_on.iter().any(|(_, other)| *other == fault) {
            return false;
        }
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
            Fault::LostWrites => self.ground.mishaps.lose_writes(true),
            Fault::LateWrites(host) => self.ground.mishaps.delay_writes(host.ip(), true),
            Fault::Full => self.ground.mishaps.fill(),
            Fault::Election => {
                self.ground.mishaps.lead(false);
                self.ground.store.hold_leases();
            }
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
            Fault::LostWrites => self.ground.mishaps.lose_writes(false),
            Fault::LateWrites(host) => self.ground.mishaps.delay_writes(host.ip(), false),
            Fault::Full => self.ground.mishaps.disarm(),
            Fault::Election => {
                self.ground.store.renew_leases();
                self.ground.mishaps.lead(true);
            }
            Fault::Compact => {}
        }
        true
    }
}
