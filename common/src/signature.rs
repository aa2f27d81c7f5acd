//! Signatures of webhooks by Standard Webhooks 1.0: the text forms of keys, and what is signed how. Pure.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use ed25519_dalek::ed25519::signature::MultipartSigner as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::ExposeSecret as _;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::entropy::Entropy;
use crate::secret::SecretBytes;

/// How long a generated secret is, in bytes.
const SECRET_BYTES: usize = 32;

/// Bytes of the value of a header with one HMAC: `v1,` and the base64 of 32 bytes.
const USUAL_HEADER: usize = 47;

/// How a webhook's requests are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Algorithm {
    /// HMAC-SHA256 under a secret that both sides have: `v1`, secrets `whsec_…`.
    #[default]
    HmacSha256,
    /// Ed25519 (RFC 8032) under a private key of the sender: `v1a`, private keys `whsk_…`, public keys `whpk_…`.
    Ed25519,
}

impl Algorithm {
    /// A new secret.
    pub fn generate(self, entropy: &dyn Entropy) -> SecretBytes {
        let mut bytes = vec![0; SECRET_BYTES];
        entropy.fill(&mut bytes);
        SecretBytes::from(bytes)
    }

    /// The bytes of a secret in its text form: `whsec_` and the standard base64 of 24 to 64 bytes; or `whsk_` and that of an ed25519 private key, of
    /// 32 bytes, which the 32 bytes of its public key may follow.
    ///
    /// # Errors
    /// The rule that was broken. The text is never repeated.
    pub fn parse(self, text: &str) -> Result<SecretBytes, &'static str> {
        match self {
            Self::HmacSha256 => {
                let rule = "must be whsec_ followed by the standard base64 of 24 to 64 bytes";
                let bytes = decode(text, "whsec_").ok_or(rule)?;
                let fits = (24..=64).contains(&bytes.len());
                fits.then(|| SecretBytes::from(bytes.to_vec())).ok_or(rule)
            }
            Self::Ed25519 => {
                let rule = "must be whsk_ followed by the standard base64 of an ed25519 private key: its 32 bytes, or these and the 32 bytes of \
                    its public key";
                let bytes = decode(text, "whsk_").ok_or(rule)?;
                let secret = match <&[u8; 64]>::try_from(bytes.as_slice()) {
                    // A public key that is not this private key's would give a signature that tells the private key to whoever sees two.
                    Ok(pair) => SigningKey::from_keypair_bytes(pair).map_err(|_| rule)?.to_bytes(),
                    Err(_) => bytes.as_slice().try_into().map_err(|_| rule)?,
                };
                Ok(SecretBytes::from(Zeroizing::new(secret).to_vec()))
            }
        }
    }

    /// What the version of a signature is called in the header.
    const fn version(self) -> &'static str {
        match self {
            Self::HmacSha256 => "v1,",
            Self::Ed25519 => "v1a,",
        }
    }
}

fn decode(text: &str, prefix: &str) -> Option<Zeroizing<Vec<u8>>> {
    STANDARD.decode(text.strip_prefix(prefix)?).ok().map(Zeroizing::new)
}

/// A secret, ready to sign. Wiped when dropped.
pub struct Key(Kind);

enum Kind {
    HmacSha256(SecretBytes),
    Ed25519(Box<SigningKey>),
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Key").finish_non_exhaustive()
    }
}

impl Key {
    /// A key of these bytes; `None` if they are none of this algorithm, as [`Algorithm::parse`] and [`Algorithm::generate`] never give.
    pub fn new(algorithm: Algorithm, secret: SecretBytes) -> Option<Self> {
        Some(Self(match algorithm {
            Algorithm::HmacSha256 => Kind::HmacSha256(secret),
            Algorithm::Ed25519 => Kind::Ed25519(Box::new(SigningKey::from_bytes(
                secret.expose_secret().try_into().ok()?,
            ))),
        }))
    }

    /// What a receiver needs to verify, in its text form: the secret (`whsec_…`), or the public key (`whpk_…`).
    pub fn verifier(&self) -> Zeroizing<String> {
        Zeroizing::new(match &self.0 {
            Kind::HmacSha256(secret) => format!("whsec_{}", STANDARD.encode(secret.expose_secret())),
            Kind::Ed25519(key) => format!("whpk_{}", STANDARD.encode(key.verifying_key().as_bytes())),
        })
    }

    const fn algorithm(&self) -> Algorithm {
        match &self.0 {
            Kind::HmacSha256(_) => Algorithm::HmacSha256,
            Kind::Ed25519(_) => Algorithm::Ed25519,
        }
    }

    /// Signs the parts as if they were one text. `None` never happens: HMAC takes keys of every length; if it did, nothing must go out unsigned.
    fn sign(&self, parts: [&[u8]; 5]) -> Option<[u8; 64]> {
        let mut signature = [0; 64];
        match &self.0 {
            Kind::HmacSha256(secret) => {
                let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret()).ok()?;
                parts.iter().for_each(|part| mac.update(part));
                signature.get_mut(..32)?.copy_from_slice(&mac.finalize().into_bytes());
            }
            Kind::Ed25519(key) => signature = key.multipart_sign(&parts).to_bytes(),
        }
        Some(signature)
    }
}

/// The value of the signatures' header: for each key, in their order, the version (`v1,` or `v1a,`) and the base64 of its signature of
/// `{id}.{timestamp}.{body}`, separated by spaces. `timestamp` is in unix seconds. `None` if there is no key.
pub fn header<'a>(keys: impl Iterator<Item = &'a Key>, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
    let timestamp = timestamp.to_string();
    let mut value = String::with_capacity(USUAL_HEADER);
    for key in keys {
        let signature = key.sign([id.as_bytes(), b".", timestamp.as_bytes(), b".", body])?;
        let length = match key.algorithm() {
            Algorithm::HmacSha256 => 32,
            Algorithm::Ed25519 => 64,
        };
        if !value.is_empty() {
            value.push(' ');
        }
        value.push_str(key.algorithm().version());
        STANDARD.encode_string(signature.get(..length)?, &mut value);
    }
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests;
