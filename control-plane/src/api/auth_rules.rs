//! How a webhook may prove who sends its requests: the rules of every method. Pure.

use std::collections::BTreeSet;

use postrider_common::model::auth::{Auth, ClientAuthentication, SignatureHeaders};
use postrider_common::model::webhook::Webhook;
use postrider_common::secret::SecretBytes;
use postrider_common::signature::Algorithm;
use postrider_common::time::Timestamp;
use postrider_proto::v1;
use v1::auth::Method;
use v1::o_auth2_auth::ClientAuthentication as NamedAuthentication;
use v1::signature_auth::Algorithm as Named;

use super::certificate_rules;
use super::header_rules;
use super::status::Violations;
use super::text_rules::{known, too_long};
use super::url_rules::UrlCheck;

/// Most characters of a user name.
const MAX_USERNAME: usize = 256;

/// Most characters of a password.
const MAX_PASSWORD: usize = 1024;

/// Most characters of a bearer token: with it a head stays within the 8 KiB that receivers' servers commonly take.
const MAX_TOKEN: usize = 4096;

/// Most characters of an API key.
const MAX_API_KEY: usize = 2048;

/// Most characters of a client's id, and of a scope.
const MAX_CLIENT_ID: usize = 256;

/// Most characters of a client's secret, and of an audience.
const MAX_CLIENT_SECRET: usize = 1024;

/// Most scopes of a token.
const MAX_SCOPES: usize = 64;

/// The authentication as asked for. No secret means: keep the present one (or, for a signature that is new, make one).
#[derive(Debug, Clone)]
pub(crate) enum DraftAuth {
    None,
    Basic {
        username: String,
        password: Option<SecretBytes>,
    },
    Signature {
        algorithm: Algorithm,
        headers: SignatureHeaders,
        secret: Option<SecretBytes>,
    },
    Bearer {
        token: Option<SecretBytes>,
    },
    ApiKey {
        header: String,
        value: Option<SecretBytes>,
    },
    OAuth2(DraftClient),
    Mtls {
        certificate: String,
        private_key: Option<SecretBytes>,
    },
}

/// An OAuth 2 client as asked for.
#[derive(Debug, Clone)]
pub(crate) struct DraftClient {
    pub(crate) token_url: String,
    pub(crate) client_id: String,
    pub(crate) client_secret: Option<SecretBytes>,
    pub(crate) scopes: Vec<String>,
    pub(crate) audience: String,
    pub(crate) client_authentication: ClientAuthentication,
}

impl DraftAuth {
    /// The headers that it sets itself, in lower case: static ones of these names would contradict it.
    pub(crate) fn headers(&self) -> Vec<&str> {
        match self {
            Self::None | Self::Mtls { .. } => Vec::new(),
            Self::Basic { .. } | Self::Bearer { .. } | Self::OAuth2(_) => vec!["authorization"],
            Self::ApiKey { header, .. } => vec![header],
            Self::Signature { headers, .. } => vec![&headers.id, &headers.timestamp, &headers.signature],
        }
    }
}

/// Checks the authentication of a webhook. `present` is what an update changes: its secrets may be kept.
pub(crate) fn check(
    auth: Option<v1::Auth>,
    present: Option<&Webhook>,
    urls: &UrlCheck,
    now: Timestamp,
    violations: &mut Violations,
) -> DraftAuth {
    let present = present.map(|webhook| &webhook.auth);
    match auth.and_then(|auth| auth.method) {
        None | Some(Method::None(_)) => DraftAuth::None,
        Some(Method::Basic(basic)) => check_basic(basic, present, violations),
        Some(Method::Signature(signature)) => check_signature(&signature, present, violations),
        Some(Method::Bearer(bearer)) => DraftAuth::Bearer {
            token: check_bearer(bearer, present, violations),
        },
        Some(Method::ApiKey(key)) => check_api_key(key, present, violations),
        Some(Method::Oauth2(client)) => DraftAuth::OAuth2(check_client(client, present, urls, violations)),
        Some(Method::Mtls(mtls)) => certificate_rules::check(mtls, present, now, violations),
    }
}

