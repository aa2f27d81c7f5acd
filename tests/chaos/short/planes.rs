//! Control planes that stand still: the one that leads, and another.

use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::client::Client;
use postrider_tests::cluster::Cluster;
use postrider_tests::wait;
use tonic::Code;

use crate::FLOW;

/// How long a publisher waits for an answer before it asks another control plane.
const ANSWER: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_planes_that_stand_still_beyond_their_clients_deadlines_double_and_lose_nothing_and_do_not_lead_on() {
    let trial = Trial::of(Cluster::of(1, 2, 2).await, Course::of(6000, 12).paced(400.0)).await;
    let publishing = trial.publishing_by(|address| Client::hasty(address, ANSWER));
    let stopping = async {
        trial.accepted(1000, FLOW).await;
        let planes = &trial.cluster.control_planes;
        let (leader, other) = wait::until("a leader", FLOW, async || {
            match [trial.cluster.leads(0), trial.cluster.leads(1)] {
                [true, false] => Some((0, 1)),
                [false, true] => Some((1, 0)),
                _ => None,
            }
        })
        .await;
        // The other one: for as long as its publishers need to notice.
        planes[other].process.signal("STOP").await;
        wait::until("publishers to give it up", FLOW, async || {
            (timed_out(&trial) > 0).then_some(())
        })
        .await;
        planes[other].process.signal("CONT").await;
        assert!(
            trial.cluster.leads(leader) && !trial.cluster.leads(other),
            "that has nothing to do with who leads"
        );
        // And the one that leads, for longer than its lease lives.
        let before = timed_out(&trial);
        planes[leader].process.signal("STOP").await;
        wait::until("another to lead", FLOW, async || {
            trial.cluster.leads(other).then_some(())
        })
        .await;
        assert!(timed_out(&trial) > before, "publishers gave it up");
        planes[leader].process.signal("CONT").await;
        wait::until("the old leader to know", FLOW, async || {
            (!trial.cluster.leads(leader)).then_some(())
        })
        .await;
        assert!(trial.cluster.leads(other), "it does not lead beside its successor");
    };
    tokio::join!(publishing, stopping);
    trial.quiet(FLOW).await;
    trial.cluster.settled().await;
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

/// How many calls were not answered in time.
fn timed_out(trial: &Trial) -> usize {
    let calls = trial.journal.calls();
    let late = |code: Code| matches!(code, Code::Cancelled | Code::DeadlineExceeded);
    calls.iter().filter(|call| late(call.code)).count()
}
