//! Noisy accounts with thousands of webhooks that refuse connections or never answer: what others feel, and what it costs an agent.

use std::net::Ipv4Addr;

use postrider_proto::v1::{DeliveryOptions, Webhook};
use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::client::{event, no_auth, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::port::Reserved;
use postrider_tests::usage::Usage;
use tokio::net::TcpListener;

use super::{MEASURED, WARM, figure, goes_on, within_twice};
use crate::Options;

/// The noisy accounts, each with as many webhooks as one may have.
const NOISY: [&str; 2] = ["noisy", "noisier"];

/// The most webhooks of an account.
const MOST: usize = 10_000;

/// Addresses that the dead webhooks are on: an agent bounds its connections to each.
const ADDRESSES: usize = 100;

/// What an agent may have resident, in MiB.
const RESIDENT: f64 = 700.0;

/// One of so many webhooks is refused its connections; the others connect, and are not answered.
const REFUSING_OF: usize = 11;

/// How many deliveries to each dead webhook are published.
const NOISE: usize = 20;

/// Ports that nobody answers on: connecting is refused, or works, by the kernel, and nothing follows.
struct Dead {
    refusing: Vec<Reserved>,
    silent: Vec<(Reserved, TcpListener)>,
}

impl Dead {
    fn new() -> Self {
        let address =
            |number: usize| Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + u32::try_from(number).unwrap());
        let refusing = (0..ADDRESSES / 2).map(|number| Reserved::on(address(number))).collect();
        let silent = (ADDRESSES / 2..ADDRESSES).map(|number| {
            let port = Reserved::on(address(number));
            let listener = port.listen();
            (port, listener)
        });
        Self {
            refusing,
            silent: silent.collect(),
        }
    }

    fn url(&self, number: usize) -> String {
        let address = number % (ADDRESSES / 2);
        let port = if number.is_multiple_of(REFUSING_OF) {
            &self.refusing[address]
        } else {
            &self.silent[address].0
        };
        format!("http://{}/{number}", port.address())
    }
}

/// Measures it.
pub(crate) async fn run(options: &Options) -> bool {
    let course = Course {
        collectors: 0,
        refuse_one_of: 0,
        ..Course::of(1_000_000, 32).paced(200.0)
    };
    let trial = Trial::of(Cluster::of(1, 1, 1).await, course).await;
    let dead = Dead::new();
    let client = trial.cluster.client(0);
    let dead_webhooks = options.dead + options.dead / (REFUSING_OF - 1);
    assert!(
        dead_webhooks <= NOISY.len() * MOST,
        "two accounts have no room for them"
    );
    let most = i32::try_from(MOST).unwrap();
    for noisy in NOISY {
        client.create_account(noisy, most).await;
    }
    println!("creating {dead_webhooks} webhooks");
    for number in 0..dead_webhooks {
        let noisy = Webhook {
            delivery: Some(DeliveryOptions::default()),
            ..webhook(&dead.url(number), &["NOISE"], no_auth())
        };
        client
            .create_webhook(NOISY[number / MOST], &format!("dead-{number}"), noisy)
            .await;
    }
    for (noisy, webhooks) in NOISY
        .into_iter()
        .zip([dead_webhooks.min(MOST), dead_webhooks.saturating_sub(MOST)])
    {
        let webhooks = i32::try_from(webhooks).unwrap();
        trial.cluster.matching(noisy, "NOISE", webhooks).await;
    }
    let agent = trial.cluster.agents[0].pid();
    let before = Usage::of(agent).resident_bytes;
    let publishing = trial.publishing();
    let measuring = async {
        goes_on(WARM).await;
        let alone = trial.now();
        goes_on(MEASURED).await;
        let beside = trial.now();
        for number in 0..NOISE {
            for noisy in NOISY {
                client
                    .publish(noisy, vec![event(&format!("noise-{number}"), "NOISE", "{}")])
                    .await;
            }
            goes_on(MEASURED / u32::try_from(NOISE).unwrap()).await;
        }
        let end = trial.now();
        trial.journal.stop();
        (alone, beside, end)
    };
    let ((), (alone, beside, end)) = tokio::join!(publishing, measuring);
    let all = trial.journal.deliveries();
    trial
        .witness
        .until("what was accepted", super::FLOW, |log| log.taken() >= all)
        .await;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let peak = Usage::of(agent).peak_bytes;
    println!(
        "\nnoisy accounts with {dead_webhooks} dead webhooks, {} of them silent; {NOISE} events for each of them",
        options.dead
    );
    within_twice(&trial, alone, beside, end);
    println!("resident before: {:.0} MiB", mib(before));
    figure(
        "resident memory of the agent at most",
        format!("{:.0} MiB", mib(peak)),
        format!("<= {RESIDENT} MiB"),
        mib(peak) <= RESIDENT,
    );
    // The dead webhooks' deliveries go on waiting: only the others are judged.
    let report = trial.judge().await;
    print!("{report}");
    report.is_clean()
}
