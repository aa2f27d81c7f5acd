//! Signing secrets change hands without a gap.

use std::time::Duration;

use super::*;

const NAME: &str = "accounts/1010/webhooks/a";
const SECRET: &str = "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnktMDAwMQ==";

fn request(overlap: Option<i64>) -> v1::RotateSigningSecretRequest {
    v1::RotateSigningSecretRequest {
        name: NAME.into(),
        overlap: overlap.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        ..v1::RotateSigningSecretRequest::default()
    }
}

/// Id, secret and seconds from its making to its end of every secret that signs, newest first.
async fn secrets(server: &mut Server) -> Vec<(String, String, Option<f64>)> {
    let request = v1::ExportSigningSecretRequest { name: NAME.into() };
    let answer = server
        .webhooks
        .export_signing_secret(request)
        .await
        .unwrap()
        .into_inner();
    let text = json::to_text(&answer.document.unwrap()).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let moment = |value: &serde_json::Value| value.as_str().map(|text| text.parse::<jiff::Timestamp>().unwrap());
    let each = document["secrets"].as_array().unwrap().iter().map(|one| {
        let made = moment(&one["createTime"]).unwrap();
        let left = moment(&one["expireTime"]).map(|end| end.duration_since(made).as_secs_f64());
        let text = |name: &str| one[name].as_str().unwrap().to_owned();
        (text("id"), text("secret"), left)
    });
    each.collect()
}

fn about(left: Option<f64>, expected: Duration) -> bool {
    left.is_some_and(|left| left >= expected.as_secs_f64() && left < expected.as_secs_f64() + 60.0)
}

#[tokio::test]
async fn the_old_secret_signs_beside_the_new_one_until_the_overlap_ends() {
    let mut server = serve().await;
    let created = server
        .create(
            "a",
            v1::Webhook {
                auth: signature(""),
                ..valid()
            },
        )
        .await;
    let first = secrets(&mut server).await;

    let rotated = server
        .webhooks
        .rotate_signing_secret(request(None))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(rotated.generation, created.generation + 1);
    let two = secrets(&mut server).await;
    assert_eq!((two.len(), &two[1].0, &two[1].1), (2, &first[0].0, &first[0].1));
    assert_ne!(two[0].1, two[1].1);
    assert!(
        two[0].2.is_none() && about(two[1].2, Duration::from_secs(86_400)),
        "{two:?}"
    );
    let Some(auth::Method::Signature(shown)) = rotated.auth.unwrap().method else {
        panic!("not a signature");
    };
    assert_eq!(
        (shown.secret.as_str(), shown.secret_ids),
        ("", vec![two[0].0.clone(), two[1].0.clone()])
    );

    // A longer overlap does not give an older secret a longer life, a shorter one takes of it.
    let own = v1::RotateSigningSecretRequest {
        secret: SECRET.into(),
        ..request(Some(7 * 86_400))
    };
    assert!(!format!("{own:?}").contains("Y2FuYXJ5"));
    server.webhooks.rotate_signing_secret(own).await.unwrap();
    let three = secrets(&mut server).await;
    assert_eq!(three[0].1, SECRET);
    assert!(about(three[1].2, Duration::from_secs(7 * 86_400)), "{three:?}");
    assert_eq!(three[2], two[1]);
    server
        .webhooks
        .rotate_signing_secret(request(Some(3600)))
        .await
        .unwrap();
    let four = secrets(&mut server).await;
    assert!(
        four[1..].iter().all(|one| about(one.2, Duration::from_secs(3600))),
        "{four:?}"
    );

    // Without an overlap the old ones are gone at once.
    server.webhooks.rotate_signing_secret(request(Some(0))).await.unwrap();
    let one = secrets(&mut server).await;
    assert_eq!((one.len(), one[0].2), (1, None));
    assert!(four.iter().all(|old| old.1 != one[0].1));
}

#[tokio::test]
async fn what_cannot_be_rotated_is_refused_and_nothing_changes() {
    let mut server = serve().await;
    server.create("a", valid()).await;
    let status = server.webhooks.rotate_signing_secret(request(None)).await.unwrap_err();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "NO_SIGNATURE".into()));
    let away = v1::RotateSigningSecretRequest {
        name: "accounts/1010/webhooks/b".into(),
        ..request(None)
    };
    assert_eq!(
        server.webhooks.rotate_signing_secret(away).await.unwrap_err().code(),
        Code::NotFound
    );

    server
        .create(
            "b",
            v1::Webhook {
                auth: signature(""),
                ..valid()
            },
        )
        .await;
    let of_b = |overlap| v1::RotateSigningSecretRequest {
        name: "accounts/1010/webhooks/b".into(),
        ..request(overlap)
    };
    let revision = server.revision().await;
    let bad = v1::RotateSigningSecretRequest {
        name: "accounts/1010/webhooks/B!".into(),
        secret: "whsec_canary".into(),
        etag: "x".into(),
        ..request(Some(7 * 86_400 + 1))
    };
    let status = server.webhooks.rotate_signing_secret(bad).await.unwrap_err();
    let fields: Vec<String> = mistakes(&status).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["name", "etag", "overlap", "secret"]);
    assert!(!format!("{status:?}").contains("canary"));
    for overlap in [-1, i64::MAX] {
        let status = server
            .webhooks
            .rotate_signing_secret(of_b(Some(overlap)))
            .await
            .unwrap_err();
        assert_eq!(mistakes(&status), [("overlap".to_owned(), "OUT_OF_RANGE".to_owned())]);
    }
    let dry = v1::RotateSigningSecretRequest {
        validate_only: true,
        ..of_b(None)
    };
    server.webhooks.rotate_signing_secret(dry).await.unwrap();
    assert_eq!(server.revision().await, revision);

    let etag = server
        .webhooks
        .rotate_signing_secret(of_b(None))
        .await
        .unwrap()
        .into_inner()
        .etag;
    for _ in 0..3 {
        server.webhooks.rotate_signing_secret(of_b(None)).await.unwrap();
    }
    let status = server.webhooks.rotate_signing_secret(of_b(None)).await.unwrap_err();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "TOO_MANY_SECRETS".into()));
    let stale = v1::RotateSigningSecretRequest { etag, ..of_b(Some(0)) };
    assert_eq!(
        server.webhooks.rotate_signing_secret(stale).await.unwrap_err().code(),
        Code::Aborted
    );
    server.webhooks.rotate_signing_secret(of_b(Some(0))).await.unwrap();
}
