//! Tests of the API through a real server on a real socket, with the generated clients.

mod auth_inputs;
mod auth_secrets;
mod batching;
mod commands;
mod deliveries;
mod inputs;
mod ordering;
mod resources;
mod rotation;
mod signatures;
mod stories;
mod suspension;
mod test_webhook;
mod watching;
mod wire;

use std::num::NonZeroU16;
use std::sync::Mutex;

use postrider_common::entropy::SystemEntropy;
use postrider_common::id::Uid;
use postrider_common::key::Key;
use postrider_common::store::Store as _;
use postrider_common::store::memory::MemoryStore;
use postrider_common::task::Group;
use postrider_common::time::SystemClock;
use postrider_proto::v1::account_service_client::AccountServiceClient;
use postrider_proto::v1::cluster_service_client::ClusterServiceClient;
use postrider_proto::v1::delivery_service_client::DeliveryServiceClient;
use postrider_proto::v1::event_type_service_client::EventTypeServiceClient;
use postrider_proto::v1::webhook_service_client::WebhookServiceClient;
use postrider_proto::v1::{self, auth};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::calls::Calls;
use super::*;
use crate::catalog::dedupe::DedupeLease;
use crate::testing;

/// A server over a store in memory, and clients of it.
struct Server {
    store: MemoryStore,
    url: String,
    channel: Channel,
    webhooks: WebhookServiceClient<Channel>,
    event_types: EventTypeServiceClient<Channel>,
    accounts: AccountServiceClient<Channel>,
    cluster: ClusterServiceClient<Channel>,
    deliveries: DeliveryServiceClient<Channel>,
    calls: Calls,
    /// Tells calls without an end to end.
    stop: CancellationToken,
    /// The revisions that the catalog was waited for.
    waited: Arc<Mutex<Vec<Revision>>>,
    /// Stops the server when it is dropped.
    _group: Group,
}

/// What the services stand on, over a store in memory. They note in `waited` which revisions the catalog was waited for.
fn deps(store: &MemoryStore, group: &Group, waited: &Arc<Mutex<Vec<Revision>>>) -> Deps {
    let entropy: SharedEntropy = Arc::new(SystemEntropy::seeded(1));
    let waits = Arc::clone(waited);
    let (type_waits, account_waits) = (Arc::clone(waited), Arc::clone(waited));
    let cell = Cell {
        uid: Uid::new("018f4c1e-7c55-7a3e-8b1a-2f4d5e6a7b8c").unwrap(),
        shard_count: NonZeroU16::new(64).unwrap(),
    };
    let shared: SharedStore = Arc::new(store.clone());
    let clock: SharedClock = Arc::new(SystemClock);
    let dedupe = Arc::new(DedupeLease::new(Arc::clone(&shared)));
    let edit = Edit::new(Arc::clone(&shared), Arc::clone(&clock), Arc::clone(&entropy), dedupe);
    let tests = Tests::spawn(
        group,
        testing::Deps {
            store: Arc::clone(&shared),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
        },
    );
    Deps {
        tests,
        store: shared,
        clock,
        keyring: Arc::new(Keyring::parse(&Keyring::generate(&*entropy)).unwrap()),
        entropy,
        edit: Arc::new(edit),
        page_key: page::PageKey::of_cell(&cell.uid),
        cell,
        control_plane: ControlPlaneId::new("cp-1").unwrap(),
        urls: Arc::new(|text| {
            let policy = postrider_common::egress::Policy::default();
            postrider_common::egress::check_url(text, &policy).map(|url| url.as_str().to_owned())
        }),
        watches: webhook_watch::Watches::new(group.clone(), group.token().clone()),
        catch_up: Arc::new(move |revision| {
            waits.lock().unwrap().push(revision);
            Box::pin(std::future::ready(()))
        }),
        accounts_catch_up: Arc::new(move |revision| {
            account_waits.lock().unwrap().push(revision);
            Box::pin(std::future::ready(()))
        }),
        stop: group.token().child_token(),
        types_catch_up: Arc::new(move |revision| {
            type_waits.lock().unwrap().push(revision);
            Box::pin(std::future::ready(()))
        }),
    }
}

async fn serve() -> Server {
    let store = MemoryStore::default();
    let waited: Arc<Mutex<Vec<Revision>>> = Arc::default();
    let group = Group::default();
    let deps = deps(&store, &group, &waited);
    let stop = deps.stop.clone();
    let api = routes(deps).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let calls = Calls::default();
    let counted = calls.clone();
    group.spawn("server", async move {
        server::server_builder(counted)
            .add_routes(api.routes)
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .unwrap();
    });
    let channel = Channel::from_shared(url.clone()).unwrap().connect().await.unwrap();
    Server {
        store,
        webhooks: WebhookServiceClient::new(channel.clone()),
        event_types: EventTypeServiceClient::new(channel.clone()),
        accounts: AccountServiceClient::new(channel.clone()),
        cluster: ClusterServiceClient::new(channel.clone()),
        deliveries: DeliveryServiceClient::new(channel.clone()),
        calls,
        stop,
        url,
        channel,
        waited,
        _group: group,
    }
}

impl Server {
    /// Grows with everything that is stored.
    async fn revision(&self) -> Revision {
        self.store.get(&Key::from_stored("x")).await.unwrap().1
    }

    async fn create(&mut self, id: &str, webhook: v1::Webhook) -> v1::Webhook {
        let request = v1::CreateWebhookRequest {
            webhook_id: id.into(),
            webhook: Some(webhook),
            ..create_request()
        };
        self.webhooks.create_webhook(request).await.unwrap().into_inner()
    }
}

/// A webhook without mistakes.
fn valid() -> v1::Webhook {
    v1::Webhook {
        target_url: "https://example.com/hook".into(),
        event_types: vec!["COURSE_*".into()],
        ..v1::Webhook::default()
    }
}

fn create_request() -> v1::CreateWebhookRequest {
    v1::CreateWebhookRequest {
        parent: "accounts/1010".into(),
        webhook: Some(valid()),
        ..v1::CreateWebhookRequest::default()
    }
}

fn basic(username: &str, password: &str) -> Option<v1::Auth> {
    Some(v1::Auth {
        method: Some(auth::Method::Basic(v1::BasicAuth {
            username: username.into(),
            password: password.into(),
        })),
    })
}

fn with_auth(method: auth::Method) -> v1::Webhook {
    v1::Webhook {
        auth: Some(v1::Auth { method: Some(method) }),
        ..valid()
    }
}

fn signature(secret: &str) -> Option<v1::Auth> {
    Some(v1::Auth {
        method: Some(auth::Method::Signature(v1::SignatureAuth {
            secret: secret.into(),
            ..v1::SignatureAuth::default()
        })),
    })
}

/// Field and reason of every mistake that a status names. Checks that it also names its reason as a whole.
fn mistakes(status: &Status) -> Vec<(String, String)> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "INVALID_REQUEST");
    assert_eq!(details.error_info().unwrap().domain, "postrider");
    let violations = &details.bad_request().unwrap().field_violations;
    let each = violations.iter().map(|violation| {
        let (reason, why) = violation.description.split_once(": ").unwrap();
        assert!(!why.is_empty());
        (violation.field.clone(), reason.to_owned())
    });
    each.collect()
}

/// The stable reason of a status.
fn reason(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    (status.code(), details.error_info().unwrap().reason.clone())
}

fn mask(paths: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask {
        paths: paths.iter().map(ToString::to_string).collect(),
    })
}
