//! Signing secrets of webhooks: made, exported as a document, rotated.

use std::time::Duration;

use postrider_common::model::webhook::{Auth, SigningSecret, Webhook};
use postrider_common::secret::{SecretBytes, hex};
use postrider_common::signature::{self, Algorithm};
use postrider_common::time::Timestamp;
use postrider_proto::v1;
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

/// Most secrets that sign at once: each adds 48 bytes (93 with ed25519) to a header of every request, and a receiver tries them one by one.
const MAX_LIVE: usize = 5;

impl Webhooks {
    /// A secret as it is stored; generated if none is given.
    pub(super) fn signing_secret(
        &self,
        webhook: &Webhook,
        algorithm: Algorithm,
        given: Option<SecretBytes>,
    ) -> SigningSecret {
        let mut bytes = [0; 6];
        self.0.entropy.fill(&mut bytes);
        let id = format!("sec_{}", hex(&bytes, bytes.len()));
        let secret = given.unwrap_or_else(|| algorithm.generate(&*self.0.entropy));
        SigningSecret {
            secret: self.seal_for(webhook, &secret, &format!("signing/{id}")),
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
        let given = request.secret.as_str();
        // Whether it is one of this webhook's algorithm can only be told when the webhook has been read.
        let hmac = Algorithm::HmacSha256.parse(given);
        if !given.is_empty() && hmac.is_err() && Algorithm::Ed25519.parse(given).is_err() {
            let rule = "must be whsec_ or whsk_ followed by the standard base64 of a secret of the webhook's algorithm";
            violations.add("secret", "MALFORMED", rule);
        }
        let id = violations.with(id)?;
        let change = |present: &Webhook| {
            let Auth::Signature {
                algorithm,
                headers,
                secrets,
            } = &present.auth
            else {
                return Err(no_signature(present));
            };
            let given = (!given.is_empty()).then(|| algorithm.parse(given)).transpose();
            let given = given.map_err(|rule| {
                let mut violations = Violations::default();
                violations.add("secret", "MALFORMED", rule);
                Error::Invalid(violations)
            })?;
            let now = self.0.clock.now();
            let end = now + overlap.unwrap_or(DEFAULT_OVERLAP);
            let before = secrets.iter().map(|secret| SigningSecret {
                expire_time: Some(secret.expire_time.map_or(end, |expire| expire.min(end))),
                ..secret.clone()
            });
            let newest = self.signing_secret(present, *algorithm, given);
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
                auth: Auth::Signature {
                    algorithm: *algorithm,
                    headers: headers.clone(),
                    secrets,
                },
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
        let Auth::Signature {
            algorithm,
            headers,
            secrets,
        } = &webhook.auth
        else {
            return Err(no_signature(webhook));
        };
        let (algorithm_name, verifier_name) = match algorithm {
            Algorithm::HmacSha256 => ("HMAC-SHA256", "secret"),
            Algorithm::Ed25519 => ("Ed25519", "publicKey"),
        };
        let mut shown = Vec::new();
        let mut example = None;
        for secret in convert::live(secrets, self.0.clock.now()) {
            let field = format!("signing/{}", secret.id);
            let context = Webhook::seal_context(&webhook.account, &webhook.uid, &field);
            let opened = self.0.keyring.open(&secret.secret, &context);
            let opened = opened.map_err(|error| Error::Bug(format!("a signing secret of {name}: {error}")))?;
            let key = signature::Key::new(*algorithm, opened);
            let key = key.ok_or_else(|| Error::Bug(format!("a signing secret of {name} is no key")))?;
            example.get_or_insert_with(|| self::example(&secret.id, &key));
            shown.push(json!({
                "id": secret.id,
                verifier_name: *key.verifier(),
                "createTime": secret.create_time.to_string(),
                "expireTime": secret.expire_time.as_ref().map(Timestamp::to_string),
            }));
        }
        let document = [
            ("webhook", json!(name)),
            ("algorithm", json!(algorithm_name)),
            (
                "headers",
                json!({"id": headers.id, "timestamp": headers.timestamp, "signature": headers.signature}),
            ),
            ("signedContent", json!("{id}.{timestamp}.{body}")),
            ("secrets", json!(shown)),
            ("example", json!(example)),
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

/// A request that was never sent, as the newest secret signs it, for authors of receivers to check their programs by.
fn example(secret_id: &str, key: &signature::Key) -> serde_json::Value {
    // Those of the example that Standard Webhooks gives.
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: i64 = 1_614_265_330;
    const BODY: &str = r#"{"test": 2432232314}"#;
    json!({
        "id": ID,
        "timestamp": TIMESTAMP,
        "body": BODY,
        "signedContent": format!("{ID}.{TIMESTAMP}.{BODY}"),
        "secretId": secret_id,
        "signature": signature::header(std::iter::once(key), ID, TIMESTAMP, BODY.as_bytes()),
    })
}

fn no_signature(webhook: &Webhook) -> Error {
    Error::WrongState {
        reason: "NO_SIGNATURE",
        name: name(webhook),
        description: "its authentication is not a signature".into(),
    }
}
