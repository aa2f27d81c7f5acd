//! WebhookService: creates, shows, changes and deletes webhooks.

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key;
use postrider_common::model::webhook::{Auth, Webhook};
use postrider_common::wire::stored::decode_webhook;
use postrider_proto::v1;
use tonic::{Request, Response, Status};
use v1::webhook_service_server::WebhookService;

use super::listing::{Listing, list};
use super::page::Scope;
use super::status::{Error, Violations};
use super::webhook_rules::{self, Draft};
use super::{Deps, auth_secrets, convert, mask, names, page, webhook_fields};
use crate::catalog::edit::{Apply, Missing, RequestKey};

/// The service.
pub(crate) struct Webhooks(pub(crate) Deps);

#[tonic::async_trait]
impl WebhookService for Webhooks {
    async fn create_webhook(
        &self,
        request: Request<v1::CreateWebhookRequest>,
    ) -> Result<Response<v1::Webhook>, Status> {
        Ok(Response::new(self.create(request.into_inner()).await?))
    }

    async fn get_webhook(&self, request: Request<v1::GetWebhookRequest>) -> Result<Response<v1::Webhook>, Status> {
        let webhook = self.get(&request.into_inner().name).await?;
        Ok(Response::new(convert::webhook(&webhook, self.0.clock.now())))
    }

    async fn list_webhooks(
        &self,
        request: Request<v1::ListWebhooksRequest>,
    ) -> Result<Response<v1::ListWebhooksResponse>, Status> {
        Ok(Response::new(self.list(&request.into_inner()).await?))
    }

    async fn update_webhook(
        &self,
        request: Request<v1::UpdateWebhookRequest>,
    ) -> Result<Response<v1::Webhook>, Status> {
        Ok(Response::new(self.update(request.into_inner()).await?))
    }

    async fn delete_webhook(&self, request: Request<v1::DeleteWebhookRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let mut violations = Violations::default();
        let id = names::webhook("name", &request.name, &mut violations);
        let etag = names::etag("etag", &request.etag, &mut violations);
        let id = violations.with(id)?;
        let missing = Missing::new(request.allow_missing);
        let revision = self.0.edit.delete_webhook(&id, etag.as_ref(), missing).await?;
        self.0.caught_up(revision).await;
        Ok(Response::new(()))
    }

    async fn export_signing_secret(
        &self,
        request: Request<v1::ExportSigningSecretRequest>,
    ) -> Result<Response<v1::ExportSigningSecretResponse>, Status> {
        let webhook = self.get(&request.into_inner().name).await?;
        Ok(Response::new(self.export(&webhook)?))
    }

    async fn rotate_signing_secret(
        &self,
        request: Request<v1::RotateSigningSecretRequest>,
    ) -> Result<Response<v1::Webhook>, Status> {
        Ok(Response::new(self.rotate(request.into_inner()).await?))
    }
}

impl Webhooks {
    async fn create(&self, request: v1::CreateWebhookRequest) -> Result<v1::Webhook, Error> {
        let mut violations = Violations::default();
        let account = names::account("parent", &request.parent, &mut violations);
        let id = names::chosen("webhook_id", &request.webhook_id, WebhookId::new, &mut violations);
        let request_id = names::request_id(&request.request_id, &mut violations);
        let key = request_id.map(|id| RequestKey {
            id,
            fingerprint: super::fingerprint(&without_secrets(&request)),
        });
        if request.webhook.is_none() {
            violations.add("webhook", "REQUIRED", "must be given");
            return violations.or(v1::Webhook::default());
        }
        let message = request.webhook.unwrap_or_default();
        names::no_etag("webhook.etag", &message.etag, &mut violations);
        let draft = webhook_rules::check(message, None, &self.0.urls, self.0.clock.now(), &mut violations);
        let account = violations.with(account)?;
        let id = id.unwrap_or_else(|| self.new_id());
        let webhook = self.build(&account, id, draft);
        let apply = Apply::new(request.validate_only);
        let written = self.0.edit.create_webhook(webhook, key, apply).await?;
        self.0.caught_up(written.revision).await;
        Ok(convert::webhook(&written.value, self.0.clock.now()))
    }

    async fn get(&self, name: &str) -> Result<Webhook, Error> {
        let mut violations = Violations::default();
        let id = names::webhook("name", name, &mut violations);
        self.0.edit.get(&violations.with(id)?).await
    }

