//! How a request proves who sent it: a signature, or basic authentication.
//!
//! [`Credentials`] are a webhook's secrets, opened. They live in memory only, are wiped when dropped, and have no text form.

mod header;
mod signature;

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use postrider_common::model::webhook::{Auth, Webhook};
use postrider_common::secret::{Keyring, OpenError, SecretBytes};
use postrider_common::time::Timestamp;
use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

/// The signatures of Standard Webhooks.
pub const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// The webhook has no way to prove itself now, so nothing may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no secret of the webhook is live")]
pub struct NoLiveSecret;

/// A webhook's secrets, opened.
pub enum Credentials {
    /// Nothing to prove.
    None,
    /// The value of `authorization`.
    Basic(Zeroizing<String>),
    /// Signing secrets, newest first.
    Signature(Vec<SigningKey>),
}

/// One signing secret, opened.
pub struct SigningKey {
    secret: SecretBytes,
    expire_time: Option<Timestamp>,
}

impl SigningKey {
    fn is_live(&self, now: Timestamp) -> bool {
        is_live(self.expire_time, now)
    }
}

fn is_live(expire_time: Option<Timestamp>, now: Timestamp) -> bool {
    expire_time.is_none_or(|end| now < end)
}

impl Credentials {
    /// Opens the secrets of a webhook that are live at `now`.
    ///
    /// # Errors
    /// [`OpenError`] if one cannot be opened: requests without it could be refused, or accepted for the wrong reason.
    pub fn open(webhook: &Webhook, keyring: &Keyring, now: Timestamp) -> Result<Self, OpenError> {
        let context = |field: &str| Webhook::seal_context(&webhook.account, &webhook.uid, field);
        match &webhook.auth {
            Auth::None => Ok(Self::None),
            Auth::Basic { username, password } => {
                let password = keyring.open(password, &context("password"))?;
                Ok(Self::Basic(header::basic(username, password.expose_secret())))
            }
            Auth::Signature { secrets } => secrets
                .iter()
                .filter(|secret| is_live(secret.expire_time, now))
                .map(|secret| {
                    let opened = keyring.open(&secret.secret, &context(&format!("signing/{}", secret.id)))?;
                    Ok(SigningKey {
                        secret: opened,
                        expire_time: secret.expire_time,
                    })
                })
                .collect::<Result<_, _>>()
                .map(Self::Signature),
        }
    }

    /// Adds what proves the sender of the request with this id, time and body.
    ///
    /// # Errors
    /// [`NoLiveSecret`] if all signing secrets have expired.
    pub fn apply(&self, headers: &mut HeaderMap, id: &str, now: Timestamp, body: &[u8]) -> Result<(), NoLiveSecret> {
        let (name, value) = match self {
            Self::None => return Ok(()),
            Self::Basic(value) => (AUTHORIZATION, HeaderValue::from_str(value)),
            Self::Signature(keys) => {
                let live = keys.iter().filter(|key| key.is_live(now));
                let secrets = live.map(|key| key.secret.expose_secret());
                let value = signature::header(secrets, id, now.as_seconds(), body).ok_or(NoLiveSecret)?;
                (WEBHOOK_SIGNATURE, HeaderValue::try_from(value))
            }
        };
        // Base64 is always a header value.
        let mut value = value.map_err(|_| NoLiveSecret)?;
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
