//! What requests look like: proofs of who sent them, forms of the body, and which events a filter lets through.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postrider_common::task::Group;
use postrider_proto::v1::auth::Method;
use postrider_proto::v1::payload_options::Format;
use postrider_proto::v1::signature_auth::Algorithm;
use postrider_proto::v1::{
    ApiKeyAuth, Auth, BasicAuth, BearerAuth, OAuth2Auth, PayloadOptions, RotateSigningSecretRequest, SignatureAuth,
    Webhook,
};
use postrider_tests::client::signature;
use postrider_tests::receiver::Received;
use tokio::net::TcpListener;

use super::{World, ids, path, refusal};
use crate::ACCOUNT;
use crate::auth_kinds::{exported, fits_ed25519, token_endpoint};

/// Webhooks of which every request has the same header, and what that says.
const HEADERS: [(&str, &str, &str); 3] = [
    ("basic", "authorization", "Basic YWRhOmxvdmVsYWNl"),
    ("bearer", "authorization", "Bearer t0ken"),
    ("api-key", "x-api-key", "k3y"),
];

/// Webhooks, the form of their bodies, and the content type of that.
const FORMS: [(&str, Format, &str); 4] = [
    ("envelope", Format::Envelope, "application/json"),
    (
        "structured",
        Format::CloudeventsStructured,
        "application/cloudevents+json; charset=utf-8",
    ),
    ("binary", Format::CloudeventsBinary, "application/json"),
    ("raw", Format::Raw, "application/json"),
];

/// Events of each webhook.
const EVENTS: usize = 3;

/// What the setting up leaves to be looked at.
pub(super) struct Wire {
    /// The secrets that sign while they overlap.
    secrets: [String; 2],
    /// What the token endpoint was asked.
    asked: Arc<Mutex<Vec<(String, String)>>>,
    _endpoint: Group,
}

fn method(id: &str) -> Method {
    match id {
        "basic" => Method::Basic(BasicAuth {
            username: "ada".to_owned(),
            password: "lovelace".to_owned(),
        }),
        "bearer" => Method::Bearer(BearerAuth {
            token: "t0ken".to_owned(),
        }),
        "api-key" => Method::ApiKey(ApiKeyAuth {
            header: "x-api-key".to_owned(),
            value: "k3y".to_owned(),
        }),
        other => panic!("{other} has no such proof"),
    }
}

fn proven(plain: Webhook, method: Option<Method>) -> Webhook {
    Webhook {
        auth: Some(Auth { method }),
        ..plain
    }
}

/// All webhooks that get the same events in the same way.
fn all() -> impl Iterator<Item = &'static str> {
    let headers = HEADERS.iter().map(|(id, ..)| *id);
    let forms = FORMS.iter().map(|(id, ..)| *id);
    headers.chain(forms).chain(["oauth2", "rotated", "ed25519"])
}

pub(super) async fn set_up(world: &World) -> Wire {
    for (id, ..) in HEADERS {
        let webhook = proven(world.plain(id), Some(method(id)));
        world.create(id, webhook, [refusal()]).await;
    }
    for (id, format, _) in FORMS {
        let webhook = Webhook {
            payload: Some(PayloadOptions { format: format.into() }),
            ..world.plain(id)
        };
        world.create(id, webhook, [refusal()]).await;
    }
    let endpoint = Group::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token_url = format!("http://{}/token", listener.local_addr().unwrap());
    let asked = token_endpoint(&endpoint, listener);
    let oauth2 = Method::Oauth2(OAuth2Auth {
        token_url,
        client_id: "ada".to_owned(),
        client_secret: "lovelace".to_owned(),
        ..OAuth2Auth::default()
    });
    world
        .create("oauth2", proven(world.plain("oauth2"), Some(oauth2)), [refusal()])
        .await;
    let ed25519 = Method::Signature(SignatureAuth {
        algorithm: Algorithm::Ed25519.into(),
        ..SignatureAuth::default()
    });
    world
        .create("ed25519", proven(world.plain("ed25519"), Some(ed25519)), [refusal()])
        .await;
    world
        .create("rotated", proven(world.plain("rotated"), signature()), [refusal()])
        .await;
    let name = format!("accounts/{ACCOUNT}/webhooks/rotated");
    let old = world.client.signing_secret(&name).await;
    let rotate = RotateSigningSecretRequest {
        name: name.clone(),
        ..RotateSigningSecretRequest::default()
    };
    world.client.webhooks().rotate_signing_secret(rotate).await.unwrap();
    let new = world.client.signing_secret(&name).await;
    let filtered = Webhook {
        filter: "event.data.n >= 4".to_owned(),
        ..world.plain("filtered")
    };
    // An event of the number 0 does not match.
    world.receiver.script(&path("filtered"), [refusal()]);
    world.client.create_webhook(ACCOUNT, "filtered", filtered).await;
    world.publish("filtered", 0, 8).await;
    world.until_tried("filtered", 4).await;
    for id in all() {
        world.publish(id, 0, EVENTS).await;
    }
    for id in all() {
        world.until_tried(id, EVENTS).await;
    }
    Wire {
        secrets: [old, new],
        asked,
        _endpoint: endpoint,
    }
}

