//! Messages that hold secrets do not print them.

use std::fmt;

use crate::v1::{ApiKeyAuth, BasicAuth, BearerAuth, MtlsAuth, OAuth2Auth, RotateSigningSecretRequest, SignatureAuth};

impl fmt::Debug for BasicAuth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BasicAuth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BearerAuth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BearerAuth").finish_non_exhaustive()
    }
}

impl fmt::Debug for ApiKeyAuth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ApiKeyAuth")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for OAuth2Auth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OAuth2Auth")
            .field("token_url", &self.token_url)
            .field("client_id", &self.client_id)
            .field("scopes", &self.scopes)
            .field("audience", &self.audience)
            .field("client_authentication", &self.client_authentication)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for MtlsAuth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MtlsAuth")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SignatureAuth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SignatureAuth")
            .field("secret_ids", &self.secret_ids)
            .field("algorithm", &self.algorithm)
            .field("id_header", &self.id_header)
            .field("timestamp_header", &self.timestamp_header)
            .field("signature_header", &self.signature_header)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RotateSigningSecretRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RotateSigningSecretRequest")
            .field("name", &self.name)
            .field("overlap", &self.overlap)
            .field("etag", &self.etag)
            .field("validate_only", &self.validate_only)
            .finish_non_exhaustive()
    }
}
