//! How a webhook's requests prove who sent them. Pure.

use crate::secret::Sealed;
use crate::signature::Algorithm;
use crate::time::Timestamp;

/// Where secrets of a webhook are sealed for, beside signing secrets.
pub mod place {
    /// The password of basic authentication.
    pub const PASSWORD: &str = "password";
    /// A bearer token.
    pub const TOKEN: &str = "bearer/token";
    /// The value of an API key's header.
    pub const API_KEY: &str = "api-key/value";
    /// The secret of an OAuth 2 client.
    pub const CLIENT_SECRET: &str = "oauth2/client-secret";
    /// The private key of a client certificate.
    pub const PRIVATE_KEY: &str = "mtls/private-key";
}

/// How requests prove who sent them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Auth {
    /// Not at all.
    #[default]
    None,
    /// User name and password, RFC 7617.
    Basic {
        /// In clear.
        username: String,
        /// Sealed.
        password: Sealed,
    },
    /// A signature, Standard Webhooks 1.0.
    Signature {
        /// How is signed; every secret is of this kind.
        algorithm: Algorithm,
        /// What the headers of the signature are called.
        headers: SignatureHeaders,
        /// Newest first; at least one. All that have not expired sign.
        secrets: Vec<SigningSecret>,
    },
    /// A bearer token, RFC 6750.
    Bearer {
        /// Sealed.
        token: Sealed,
    },
    /// A secret in a header.
    ApiKey {
        /// The header's name, in lower case.
        header: String,
        /// Sealed.
        value: Sealed,
    },
    /// An access token that is got by client credentials, RFC 6749.
    OAuth2(OAuth2),
    /// A client certificate.
    Mtls {
        /// The chain in PEM, the client's own certificate first.
        certificate: String,
        /// PEM, sealed.
        private_key: Sealed,
    },
}

/// Client credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OAuth2 {
    /// Where tokens are had, canonical.
    pub token_url: String,
    /// In clear.
    pub client_id: String,
    /// Sealed.
    pub client_secret: Sealed,
    /// What tokens are asked to be good for.
    pub scopes: Vec<String>,
    /// Whom tokens are for; empty means not said.
    pub audience: String,
    /// How the client proves itself.
    pub client_authentication: ClientAuthentication,
}

/// How an OAuth 2 client proves itself where tokens are had (RFC 6749, section 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAuthentication {
    /// In the header `authorization`.
    #[default]
    Basic,
    /// In the body.
    Body,
}

/// The names of the three headers that a signature takes, in lower case and all different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureHeaders {
    /// The id that is signed.
    pub id: String,
    /// The time that is signed.
    pub timestamp: String,
    /// The signatures.
    pub signature: String,
}

impl SignatureHeaders {
    /// The name of the id's header by Standard Webhooks.
    pub const ID: &str = "webhook-id";
    /// The name of the time's header by Standard Webhooks.
    pub const TIMESTAMP: &str = "webhook-timestamp";
    /// The name of the signatures' header by Standard Webhooks.
    pub const SIGNATURE: &str = "webhook-signature";
}

impl Default for SignatureHeaders {
    /// The names of Standard Webhooks.
    fn default() -> Self {
        Self {
            id: Self::ID.to_owned(),
            timestamp: Self::TIMESTAMP.to_owned(),
            signature: Self::SIGNATURE.to_owned(),
        }
    }
}

/// One signing secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningSecret {
    /// Unique within the webhook.
    pub id: String,
    /// The raw bytes, sealed: the key of HMAC, or the 32 bytes of an ed25519 private key.
    pub secret: Sealed,
    /// When it was made.
    pub create_time: Timestamp,
    /// When it stops signing; `None` means never.
    pub expire_time: Option<Timestamp>,
}
