//! TestWebhook on a real cluster: one request, now, by an agent, and the whole transcript of it without a secret.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use postrider_common::task::Group;
use postrider_proto::v1::auth::Method;
use postrider_proto::v1::test_webhook_response::Outcome;
use postrider_proto::v1::webhook::State;
use postrider_proto::v1::webhook_service_client::WebhookServiceClient;
use postrider_proto::v1::{
    ApiKeyAuth, BearerAuth, CreateEventTypeRequest, DeliveryOptions, EventType, GetWebhookRequest, ListWebhooksRequest,
    MtlsAuth, OAuth2Auth, TestWebhookRequest, TestWebhookResponse, TestedHeader, UpdateWebhookRequest, Webhook,
};
use postrider_tests::client::{Client, basic, event, millis, signature, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::process::{Process, program};
use postrider_tests::receiver::{Answer, Received, Receiver};
use postrider_tests::tls::Authority;
use postrider_tests::wait;
use tokio::net::TcpListener;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{ACCOUNT, SOON};

/// A secret that must never be seen.
const CANARY: &str = "canary-5d0f";

fn stored(id: &str) -> TestWebhookRequest {
    TestWebhookRequest {
        name: format!("accounts/{ACCOUNT}/webhooks/{id}"),
        ..TestWebhookRequest::default()
    }
}

fn unsaved(webhook: Webhook) -> TestWebhookRequest {
    TestWebhookRequest {
        parent: format!("accounts/{ACCOUNT}"),
        webhook: Some(webhook),
        ..TestWebhookRequest::default()
    }
}

async fn try_test(client: &Client, request: TestWebhookRequest) -> Result<TestWebhookResponse, Status> {
    client
        .webhooks()
        .test_webhook(request)
        .await
        .map(tonic::Response::into_inner)
}

async fn test(client: &Client, request: TestWebhookRequest) -> TestWebhookResponse {
    try_test(client, request).await.expect("the test is made")
}

fn reason(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    (status.code(), details.error_info().unwrap().reason.clone())
}

fn header<'a>(headers: &'a [TestedHeader], name: &str) -> &'a str {
    let found = headers.iter().find(|header| header.name == name);
    found.map_or("", |header| &header.value)
}

/// The last request that came to a path.
fn last(receiver: &Receiver, path: &str) -> Received {
    (*receiver.log().of(path).last().expect("a request came")).clone()
}

/// Keys of tests in the store.
async fn test_keys(cluster: &Cluster) -> Vec<String> {
    let mut keys = cluster.etcd.client(0).keys_with("/tests/").await.unwrap();
    keys.extend(cluster.etcd.client(0).keys_with("/test-answers/").await.unwrap());
    keys
}

/// Nothing of a test stays in the store, and no secret stands there or in a log.
async fn assert_clean(cluster: &Cluster) {
    assert_eq!(test_keys(cluster).await, [""; 0]);
    let (_, entries) = cluster.etcd.client(0).everything(false).await.unwrap();
    for entry in entries {
        assert!(!String::from_utf8_lossy(&entry.value).contains(CANARY));
    }
    assert!(!cluster.output().contains(CANARY), "a secret stands in a log");
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

#[tokio::test]
async fn a_webhook_that_is_switched_off_can_be_tested() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    for id in ["retired", "gone"] {
        let wanted = webhook(&receiver.url(&format!("/{id}")), &["A"], None);
        client.create_webhook(ACCOUNT, id, wanted).await;
    }
    let retire = UpdateWebhookRequest {
        webhook: Some(Webhook {
            name: stored("retired").name,
            active: Some(false),
            ..Webhook::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["active".to_owned()],
        }),
        ..UpdateWebhookRequest::default()
    };
    client.webhooks().update_webhook(retire).await.unwrap();
    receiver.script(
        "/gone",
        [Answer::status(StatusCode::GONE), Answer::status(StatusCode::OK)],
    );
    client.publish(ACCOUNT, vec![event("e1", "A", "{}")]).await;
    let state = async |id: &str| {
        let request = GetWebhookRequest { name: stored(id).name };
        client.webhooks().get_webhook(request).await.unwrap().into_inner()
    };
    wait::until("the webhook to be suspended", SOON, async || {
        (state("gone").await.state() == State::Suspended).then_some(())
    })
    .await;
    for id in ["retired", "gone"] {
        let before = state(id).await;
        assert_eq!(test(&client, stored(id)).await.outcome(), Outcome::Delivered);
        assert_eq!(state(id).await, before, "a test changes nothing");
    }
    receiver.script("/retired", [Answer::status(StatusCode::GONE)]);
    let before = state("retired").await;
    assert_eq!(test(&client, stored("retired")).await.reason, "GONE");
    assert_eq!(state("retired").await, before);
}

