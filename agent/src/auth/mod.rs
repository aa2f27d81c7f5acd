//! How a request proves who sent it: a signature, a secret in a header, an access token, or a certificate.
//!
//! [`Credentials`] are a webhook's secrets, opened. They live in memory only, are wiped when dropped, and have no text form.

mod header;
mod oauth;
mod token;

use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use postrider_common::model::auth::{SignatureHeaders, place};
use postrider_common::model::webhook::{Auth, Webhook};
use postrider_common::secret::{Keyring, OpenError};
use postrider_common::signature::{self, Key};
use postrider_common::time::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::time::Instant;
use zeroize::Zeroizing;

pub use self::oauth::{Token, Tokens};
use crate::attempt::redaction::Secrets;
use crate::transport::tls::Identity;
use crate::transport::{Failure, Target, Trace, Transport};

/// The webhook has no way to prove itself now, so nothing may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no secret of the webhook is live")]
pub struct NoLiveSecret;

/// A webhook's secrets, opened.
pub enum Credentials {
    /// Nothing to prove.
    None,
    /// A secret in a header.
    Header(HeaderName, Zeroizing<String>),
    /// A signature.
    Signature(Signature),
    /// An OAuth 2 client of which it is not yet known where its tokens are had.
    Client(token::Request),
    /// An OAuth 2 client.
    OAuth2(Box<Tokens>),
    /// A client certificate.
    Mtls(Identity),
}

/// What signs a webhook's requests.
pub struct Signature {
    names: Names,
    /// Newest first.
    keys: Vec<SigningKey>,
}

/// What the headers of a signature are called.
struct Names {
    id: HeaderName,
    timestamp: HeaderName,
    signature: HeaderName,
}

impl Names {
    /// Names that cannot be sent give none: nothing must go out unsigned.
    fn new(headers: &SignatureHeaders) -> Option<Self> {
        let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
        Some(Self {
            id: name(&headers.id)?,
            timestamp: name(&headers.timestamp)?,
            signature: name(&headers.signature)?,
        })
    }
}

