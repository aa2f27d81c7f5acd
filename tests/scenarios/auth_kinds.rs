//! Every kind of authentication reaches a real receiver, which verifies it by other code than ours.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};
use http_body_util::{BodyExt as _, Full};
use postrider_common::task::Group;
use postrider_proto::v1::auth::Method;
use postrider_proto::v1::signature_auth::Algorithm;
use postrider_proto::v1::{
    ApiKeyAuth, BearerAuth, ExportSigningSecretRequest, MtlsAuth, OAuth2Auth, RotateSigningSecretRequest, SignatureAuth,
};
use postrider_tests::client::{Client, event, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Answer, Received, Receiver};
use postrider_tests::tls::Authority;
use postrider_tests::wait;
use tokio::net::TcpListener;

use crate::{ACCOUNT, SOON};

/// The text at a path of the document that a receiver's author downloads; numbers in the path count list members.
pub(crate) async fn exported(client: &Client, name: &str, path: &[&str]) -> String {
    use prost_types::value::Kind;
    let request = ExportSigningSecretRequest { name: name.to_owned() };
    let answer = client.webhooks().export_signing_secret(request).await.unwrap();
    let document = answer.into_inner().document.unwrap();
    let mut kind = Kind::StructValue(document);
    for step in path {
        let value = match kind {
            Kind::StructValue(fields) => fields.fields[*step].clone(),
            Kind::ListValue(list) => list.values[step.parse::<usize>().unwrap()].clone(),
            other => panic!("{other:?} has no {step}"),
        };
        kind = value.kind.unwrap();
    }
    match kind {
        Kind::StringValue(text) => text,
        Kind::NumberValue(number) => number.to_string(),
        other => panic!("{other:?} is no text"),
    }
}

/// Whether one of the signatures is this public key's.
pub(crate) fn fits_ed25519(public: &str, id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
    let public = STANDARD.decode(public.strip_prefix("whpk_").unwrap()).unwrap();
    let public = VerifyingKey::from_bytes(&public.try_into().unwrap()).unwrap();
    let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    signatures.split(' ').any(|one| {
        let signature = STANDARD.decode(one.strip_prefix("v1a,").unwrap()).unwrap();
        let signature = Signature::from_slice(&signature).unwrap();
        public.verify_strict(&signed, &signature).is_ok() && public.verify(&signed, &signature).is_ok()
    })
}

/// The request of this event at this path, once it has come.
async fn arrival(receiver: &Receiver, path: &str, event: &str) -> Received {
    let named = format!("\"eventId\":\"{event}\"");
    let of_event = |request: &&Received| String::from_utf8_lossy(&request.body).contains(&named);
    receiver
        .until(event, SOON, |log| {
            log.of(path).into_iter().any(|request| of_event(&request))
        })
        .await;
    receiver.log().of(path).into_iter().find(of_event).unwrap().clone()
}

#[tokio::test]
async fn ed25519_signatures_verify_with_the_exported_public_key_alone() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let method = Method::Signature(SignatureAuth {
        algorithm: Algorithm::Ed25519.into(),
        ..SignatureAuth::default()
    });
    let wanted = webhook(&receiver.url("/ed25519"), &["*"], Some(method));
    let name = client.create_webhook(ACCOUNT, "ed25519", wanted).await.name;
    let public = exported(&client, &name, &["secrets", "0", "publicKey"]).await;
    client.publish(ACCOUNT, vec![event("first", "A", "{\"a\":1.0}")]).await;
    let request = arrival(&receiver, "/ed25519", "first").await;
    let fits = |public: &str, request: &Received| {
        fits_ed25519(
            public,
            request.header("webhook-id"),
            request.header("webhook-timestamp"),
            &request.body,
            request.header("webhook-signature"),
        )
    };
    assert!(fits(&public, &request));

    let mut example = Vec::new();
    for part in ["id", "timestamp", "body", "signature"] {
        example.push(exported(&client, &name, &["example", part]).await);
    }
    assert!(fits_ed25519(
        &public,
        &example[0],
        &example[1],
        example[2].as_bytes(),
        &example[3]
    ));

    // While two keys sign, both fit.
    let rotate = RotateSigningSecretRequest {
        name: name.clone(),
        ..RotateSigningSecretRequest::default()
    };
    client.webhooks().rotate_signing_secret(rotate).await.unwrap();
    let newest = exported(&client, &name, &["secrets", "0", "publicKey"]).await;
    assert_ne!(newest, public);
    client.publish(ACCOUNT, vec![event("second", "A", "{}")]).await;
    let request = arrival(&receiver, "/ed25519", "second").await;
    assert!(fits(&public, &request) && fits(&newest, &request));
}

