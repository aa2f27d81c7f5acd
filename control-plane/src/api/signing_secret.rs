//! Signing secrets of webhooks: made, exported as a document, rotated.

use std::time::Duration;

use postrider_common::id::{AccountId, Uid};
use postrider_common::model::webhook::{Auth, SigningSecret, Webhook};
use postrider_common::secret::{SecretBytes, format_signing, generate_signing, hex, parse_signing};
use postrider_common::time::Timestamp;
use postrider_proto::v1;
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::status::{Error, Violations};
use super::text_rules::duration;
use super::webhook_service::Webhooks;
use super::{convert, json, names};
use crate::catalog::edit::{Apply, Resource as _};

/// How long the secrets before the new one go on signing unless the caller says otherwise: a day for the receiver's owner to take it over.
const DEFAULT_OVERLAP: Duration = Duration::from_secs(24 * 3600);

/// The longest overlap.
const MAX_OVERLAP: Duration = Duration::from_secs(7 * 24 * 3600);

/// Most secrets that sign at once: each adds 48 bytes to a header of every request, and a receiver tries them one by one.
const MAX_LIVE: usize = 5;

impl Webhooks {
    /// A secret as it is stored; generated if none is given.
    pub(super) fn signing_secret(&self, account: &AccountId, uid: &Uid, given: Option<&SecretBytes>) -> SigningSecret {
        let mut bytes = [0; 6];
        self.0.entropy.fill(&mut bytes);
        let id = format!("sec_{}", hex(&bytes, bytes.len()));
        let secret = given.map_or_else(|| generate_signing(&*self.0.entropy), Clone::clone);
        let context = Webhook::seal_context(account, uid, &format!("signing/{id}"));
        SigningSecret {
            secret: self.0.keyring.seal(secret.expose_secret(), &context, &*self.0.entropy),
            id,
            create_time: self.0.clock.now(),
            expire_time: None,
        }
    }

    /// Makes a new secret the first to sign; those before it sign on until the overlap ends.
    pub(super) async fn rotate(&self, request: v1::RotateSigningSecretRequest) -> Result<v1::Webhook, Error> {
        let mut violations = Violations::default();
        let id = names::webhook("name", &request.name, &mut violations);
        let etag = names::etag("etag", &request.etag, &mut violations);
        let overlap = duration(
            "overlap",
            request.overlap,
            Duration::ZERO..=MAX_OVERLAP,
            &mut violations,
        );
        let given = (!request.secret.is_empty())
            .then(|| parse_signing(&request.secret))
            .transpose();
        let given = given.unwrap_or_else(|rule| {
            violations.add("secret", "MALFORMED", rule);
            None
        });
        let id = violations.with(id)?;
        let change = |present: &Webhook| {
            let Auth::Signature { secrets } = &present.auth else {
                return Err(no_signature(present));
            };
            let now = self.0.clock.now();
            let end = now + overlap.unwrap_or(DEFAULT_OVERLAP);
            let before = secrets.iter().map(|secret| SigningSecret {
                expire_time: Some(secret.expire_time.map_or(end, |expire| expire.min(end))),
                ..secret.clone()
            });
            let newest = self.signing_secret(&present.account, &present.uid, given.as_ref());
            let all: Vec<_> = std::iter::once(newest).chain(before).collect();
            let secrets: Vec<_> = convert::live(&all, now).cloned().collect();
            if secrets.len() > MAX_LIVE {
                return Err(Error::WrongState {
                    reason: "TOO_MANY_SECRETS",
                    name: name(present),
                    description: format!(
                        "{MAX_LIVE} secrets sign already; wait for one to expire, or shorten the overlap"
                    ),
                });
            }
            Ok(Webhook {
                auth: Auth::Signature { secrets },
                ..present.clone()
            })
        };
        let apply = Apply::new(request.validate_only);
        let written = self.0.edit.update(&id, etag.as_ref(), apply, change).await?;
        self.0.caught_up(written.revision).await;
        Ok(convert::webhook(&written.value, self.0.clock.now()))
    }

    /// The document to download.
    pub(super) fn export(&self, webhook: &Webhook) -> Result<v1::ExportSigningSecretResponse, Error> {
        let name = name(webhook);
        let Auth::Signature { secrets } = &webhook.auth else {
            return Err(no_signature(webhook));
        };
        let mut shown = Vec::new();
        for secret in convert::live(secrets, self.0.clock.now()) {
            let field = format!("signing/{}", secret.id);
            let context = Webhook::seal_context(&webhook.account, &webhook.uid, &field);
            let opened = self.0.keyring.open(&secret.secret, &context);
            let opened = opened.map_err(|error| Error::Bug(format!("a signing secret of {name}: {error}")))?;
            shown.push(json!({
                "id": secret.id,
                "secret": *format_signing(&opened),
                "createTime": secret.create_time.to_string(),
                "expireTime": secret.expire_time.as_ref().map(Timestamp::to_string),
            }));
        }
        let document = [
            ("webhook", json!(name)),
            ("algorithm", json!("HMAC-SHA256")),
            (
                "headers",
                json!({"id": "webhook-id", "timestamp": "webhook-timestamp", "signature": "webhook-signature"}),
            ),
            ("signedContent", json!("{id}.{timestamp}.{body}")),
            ("secrets", json!(shown)),
        ];
        Ok(v1::ExportSigningSecretResponse {
            file_name: format!("{}-{}-signing-secret.json", webhook.account, webhook.id),
            document: Some(json::object(
                document
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
            )),
        })
    }
}

fn name(webhook: &Webhook) -> String {
    Webhook::name(&(webhook.account.clone(), webhook.id.clone()))
}

fn no_signature(webhook: &Webhook) -> Error {
    Error::WrongState {
        reason: "NO_SIGNATURE",
        name: name(webhook),
        description: "its authentication is not a signature".into(),
    }
}
