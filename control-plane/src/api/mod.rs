//! The gRPC face: one file per service, all input checked before anything is done.
//!
//! A call goes through `server` (limits, deadline, no status that says nothing), then its service: names and fields are read by the pure rules, all
//! mistakes are gathered in one `status::Violations`, the change is made by `catalog::edit`, and the answer is made by `convert`, which has no way
//! for a secret.

mod account_rules;
mod account_service;
mod auth_rules;
mod auth_secrets;
mod batching_rules;
pub(crate) mod calls;
mod certificate_rules;
mod cluster_service;
mod convert;
mod deliveries;
mod event_type_rules;
mod event_type_service;
mod header_rules;
pub(crate) mod health;
pub(crate) mod json;
mod listing;
mod mask;
pub(crate) mod names;
mod never_retry_rules;
mod order_rules;
pub(crate) mod page;
pub(crate) mod publish_service;
pub(crate) mod server;
mod signing_secret;
pub(crate) mod status;
mod test_webhook;
mod text_rules;
mod transcript;
pub(crate) mod url_rules;
mod webhook_fields;
mod webhook_rules;
mod webhook_service;
pub(crate) mod webhook_watch;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use postrider_common::entropy::SharedEntropy;
use postrider_common::id::{ControlPlaneId, InvalidId};
use postrider_common::key::Key;
use postrider_common::secret::Keyring;
use postrider_common::store::{Revision, SharedStore};
use postrider_common::time::SharedClock;
use postrider_proto::v1::account_service_server::AccountServiceServer;
use postrider_proto::v1::cluster_service_server::ClusterServiceServer;
use postrider_proto::v1::delivery_service_server::DeliveryServiceServer;
use postrider_proto::v1::event_type_service_server::EventTypeServiceServer;
use postrider_proto::v1::webhook_service_server::WebhookServiceServer;
use sha2::{Digest as _, Sha256};
use status::Error;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use url_rules::UrlCheck;

use crate::catalog::edit::Edit;
use crate::cell::Cell;
use crate::testing::Tests;

/// Most bytes of one request message: 1,000 events with 1 MiB of bodies and their other fields fit four times.
pub(crate) const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// How long an answer waits for this replica's own catalog to show the change. The change is durable by then: an answer that is late helps nobody.
const CATCH_UP_FOR: Duration = Duration::from_secs(2);

/// Waits until this replica's catalog shows everything up to a revision.
pub(crate) type CatchUp = Arc<dyn Fn(Revision) -> BoxFuture<'static, ()> + Send + Sync>;

/// What the services need.
#[derive(Clone)]
pub(crate) struct Deps {
    /// The store.
    pub(crate) store: SharedStore,
    /// The wall time.
    pub(crate) clock: SharedClock,
    /// Chance.
    pub(crate) entropy: SharedEntropy,
    /// Seals and opens secrets.
    pub(crate) keyring: Arc<Keyring>,
    /// Changes the catalog.
    pub(crate) edit: Arc<Edit>,
    /// Seals page tokens: [`page::PageKey::of_cell`].
    pub(crate) page_key: page::PageKey,
    /// The cell's facts.
    pub(crate) cell: Cell,
    /// This replica.
    pub(crate) control_plane: ControlPlaneId,
    /// Tests webhooks.
    pub(crate) tests: Tests,
    /// Judges listener URLs.
    pub(crate) urls: UrlCheck,
    /// Streams of webhooks.
    pub(crate) watches: webhook_watch::Watches,
    /// Waits for this replica's webhooks.
    pub(crate) catch_up: CatchUp,
    /// Waits for this replica's event types.
    pub(crate) types_catch_up: CatchUp,
    /// Waits for this replica's accounts.
    pub(crate) accounts_catch_up: CatchUp,
    /// Cancelled when the server stops: calls that do not end by themselves end then.
    pub(crate) stop: CancellationToken,
}

impl Deps {
    /// Waits until what was written to a webhook matches here.
    async fn caught_up(&self, revision: Revision) {
        wait_for(&self.catch_up, revision).await;
    }

    /// Waits until what was written to an event type counts here.
    async fn types_caught_up(&self, revision: Revision) {
        wait_for(&self.types_catch_up, revision).await;
    }

    /// Waits until what was written to an account counts here.
    async fn accounts_caught_up(&self, revision: Revision) {
        wait_for(&self.accounts_catch_up, revision).await;
    }
}

async fn wait_for(catch_up: &CatchUp, revision: Revision) {
    if revision > Revision::default() && tokio::time::timeout(CATCH_UP_FOR, catch_up(revision)).await.is_err() {
        tracing::warn!(%revision, "the catalog did not catch up in time");
    }
}

/// The gRPC services, and the switch of the health service.
pub(crate) struct Api {
    /// All services but PublishService, which the caller adds with [`Routes::add_service`].
    pub(crate) routes: Routes,
    /// Says whether this replica serves. It says SERVING from the start: tell it otherwise when the server stops.
    pub(crate) health: HealthReporter,
}

/// Sets on one of our services what all of them have in common.
macro_rules! limited {
    ($server:ident, $service:expr) => {
        $server::new($service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd)
    };
}
#[allow(unused_imports)] // PublishService, which the server adds, is to have the same limits.
pub(crate) use limited;

/// All services of the API but PublishService, gRPC reflection (v1 and v1alpha) and health.
///
/// # Errors
/// If the descriptors of the API cannot be read, which a test rules out.
pub(crate) async fn routes(deps: Deps) -> Result<Api, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(postrider_proto::API_DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", ServingStatus::Serving).await;
    let webhooks = webhook_service::Webhooks(deps.clone());
    let event_types = event_type_service::EventTypes(deps.clone());
    let accounts = account_service::Accounts(deps.clone());
    let deliveries = deliveries::Deliveries::new(deps.clone());
    let cluster = cluster_service::Cluster(deps);
    let routes = Routes::default()
        .add_service(limited!(WebhookServiceServer, webhooks))
        .add_service(limited!(EventTypeServiceServer, event_types))
        .add_service(limited!(AccountServiceServer, accounts))
        .add_service(limited!(DeliveryServiceServer, deliveries))
        .add_service(limited!(ClusterServiceServer, cluster))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(health_service);
    Ok(Api { routes, health })
}

/// SHA-256 of a request's content. The caller clears what is not content.
pub(crate) fn fingerprint(content: &impl prost::Message) -> [u8; 32] {
    Sha256::digest(content.encode_to_vec()).into()
}

/// The id that ends a key of the store.
fn last_part<T>(key: &Key, parse: impl Fn(&str) -> Result<T, InvalidId>) -> Result<T, Error> {
    let last = key.as_str().rsplit('/').next().unwrap_or_default();
    parse(last).map_err(|_| stray(key))
}

fn stray(key: &Key) -> Error {
    Error::Bug(format!("the store holds the stray key {key}"))
}

#[cfg(test)]
mod tests;