#[tokio::test]
async fn a_receiver_written_for_another_sender_finds_its_own_header_names() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let method = Method::Signature(SignatureAuth {
        id_header: "svix-id".to_owned(),
        timestamp_header: "svix-timestamp".to_owned(),
        signature_header: "svix-signature".to_owned(),
        ..SignatureAuth::default()
    });
    let wanted = webhook(&receiver.url("/svix"), &["*"], Some(method));
    let name = client.create_webhook(ACCOUNT, "svix", wanted).await.name;
    client.publish(ACCOUNT, vec![event("e1", "A", "{}")]).await;
    let request = arrival(&receiver, "/svix", "e1").await;
    assert_eq!(request.header("svix-id"), "e1");
    for absent in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        assert!(!request.headers.contains_key(absent), "{absent}");
    }
    // The reference library, given the headers under the names it knows.
    let mut headers = http::HeaderMap::new();
    for (field, standard) in [
        ("id", "webhook-id"),
        ("timestamp", "webhook-timestamp"),
        ("signature", "webhook-signature"),
    ] {
        let ours = exported(&client, &name, &["headers", field]).await;
        headers.insert(standard, request.header(&ours).parse().unwrap());
    }
    let secret = client.signing_secret(&name).await;
    let verifier = standardwebhooks::Webhook::new(&secret).unwrap();
    verifier.verify(&request.body, &headers).unwrap();
}

/// Asserts that no secret stands in the store or in what the programs printed.
async fn assert_secret(cluster: &Cluster, canary: &str) {
    let (_, entries) = cluster.etcd.client(0).everything(false).await.unwrap();
    for entry in entries {
        let clear = String::from_utf8_lossy(&entry.value).contains(canary);
        assert!(!clear, "in clear under {}", String::from_utf8_lossy(&entry.key));
    }
    assert!(!cluster.output().contains(canary), "a secret stands in a log");
}

#[tokio::test]
async fn a_bearer_token_and_an_api_key_arrive_and_stay_secret() {
    const CANARY: &str = "canary-2c7e";
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let bearer = Method::Bearer(BearerAuth {
        token: CANARY.to_owned(),
    });
    let key = Method::ApiKey(ApiKeyAuth {
        header: "X-Api-Key".to_owned(),
        value: CANARY.to_owned(),
    });
    for (id, method) in [("bearer", bearer), ("key", key)] {
        let wanted = webhook(&receiver.url(&format!("/{id}")), &["*"], Some(method));
        let created = client.create_webhook(ACCOUNT, id, wanted).await;
        assert!(!format!("{created:?}").contains(CANARY));
    }
    client.publish(ACCOUNT, vec![event("e1", "A", "{}")]).await;
    let request = arrival(&receiver, "/bearer", "e1").await;
    assert_eq!(request.header("authorization"), format!("Bearer {CANARY}"));
    let request = arrival(&receiver, "/key", "e1").await;
    assert_eq!(
        (request.header("x-api-key"), request.header("authorization")),
        (CANARY, "")
    );
    assert_secret(&cluster, CANARY).await;
}

/// A token endpoint: token number n is `token-n`. What it was asked is in the list, as the `authorization` and the body.
pub(crate) fn token_endpoint(group: &Group, listener: TcpListener) -> Arc<Mutex<Vec<(String, String)>>> {
    let asked: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let log = Arc::clone(&asked);
    postrider_tests::http::serve(group, listener, move |request| {
        let log = Arc::clone(&log);
        async move {
            let (head, body) = request.into_parts();
            let authorization = head.headers[http::header::AUTHORIZATION].to_str().unwrap().to_owned();
            let body = body.collect().await.unwrap().to_bytes();
            let mut log = log.lock().unwrap();
            let grant = serde_json::json!({
                "access_token": format!("token-{}", log.len()), "token_type": "Bearer", "expires_in": 3600,
            });
            log.push((authorization, String::from_utf8(body.to_vec()).unwrap()));
            http::Response::new(Full::new(grant.to_string().into()))
        }
    });
    asked
}

