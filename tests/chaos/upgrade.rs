//! A cluster of one build becomes one of another, program by program and under load; then it goes back, and forward again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::cluster::Cluster;
use postrider_tests::process::program;

use crate::Options;

/// How long it may take until all is quiet.
const FLOW: Duration = Duration::from_secs(300);

/// Events that are published between two replacements.
const BETWEEN: usize = 1500;

/// Runs it between the programs built beside this one and those of `--other`, and tells whether every promise was kept.
pub(crate) async fn run(options: &Options) -> bool {
    let other = options.other.as_ref().and_then(|folder| folder.canonicalize().ok());
    let Some(other) = &other else {
        eprintln!("--other FOLDER: where the agent and the control-plane of the other build are");
        return false;
    };
    let (control_planes, agents) = (2, 3);
    let course = Course::of(1_000_000, 48).paced(options.rate);
    let mut trial = Trial::of(Cluster::of_build(other, control_planes, agents).await, course).await;
    let this: PathBuf = program("agent").parent().map(Path::to_owned).unwrap_or_default();
    let publishing = trial.publishing();
    let replacing = async {
        for (way, programs) in [("upgrade", &this), ("downgrade", other), ("upgrade again", &this)] {
            let from = trial.now();
            trial.cluster.start_programs_of(Some(programs));
            for number in 0..control_planes.max(agents) {
                if number < control_planes {
                    goes_on(&trial).await;
                    let stopped = trial.cluster.stop_control_plane(0).await;
                    trial.cluster.restart_control_plane(stopped).await;
                }
                if number < agents {
                    goes_on(&trial).await;
                    trial.cluster.stop_agent(0).await;
                    trial.cluster.add_agent().await;
                    trial.cluster.settled().await;
                }
            }
            // What one build has begun, the others of its kind go on with after a kill, too.
            goes_on(&trial).await;
            trial.kill_agent(0).await;
            trial.cluster.add_agent().await;
            trial.cluster.settled().await;
            println!("{way}: done within {} ms", (trial.now() - from) / 1000);
        }
        goes_on(&trial).await;
        trial.journal.stop();
    };
    tokio::join!(publishing, replacing);
    trial.quiet(FLOW).await;
    let report = trial.judge().await;
    print!("{report}");
    if let Some(folder) = &options.logs {
        trial.cluster.keep_logs(folder);
    }
    println!("{}", crate::verdict(report.is_clean()));
    report.is_clean()
}

async fn goes_on(trial: &Trial) {
    trial.accepted(trial.journal.accepted() + BETWEEN, FLOW).await;
}
