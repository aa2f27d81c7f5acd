//! Checks of the simulation itself.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use postrider_common::entropy::SystemEntropy;
use postrider_common::store::SharedStore;
use postrider_common::store::conformance;
use postrider_common::store::etcd::{EtcdConfig, EtcdStore};
use postrider_common::store::memory::MemoryStore;
use postrider_common::task::Group;

use crate::differential;
use crate::etcd::Member;
use crate::mishaps::Mishaps;
use crate::net::{self, SimDialer, elapsed};
use crate::plan::{Dice, Host, Plan};
use crate::run::run;

/// Seeds that are run twice.
const TWICE: u64 = 40;

/// More than there are laws: each gets an etcd of its own.
const LAWS: u8 = 40;

/// Requests that are asked of a real etcd, too: some seconds of them.
const COMPARED: usize = 800;

/// Checks all of it; says whether it holds.
pub(crate) fn check() -> bool {
    laws();
    println!("the simulated etcd obeys the laws of every store");
    if !differential::compare(COMPARED, 1) {
        return false;
    }
    let differ: Vec<u64> = (1..=TWICE).filter(|seed| differs(*seed)).collect();
    if differ.is_empty() {
        println!("{TWICE} seeds gave the same run twice");
    } else {
        println!("the seeds {differ:?} gave two different runs");
    }
    differ.is_empty()
}

/// Runs a seed twice; says whether, and shows where, the runs differ.
fn differs(seed: u64) -> bool {
    let (one, other) = (run(Plan::of(seed), true), run(Plan::of(seed), true));
    let pairs = one.log.iter().zip(&other.log);
    if let Some((one, other)) = pairs.into_iter().find(|(one, other)| one != other) {
        println!("seed {seed}: {one}");
        println!("seed {seed}, again: {other}");
    }
    one.hash != other.hash
}

/// The laws of every store, over the simulated network, through the real client.
fn laws() {
    let mut sim = turmoil::Builder::new()
        .rng_seed(1)
        .tick_duration(Duration::from_millis(5))
        .simulation_duration(Duration::from_secs(600))
        .tcp_capacity(4096)
        .build();
    for number in 0..LAWS {
        let (host, store) = (Host::Etcd(number), MemoryStore::timed(Box::new(elapsed)));
        sim.host(host.ip(), move || {
            let member = Member {
                store: store.clone(),
                entropy: Arc::new(SystemEntropy::seeded(1)),
                witness: Arc::new(|_, _, _| {}),
                mishaps: Arc::new(Mishaps::new(Dice::new(1, 3))),
                tasks: Group::default(),
            };
            async move {
                member.serve(net::listen(host.address().port()).await?).await?;
                Ok(())
            }
        });
    }
    sim.client(Host::Client.ip(), async move {
        let made = Cell::new(0);
        conformance::run(|| async {
            let host = Host::Etcd(made.replace(made.get() + 1));
            let config = EtcdConfig::new(vec![host.address().to_string()], "");
            let store = EtcdStore::connect_by(config, Some(Arc::new(SimDialer))).await;
            Arc::new(store.expect("an address is an endpoint")) as SharedStore
        })
        .await;
        Ok(())
    });
    sim.run().expect("every law holds");
}