#[tokio::test]
async fn an_access_token_is_got_once_and_again_when_the_receiver_refuses_it() {
    const CANARY: &str = "canary-91d0";
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    let group = Group::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token_url = format!("http://{}/token", listener.local_addr().unwrap());
    let asked = token_endpoint(&group, listener);
    let method = Method::Oauth2(OAuth2Auth {
        token_url,
        client_id: "ada".to_owned(),
        client_secret: CANARY.to_owned(),
        scopes: vec!["hooks".to_owned()],
        ..OAuth2Auth::default()
    });
    let wanted = webhook(&receiver.url("/oauth2"), &["*"], Some(method));
    client.create_webhook(ACCOUNT, "oauth2", wanted).await;
    let events = (0..30).map(|number| event(&format!("e{number}"), "A", "{}")).collect();
    client.publish(ACCOUNT, events).await;
    receiver.until("30 events", SOON, |log| log.distinct() == 30).await;
    assert_eq!(asked.lock().unwrap().len(), 1, "30 requests share one token");
    for request in receiver.log().requests() {
        assert_eq!(request.header("authorization"), "Bearer token-0");
    }

    let refusal = Answer::status(http::StatusCode::UNAUTHORIZED);
    receiver.script("/oauth2", [refusal, Answer::status(http::StatusCode::OK)]);
    client.publish(ACCOUNT, vec![event("refused", "A", "{}")]).await;
    receiver
        .until("the refused event", SOON, |log| log.has("/oauth2", "refused"))
        .await;
    let last = receiver
        .log()
        .requests()
        .last()
        .unwrap()
        .header("authorization")
        .to_owned();
    assert_eq!(last, "Bearer token-1");
    let basic = format!("Basic {}", STANDARD.encode(format!("ada:{CANARY}")));
    let form = "grant_type=client_credentials&scope=hooks".to_owned();
    assert_eq!(*asked.lock().unwrap(), vec![(basic, form); 2]);
    assert_secret(&cluster, CANARY).await;
    assert!(!cluster.output().contains("token-0"));
}

#[tokio::test]
async fn a_receiver_that_demands_a_client_certificate_gets_each_webhooks_own() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("authority.pem");
    std::fs::write(&roots, authority.pem()).unwrap();
    let cluster = Cluster::with(1, 1, 1, &["--extra-roots", roots.to_str().unwrap()]).await;
    let client = cluster.client(0);
    let group = Group::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let shown = authority.demand(&group, listener);
    let identities = ["first", "second"].map(|name| (name, authority.certify(name)));
    for (id, identity) in &identities {
        let method = Method::Mtls(MtlsAuth {
            certificate: identity.certificate.clone(),
            private_key: identity.private_key.clone(),
        });
        let wanted = webhook(&url, &[&id.to_uppercase()], Some(method));
        let created = client.create_webhook(ACCOUNT, id, wanted).await;
        assert!(!format!("{created:?}").contains("PRIVATE KEY"));
    }
    for (number, (id, identity)) in identities.iter().chain(&identities).enumerate() {
        let of_webhook = event(&format!("e{number}"), &id.to_uppercase(), "{}");
        client.publish(ACCOUNT, vec![of_webhook]).await;
        let last = wait::until("the request", SOON, async || shown.lock().unwrap().get(number).cloned()).await;
        assert_eq!(last, identity.shown, "{id}");
    }
    cluster.drained(SOON).await;
    assert_secret(&cluster, "PRIVATE KEY").await;
    // Nothing else proves anything to this receiver.
    let wanted = webhook(&url, &["THIRD"], None);
    client.create_webhook(ACCOUNT, "third", wanted).await;
    client.publish(ACCOUNT, vec![event("third", "THIRD", "{}")]).await;
    wait::until("the failed delivery to be parked", SOON, async || {
        let parked = cluster.etcd.client(0).keys_with("/parked/").await.ok()?;
        (!parked.is_empty()).then_some(())
    })
    .await;
    assert_eq!(shown.lock().unwrap().len(), 4);
}