fn check_basic(basic: v1::BasicAuth, present: Option<&Auth>, violations: &mut Violations) -> DraftAuth {
    let kept = matches!(present, Some(Auth::Basic { .. }));
    check_username(&basic.username, violations);
    let field = "webhook.auth.basic.password";
    too_long(field, &basic.password, MAX_PASSWORD, violations);
    if basic.password.chars().any(char::is_control) {
        violations.add(field, "CONTROL_CHARACTER", "must not contain control characters");
    }
    if basic.password.is_empty() && !kept {
        violations.add(field, "REQUIRED", "must be 1 to 1,024 characters");
    }
    DraftAuth::Basic {
        username: basic.username,
        password: given(basic.password),
    }
}

fn check_username(username: &str, violations: &mut Violations) {
    let field = "webhook.auth.basic.username";
    too_long(field, username, MAX_USERNAME, violations);
    if username.is_empty() {
        violations.add(field, "REQUIRED", "must be 1 to 256 characters");
    }
    if username.contains(':') {
        violations.add(field, "MALFORMED", "must not contain a colon (RFC 7617)");
    }
    if username.chars().any(char::is_control) {
        violations.add(field, "CONTROL_CHARACTER", "must not contain control characters");
    }
}

fn check_signature(signature: &v1::SignatureAuth, present: Option<&Auth>, violations: &mut Violations) -> DraftAuth {
    let algorithm = match known("webhook.auth.signature.algorithm", signature.algorithm, violations) {
        Named::HmacSha256 => Algorithm::HmacSha256,
        Named::Ed25519 => Algorithm::Ed25519,
        Named::Unspecified => match present {
            Some(Auth::Signature { algorithm, .. }) => *algorithm,
            Some(
                Auth::None
                | Auth::Basic { .. }
                | Auth::Bearer { .. }
                | Auth::ApiKey { .. }
                | Auth::OAuth2(_)
                | Auth::Mtls { .. },
            )
            | None => Algorithm::default(),
        },
    };
    let secret = (!signature.secret.is_empty()).then(|| algorithm.parse(&signature.secret));
    let secret = secret.transpose().unwrap_or_else(|rule| {
        violations.add("webhook.auth.signature.secret", "MALFORMED", rule);
        None
    });
    let mut names: Vec<String> = Vec::new();
    for (field, name, standard) in [
        ("id_header", &signature.id_header, SignatureHeaders::ID),
        (
            "timestamp_header",
            &signature.timestamp_header,
            SignatureHeaders::TIMESTAMP,
        ),
        (
            "signature_header",
            &signature.signature_header,
            SignatureHeaders::SIGNATURE,
        ),
    ] {
        let name = if name.is_empty() {
            standard.to_owned()
        } else {
            name.to_ascii_lowercase()
        };
        let field = format!("webhook.auth.signature.{field}");
        if names.contains(&name) {
            violations.add(field, "DUPLICATE", "the three headers must have different names");
        } else if name != standard {
            check_signature_header(&field, &name, violations);
        }
        names.push(name);
    }
    let mut names = names.into_iter();
    let mut next = || names.next().unwrap_or_default();
    DraftAuth::Signature {
        algorithm,
        headers: SignatureHeaders {
            id: next(),
            timestamp: next(),
            signature: next(),
        },
        secret,
    }
}

/// What is signed must arrive as such: not as another header of the request.
fn check_signature_header(field: &str, name: &str, violations: &mut Violations) {
    if name == "authorization" || name.starts_with("ce-") {
        violations.add(field, "RESERVED", format!("{name} has a meaning of its own"));
    } else {
        header_rules::check_name(field, name, violations);
    }
}

fn check_bearer(bearer: v1::BearerAuth, present: Option<&Auth>, violations: &mut Violations) -> Option<SecretBytes> {
    let field = "webhook.auth.bearer.token";
    too_long(field, &bearer.token, MAX_TOKEN, violations);
    if !bearer.token.bytes().all(|byte| byte.is_ascii_graphic()) {
        violations.add(field, "MALFORMED", "must be visible ASCII characters without spaces");
    }
    if bearer.token.is_empty() && !matches!(present, Some(Auth::Bearer { .. })) {
        violations.add(field, "REQUIRED", "must be 1 to 4,096 characters");
    }
    given(bearer.token)
}

