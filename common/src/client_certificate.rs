//! Client certificates in PEM: read, and checked to fit their private key. Pure.

use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// What is wrong with a client certificate. Nothing of it is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The certificates.
    #[error("must be certificates in PEM, the client's own first, and nothing else in PEM")]
    Certificate,
    /// The private key.
    #[error("must be one unencrypted private key in PEM: RSA, ECDSA on P-256 or P-384, or ed25519")]
    PrivateKey,
    /// Each is well formed, but the key is another's.
    #[error("is not the private key of the first certificate")]
    Mismatch,
}

/// The certificates of a chain, at least one.
///
/// # Errors
/// [`Invalid::Certificate`]. What else the text may hold in PEM, such as a private key, is a mistake: the text is not kept secret.
pub fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let chain = chain.map_err(|_| Invalid::Certificate)?;
    let sections = pem.matches("-----BEGIN").count();
    if chain.is_empty() || sections != chain.len() {
        return Err(Invalid::Certificate);
    }
    Ok(chain)
}

/// A chain with the private key of its first certificate.
///
/// # Errors
/// [`Invalid`].
pub fn certified(chain_pem: &str, key_pem: &[u8]) -> Result<CertifiedKey, Invalid> {
    let chain = chain(chain_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| Invalid::PrivateKey)?;
    let key = ring::default_provider()
        .key_provider
        .load_private_key(key)
        .map_err(|_| Invalid::PrivateKey)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(Invalid::Mismatch),
        Err(_) => Err(Invalid::Certificate),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn pair(key: &KeyPair) -> (String, String) {
        let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        (params.self_signed(key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn each_kind_of_key_fits_its_own_certificate_and_no_other() {
        let pairs = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519]
            .map(|algorithm| pair(&KeyPair::generate_for(algorithm).unwrap()));
        for (index, (certificate, _)) in pairs.iter().enumerate() {
            for (other, (_, key)) in pairs.iter().enumerate() {
                let result = certified(certificate, key.as_bytes()).map(|key| key.cert.len());
                let expected = if index == other { Ok(1) } else { Err(Invalid::Mismatch) };
                assert_eq!(result, expected);
            }
        }
    }

    #[test]
    fn what_is_no_certificate_or_no_key_is_refused() {
        let (certificate, key) = pair(&KeyPair::generate().unwrap());
        let nonsense = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        let both = format!("{certificate}{key}");
        for bad in ["", "hello", "-----BEGIN CERTIFICATE-----", &both, &key] {
            assert_eq!(chain(bad), Err(Invalid::Certificate));
        }
        assert_eq!(certified(nonsense, key.as_bytes()).err(), Some(Invalid::Certificate));
        assert_eq!(chain(&format!("{certificate}\n{certificate}")).unwrap().len(), 2);
        let broken = "-----BEGIN PRIVATE KEY-----\naGVsbG8=\n-----END PRIVATE KEY-----\n";
        let sealed = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        for bad in ["", "hello", broken, &sealed, &certificate] {
            let result = certified(&certificate, bad.as_bytes());
            assert_eq!(result.err(), Some(Invalid::PrivateKey));
        }
    }
}
