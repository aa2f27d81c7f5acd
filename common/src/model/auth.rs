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
