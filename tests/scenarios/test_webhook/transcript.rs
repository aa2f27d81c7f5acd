//! What a transcript says: each kind of authentication, TLS, failures.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use postrider_common::task::Group;
use postrider_proto::v1::auth::Method;
use postrider_proto::v1::test_webhook_response::Outcome;
use postrider_proto::v1::{
    ApiKeyAuth, BearerAuth, DeliveryOptions, MtlsAuth, OAuth2Auth, TestWebhookRequest, TestedHeader,
};
use postrider_tests::client::{basic, event, millis, signature, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Receiver};
use postrider_tests::tls::Authority;
use tokio::net::TcpListener;

use super::{CANARY, assert_clean, last, stored, test, unsaved};
use crate::{ACCOUNT, SOON};

fn header<'a>(headers: &'a [TestedHeader], name: &str) -> &'a str {
    let found = headers.iter().find(|header| header.name == name);
    found.map_or("", |header| &header.value)
}

#[tokio::test]
async fn each_kind_of_authentication_is_tested_and_no_secret_is_shown() {
    let cluster = Cluster::of(1, 1, 2).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let group = Group::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token_url = format!("http://{}/token", listener.local_addr().unwrap());
    postrider_tests::http::serve(&group, listener, |_| async {
        let grant = serde_json::json!({"access_token": format!("{CANARY}-token"), "expires_in": 3600});
        http::Response::new(http_body_util::Full::new(grant.to_string().into()))
    });
    let pair = STANDARD.encode(format!("ada:{CANARY}"));
    let bearer = Method::Bearer(BearerAuth {
        token: CANARY.to_owned(),
    });
    let key = Method::ApiKey(ApiKeyAuth {
        header: "X-Api-Key".to_owned(),
        value: CANARY.to_owned(),
    });
    let oauth2 = Method::Oauth2(OAuth2Auth {
        token_url,
        client_id: "ada".to_owned(),
        client_secret: CANARY.to_owned(),
        ..OAuth2Auth::default()
    });
    let kinds = [
        ("basic", basic("ada", CANARY), "authorization", format!("Basic {pair}")),
        ("bearer", Some(bearer), "authorization", format!("Bearer {CANARY}")),
        ("key", Some(key), "x-api-key", CANARY.to_owned()),
        (
            "oauth2",
            Some(oauth2),
            "authorization",
            format!("Bearer {CANARY}-token"),
        ),
    ];
    for (id, method, name, value) in kinds {
        let path = format!("/{id}");
        let repeats = Answer::status(StatusCode::OK)
            .with("x-echo", &value)
            .saying(&format!("you sent {value}, {CANARY} and {pair}"));
        receiver.script(&path, [repeats]);
        let wanted = webhook(&receiver.url(&path), &["A"], method);
        client.create_webhook(ACCOUNT, id, wanted.clone()).await;
        for request in [stored(id), unsaved(wanted)] {
            let answer = test(&client, request).await;
            assert_eq!(answer.outcome(), Outcome::Delivered, "{answer:?}");
            assert_eq!(last(&receiver, &path).header(name), value, "what arrives");
            let sent = answer.request.clone().unwrap();
            assert_eq!(header(&sent.headers, name), "[redacted]");
            let text = format!("{answer:?}");
            assert!(!text.contains(CANARY), "{text}");
            assert!(id != "basic" || !text.contains(&pair), "{text}");
            assert!(answer.answer.unwrap().body.starts_with("you sent "));
            assert_eq!(answer.token.contains("granted a token"), id == "oauth2");
        }
    }
    assert_clean(&cluster).await;
}

#[tokio::test]
async fn a_signature_is_shown_with_the_text_that_was_signed() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let wanted = webhook(&receiver.url("/signed"), &["A"], signature());
    let name = client.create_webhook(ACCOUNT, "signed", wanted).await.name;
    let secret = client.signing_secret(&name).await;
    receiver.script("/signed", [Answer::status(StatusCode::OK).saying(&secret)]);
    let request = TestWebhookRequest {
        event: Some(event("mine", "B", "{\"a\": 1.0}")),
        ..stored("signed")
    };
    let answer = test(&client, request).await;
    let sent = answer.request.unwrap();
    let arrived = last(&receiver, "/signed");
    assert_eq!(sent.body.as_bytes(), arrived.body);
    assert!(sent.body.contains("{\"a\": 1.0}"), "byte for byte");
    let mut headers = http::HeaderMap::new();
    for TestedHeader { name, value } in &sent.headers {
        let name: http::HeaderName = name.parse().unwrap();
        assert_eq!(arrived.header(name.as_str()), value, "{name}");
        headers.insert(name, value.parse().unwrap());
    }
    let verifier = standardwebhooks::Webhook::new(&secret).unwrap();
    verifier.verify(sent.body.as_bytes(), &headers).unwrap();
    let timestamp = arrived.header("webhook-timestamp");
    assert_eq!(sent.signed_content, format!("mine.{timestamp}.{}", sent.body));
    assert_eq!(sent.secret_ids.len(), 1);
    let said = answer.answer.unwrap().body;
    assert_eq!(said, "whsec_[redacted]", "a secret that the receiver repeats");
    assert_clean(&cluster).await;
}

