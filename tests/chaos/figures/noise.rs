//! One account publishes and gets a hundred times as much as another: what the other feels.

use std::time::Duration;

use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::client::{Client, event, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::Receiver;
use postrider_tests::wait;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{MEASURED, WARM, goes_on, is_clean, within_twice};
use crate::Options;

/// The noisy account.
const NOISY: &str = "noisy";

/// Its webhooks; each event is for one of them.
const WEBHOOKS: usize = 20;

/// Events a second of the other account.
const QUIET: f64 = 25.0;

/// Events a second of the noisy account, as a multiple.
const TIMES: f64 = 100.0;

/// Publishers of the noisy account.
const PUBLISHERS: usize = 10;

/// Events of one of their requests.
const OF_A_REQUEST: usize = 25;

/// Measures it.
pub(crate) async fn run(_options: &Options) -> bool {
    let course = Course {
        collectors: 0,
        refuse_one_of: 0,
        ..Course::of(1_000_000, 32).paced(QUIET)
    };
    let trial = Trial::of(Cluster::of(1, 1, 1).await, course).await;
    let receiver = Receiver::start();
    let client = trial.cluster.client(0);
    client.create_account(NOISY, i32::try_from(WEBHOOKS).unwrap()).await;
    for number in 0..WEBHOOKS {
        let noisy = webhook(&receiver.url("/noisy"), &[&name(number)], no_auth());
        client.create_webhook(NOISY, &format!("noisy-{number}"), noisy).await;
        trial.cluster.matching(NOISY, &name(number), 1).await;
    }
    let publishing = trial.publishing();
    let measuring = async {
        goes_on(WARM).await;
        let alone = trial.now();
        goes_on(MEASURED).await;
        let beside = trial.now();
        let noise: JoinSet<usize> = (0..PUBLISHERS)
            .map(|publisher| noise(trial.cluster.client(0), publisher))
            .collect();
        let published = noise.join_all().await;
        let end = trial.now();
        trial.journal.stop();
        (alone, beside, end, published.into_iter().sum::<usize>())
    };
    let ((), (alone, beside, end, published)) = tokio::join!(publishing, measuring);
    receiver
        .until("the noise", super::FLOW, |log| log.distinct() >= published)
        .await;
    let clean = is_clean(&trial).await;
    println!(
        "\na noisy account with {:.0} events a second beside one with {QUIET:.0}",
        published as f64 / MEASURED.as_secs_f64()
    );
    within_twice(&trial, alone, beside, end);
    clean
}

/// What one publisher of the noisy account publishes; tells how much it was.
async fn noise(client: Client, publisher: usize) -> usize {
    let pace = Duration::from_secs_f64((PUBLISHERS * OF_A_REQUEST) as f64 / (QUIET * TIMES));
    let (mut next, end) = (Instant::now(), Instant::now() + MEASURED);
    let mut published = 0;
    while next < end {
        let events = (published..published + OF_A_REQUEST)
            .map(|number| event(&format!("noise-{publisher}-{number}"), &name(number % WEBHOOKS), "{}"));
        client.publish(NOISY, events.collect()).await;
        published += OF_A_REQUEST;
        next += pace;
        wait::moment(next).await;
    }
    published
}

fn name(number: usize) -> String {
    format!("NOISE_{number}")
}