/// One signing secret, opened.
struct SigningKey {
    id: Arc<str>,
    key: Key,
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
                let password = keyring.open(password, &context(place::PASSWORD))?;
                let value = header::basic(username, password.expose_secret());
                Ok(Self::Header(AUTHORIZATION, value))
            }
            Auth::Bearer { token } => {
                let token = keyring.open(token, &context(place::TOKEN))?;
                let value = header::bearer(token.expose_secret()).ok_or(OpenError::Corrupt)?;
                Ok(Self::Header(AUTHORIZATION, value))
            }
            Auth::ApiKey { header, value } => {
                let value = keyring.open(value, &context(place::API_KEY))?;
                let value = header::text(value.expose_secret()).ok_or(OpenError::Corrupt)?;
                let name = HeaderName::from_bytes(header.as_bytes()).map_err(|_| OpenError::Corrupt)?;
                Ok(Self::Header(name, value))
            }
            Auth::Mtls {
                certificate,
                private_key,
            } => {
                let key = keyring.open(private_key, &context(place::PRIVATE_KEY))?;
                let identity = Identity::new(certificate, key.expose_secret());
                Ok(Self::Mtls(identity.map_err(|_| OpenError::Corrupt)?))
            }
            Auth::OAuth2(client) => {
                let secret = keyring.open(&client.client_secret, &context(place::CLIENT_SECRET))?;
                let request = token::request(client, secret.expose_secret());
                Ok(Self::Client(request.ok_or(OpenError::Corrupt)?))
            }
            Auth::Signature {
                algorithm,
                headers,
                secrets,
            } => {
                let live = secrets.iter().filter(|secret| is_live(secret.expire_time, now));
                let keys = live.map(|secret| {
                    let opened = keyring.open(&secret.secret, &context(&format!("signing/{}", secret.id)))?;
                    Ok(SigningKey {
                        id: secret.id.as_str().into(),
                        key: Key::new(*algorithm, opened).ok_or(OpenError::Corrupt)?,
                        expire_time: secret.expire_time,
                    })
                });
                Ok(Self::Signature(Signature {
                    names: Names::new(headers).ok_or(OpenError::Corrupt)?,
                    keys: keys.collect::<Result<_, OpenError>>()?,
                }))
            }
        }
    }

    /// The same, with the place where an OAuth 2 client gets its tokens.
    pub fn with_tokens_from(self, target: Target) -> Self {
        match self {
            Self::Client(request) => Self::OAuth2(Box::new(Tokens::new(request, target))),
            Self::None | Self::Header(..) | Self::Signature(_) | Self::OAuth2(_) | Self::Mtls(_) => self,
        }
    }

    /// The access token to send now, where there is one to be sent.
    ///
    /// # Errors
    /// [`Failure::Receiver`] with [`crate::attempt::Reason::Token`] if none can be had until `deadline`.
    pub async fn token(
        &self,
        transport: &Transport,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Option<Arc<Token>>, Failure> {
        match self {
            // Boxed, for the sake of those that need none: it is as large as an exchange.
            Self::OAuth2(tokens) => Box::pin(tokens.get(transport, deadline, trace)).await.map(Some),
            Self::None | Self::Header(..) | Self::Signature(_) | Self::Client(_) | Self::Mtls(_) => Ok(None),
        }
    }

    /// Notes that the receiver refused a request with this token.
    pub fn refused(&self, token: &Arc<Token>) {
        match self {
            Self::OAuth2(tokens) => tokens.refused(token),
            Self::None | Self::Header(..) | Self::Signature(_) | Self::Client(_) | Self::Mtls(_) => {}
        }
    }

    /// The certificate to show in the TLS handshake, where there is one to be shown.
    pub const fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Mtls(identity) => Some(identity),
            Self::None | Self::Header(..) | Self::Signature(_) | Self::Client(_) | Self::OAuth2(_) => None,
        }
    }

    /// The ids of the secrets that sign at `now`, newest first.
    pub fn signers(&self, now: Timestamp) -> Vec<Arc<str>> {
        match self {
            Self::Signature(Signature { keys, .. }) => {
                let live = keys.iter().filter(|key| key.is_live(now));
                live.map(|key| Arc::clone(&key.id)).collect()
            }
            Self::None | Self::Header(..) | Self::Client(_) | Self::OAuth2(_) | Self::Mtls(_) => Vec::new(),
        }
    }

    /// What a receiver knows of the secrets and may repeat: to be hidden where its answers are shown. (Private keys never leave this process.)
    pub fn secrets(&self, token: Option<&Token>) -> Secrets {
        match self {
            Self::None | Self::Client(_) | Self::Mtls(_) => Secrets::default(),
            Self::Header(_, value) => Secrets::new(header::secrets(value)),
            Self::Signature(Signature { keys, .. }) => {
                // An ed25519 verifier is a public key.
                let shared = keys.iter().map(|key| key.key.verifier());
                Secrets::new(
                    shared.filter_map(|text| text.strip_prefix("whsec_").map(|text| Zeroizing::new(text.to_owned()))),
                )
            }
            Self::OAuth2(tokens) => {
                let token = token.map(|token| header::secrets(&token.value)).unwrap_or_default();
                Secrets::new(token.into_iter().chain([tokens.secret()]))
            }
        }
    }

    /// Adds what proves the sender of the request with this id, time and body. The headers of the id and the time are there already, under the names
    /// of Standard Webhooks; a signature under other names sends them under these instead.
    ///
    /// # Errors
    /// [`NoLiveSecret`] if all signing secrets have expired, or there is no token where one is to be sent.
    pub fn apply(
        &self,
        headers: &mut HeaderMap,
        id: &str,
        now: Timestamp,
        body: &[u8],
        token: Option<&Token>,
    ) -> Result<(), NoLiveSecret> {
        let (name, value) = match self {
            // A certificate was shown before the request.
            Self::None | Self::Mtls(_) => return Ok(()),
            Self::Client(_) => return Err(NoLiveSecret),
            Self::OAuth2(_) => {
                let token = token.ok_or(NoLiveSecret)?;
                (AUTHORIZATION, HeaderValue::from_str(&token.value))
            }
            Self::Header(name, value) => (name.clone(), HeaderValue::from_str(value)),
            Self::Signature(Signature { names, keys }) => {
                let live = keys.iter().filter(|key| key.is_live(now)).map(|key| &key.key);
                let value = signature::header(live, id, now.as_seconds(), body).ok_or(NoLiveSecret)?;
                for (standard, name) in [
                    (SignatureHeaders::ID, &names.id),
                    (SignatureHeaders::TIMESTAMP, &names.timestamp),
                ] {
                    if name != standard
                        && let Some(value) = headers.remove(standard)
                    {
                        headers.insert(name.clone(), value);
                    }
                }
                (names.signature.clone(), HeaderValue::try_from(value))
            }
        };
        // Base64 is always a header value, and other secrets were looked at when they were opened.
        let mut value = value.map_err(|_| NoLiveSecret)?;
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
