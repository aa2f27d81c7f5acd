//! DeliveryService: tells what becomes of deliveries. Each method has a file of its own.

mod attempts;
mod control;
mod dead_letters;
mod explain;
mod get;
mod list;
mod messages;
mod rules;
mod watch;

use std::sync::Arc;

use futures_util::stream::BoxStream;
use postrider_common::id::{AccountId, EventId, WebhookId};
use postrider_common::model::webhook::Webhook;
use postrider_common::store::Revision;
use postrider_proto::v1;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use v1::delivery_service_server::DeliveryService;

use super::Deps;
use super::page::{Position, Scope};
use super::status::{Error, Violations};
use crate::catalog::edit::Resource as _;
use crate::history::Subject;
use crate::history::place::{Phase, Place};

/// Most bytes of stored segments that a page is made of: more than a page of the largest kind needs, and some tens of milliseconds' reading.
const PAGE_READS: usize = 4 << 20;

/// Most bytes of stored segments that are searched for one delivery: seconds' reading.
const SEARCH_READS: usize = 64 << 20;

/// Calls of WatchAttempts at once: each costs what the whole cell writes of history, which is little, once more.
const WATCHES: usize = 64;

/// Most bytes of bodies of a page, beyond which it ends early: see [`super::listing`].
const PAGE_BODIES: usize = 512 << 10;

/// The service.
pub(crate) struct Deliveries {
    deps: Deps,
    watches: Arc<Semaphore>,
}

impl Deliveries {
    /// The service.
    pub(crate) fn new(deps: Deps) -> Self {
        Self {
            deps,
            watches: Arc::new(Semaphore::new(WATCHES)),
        }
    }

    /// The webhook whose deliveries are asked for, and where they are.
    async fn subject(&self, id: &(AccountId, WebhookId)) -> Result<(Webhook, Subject), Error> {
        let webhook: Webhook = self.deps.edit.get(id).await?;
        let subject = Subject::new(&webhook, self.deps.cell.shard_count);
        Ok((webhook, subject))
    }

    /// Where a page goes on, and as of which revision.
    fn place(&self, scope: Scope<'_>, token: &str, phase: Phase) -> Result<(Place, Option<Revision>), Error> {
        if token.is_empty() {
            return Ok((Place::beginning(phase), None));
        }
        let position = self.deps.page_key.open(scope, token);
        let opened = position.and_then(|position| Some((Place::parse(&position.after)?, Some(position.revision))));
        opened.ok_or_else(|| super::listing::bad_token("MALFORMED", "is not a token of this listing"))
    }

    /// The token of a page that goes on at a place.
    fn token(&self, scope: Scope<'_>, next: Option<Place>, revision: Revision) -> String {
        let seal = |place: Place| {
            let after = place.to_string();
            self.deps.page_key.seal(scope, &Position { revision, after })
        };
        next.map(seal).unwrap_or_default()
    }
}

/// That there is no such delivery, as far as is known.
fn not_found((account, webhook, event): &(AccountId, WebhookId, EventId)) -> Error {
    let parent = Webhook::name(&(account.clone(), webhook.clone()));
    Error::NotFound {
        kind: "postrider.v1.Delivery",
        name: format!("{parent}/deliveries/{event}"),
    }
}

/// Reads the name of a delivery from a required field.
fn named(field: &str, text: &str) -> Result<(AccountId, WebhookId, EventId), Error> {
    let mut violations = Violations::default();
    let name = super::names::delivery(field, text, &mut violations);
    violations.with(name)
}

#[tonic::async_trait]
impl DeliveryService for Deliveries {
    async fn list_deliveries(
        &self,
        request: Request<v1::ListDeliveriesRequest>,
    ) -> Result<Response<v1::ListDeliveriesResponse>, Status> {
        Ok(Response::new(self.list(request.get_ref()).await?))
    }

    async fn get_delivery(&self, request: Request<v1::GetDeliveryRequest>) -> Result<Response<v1::Delivery>, Status> {
        Ok(Response::new(self.get(request.get_ref()).await?))
    }

    async fn list_attempts(
        &self,
        request: Request<v1::ListAttemptsRequest>,
    ) -> Result<Response<v1::ListAttemptsResponse>, Status> {
        Ok(Response::new(self.attempts(request.get_ref()).await?))
    }

    async fn explain_delivery(
        &self,
        request: Request<v1::ExplainDeliveryRequest>,
    ) -> Result<Response<v1::ExplainDeliveryResponse>, Status> {
        Ok(Response::new(self.explain(request.get_ref()).await?))
    }

    type WatchAttemptsStream = BoxStream<'static, Result<v1::WatchAttemptsResponse, Status>>;

    async fn watch_attempts(
        &self,
        request: Request<v1::WatchAttemptsRequest>,
    ) -> Result<Response<Self::WatchAttemptsStream>, Status> {
        Ok(Response::new(self.watch(request.get_ref()).await?))
    }

    async fn list_dead_letters(
        &self,
        request: Request<v1::ListDeadLettersRequest>,
    ) -> Result<Response<v1::ListDeadLettersResponse>, Status> {
        Ok(Response::new(self.dead_letters(request.get_ref()).await?))
    }

    async fn retry_delivery(
        &self,
        request: Request<v1::RetryDeliveryRequest>,
    ) -> Result<Response<v1::Delivery>, Status> {
        Ok(Response::new(self.retry(request.get_ref()).await?))
    }

    async fn cancel_delivery(
        &self,
        request: Request<v1::CancelDeliveryRequest>,
    ) -> Result<Response<v1::Delivery>, Status> {
        Ok(Response::new(self.cancel(request.get_ref()).await?))
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<v1::RedriveDeadLettersRequest>,
    ) -> Result<Response<v1::RedriveDeadLettersResponse>, Status> {
        Ok(Response::new(self.redrive(request.get_ref()).await?))
    }

    async fn purge_dead_letters(
        &self,
        request: Request<v1::PurgeDeadLettersRequest>,
    ) -> Result<Response<v1::PurgeDeadLettersResponse>, Status> {
        Ok(Response::new(self.purge(request.get_ref()).await?))
    }
}
