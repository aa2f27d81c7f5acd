//! Secrets: sealed in the store under XChaCha20-Poly1305, bound to where they stand, and never printed.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use secrecy::SecretSlice;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::entropy::Entropy;

/// Bytes that must not be seen. `Debug` hides them, dropping wipes them.
pub type SecretBytes = SecretSlice<u8>;

/// A secret as the store holds it: unreadable without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Names the key.
    pub key_id: String,
    /// 24 random bytes.
    pub nonce: Vec<u8>,
    /// The secret under the key, with its tag.
    pub ciphertext: Vec<u8>,
}

/// Why a secret could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It was sealed under a key that this process does not have.
    #[error("sealed under the unknown key {0}")]
    UnknownKey(String),
    /// It was changed, or stands where it was not sealed for.
    #[error("the sealed value does not fit its place")]
    Corrupt,
}

/// A text that is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a sealing key must be the base64 text of 32 random bytes, for example from: head -c 32 /dev/urandom | base64")]
pub struct InvalidKey;

/// The keys that seal and open secrets. The first seals; all open.
#[derive(Clone)]
pub struct Keyring {
    current: String,
    keys: BTreeMap<String, XChaCha20Poly1305>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keyring")
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

impl Keyring {
    /// Reads keys from text: one base64 key of 32 bytes a line, the newest first; empty lines and lines that start with `#` are left out.
    ///
    /// # Errors
    /// [`InvalidKey`] if a line is not a key, or there is none. The text is never repeated.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let mut current = None;
        let mut keys = BTreeMap::new();
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            let bytes = Zeroizing::new(STANDARD.decode(line).map_err(|_| InvalidKey)?);
            let id = hex(&Sha256::digest(Sha256::digest(bytes.as_slice())), 4);
            let cipher = XChaCha20Poly1305::new_from_slice(&bytes).map_err(|_| InvalidKey)?;
            current.get_or_insert_with(|| id.clone());
            keys.insert(id, cipher);
        }
        Ok(Self {
            current: current.ok_or(InvalidKey)?,
            keys,
        })
    }

    /// The text of a new key, for a key file.
    pub fn generate(entropy: &dyn Entropy) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 32]);
        entropy.fill(&mut *bytes);
        Zeroizing::new(STANDARD.encode(*bytes))
    }

    /// Seals `secret` for the place named by `context` (such as account, webhook uid and field): it opens nowhere else.
    pub fn seal(&self, secret: &[u8], context: &str, entropy: &dyn Entropy) -> Sealed {
        let mut nonce = [0; 24];
        entropy.fill(&mut nonce);
        let payload = Payload {
            msg: secret,
            aad: context.as_bytes(),
        };
        // The current key is in the ring by construction, and sealing fails only beyond 256 GiB.
        let sealed = self
            .keys
            .get(&self.current)
            .and_then(|key| key.encrypt(&XNonce::from(nonce), payload).ok());
        Sealed {
            key_id: self.current.clone(),
            nonce: nonce.to_vec(),
            ciphertext: sealed.unwrap_or_default(),
        }
    }

    /// Opens what was sealed for `context`.
    ///
    /// # Errors
    /// [`OpenError`] if the key is not here, or the value was changed or moved.
    pub fn open(&self, sealed: &Sealed, context: &str) -> Result<SecretBytes, OpenError> {
        let key = self
            .keys
            .get(&sealed.key_id)
            .ok_or_else(|| OpenError::UnknownKey(sealed.key_id.clone()))?;
        let nonce: [u8; 24] = sealed.nonce.as_slice().try_into().map_err(|_| OpenError::Corrupt)?;
        let payload = Payload {
            msg: sealed.ciphertext.as_slice(),
            aad: context.as_bytes(),
        };
        let bytes = key
            .decrypt(&XNonce::from(nonce), payload)
            .map_err(|_| OpenError::Corrupt)?;
        Ok(SecretBytes::from(bytes))
    }
}

/// The first `count` bytes as lower-case hexadecimal text.
pub fn hex(bytes: &[u8], count: usize) -> String {
    bytes.iter().take(count).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::entropy::SystemEntropy;

    fn ring(seed: u64) -> (Keyring, SystemEntropy) {
        let entropy = SystemEntropy::seeded(seed);
        (Keyring::parse(&Keyring::generate(&entropy)).unwrap(), entropy)
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_in_its_place_and_nowhere_else(secret: Vec<u8>, place in "[a-z/]{1,20}", other in "[a-z/]{1,20}") {
            let (ring, entropy) = ring(1);
            let sealed = ring.seal(&secret, &place, &entropy);
            let opened = ring.open(&sealed, &place).unwrap();
            prop_assert_eq!(opened.expose_secret(), secret.as_slice());
            if place != other {
                prop_assert_eq!(ring.open(&sealed, &other).unwrap_err(), OpenError::Corrupt);
            }
        }

        #[test]
        fn a_changed_seal_does_not_open(secret: Vec<u8>, at: prop::sample::Index, bit in 0_u8..8) {
            let (ring, entropy) = ring(2);
            let mut sealed = ring.seal(&secret, "a", &entropy);
            let at = at.index(sealed.ciphertext.len());
            sealed.ciphertext[at] ^= 1 << bit;
            prop_assert_eq!(ring.open(&sealed, "a").unwrap_err(), OpenError::Corrupt);
        }
    }

    #[test]
    fn an_old_key_still_opens_after_a_new_one_was_put_before_it() {
        let entropy = SystemEntropy::seeded(3);
        let old = Keyring::generate(&entropy);
        let sealed = Keyring::parse(&old).unwrap().seal(b"secret", "a", &entropy);
        let both = Keyring::parse(&format!("# newest first\n{}\n{}\n", *Keyring::generate(&entropy), *old)).unwrap();
        let opened = both.open(&sealed, "a").unwrap();
        assert_eq!(opened.expose_secret(), b"secret");
        assert_ne!(both.seal(b"secret", "a", &entropy).key_id, sealed.key_id);
        assert!(matches!(ring(4).0.open(&sealed, "a"), Err(OpenError::UnknownKey(_))));
    }
}
