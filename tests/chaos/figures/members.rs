//! Members of etcd killed: what publishers notice, and whether shards move.

use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::measure::{Durations, errors, publish_gap};
use postrider_tests::chaos::trial::Trial;
use postrider_tests::cluster::Cluster;

use super::{WARM, figure, goes_on, is_clean, millis, none};
use crate::{Options, SECOND};

/// How long publishing may stand still when the leader is lost, in milliseconds.
const TARGET: f64 = 5000.0;

/// How often each is killed at least.
const KILLS: usize = 10;

/// How long after a kill is looked at.
const AFTER: Duration = Duration::from_secs(8);

/// Measures it.
pub(crate) async fn run(options: &Options) -> bool {
    let kills = options.kills.max(KILLS);
    let course = Course {
        collectors: 0,
        refuse_one_of: 0,
        lanes: 8,
        ..Course::of(1_000_000, 32).paced(400.0)
    };
    let mut trial = Trial::of(Cluster::of(3, 2, 3).await, course).await;
    let publishing = trial.publishing();
    let killing = async {
        let (mut of_leaders, mut of_others, mut moves) = (Vec::new(), Vec::new(), 0);
        for number in 0..2 * kills {
            goes_on(WARM).await;
            let epochs = trial.epochs().await;
            let leader = trial.cluster.etcd.leader().await;
            let (member, times) = if number % 2 == 0 {
                (leader, &mut of_leaders)
            } else {
                ((leader + 1) % 3, &mut of_others)
            };
            times.push(trial.now());
            trial.cluster.etcd.kill(member).await;
            goes_on(AFTER).await;
            let now = trial.epochs().await;
            moves += now.iter().zip(&epochs).filter(|(now, before)| now != before).count();
            trial.cluster.etcd.restart(member).await;
        }
        trial.journal.stop();
        (of_leaders, of_others, moves)
    };
    let ((), (of_leaders, of_others, moves)) = tokio::join!(publishing, killing);
    let calls = trial.journal.calls();
    let after = |at: u64| at + u64::try_from(AFTER.as_micros()).unwrap();
    let still = Durations::of(of_leaders.iter().map(|at| publish_gap(&calls, *at, after(*at))));
    let failed = of_others.iter().map(|at| errors(&calls, at + SECOND, after(*at)));
    let (all, failed) = failed.fold((0, 0), |sum, (all, failed)| (sum.0 + all, sum.1 + failed));
    println!("\nthree members of etcd: the leader killed {kills} times, another {kills} times");
    println!(
        "publishing stood still at the leader's death: p50 {:.0} ms",
        still.millis_at(50)
    );
    millis("p99", still.millis_at(99), TARGET);
    none("shards that moved", moves);
    let share = 100.0 * failed as f64 / all.max(1) as f64;
    let what = "publishes that failed later than 1 s after another's death";
    figure(what, format!("{share:.2} %"), "0 %", failed == 0);
    // Nobody lost a lease that was kept.
    is_clean(&trial).await
}
