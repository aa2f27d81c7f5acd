//! Looks on while TLS is spoken for a test: which certificate was shown, what was thought of it, whether one of ours was asked for. It decides nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use postrider_common::model::testing::TlsSeen;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConnection, DigitallySignedStruct, Error, ProtocolVersion, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;

/// The longest certificate that is kept, in bytes: one with many names and a long key.
const MAX_LEAF_BYTES: usize = 16 * 1024;

/// The longest text of an error that is kept, in bytes: it may list the names of a certificate.
const MAX_ERROR_BYTES: usize = 512;

/// Stands before those who decide, and notes what they say.
#[derive(Debug)]
pub(super) struct Observer {
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Arc<dyn ResolvesClientCert>,
    seen: Mutex<TlsSeen>,
}

impl Observer {
    /// An observer, and the same TLS with it in between. `verifier` must be the configuration's own. Nothing is resumed, so that there is
    /// something to see.
    pub(super) fn of(config: &ClientConfig, verifier: Arc<dyn ServerCertVerifier>) -> (Arc<Self>, TlsConnector) {
        let observer = Arc::new(Self {
            verifier,
            identity: Arc::clone(&config.client_auth_cert_resolver),
            seen: Mutex::default(),
        });
        let mut config = config.clone();
        config.resumption = Resumption::disabled();
        config.client_auth_cert_resolver = Arc::clone(&observer) as _;
        config.dangerous().set_certificate_verifier(Arc::clone(&observer) as _);
        (observer, Arc::new(config).into())
    }

    /// Notes what was agreed on.
    pub(super) fn connected(&self, connection: &ClientConnection) {
        let mut seen = self.lock();
        seen.version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2".to_owned(),
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3".to_owned(),
            other => format!("{other:?}"),
        };
        let suite = connection.negotiated_cipher_suite();
        seen.cipher_suite = suite.map_or_else(String::new, |suite| format!("{:?}", suite.suite()));
        let alpn = connection.alpn_protocol().unwrap_or_default();
        seen.alpn = String::from_utf8_lossy(alpn).into_owned();
    }

    /// What was seen so far.
    pub(super) fn seen(&self) -> TlsSeen {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, TlsSeen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for Observer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .verifier
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let mut seen = self.lock();
        if end_entity.len() <= MAX_LEAF_BYTES {
            seen.leaf = Bytes::copy_from_slice(end_entity);
        }
        if let Err(error) = &verified {
            let mut text = error.to_string();
            text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES));
            seen.verification_error = text;
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

impl ResolvesClientCert for Observer {
    fn resolve(&self, root_hint_subjects: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.lock().client_certificate_requested = true;
        self.identity.resolve(root_hint_subjects, schemes)
    }

    fn has_certs(&self) -> bool {
        self.identity.has_certs()
    }
}
