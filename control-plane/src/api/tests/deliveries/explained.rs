//! Explanations, and following attempts.

use super::*;

#[tokio::test]
async fn explanations_name_the_one_thing_that_it_comes_down_to() {
    let mut filler = Filler::new().await;
    let now = SystemClock.now();
    let later = now + Duration::from_secs(3_600);
    filler.pending(event("first", 10)).await;
    filler.pending(event("second", 11)).await;
    filler
        .parked(event("failed", 20), failed_once(later), ParkedKind::Single)
        .await;
    filler
        .told(&event("failed", 20), 1, Fate::Waiting(later), Some(failed(503)))
        .await;
    filler
        .parked(
            event("due", 20),
            failed_once(Timestamp::from_millis(1)),
            ParkedKind::Single,
        )
        .await;
    let gathers = DeliveryState {
        due: later,
        ..DeliveryState::default()
    };
    filler
        .parked(event("gathers", 30), gathers.clone(), ParkedKind::Gathering(7))
        .await;
    let early = Event {
        not_before_time: Some(later),
        ..event("early", 30)
    };
    filler.parked(early, gathers, ParkedKind::Single).await;
    filler.dead(event("dead", 40), failed_once(now)).await;
    filler
        .told(
            &event("taken", 50),
            2,
            Fate::Delivered,
            Some(Attempt {
                status: Some(200),
                ..Attempt::default()
            }),
        )
        .await;

    let alone = filler.explain("first").await;
    assert_eq!(alone.cause(), Cause::NoOwner);
    assert_eq!(
        (alone.owner_agent.as_str(), alone.shard),
        ("", i32::from(filler.shard.0))
    );
    filler.owned().await;
    for (event, cause, words) in [
        ("first", Cause::InTurn, "about to send"),
        ("second", Cause::InTurn, "about to send"),
        (
            "failed",
            Cause::Retry,
            "attempt 1 failed (STATUS, status 503): it waits for the next one, not before",
        ),
        ("due", Cause::InTurn, "the next one is due"),
        ("gathers", Cause::Batch, "it goes in a batch"),
        ("early", Cause::NotBefore, "not to be sent before"),
        ("dead", Cause::Dead, "it became a dead letter"),
        ("taken", Cause::Delivered, "with 200, at attempt 2"),
        ("nothing", Cause::Unknown, "nothing is known"),
    ] {
        let explained = filler.explain(event).await;
        assert_eq!(explained.cause(), cause, "{event}");
        assert!(explained.summary.contains(words), "{event}: {}", explained.summary);
        assert_eq!(explained.delivery.is_some(), cause != Cause::Unknown);
        assert_eq!(explained.owner_agent, "agent-7");
        assert_eq!(explained.segments_ahead, i32::from(event == "second"));
    }
    let failed = filler.explain("failed").await;
    let last = "attempt 1 at 1970-01-01T00:00:21Z to 127.0.0.1:80 took 12ms and came to STATUS, status 503";
    assert_eq!(failed.details[0], last);
    filler.set_active(false).await;
    let retired = filler.explain("failed").await;
    assert_eq!(
        (retired.cause(), retired.webhook_state()),
        (Cause::WebhookRetired, v1::webhook::State::Retired)
    );
    let unknown = filler.explain("nothing").await;
    assert!(
        unknown.details.iter().any(|detail| detail.contains("when_inactive")),
        "{:?}",
        unknown.details
    );
    assert_eq!(filler.explain("taken").await.cause(), Cause::Delivered);
}

#[tokio::test]
async fn attempts_are_followed_by_whom_they_concern_and_a_stop_ends_it() {
    let mut filler = Filler::new().await;
    let request = |parent: &str| v1::WatchAttemptsRequest {
        parent: parent.to_owned(),
        ..Default::default()
    };
    let client = &mut filler.server.deliveries;
    let mut all = client
        .watch_attempts(request("accounts/1010"))
        .await
        .unwrap()
        .into_inner();
    let mut one = client.watch_attempts(request(PARENT)).await.unwrap().into_inner();
    let failures = v1::WatchAttemptsRequest {
        failures_only: true,
        event_types: vec!["COURSE_*".into()],
        ..request(PARENT)
    };
    let mut failures = client.watch_attempts(failures).await.unwrap().into_inner();
    let mut others = client
        .watch_attempts(request("accounts/2020"))
        .await
        .unwrap()
        .into_inner();
    let mut tokens = Vec::new();
    for stream in [&mut all, &mut one, &mut failures, &mut others] {
        let first = stream.next().await.unwrap().unwrap();
        assert!(first.attempts.is_empty());
        tokens.push(first.resume_token);
    }
    filler
        .told(&event("t", 10), 1, Fate::Delivered, Some(Attempt::default()))
        .await;
    filler
        .told(
            &event("fx", 11),
            1,
            Fate::Waiting(Timestamp::from_millis(1)),
            Some(failed(500)),
        )
        .await;
    filler
        .told(&event("ended", 11), 1, Fate::Dead("AGE".into()), None)
        .await;
    filler
        .told(
            &event("f", 12),
            1,
            Fate::Waiting(Timestamp::from_millis(1)),
            Some(failed(500)),
        )
        .await;
    let seen = async |stream: &mut tonic::Streaming<v1::WatchAttemptsResponse>, count: usize| {
        let mut ids = Vec::new();
        while ids.len() < count {
            let answer = stream.next().await.unwrap().unwrap();
            ids.extend(answer.attempts.into_iter().map(|attempt| attempt.message_id));
        }
        ids
    };
    assert_eq!(seen(&mut all, 3).await, ["t", "fx", "f"]);
    assert_eq!(seen(&mut one, 3).await, ["t", "fx", "f"]);
    assert_eq!(seen(&mut failures, 1).await, ["f"]);
    // From the first token on, all of it again.
    let again = v1::WatchAttemptsRequest {
        resume_token: tokens[0].clone(),
        ..request("accounts/1010")
    };
    let mut again = filler
        .server
        .deliveries
        .watch_attempts(again)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(seen(&mut again, 3).await, ["t", "fx", "f"]);
    let wrong = v1::WatchAttemptsRequest {
        resume_token: tokens[0].clone(),
        ..request(PARENT)
    };
    let status = filler.server.deliveries.watch_attempts(wrong).await.unwrap_err();
    assert_eq!(mistakes(&status), [("resume_token".to_owned(), "MALFORMED".to_owned())]);
    filler.server.stop.cancel();
    for mut stream in [all, one, failures, others, again] {
        let status = loop {
            match stream.next().await.unwrap() {
                Ok(_) => {}
                Err(status) => break status,
            }
        };
        assert_eq!(reason(&status), (Code::Unavailable, "STOPPING".to_owned()));
    }
}

#[tokio::test]
async fn only_so_many_follow_at_once_and_a_place_is_free_when_one_leaves() {
    let mut server = serve().await;
    let request = || v1::WatchAttemptsRequest {
        parent: "accounts/1010".into(),
        ..Default::default()
    };
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = server.deliveries.watch_attempts(request()).await.unwrap().into_inner();
        stream.next().await.unwrap().unwrap();
        streams.push(stream);
    }
    let status = server.deliveries.watch_attempts(request()).await.unwrap_err();
    assert_eq!(
        reason(&status),
        (Code::ResourceExhausted, "TOO_MANY_WATCHES".to_owned())
    );
    assert!(status.get_error_details().retry_info().is_some());
    streams.clear();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while server.deliveries.watch_attempts(request()).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "no place becomes free");
        tokio::task::yield_now().await;
    }
}
