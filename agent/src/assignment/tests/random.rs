//! Random histories of agents that come, go and lose the store.

use super::*;

const AGENTS: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    Assign(u16, usize),
    Cut(usize),
    Join(usize),
    EndWatches(usize),
    Mute(usize),
    Unmute(usize),
    Crash(usize),
    Stop(usize),
    Fence(u16),
    Faults(Vec<u8>),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let agent = || 0..AGENTS.len();
    prop_oneof![
        6 => (0_u16..6, agent()).prop_map(|(shard, agent)| Step::Assign(shard, agent)),
        1 => agent().prop_map(Step::Cut),
        1 => agent().prop_map(Step::Join),
        1 => agent().prop_map(Step::EndWatches),
        1 => agent().prop_map(Step::Mute),
        1 => agent().prop_map(Step::Unmute),
        1 => agent().prop_map(Step::Crash),
        1 => agent().prop_map(Step::Stop),
        1 => (0_u16..6).prop_map(Step::Fence),
        2 => proptest::collection::vec(0_u8..4, 0..6).prop_map(Step::Faults),
        4 => (0_u64..800).prop_map(Step::Wait),
        1 => (0_u64..8_000).prop_map(Step::Wait),
    ]
}

async fn take_step(cell: &Cell, agents: &mut [Agent], step: Step) {
    match step {
        Step::Assign(shard, agent) => {
            cell.store.heal();
            cell.assign(&BTreeMap::from([(shard, AGENTS[agent].to_owned())])).await;
        }
        Step::Cut(agent) => agents[agent].link.cut(),
        Step::Join(agent) => agents[agent].link.join(),
        Step::EndWatches(agent) => agents[agent].link.end_watches_after(1),
        Step::Mute(agent) => agents[agent].link.mute(key::owners()),
        Step::Unmute(agent) => agents[agent].link.unmute(),
        Step::Crash(agent) => {
            let again = Agent::start(cell, AGENTS[agent]);
            std::mem::replace(&mut agents[agent], again).crash().await;
        }
        Step::Stop(agent) => {
            agents[agent].link.join();
            agents[agent].link.unmute();
            agents[agent].stop.cancel();
            agents[agent].end().await.unwrap();
            agents[agent] = Agent::start(cell, AGENTS[agent]);
        }
        Step::Fence(shard) => {
            if let Some(fence) = cell.recorder.0.borrow().fences.get(&ShardId(shard)) {
                fence.cancel();
            }
        }
        Step::Faults(faults) => {
            let mut faults = faults.into_iter();
            cell.store.inject(Box::new(move |_| match faults.next() {
                Some(1) => Some(Fault::LostAnswer),
                Some(2) => Some(Fault::LostRequest),
                Some(3) => Some(Fault::Away),
                _ => None,
            }));
        }
        Step::Wait(millis) => sleep(Duration::from_millis(millis)).await,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn whatever_happens_no_shard_has_two_workers_and_in_the_end_each_has_the_assigned_one(steps in proptest::collection::vec(step(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let cell = Cell::default();
            let mut agents = AGENTS.map(|name| Agent::start(&cell, name));
            let mut wanted = BTreeMap::new();
            for step in steps {
                if let Step::Assign(shard, agent) = &step {
                    wanted.insert(*shard, AGENTS[*agent].to_owned());
                }
                take_step(&cell, &mut agents, step).await;
            }
            for agent in &agents {
                agent.link.join();
                agent.link.unmute();
            }
            cell.store.heal();
            cell.recorder.wait_for(&wanted).await;
            // And so it stays.
            sleep(REST).await;
            prop_assert_eq!(cell.recorder.active(), wanted.clone());
            prop_assert_eq!(cell.owners().await, wanted);
            cell.check().await;
            Ok(())
        })?;
    }
}
