//! Following attempts while agents and control planes come and go.

use std::collections::{BTreeMap, BTreeSet};

use postrider_proto::v1::delivery::State;
use postrider_proto::v1::{ListDeliveriesRequest, WatchAttemptsRequest, WatchAttemptsResponse};
use postrider_tests::client::Client;
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::Receiver;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::history::{ids, listed, stands};
use crate::{ACCOUNT, FLOW, flow_events, flow_id, flow_webhooks};

/// Follows attempts, and collects what each delivery came to.
struct Tail {
    stream: Streaming<WatchAttemptsResponse>,
    token: String,
    /// Of each webhook, how often each event was told to be delivered.
    taken: BTreeMap<String, BTreeMap<String, usize>>,
}

impl Tail {
    async fn start(client: &Client) -> Self {
        let (stream, token) = follow(client, String::new()).await;
        Self {
            stream,
            token,
            taken: BTreeMap::new(),
        }
    }

    /// Takes in answers until `count` deliveries are known, or the stream ends.
    async fn until(&mut self, count: usize) -> Result<(), Status> {
        while self.taken.values().map(BTreeMap::len).sum::<usize>() < count {
            let next = timeout(FLOW, self.stream.message()).await.expect("attempts go on");
            let answer = next?.expect("a tail does not end by itself");
            self.token = answer.resume_token;
            for attempt in answer.attempts {
                let webhook = attempt.webhook.rsplit('/').next().unwrap().to_owned();
                let taken = self.taken.entry(webhook).or_default();
                *taken.entry(attempt.message_id).or_default() += 1;
            }
        }
        Ok(())
    }
}

async fn follow(client: &Client, resume_token: String) -> (Streaming<WatchAttemptsResponse>, String) {
    let request = WatchAttemptsRequest {
        parent: format!("accounts/{ACCOUNT}"),
        resume_token,
        ..WatchAttemptsRequest::default()
    };
    let mut stream = client.deliveries().watch_attempts(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert!(first.attempts.is_empty());
    (stream, first.resume_token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_are_followed_across_agents_and_control_planes_and_a_killed_owner_makes_nothing_untrue() {
    const EVENTS: usize = 4_000;
    const WEBHOOKS: usize = 12;
    let mut cluster = Cluster::start().await;
    let receiver = Receiver::start();
    flow_webhooks(&cluster, &receiver, WEBHOOKS).await;
    let other = cluster.client(1);
    let publish = async |from, to| {
        for events in flow_events(from, to, WEBHOOKS).chunks(20) {
            other.publish(ACCOUNT, events.to_vec()).await;
        }
    };
    let mut tail = Tail::start(&cluster.client(0)).await;
    publish(0, EVENTS / 4).await;
    tail.until(EVENTS / 4).await.unwrap();
    assert_eq!(tail.taken.len(), WEBHOOKS, "of all webhooks, whoever owns them");

    // The control plane that is followed stops; another one goes on from the same place.
    let stopped = cluster.control_planes.remove(0);
    publish(EVENTS / 4, EVENTS / 2).await;
    stopped.process.signal("TERM").await;
    let status = tail.until(usize::MAX).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    tail.stream = follow(&cluster.client(0), tail.token.clone()).await.0;
    tail.until(EVENTS / 2).await.unwrap();

    // An owner dies in the middle of a flow.
    let killing = async {
        let most = |log: &postrider_tests::receiver::Log| log.distinct() >= EVENTS * 3 / 4;
        receiver.until("most of the events", FLOW, most).await;
        cluster.kill_agent(0).await;
    };
    tokio::join!(publish(EVENTS / 2, EVENTS), killing);
    receiver.until("all events", FLOW, |log| log.distinct() == EVENTS).await;
    cluster.drained(FLOW).await;
    let client = cluster.client(0);
    // The last to be told of.
    let last = flow_events(EVENTS, EVENTS + WEBHOOKS, WEBHOOKS);
    client.publish(ACCOUNT, last).await;
    for number in EVENTS..EVENTS + WEBHOOKS {
        let webhook = format!("flow-{}", number % WEBHOOKS);
        stands(&client, &webhook, &flow_id(number), State::Delivered).await;
    }
    let mut known = 0;
    let mut all = BTreeMap::new();
    for webhook in 0..WEBHOOKS {
        let webhook = format!("flow-{webhook}");
        let deliveries = listed(&client, &webhook, ListDeliveriesRequest::default()).await;
        assert_eq!(ids(&deliveries).len(), deliveries.len(), "nothing is shown twice");
        assert!(
            deliveries.iter().all(|delivery| delivery.state() == State::Delivered),
            "states are true"
        );
        known += deliveries.len();
        all.insert(
            webhook,
            ids(&deliveries).into_iter().map(str::to_owned).collect::<BTreeSet<_>>(),
        );
    }
    let lost = EVENTS + WEBHOOKS - known;
    println!("the history of {lost} deliveries died with their agent");
    // What one agent of three delivers in the second or two before it dies.
    assert!(lost < EVENTS / 3, "{lost}");
    tail.until(known).await.unwrap();
    for (webhook, taken) in &tail.taken {
        assert!(
            taken.values().all(|times| *times == 1),
            "{webhook}: an attempt came twice"
        );
        assert_eq!(
            taken.keys().cloned().collect::<BTreeSet<_>>(),
            all[webhook],
            "{webhook}"
        );
    }
}
