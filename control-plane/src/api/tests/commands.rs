//! Commands about deliveries: bad input, and what is stored of them while no agent carries them out.

use postrider_common::key::ParkedKind;
use postrider_common::shard;
use postrider_common::store::memory::Fault;
use postrider_common::store::{Op, Write, list_all};
use postrider_common::wire::stored;

use super::*;

const PARENT: &str = "accounts/1010/webhooks/a";

fn reason(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    (status.code(), details.error_info().unwrap().reason.clone())
}

fn redrive(filter: v1::DeadLetterFilter) -> v1::RedriveDeadLettersRequest {
    v1::RedriveDeadLettersRequest {
        parent: PARENT.into(),
        filter: Some(filter),
        ..Default::default()
    }
}

/// Puts a dead letter of the event `e` into the store.
async fn die(server: &Server, webhook: &v1::Webhook) {
    let (account, id) = ("1010".parse().unwrap(), "a".parse().unwrap());
    let shard = shard::of(&account, &id, NonZeroU16::new(64).unwrap());
    let event = postrider_common::model::segment::Event {
        account: account.clone(),
        id: "e".parse().unwrap(),
        name: "COURSE_A".parse().unwrap(),
        timestamp: postrider_common::time::Timestamp::from_millis(1),
        ordering_key: None,
        expire_time: None,
        not_before_time: None,
        event_info: Some("1".into()),
        data: "{}".into(),
        accept_time: postrider_common::time::Timestamp::from_millis(5_000),
        traceparent: None,
        category: postrider_common::model::event_type::Category::default(),
    };
    let state = postrider_common::model::segment::DeliveryState {
        reason: "STATUS".into(),
        ..Default::default()
    };
    let segment = postrider_common::model::segment::Segment {
        events: vec![Arc::new(event)],
        targets: vec![postrider_common::model::segment::Target {
            account: account.clone(),
            webhook: id.clone(),
            webhook_uid: webhook.uid.parse().unwrap(),
            webhook_revision: Revision(1),
            deliveries: vec![postrider_common::model::segment::Delivery { event: 0, state }],
        }],
        batch: None,
    };
    let at = postrider_common::key::Parked {
        shard,
        account,
        webhook: id,
        due: postrider_common::time::Timestamp::from_millis(6_000),
        epoch: 1,
        number: 1,
        count: 1,
        kind: ParkedKind::Single,
    };
    let write = Write {
        guards: Vec::new(),
        ops: vec![Op::put(postrider_common::key::dead_segment(&at), stored::pack(segment))],
    };
    server.store.write(write).await.unwrap();
}

async fn commands(server: &Server) -> usize {
    let (entries, _) = list_all(&server.store, &postrider_common::key::commands(), true)
        .await
        .unwrap();
    entries.len()
}

#[tokio::test]
async fn bad_names_filters_and_rates_are_refused_with_all_their_mistakes_and_nothing_is_stored() {
    let mut server = serve().await;
    server.create("a", valid()).await;
    let client = &mut server.deliveries;
    for (text, expected) in [
        ("", "REQUIRED"),
        ("accounts/1010/webhooks/a", "MALFORMED"),
        ("accounts/1010/webhooks/a/deliveries/a.b", "MALFORMED"),
    ] {
        let wrong =
            |status: Status| assert_eq!(mistakes(&status), [("name".to_owned(), expected.to_owned())], "{text}");
        let name = text.to_owned();
        wrong(
            client
                .retry_delivery(v1::RetryDeliveryRequest { name })
                .await
                .unwrap_err(),
        );
        let name = text.to_owned();
        wrong(
            client
                .cancel_delivery(v1::CancelDeliveryRequest { name })
                .await
                .unwrap_err(),
        );
    }
    let bad = v1::DeadLetterFilter {
        event_ids: vec!["ok".into(), "a.b".into()],
        event_types: vec!["*A".into()],
        reasons: vec!["STATUS".into(), "status".into(), String::new()],
        start_time: Some(prost_types::Timestamp { seconds: 10, nanos: 0 }),
        end_time: Some(prost_types::Timestamp { seconds: 10, nanos: 0 }),
    };
    let expected = [
        ("filter.end_time", "INCOMPATIBLE"),
        ("filter.event_ids[1]", "MALFORMED"),
        ("filter.reasons[1]", "MALFORMED"),
        ("filter.reasons[2]", "MALFORMED"),
        ("filter.event_types[0]", "MALFORMED"),
    ];
    let expected: Vec<_> = expected
        .map(|(field, reason)| (field.to_owned(), reason.to_owned()))
        .into();
    let request = v1::PurgeDeadLettersRequest {
        parent: PARENT.into(),
        filter: Some(bad.clone()),
        ..Default::default()
    };
    assert_eq!(
        mistakes(&client.purge_dead_letters(request).await.unwrap_err()),
        expected
    );
    for rate in [-1.0, 0.001, 10_000.5, f64::NAN, f64::INFINITY] {
        let request = v1::RedriveDeadLettersRequest {
            max_per_second: rate,
            ..redrive(bad.clone())
        };
        let mut more = expected.clone();
        more.push(("max_per_second".to_owned(), "OUT_OF_RANGE".to_owned()));
        assert_eq!(
            mistakes(&client.redrive_dead_letters(request).await.unwrap_err()),
            more,
            "{rate}"
        );
    }
    let many = v1::DeadLetterFilter {
        event_ids: vec!["a".into(); 101],
        event_types: vec!["A".into(); 51],
        reasons: vec!["A".into(); 21],
        ..Default::default()
    };
    let fields = ["filter.event_ids", "filter.reasons", "filter.event_types"];
    let expected = fields.map(|field| (field.to_owned(), "TOO_MANY".to_owned()));
    assert_eq!(
        mistakes(&client.redrive_dead_letters(redrive(many)).await.unwrap_err()),
        expected
    );
    assert_eq!(commands(&server).await, 0);
}

