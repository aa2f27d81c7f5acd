//! Which client certificate a webhook may have. Pure.

use postrider_common::client_certificate::{Invalid, certified, chain};
use postrider_common::model::auth::Auth;
use postrider_common::secret::SecretBytes;
use postrider_common::time::Timestamp;
use postrider_proto::v1;

use super::auth_rules::DraftAuth;
use super::status::Violations;

/// Most bytes of a chain: several certificates with long keys and many names.
const MAX_CHAIN: usize = 32 * 1024;

/// Most certificates of a chain: receivers read no longer ones.
const MAX_CERTIFICATES: usize = 10;

/// Most bytes of a private key: RSA of 8,192 bits takes less than half.
const MAX_KEY: usize = 16 * 1024;

/// Checks a client certificate and its key. One that stays is not judged again, so that it hinders no other change once it has expired.
pub(super) fn check(
    mtls: v1::MtlsAuth,
    present: Option<&Auth>,
    now: Timestamp,
    violations: &mut Violations,
) -> DraftAuth {
    let (field, key_field) = ("webhook.auth.mtls.certificate", "webhook.auth.mtls.private_key");
    let stays = matches!(present, Some(Auth::Mtls { certificate, .. }) if *certificate == mtls.certificate);
    let before = violations.clone();
    if !stays {
        check_chain(field, &mtls.certificate, now, violations);
    }
    let well_formed = *violations == before;
    if mtls.private_key.is_empty() {
        if !stays {
            let rule = "must be given, and be given again with another certificate";
            violations.add(key_field, "REQUIRED", rule);
        }
    } else if mtls.private_key.len() > MAX_KEY {
        violations.add(key_field, "TOO_LARGE", format!("must be at most {MAX_KEY} bytes"));
    } else {
        match certified(&mtls.certificate, mtls.private_key.as_bytes()) {
            Ok(_) => {}
            // Said already, unless only the key shows it.
            Err(Invalid::Certificate) if !well_formed => {}
            Err(error @ Invalid::Certificate) => violations.add(field, "MALFORMED", error.to_string()),
            Err(error @ Invalid::PrivateKey) => violations.add(key_field, "MALFORMED", error.to_string()),
            Err(error @ Invalid::Mismatch) => violations.add(key_field, "MISMATCH", error.to_string()),
        }
    }
    DraftAuth::Mtls {
        certificate: mtls.certificate,
        private_key: (!mtls.private_key.is_empty()).then(|| SecretBytes::from(mtls.private_key.into_bytes())),
    }
}

fn check_chain(field: &str, pem: &str, now: Timestamp, violations: &mut Violations) {
    if pem.is_empty() {
        violations.add(field, "REQUIRED", Invalid::Certificate.to_string());
        return;
    }
    if pem.len() > MAX_CHAIN {
        violations.add(field, "TOO_LARGE", format!("must be at most {MAX_CHAIN} bytes"));
        return;
    }
    let ends: Option<Vec<i64>> = chain(pem).ok().and_then(|chain| {
        let end = |der: &[u8]| match x509_parser::parse_x509_certificate(der) {
            Ok(([], certificate)) => Some(certificate.validity().not_after.timestamp()),
            Ok(_) | Err(_) => None,
        };
        chain.iter().map(|der| end(der)).collect()
    });
    match ends.as_deref() {
        None => violations.add(field, "MALFORMED", Invalid::Certificate.to_string()),
        Some(ends) if ends.len() > MAX_CERTIFICATES => {
            let rule = format!("at most {MAX_CERTIFICATES} certificates are allowed");
            violations.add(field, "TOO_MANY", rule);
        }
        Some(ends) if ends.iter().any(|end| *end < now.as_seconds()) => {
            violations.add(field, "EXPIRED", "a certificate of the chain has expired");
        }
        Some(_) => {}
    }
}