#[tokio::test]
async fn nothing_is_stored_of_a_webhook_that_is_only_tested() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let example = CreateEventTypeRequest {
        event_type_id: "COURSE_STARTED".to_owned(),
        event_type: Some(EventType {
            example: Some(example(&[("course", "Rust")])),
            ..EventType::default()
        }),
        ..CreateEventTypeRequest::default()
    };
    client.event_types().create_event_type(example).await.unwrap();
    let keys = async || cluster.etcd.client(0).keys_with("").await.unwrap();
    let before = keys().await;
    for (patterns, name, data) in [
        (
            vec!["*"],
            "postrider.test",
            serde_json::json!({"message": "This is a test."}),
        ),
        (
            vec!["A*", "UNKNOWN"],
            "UNKNOWN",
            serde_json::json!({"message": "This is a test."}),
        ),
        (
            vec!["COURSE_STARTED", "B"],
            "COURSE_STARTED",
            serde_json::json!({"course": "Rust"}),
        ),
    ] {
        let answer = test(
            &client,
            unsaved(webhook(&receiver.url("/w"), &patterns, basic("ada", CANARY))),
        )
        .await;
        assert_eq!(answer.outcome(), Outcome::Delivered, "{answer:?}");
        let arrived = last(&receiver, "/w");
        let body = &arrived.json()["events"][0];
        assert_eq!((body["eventName"].as_str(), &body["data"]), (Some(name), &data));
        assert!(arrived.header("webhook-id").starts_with("test_"));
        assert_eq!(arrived.header("webhook-attempt"), "1");
        assert!(!body["eventInfo"].as_str().unwrap().is_empty());
    }
    assert_eq!(keys().await, before);
    let all = ListWebhooksRequest {
        parent: format!("accounts/{ACCOUNT}"),
        ..ListWebhooksRequest::default()
    };
    assert_eq!(
        client
            .webhooks()
            .list_webhooks(all)
            .await
            .unwrap()
            .into_inner()
            .webhooks,
        []
    );
    assert_clean(&cluster).await;
}

fn example(fields: &[(&str, &str)]) -> prost_types::Struct {
    let text = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    prost_types::Struct {
        fields: fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), text(value)))
            .collect(),
    }
}