#[tokio::test]
async fn usage_is_told_of_accounts_that_exist_under_good_names() {
    let mut server = serve().await;
    for (text, expected) in [
        ("", "REQUIRED"),
        ("accounts/", "MALFORMED"),
        ("accounts/A", "MALFORMED"),
        ("x", "MALFORMED"),
    ] {
        let name = text.to_owned();
        let status = server
            .accounts
            .get_account_usage(v1::GetAccountUsageRequest { name })
            .await;
        assert_eq!(
            mistakes(&status.unwrap_err()),
            [("name".to_owned(), expected.to_owned())]
        );
    }
    let name = "accounts/1010".to_owned();
    let request = v1::GetAccountUsageRequest { name };
    let status = server.accounts.get_account_usage(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    server.create("a", valid()).await;
    let usage = server.accounts.get_account_usage(request).await.unwrap().into_inner();
    assert_eq!(usage.webhooks.len(), 1);
    assert_eq!(usage.total, Some(v1::DeliveryCounts::default()));
}

#[tokio::test]
async fn what_is_not_there_or_keeps_an_order_is_told_before_anything_is_stored() {
    let mut server = serve().await;
    server.create("a", valid()).await;
    let ordered = v1::Webhook {
        delivery: Some(v1::DeliveryOptions {
            ordering: v1::delivery_options::Ordering::Strict.into(),
            ..Default::default()
        }),
        ..valid()
    };
    server.create("ordered", ordered).await;
    let name = format!("{PARENT}/deliveries/e");
    let request = v1::RetryDeliveryRequest { name };
    let status = server.deliveries.retry_delivery(request).await.unwrap_err();
    assert_eq!(reason(&status), (Code::NotFound, "RESOURCE_NOT_FOUND".into()));
    let absent = v1::RedriveDeadLettersRequest {
        parent: "accounts/1010/webhooks/absent".into(),
        ..Default::default()
    };
    let status = server.deliveries.redrive_dead_letters(absent).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let rate = v1::RedriveDeadLettersRequest {
        parent: "accounts/1010/webhooks/ordered".into(),
        max_per_second: 5.0,
        ..Default::default()
    };
    let status = server.deliveries.redrive_dead_letters(rate).await.unwrap_err();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "ORDERED".into()));
    // Nothing is dead: there is nothing to do.
    let answer = server
        .deliveries
        .redrive_dead_letters(redrive(v1::DeadLetterFilter::default()));
    let answer = answer.await.unwrap().into_inner();
    assert_eq!((answer.matched_count, answer.complete), (0, true));
    assert_eq!(commands(&server).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_nobody_carries_out_stays_and_there_are_a_hundred_at_most() {
    let mut server = serve().await;
    let webhook = server.create("a", valid()).await;
    die(&server, &webhook).await;
    let count = v1::RedriveDeadLettersRequest {
        validate_only: true,
        ..redrive(v1::DeadLetterFilter::default())
    };
    let answer = server
        .deliveries
        .redrive_dead_letters(count)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((answer.matched_count, answer.complete), (1, false));
    assert_eq!(commands(&server).await, 0);
    let answer = server
        .deliveries
        .redrive_dead_letters(redrive(v1::DeadLetterFilter::default()));
    let answer = answer.await.unwrap().into_inner();
    assert_eq!((answer.matched_count, answer.complete), (1, false));
    let name = format!("{PARENT}/deliveries/e");
    let request = v1::CancelDeliveryRequest { name };
    let status = server.deliveries.cancel_delivery(request.clone()).await.unwrap_err();
    assert_eq!(reason(&status), (Code::Unavailable, "NOT_YET_CARRIED_OUT".into()));
    assert_eq!(commands(&server).await, 2);
    for _ in 2..100 {
        server.deliveries.cancel_delivery(request.clone()).await.unwrap_err();
    }
    let status = server.deliveries.cancel_delivery(request).await.unwrap_err();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "COMMANDS".into()));
    assert_eq!(commands(&server).await, 100);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_stored_is_not_told_as_refused_though_the_store_says_that_it_is_full() {
    let mut server = serve().await;
    let webhook = server.create("a", valid()).await;
    die(&server, &webhook).await;
    let request = v1::CancelDeliveryRequest {
        name: format!("{PARENT}/deliveries/e"),
    };
    let mut stored = 0;
    for (fault, is_stored, told) in [
        (Fault::Full, false, (Code::ResourceExhausted, "STORE_FULL")),
        (Fault::Filled, true, (Code::Unavailable, "NOT_YET_CARRIED_OUT")),
        (Fault::LostRequest, false, (Code::Unavailable, "OUTCOME_UNKNOWN")),
        (Fault::LostAnswer, true, (Code::Unavailable, "NOT_YET_CARRIED_OUT")),
    ] {
        server.store.inject(Box::new(move |_| Some(fault)));
        let status = server.deliveries.cancel_delivery(request.clone()).await.unwrap_err();
        assert_eq!(reason(&status), (told.0, told.1.into()), "{fault:?}");
        stored += usize::from(is_stored);
        assert_eq!(commands(&server).await, stored, "{fault:?}");
    }
}
