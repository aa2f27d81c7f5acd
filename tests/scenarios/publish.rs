//! Publishing and creating, repeated and raced, on two replicas.

use postrider_tests::client::{event, request_id, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::Receiver;
use tokio::task::JoinSet;
use tonic::Code;

use crate::{ACCOUNT, SOON};

#[tokio::test]
async fn a_request_published_again_gives_the_first_answer_and_is_delivered_once() {
    let cluster = Cluster::start().await;
    let receiver = Receiver::start();
    let (first, second) = (cluster.client(0), cluster.client(1));
    first
        .create_webhook(ACCOUNT, "once", webhook(&receiver.url("/once"), &["A"], None))
        .await;
    // The generated ids must be those of the first answer.
    let events = || vec![event("", "A", "1"), event("", "A", "2")];
    let id = request_id(1);
    let answer = first.try_publish(ACCOUNT, events(), &id).await.unwrap();
    assert!(!answer.duplicate);
    assert_eq!(
        answer
            .events
            .iter()
            .map(|event| event.matched_webhooks)
            .collect::<Vec<_>>(),
        [1, 1]
    );
    let mut again = JoinSet::new();
    for replica in [&first, &second, &first, &second] {
        let (replica, events, id) = (replica.clone(), events(), id.clone());
        again.spawn(async move { replica.try_publish(ACCOUNT, events, &id).await.unwrap() });
    }
    while let Some(repeated) = again.join_next().await {
        let repeated = repeated.unwrap();
        assert!(repeated.duplicate);
        assert_eq!(
            (repeated.events, repeated.publish_time),
            (answer.events.clone(), answer.publish_time)
        );
    }
    let other = first
        .try_publish(ACCOUNT, vec![event("", "A", "3")], &id)
        .await
        .unwrap_err();
    assert_eq!(
        other.code(),
        Code::AlreadyExists,
        "the same id with other events: {other:?}"
    );

    receiver.until("both events", SOON, |log| log.distinct() == 2).await;
    cluster.drained(SOON).await;
    let log = receiver.log();
    assert_eq!(log.requests().len(), 2);
    for event in &answer.events {
        assert!(log.has("/once", &event.event_id));
    }
}

#[tokio::test]
async fn the_quota_of_five_webhooks_holds_when_two_replicas_create_at_once() {
    let cluster = Cluster::of(1, 2, 1).await;
    let mut creating = JoinSet::new();
    for number in 0..12 {
        let client = cluster.client(number % 2);
        creating.spawn(async move {
            let deciding = async {
                // Lost races are told as such, and may be tried again.
                loop {
                    let wanted = webhook("http://127.0.0.1:8080/", &["A"], None);
                    match client.try_create_webhook(ACCOUNT, &format!("w{number}"), wanted).await {
                        Err(status) if matches!(status.code(), Code::Aborted | Code::Unavailable) => {}
                        decided => return decided,
                    }
                }
            };
            tokio::time::timeout(SOON, deciding)
                .await
                .expect("every create is decided")
        });
    }
    let (mut created, mut refused) = (0, 0);
    while let Some(decided) = creating.join_next().await {
        match decided.unwrap() {
            Ok(_) => created += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                refused += 1;
            }
        }
    }
    assert_eq!((created, refused), (5, 7));
    for replica in cluster.clients() {
        let request = postrider_proto::v1::ListWebhooksRequest {
            parent: format!("accounts/{ACCOUNT}"),
            ..Default::default()
        };
        let listed = replica
            .webhooks()
            .list_webhooks(request)
            .await
            .unwrap()
            .into_inner()
            .webhooks;
        assert_eq!(listed.len(), 5);
    }
}