#[tokio::test]
async fn when_the_agent_is_killed_under_a_test_another_one_answers() {
    let mut cluster = Cluster::of(1, 1, 2).await;
    let receiver = Receiver::start();
    let mut wanted = webhook(&receiver.url("/w"), &["A"], None);
    wanted.delivery = Some(DeliveryOptions {
        timeout: Some(millis(50_000)),
        ..DeliveryOptions::default()
    });
    let hangs = Answer::status(StatusCode::OK).after(Duration::from_secs(3600));
    receiver.script("/w", [hangs, Answer::status(StatusCode::OK)]);
    let address = cluster.control_planes[0].address;
    // Without the deadline of the ordinary client: a killed agent is known to be gone only when its lease has run out.
    let mut patient = WebhookServiceClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let testing = patient.test_webhook(unsaved(wanted));
    let killing = async {
        receiver
            .until("the first request", SOON, |log| log.of("/w").len() == 1)
            .await;
        let keys = test_keys(&cluster).await;
        let asked = |agent: &Process| keys.iter().any(|key| key.contains(&format!("/{}/", agent.name())));
        let index = cluster.agents.iter().position(asked).expect("an agent is asked");
        let killed = format!("agents/{}", cluster.agents[index].name());
        cluster.kill_agent(index).await;
        killed
    };
    let (answer, killed) = tokio::join!(testing, killing);
    let answer = answer.unwrap().into_inner();
    assert_eq!(answer.outcome(), Outcome::Delivered, "{answer:?}");
    assert_ne!(answer.agent, killed);
    assert_eq!(receiver.log().of("/w").len(), 2, "made twice, once by each");
    assert_clean(&cluster).await;
}

#[tokio::test]
async fn without_an_agent_the_caller_is_told_so() {
    let mut cluster = Cluster::of(1, 1, 1).await;
    let client = cluster.client(0);
    let receiver = Receiver::start();
    let wanted = webhook(&receiver.url("/w"), &["A"], None);
    client.create_webhook(ACCOUNT, "w", wanted).await;
    cluster.stop_agent(0).await;
    let status = wait::until("the agent to be known to be gone", SOON, async || {
        try_test(&client, stored("w")).await.err()
    })
    .await;
    assert_eq!(reason(&status), (Code::Unavailable, "NO_AGENT".to_owned()));
    assert!(status.get_error_details().retry_info().is_some());
    assert!(receiver.log().requests().is_empty());
    assert_clean(&cluster).await;
}

#[tokio::test]
async fn an_account_cannot_have_more_than_a_few_tests_under_way() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let hangs = Answer::status(StatusCode::OK).after(Duration::from_secs(3600));
    receiver.script("/w", [hangs]);
    let mut wanted = webhook(&receiver.url("/w"), &["A"], None);
    wanted.delivery = Some(DeliveryOptions {
        timeout: Some(millis(2000)),
        ..DeliveryOptions::default()
    });
    client.create_webhook(ACCOUNT, "w", wanted).await;
    let mut tests = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let client = client.clone();
        tests.spawn(async move { try_test(&client, stored("w")).await });
    }
    let all = tests.join_all().await;
    let refused: Vec<_> = all.iter().filter_map(|made| made.as_ref().err()).collect();
    assert_eq!(refused.len(), 2, "{all:?}");
    for status in refused {
        assert_eq!(reason(status), (Code::ResourceExhausted, "TOO_MANY_TESTS".to_owned()));
        assert!(status.get_error_details().quota_failure().is_some());
    }
    assert_eq!(receiver.log().of("/w").len(), 4);
    assert_clean(&cluster).await;
}

#[tokio::test]
async fn one_program_on_an_embedded_store_tests_too() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    let (any, egress) = ("127.0.0.1:0", "127.0.0.0/8");
    let arguments = [
        "serve",
        "--data",
        &data,
        "--listen",
        any,
        "--metrics-listen",
        any,
        "--egress-allow",
        egress,
    ];
    let mut process = Process::start(&program("postrider"), "serve", arguments, folder.path());
    let client = Client::new(process.listening(2).await[0]);
    let receiver = Receiver::start();
    let wanted = webhook(&receiver.url("/w"), &["A"], signature());
    let answer = wait::until("the agent to be there", SOON, async || {
        try_test(&client, unsaved(wanted.clone())).await.ok()
    })
    .await;
    assert_eq!(answer.outcome(), Outcome::Delivered, "{answer:?}");
    client.create_webhook(ACCOUNT, "w", wanted).await;
    assert_eq!(test(&client, stored("w")).await.outcome(), Outcome::Delivered);
    assert_eq!(receiver.log().of("/w").len(), 2);
}
