//! Agents come and go under load, by eights; and the control plane that places shards is killed in the middle of it.

use std::collections::BTreeSet;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::cluster::Cluster;
use postrider_tests::process::Process;
use tokio::time::Instant;

use crate::FLOW;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_one_agent_to_eight_to_three_under_load_nothing_comes_twice_and_no_shard_moves_that_need_not() {
    let mut trial = Trial::of(Cluster::of(1, 2, 1).await, Course::of(9000, 12).paced(450.0)).await;
    let publishing = trial.publishing();
    let scaling = async {
        trial.accepted(900, FLOW).await;
        for _ in 0..7 {
            trial.cluster.add_agent().await;
        }
        trial.cluster.settled().await;
        let staying: BTreeSet<String> = trial.cluster.agents[5..].iter().map(name).collect();
        let before = trial.owned().await;
        for _ in 0..5 {
            trial.cluster.stop_agent(0).await;
        }
        trial.cluster.settled().await;
        let after = trial.owned().await;
        let kept = before
            .iter()
            .zip(&after)
            .filter(|(before, _)| staying.contains(&before.0));
        for (before, after) in kept {
            assert_eq!(before, after, "a shard of an agent that stays");
        }
    };
    tokio::join!(publishing, scaling);
    trial.quiet(FLOW).await;
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_that_places_shards_is_killed_while_agents_come_and_another_goes_on() {
    let mut trial = Trial::of(Cluster::of(1, 2, 2).await, Course::of(6000, 12).paced(400.0)).await;
    let publishing = trial.publishing();
    let replacing = async {
        trial.accepted(900, FLOW).await;
        let leader = usize::from(!trial.cluster.leads(0));
        assert!(trial.cluster.leads(leader), "one leads");
        // Its last act: it learns of one agent. Its successor learns of the other, whether the first has all that it was given or not.
        trial.cluster.add_agent().await;
        let (killed, at) = (trial.cluster.kill_control_plane(leader).await, Instant::now());
        trial.cluster.add_agent().await;
        trial.cluster.settled().await;
        println!("every shard has its owner after {:?}", at.elapsed());
        trial.cluster.restart_control_plane(killed).await;
    };
    tokio::join!(publishing, replacing);
    trial.quiet(FLOW).await;
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

fn name(agent: &Process) -> String {
    agent.name().to_owned()
}