#[tokio::test]
async fn tls_is_looked_at_whether_it_is_accepted_or_not() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("authority.pem");
    std::fs::write(&roots, authority.pem()).unwrap();
    let cluster = Cluster::with(1, 1, 1, &["--extra-roots", roots.to_str().unwrap()]).await;
    let client = cluster.client(0);
    let group = Group::default();
    let identity = authority.certify("me");
    let mtls = Method::Mtls(MtlsAuth {
        certificate: identity.certificate.clone(),
        private_key: identity.private_key.clone(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let shown = authority.demand(&group, listener);
    for _ in 0..2 {
        let answer = test(&client, unsaved(webhook(&url, &["A"], Some(mtls.clone())))).await;
        assert_eq!(answer.outcome(), Outcome::Delivered, "{answer:?}");
        let tls = answer.connection.unwrap().tls.unwrap();
        assert_eq!(tls.version, "TLSv1.3", "a whole handshake each time");
        assert!(tls.cipher_suite.starts_with("TLS13_"), "{tls:?}");
        assert!(tls.client_certificate_requested && tls.verification_error.is_empty());
        let certificate = tls.certificate.unwrap();
        assert_eq!(certificate.names, ["127.0.0.1"]);
        assert!(!certificate.issuer.is_empty() && certificate.not_before.is_some() && certificate.not_after.is_some());
        let timing = answer.timing.unwrap();
        assert!(
            timing.connect.is_some() && timing.tls.is_some() && timing.first_byte.is_some() && timing.resolve.is_none()
        );
    }
    assert_eq!(*shown.lock().unwrap(), [identity.shown.clone(), identity.shown]);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let shown = stranger.demand(&group, listener);
    let answer = test(&client, unsaved(webhook(&url, &["A"], Some(mtls)))).await;
    assert_eq!((answer.outcome(), answer.reason.as_str()), (Outcome::Failed, "TLS"));
    let tls = answer.connection.unwrap().tls.unwrap();
    assert!(tls.verification_error.contains("invalid peer certificate"), "{tls:?}");
    assert_eq!(answer.detail, tls.verification_error);
    assert_eq!(
        tls.certificate.unwrap().names,
        ["127.0.0.1"],
        "also of one that is not accepted"
    );
    assert!(tls.version.is_empty() && answer.answer.is_none());
    assert!(shown.lock().unwrap().is_empty(), "nothing was sent");
    assert_clean(&cluster).await;
}

#[tokio::test]
async fn how_a_receiver_fails_is_told_and_counts_for_nothing() {
    let cluster = Cluster::of(1, 1, 1).await;
    let mut receiver = Receiver::start();
    let client = cluster.client(0);
    let mut wanted = webhook(&receiver.url("/w"), &["A"], None);
    wanted.delivery = Some(DeliveryOptions {
        timeout: Some(millis(1000)),
        ..DeliveryOptions::default()
    });
    client.create_webhook(ACCOUNT, "w", wanted).await;

    let long = "x".repeat(200_000);
    receiver.script("/w", [Answer::status(StatusCode::IM_A_TEAPOT).saying(&long)]);
    let answer = test(&client, stored("w")).await;
    assert_eq!((answer.outcome(), answer.reason.as_str()), (Outcome::Failed, "STATUS"));
    assert!(answer.agent.starts_with("agents/agent-"));
    let said = answer.answer.unwrap();
    assert_eq!((said.status_code, said.http_version.as_str()), (418, "HTTP/1.1"));
    assert_eq!((said.body.len(), said.body_truncated), (64 * 1024, true));
    let connection = answer.connection.unwrap();
    assert_eq!(connection.resolved_addresses, ["127.0.0.1"]);
    assert_eq!(connection.address, receiver.address().to_string());

    receiver.script("/w", [Answer::status(StatusCode::OK).after(Duration::from_secs(3600))]);
    let answer = test(&client, stored("w")).await;
    assert_eq!((answer.outcome(), answer.reason.as_str()), (Outcome::Failed, "TIMEOUT"));
    assert!(answer.detail.contains("the request was sent"), "{}", answer.detail);
    let timing = answer.timing.unwrap();
    assert!(timing.total.unwrap().seconds >= 1 && timing.first_byte.is_some());

    receiver.script("/w", [Answer::status(StatusCode::OK)]);
    receiver.down().await;
    for _ in 0..6 {
        let answer = test(&client, stored("w")).await;
        assert_eq!((answer.outcome(), answer.reason.as_str()), (Outcome::Failed, "CONNECT"));
        assert!(answer.request.is_some() && answer.answer.is_none() && !answer.detail.is_empty());
    }
    // Six failures in a row of deliveries would hold the next one back for half a second at least, and each would be tried again.
    receiver.up();
    let tried = receiver.log().requests().len();
    client.publish(ACCOUNT, vec![event("e1", "A", "{}")]).await;
    receiver.until("the delivery", SOON, |log| log.has("/w", "e1")).await;
    assert_eq!(receiver.log().requests().len(), tried + 1);
    assert_clean(&cluster).await;
}

#[tokio::test]
async fn an_address_that_the_agent_may_not_dial_is_not_dialled() {
    let mut cluster = Cluster::of(1, 1, 1).await;
    // This control plane takes it; the agent does not.
    cluster.add_control_plane_with(&["--egress-allow", "10.0.0.0/8"]).await;
    let client = cluster.client(1);
    let wanted = webhook("http://10.1.2.3/hook", &["A"], None);
    client.create_webhook(ACCOUNT, "w", wanted).await;
    let answer = test(&client, stored("w")).await;
    assert_eq!(
        (answer.outcome(), answer.reason.as_str()),
        (Outcome::Failed, "BLOCKED_ADDRESS")
    );
    let connection = answer.connection.unwrap();
    assert_eq!(
        (connection.address.as_str(), connection.resolved_addresses.len()),
        ("", 0)
    );
    let timing = answer.timing.unwrap();
    assert!(timing.connect.is_none() && timing.first_byte.is_none());
}
