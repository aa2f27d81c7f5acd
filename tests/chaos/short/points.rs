//! Agents killed at chosen points of an attempt, by the receiver: when it has read a request and not answered it, and when it has just answered.

use std::net::Ipv4Addr;
use std::time::Duration;

use postrider_tests::chaos::checker::Micros;
use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trap::{Point, Sprung};
use postrider_tests::chaos::trial::Trial;
use postrider_tests::chaos::witness::Witness;
use postrider_tests::cluster::Cluster;
use postrider_tests::process::Process;
use postrider_tests::wait;

use crate::{FLOW, SECOND};

/// How long the receiver takes: so long that some requests are under way whenever an agent is killed.
const ANSWER: Duration = Duration::from_millis(50);

/// How many agents are killed, one after the other. One more is there, and none comes after them: so shards move only from the dead to the living, and
/// whoever owns one is the only sender of its webhooks.
const KILLS: usize = 6;

/// Events accepted between two kills.
const BETWEEN: usize = 350;

/// How long an answer may stay unrecorded, in microseconds: a transaction or two, on a busy machine.
const UNRECORDED: Micros = SECOND / 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_killed_when_a_request_was_read_and_not_answered_lose_nothing_and_repeat_what_was_under_way() {
    let (trial, sprung) = killed_at(Point::Read).await;
    let log = trial.witness.log();
    for (webhook, event) in sprung {
        let came = log.arrivals.iter();
        let came = came.filter(|arrival| (arrival.webhook, arrival.event) == (webhook, event) && arrival.taken);
        assert!(came.count() >= 2, "nobody had been told that {event} was taken");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_killed_when_a_request_was_just_answered_lose_nothing_and_repeat_what_was_under_way() {
    killed_at(Point::Answered).await;
}

/// Kills agents at this point, and judges. Gives the requests at which that was.
async fn killed_at(point: Point) -> (Trial, Vec<(u16, u32)>) {
    let course = Course::of(BETWEEN * (KILLS + 1), 12).paced(250.0);
    let witness = Witness::start(&course, Ipv4Addr::LOCALHOST, None, ANSWER);
    let mut trial = Trial::with(Cluster::of(1, 2, KILLS + 1).await, course, witness).await;
    let publishing = trial.publishing();
    let killing = async {
        let mut sprung = Vec::new();
        for turn in 1..=KILLS {
            trial.accepted(BETWEEN * turn, FLOW).await;
            let (agent, owned) = busy(&trial).await;
            let pid = trial.cluster.agents[agent].pid();
            let kill = trial.witness.kill_at(point, &owned, pid, FLOW).await;
            trial.cluster.agents.remove(agent).ended(FLOW).await;
            sprung.push((kill, owned, trial.now()));
        }
        sprung
    };
    let ((), sprung) = tokio::join!(publishing, killing);
    trial.quiet(FLOW).await;
    // What was under way, and what was answered and not recorded; the last of it was read when its sender was gone, and long before it had a successor.
    let arrived = |(kill, owned, gone): &(Sprung, Vec<usize>, Micros)| {
        let from = kill.at.saturating_sub(UNRECORDED);
        trial.witness.arrived(owned, from, gone + SECOND)
    };
    let most: usize = sprung.iter().map(arrived).sum();
    for (kill, _, gone) in &sprung {
        // One kill follows the other so soon that it cannot be told of each repeat whose it is.
        trial.fault("agent", kill.at, gone + SECOND, most);
    }
    let report = trial.assert_clean().await;
    assert!(report.repeats <= most, "{} of {most}", report.repeats);
    println!("{point:?}: repeats of each kill: {:?}", report.repeats_by_fault);
    let arrivals = sprung.iter().map(|(kill, _, _)| kill.arrival);
    let deliveries = arrivals.map(|arrival| (arrival.webhook, arrival.event)).collect();
    (trial, deliveries)
}

/// An agent that owns the shard of a webhook, and all such webhooks.
async fn busy(trial: &Trial) -> (usize, Vec<usize>) {
    wait::until("an agent to own a webhook", FLOW, async || {
        let names: Vec<&str> = trial.cluster.agents.iter().map(Process::name).collect();
        for (agent, name) in names.into_iter().enumerate() {
            let owned = trial.owned_by(name).await;
            if !owned.is_empty() {
                return Some((agent, owned));
            }
        }
        None
    })
    .await
}
