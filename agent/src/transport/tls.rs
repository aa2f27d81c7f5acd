//! How receivers prove who they are: TLS 1.2 and later, certificates by known roots.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use postrider_common::client_certificate::{Invalid, certified};
use rustls::client::{ClientConfig, Resumption, WebPkiServerVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, crypto::ring};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// HTTP/2, as ALPN names it.
pub(super) const H2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";

/// Whose signature on a certificate is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Roots {
    /// Mozilla's list, built into this program: the same on every machine.
    #[default]
    BuiltIn,
    /// The operating system's list.
    System,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The extra certificates are not PEM.
    #[error("the extra certificate authorities are not PEM text with certificates")]
    NotPem,
    /// A root certificate is not one, or there is none.
    #[error("there is no usable root certificate")]
    NoRoots,
    /// The TLS library refused.
    #[error(transparent)]
    Refused(#[from] rustls::Error),
}

/// How receivers prove who they are.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The configuration of outgoing connections.
    pub(super) config: Arc<ClientConfig>,
    /// Who judges certificates in it.
    pub(super) verifier: Arc<WebPkiServerVerifier>,
}

/// A client certificate with its key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The chain as it was given: tells identities apart, since only one key fits a certificate.
    chain: Arc<str>,
    key: Arc<CertifiedKey>,
}

impl Identity {
    /// The identity of this chain and key, both in PEM.
    ///
    /// # Errors
    /// [`Invalid`] if they are not well formed, or do not fit.
    pub fn new(chain: &str, key: &[u8]) -> Result<Self, Invalid> {
        Ok(Self {
            key: Arc::new(certified(chain, key)?),
            chain: chain.into(),
        })
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.chain.hash(state);
    }
}

/// How many TLS sessions are remembered of one host and client certificate, to be resumed.
const SESSIONS: usize = 8;

/// The same configuration, with this identity. It remembers its own sessions: one that is resumed is whose it was.
pub(super) fn with_identity(config: &ClientConfig, identity: &Identity) -> ClientConfig {
    let mut config = config.clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(Arc::clone(&identity.key)));
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    config
}

/// The same configuration, for receivers that are to be spoken to in HTTP/1.1 only.
pub(super) fn without_http2(config: &ClientConfig) -> ClientConfig {
    let mut config = config.clone();
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    config
}

/// The configuration of all outgoing TLS connections: HTTP/2 preferred, HTTP/1.1 accepted. `extra_authorities` are PEM certificates that are believed
/// besides the roots; empty for none.
///
/// # Errors
/// [`TlsError`].
pub fn client_config(roots: Roots, extra_authorities: &[u8]) -> Result<Tls, TlsError> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::BuiltIn => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        // Some of a system's certificates are commonly broken; the rest is what counts.
        Roots::System => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let mut extra = 0;
    for certificate in CertificateDer::pem_slice_iter(extra_authorities) {
        store.add(certificate.map_err(|_| TlsError::NotPem)?)?;
        extra += 1;
    }
    if extra == 0 && !extra_authorities.is_empty() {
        return Err(TlsError::NotPem);
    }
    if store.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
        .build()
        .map_err(|_| TlsError::NoRoots)?;
    // The verifier that the builder would make of the roots by itself; a test needs to have it.
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_no_client_auth();
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    Ok(Tls {
        config: Arc::new(config),
        verifier,
    })
}