pub(super) async fn look(world: &World, wire: &Wire) {
    for id in all().chain(["filtered"]) {
        world.takes(id);
    }
    for id in all() {
        world.until_taken(id, EVENTS).await;
        let mut came: Vec<String> = world
            .taken(id)
            .iter()
            .map(|one| one.header("webhook-id").to_owned())
            .collect();
        came.sort();
        let wanted: Vec<String> = (0..EVENTS).map(|number| format!("{id}-{number}")).collect();
        assert_eq!(came, wanted);
    }
    for (id, header, value) in HEADERS {
        assert!(world.requests(id).iter().all(|one| one.header(header) == value), "{id}");
    }
    for (id, _, content_type) in FORMS {
        assert_same_bodies(&world.requests(id));
        let taken = world.taken(id);
        assert!(
            taken.iter().all(|one| one.header("content-type") == content_type),
            "{id}"
        );
        let binary = taken.iter().all(|one| one.header("ce-id") == one.header("webhook-id"));
        assert_eq!(binary, id == "binary", "{id}");
    }
    let name = |id: &str| format!("accounts/{ACCOUNT}/webhooks/{id}");
    for secret in &wire.secrets {
        let verifier = standardwebhooks::Webhook::new(secret).unwrap();
        for request in world.taken("rotated") {
            verifier.verify(&request.body, &request.headers).unwrap();
        }
    }
    let public = exported(&world.client, &name("ed25519"), &["secrets", "0", "publicKey"]).await;
    for request in world.taken("ed25519") {
        let [id, timestamp, signature] =
            ["webhook-id", "webhook-timestamp", "webhook-signature"].map(|header| request.header(header));
        assert!(fits_ed25519(&public, id, timestamp, &request.body, signature));
    }
    assert_tokens(world, wire);
    world.publish("filtered", 8, 12).await;
    world.until_taken("filtered", 8).await;
    let mut came: Vec<usize> = world
        .taken("filtered")
        .iter()
        .flat_map(ids)
        .map(|id| number(&id))
        .collect();
    came.sort_unstable();
    assert_eq!(came, (4..12).collect::<Vec<_>>());
}

fn number(id: &str) -> usize {
    id.rsplit('-').next().unwrap().parse().unwrap()
}

/// Each agent has got a token of its own, and sent no other.
fn assert_tokens(world: &World, wire: &Wire) {
    let asked = wire.asked.lock().unwrap();
    assert_eq!(asked.len(), 2, "one agent before, and one after");
    let proof = format!("Basic {}", STANDARD.encode("ada:lovelace"));
    assert!(asked.iter().all(|(authorization, _)| *authorization == proof));
    let token = |request: &Received| request.header("authorization").to_owned();
    assert!(world.taken("oauth2").iter().all(|one| token(one) == "Bearer token-1"));
    let mut before = world.requests("oauth2");
    before.retain(|request| request.arrived <= world.killed);
    assert!(before.iter().all(|one| token(one) == "Bearer token-0"));
}

/// Every attempt of an event has the same body, whichever agent made it.
fn assert_same_bodies(requests: &[Received]) {
    for request in requests {
        let id = request.header("webhook-id");
        let same = |other: &&Received| other.header("webhook-id") == id;
        assert!(
            requests.iter().filter(same).all(|other| other.body == request.body),
            "{id}"
        );
    }
}