    async fn list(&self, request: &v1::ListWebhooksRequest) -> Result<v1::ListWebhooksResponse, Error> {
        let mut violations = Violations::default();
        let account = names::account("parent", &request.parent, &mut violations);
        let size = page::size(request.page_size, &mut violations);
        let account = violations.with(account)?;
        let listing = Listing {
            scope: Scope {
                method: "ListWebhooks",
                parent: &request.parent,
                filter: "",
            },
            prefix: key::webhooks_of(&account),
            size,
            token: &request.page_token,
        };
        let page = list(&*self.0.store, &self.0.page_key, listing).await?;
        let now = self.0.clock.now();
        let mut webhooks = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            let (account, id) = key::parse_webhook(&entry.key).ok_or_else(|| super::stray(&entry.key))?;
            webhooks.push(convert::webhook(&decode_webhook(account, id, entry.value)?, now));
        }
        Ok(v1::ListWebhooksResponse {
            webhooks,
            next_page_token: page.next_token,
        })
    }

    async fn update(&self, request: v1::UpdateWebhookRequest) -> Result<v1::Webhook, Error> {
        let mut violations = Violations::default();
        let Some(wanted) = request.webhook else {
            violations.add("webhook", "REQUIRED", "must be given");
            return violations.or(v1::Webhook::default());
        };
        let id = names::webhook("webhook.name", &wanted.name, &mut violations);
        let etag = names::etag("webhook.etag", &wanted.etag, &mut violations);
        let paths = request.update_mask.unwrap_or_default().paths;
        let mut scratch = v1::Webhook::default();
        mask::merge(&webhook_fields::FIELDS, &paths, &wanted, &mut scratch, &mut violations);
        let Some(id) = id else {
            return violations.or(scratch);
        };
        // Only a caller who says so puts a suspended webhook back: not one who leaves the field to its default.
        let change = |present: &Webhook| {
            let mut violations = violations.clone();
            let mut message = convert::webhook(present, self.0.clock.now());
            // The mistakes of the mask are noted already.
            mask::merge(
                &webhook_fields::FIELDS,
                &paths,
                &wanted,
                &mut message,
                &mut Violations::default(),
            );
            let draft = webhook_rules::check(
                message,
                Some(present),
                &self.0.urls,
                self.0.clock.now(),
                &mut violations,
            );
            violations.or(())?;
            let mut webhook = self.rebuild(present, draft);
            if scratch.active == Some(true) && webhook.suspended().is_some() {
                webhook.suspension = webhook
                    .suspension
                    .map(|suspension| suspension.ended(self.0.clock.now()));
            }
            Ok(webhook)
        };
        let apply = Apply::new(request.validate_only);
        let written = self.0.edit.update(&id, etag.as_ref(), apply, change).await;
        let written = written.map_err(|error| violations.before(error))?;
        self.0.caught_up(written.revision).await;
        Ok(convert::webhook(&written.value, self.0.clock.now()))
    }

    fn new_id(&self) -> WebhookId {
        let text = format!("wh-{:016x}", self.0.entropy.next_u64());
        #[allow(clippy::expect_used)] // Letters, a hyphen and digits.
        WebhookId::new(&text).expect("a generated id is valid")
    }

    fn build(&self, account: &AccountId, id: WebhookId, draft: Draft) -> Webhook {
        let now = self.0.clock.now();
        let present = Webhook {
            account: account.clone(),
            id,
            uid: self.0.entropy.uid(now),
            generation: 1,
            create_time: now,
            update_time: now,
            display_name: String::new(),
            description: String::new(),
            target_url: String::new(),
            auth: Auth::None,
            event_types: Vec::new(),
            active: true,
            when_inactive: draft.when_inactive,
            max_in_flight: None,
            http_version: draft.http_version,
            payload_format: draft.payload_format,
            batching: draft.batching.clone(),
            order: draft.order,
            timeout: None,
            rate_limit: None,
            retry: draft.retry,
            headers: Vec::new(),
            labels: draft.labels.clone(),
            suspension: None,
        };
        self.rebuild(&present, draft)
    }

    /// `present` with everything that its owner sets as in `draft`. Identity, generation and times stay.
    fn rebuild(&self, present: &Webhook, draft: Draft) -> Webhook {
        Webhook {
            account: present.account.clone(),
            id: present.id.clone(),
            uid: present.uid.clone(),
            generation: present.generation,
            create_time: present.create_time,
            update_time: present.update_time,
            auth: self.seal(present, draft.auth),
            display_name: draft.display_name,
            description: draft.description,
            target_url: draft.target_url,
            event_types: draft.event_types,
            active: draft.active,
            when_inactive: draft.when_inactive,
            max_in_flight: draft.max_in_flight,
            http_version: draft.http_version,
            payload_format: draft.payload_format,
            batching: draft.batching,
            order: draft.order,
            timeout: draft.timeout,
            rate_limit: draft.rate_limit,
            retry: draft.retry,
            headers: draft.headers,
            labels: draft.labels,
            suspension: present.suspension.clone(),
        }
    }
}

/// The content of a request that its id stands for. Secrets are left out: the hash of a guessable password would give it away.
fn without_secrets(request: &v1::CreateWebhookRequest) -> v1::CreateWebhookRequest {
    let mut content = request.clone();
    content.request_id.clear();
    content.validate_only = false;
    if let Some(auth) = content.webhook.as_mut().and_then(|webhook| webhook.auth.as_mut()) {
        auth_secrets::clear(auth);
    }
    content
}
