//! Programs killed: in turn at random moments, and all at once.

use postrider_common::entropy::SystemEntropy;
use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::kills;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::cluster::Cluster;

use crate::FLOW;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_control_planes_and_etcd_killed_in_turn_lose_nothing_and_keep_every_order() {
    let course = Course::of(9000, 18).paced(900.0);
    let kills = kills::plan(9, course.events, &SystemEntropy::seeded(1));
    let mut trial = Trial::of(Cluster::start().await, course).await;
    let publishing = trial.publishing();
    let killing = async {
        for kill in &kills {
            trial.moment_of(kill, FLOW).await;
            trial.carry_out(kill).await;
        }
    };
    tokio::join!(publishing, killing);
    trial.quiet(FLOW).await;
    trial.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_killed_at_once_and_started_again_loses_nothing() {
    let mut trial = Trial::of(Cluster::start().await, Course::of(4000, 12).paced(800.0)).await;
    let publishing = trial.publishing();
    let killing = async {
        trial.accepted(1500, FLOW).await;
        trial.kill_everything().await;
    };
    tokio::join!(publishing, killing);
    trial.quiet(FLOW).await;
    trial.assert_clean().await;
}