fn check_api_key(key: v1::ApiKeyAuth, present: Option<&Auth>, violations: &mut Violations) -> DraftAuth {
    let header = key.header.to_ascii_lowercase();
    let field = "webhook.auth.api_key.header";
    if header.is_empty() {
        violations.add(field, "REQUIRED", "must be 1 to 128 characters");
    } else if header.starts_with("ce-") {
        violations.add(field, "RESERVED", format!("{header} has a meaning of its own"));
    } else {
        header_rules::check_name(field, &header, violations);
    }
    let field = "webhook.auth.api_key.value";
    too_long(field, &key.value, MAX_API_KEY, violations);
    // Spaces around a value are no part of it when it arrives.
    if !key.value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) || key.value.trim() != key.value {
        violations.add(
            field,
            "MALFORMED",
            "must be visible ASCII characters, and spaces between them",
        );
    }
    if key.value.is_empty() && !matches!(present, Some(Auth::ApiKey { .. })) {
        violations.add(field, "REQUIRED", "must be 1 to 2,048 characters");
    }
    DraftAuth::ApiKey {
        header,
        value: given(key.value),
    }
}

fn check_client(
    client: v1::OAuth2Auth,
    present: Option<&Auth>,
    urls: &UrlCheck,
    violations: &mut Violations,
) -> DraftClient {
    let at = |name: &str| format!("webhook.auth.oauth2.{name}");
    let present = match present {
        Some(Auth::OAuth2(present)) => Some(present.token_url.as_str()),
        Some(
            Auth::None
            | Auth::Basic { .. }
            | Auth::Signature { .. }
            | Auth::Bearer { .. }
            | Auth::ApiKey { .. }
            | Auth::Mtls { .. },
        )
        | None => None,
    };
    // One that stays is not judged again.
    let token_url = if present == Some(&client.token_url) {
        client.token_url
    } else {
        urls(&client.token_url).unwrap_or_else(|error| {
            violations.add(at("token_url"), error.reason, error.description);
            String::new()
        })
    };
    // A secret that is kept goes where it was given for, and nowhere else: else whoever may update a webhook could have it sent to himself.
    let kept = present == Some(&token_url);
    let client_authentication = match known(&at("client_authentication"), client.client_authentication, violations) {
        NamedAuthentication::Unspecified | NamedAuthentication::Basic => ClientAuthentication::Basic,
        NamedAuthentication::Body => ClientAuthentication::Body,
    };
    printable(&at("client_id"), &client.client_id, MAX_CLIENT_ID, violations);
    if client.client_id.is_empty() {
        violations.add(at("client_id"), "REQUIRED", "must be 1 to 256 characters");
    }
    printable(
        &at("client_secret"),
        &client.client_secret,
        MAX_CLIENT_SECRET,
        violations,
    );
    if client.client_secret.is_empty() && !kept {
        let rule = "must be 1 to 1,024 characters, and be given again with another token_url";
        violations.add(at("client_secret"), "REQUIRED", rule);
    }
    printable(&at("audience"), &client.audience, MAX_CLIENT_SECRET, violations);
    check_scopes(&at("scopes"), &client.scopes, violations);
    DraftClient {
        token_url,
        client_id: client.client_id,
        client_secret: given(client.client_secret),
        scopes: client.scopes,
        audience: client.audience,
        client_authentication,
    }
}

fn check_scopes(field: &str, scopes: &[String], violations: &mut Violations) {
    if scopes.len() > MAX_SCOPES {
        violations.add(field, "TOO_MANY", format!("at most {MAX_SCOPES} scopes are allowed"));
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, scope) in scopes.iter().enumerate() {
        let at = format!("{field}[{index}]");
        let in_scope = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        if scope.is_empty() || scope.len() > MAX_CLIENT_ID || !scope.bytes().all(in_scope) {
            let rule = "must be 1 to 256 visible ASCII characters other than \" and \\ (RFC 6749, section 3.3)";
            violations.add(at, "MALFORMED", rule);
        } else if !seen.insert(scope) {
            violations.add(at, "DUPLICATE", "is named twice");
        }
    }
}

/// The characters that client credentials are made of (RFC 6749, appendix A).
fn printable(field: &str, text: &str, most: usize, violations: &mut Violations) {
    too_long(field, text, most, violations);
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        violations.add(field, "MALFORMED", "must be printable ASCII characters");
    }
}

/// A secret that was given; an empty text means: keep the present one.
fn given(text: String) -> Option<SecretBytes> {
    (!text.is_empty()).then(|| SecretBytes::from(text.into_bytes()))
}
