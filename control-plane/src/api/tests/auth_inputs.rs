//! Bad input of authentication: refused like all other bad input of webhooks.

use v1::auth::Method;
use v1::signature_auth::Algorithm;
use v1::{ApiKeyAuth, BearerAuth, MtlsAuth, OAuth2Auth, SignatureAuth, Webhook};

use super::inputs::{Row, refused, row};
use super::*;

/// A webhook with this method is refused.
fn of(method: Method, field: &'static str, reason: &'static str) -> Row {
    let auth = v1::Auth { method: Some(method) };
    row(
        format!("{auth:?}"),
        move |webhook: &mut Webhook| webhook.auth = Some(auth.clone()),
        field,
        reason,
    )
}

#[tokio::test]
async fn bad_credentials_are_refused() {
    const USER: &str = "webhook.auth.basic.username";
    const PASSWORD: &str = "webhook.auth.basic.password";
    const SECRET: &str = "webhook.auth.signature.secret";
    let basic_row = |username: String, password: String, field, reason| {
        row(
            format!("{username:.20?} {password:.20?}"),
            move |webhook: &mut Webhook| webhook.auth = basic(&username, &password),
            field,
            reason,
        )
    };
    let long = |count| "x".repeat(count);
    let mut rows = vec![
        basic_row("a:b".into(), "p".into(), USER, "MALFORMED"),
        basic_row("a\n".into(), "p".into(), USER, "CONTROL_CHARACTER"),
        basic_row(String::new(), "p".into(), USER, "REQUIRED"),
        basic_row(long(257), "p".into(), USER, "TOO_LONG"),
        basic_row("a".into(), String::new(), PASSWORD, "REQUIRED"),
        basic_row("a".into(), "p\u{7f}".into(), PASSWORD, "CONTROL_CHARACTER"),
        basic_row("a".into(), long(1025), PASSWORD, "TOO_LONG"),
    ];
    let encode = |bytes: usize| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(vec![0xff_u8; bytes])
    };
    let secrets = [
        "plain".to_owned(),
        format!("whsk_{}", encode(32)),
        format!("whsec_{}", encode(23)),
        format!("whsec_{}", encode(65)),
        format!("whsec_{} ", encode(32)),
        format!(" whsec_{}", encode(32)),
        format!("whsec_{}", encode(33).replace('/', "_")),
    ];
    for secret in secrets {
        rows.push(row(
            format!("{secret:.12}"),
            move |webhook| webhook.auth = signature(&secret),
            SECRET,
            "MALFORMED",
        ));
    }
    let keys = [
        format!("whsec_{}", encode(32)),
        format!("whsk_{}", encode(31)),
        // The last 32 bytes are not the public key.
        format!("whsk_{}", encode(64)),
    ];
    for secret in keys {
        let signature = SignatureAuth {
            secret,
            algorithm: Algorithm::Ed25519.into(),
            ..SignatureAuth::default()
        };
        rows.push(of(Method::Signature(signature), SECRET, "MALFORMED"));
    }
    refused(rows).await;
}

#[tokio::test]
async fn bad_names_of_signature_headers_are_refused() {
    const ID: &str = "webhook.auth.signature.id_header";
    const TIMESTAMP: &str = "webhook.auth.signature.timestamp_header";
    const SIGNATURE: &str = "webhook.auth.signature.signature_header";
    let named = |id: &str, timestamp: &str, signature: &str| {
        Method::Signature(SignatureAuth {
            id_header: id.into(),
            timestamp_header: timestamp.into(),
            signature_header: signature.into(),
            ..SignatureAuth::default()
        })
    };
    let mut rows = vec![
        of(named("x-a", "X-A", ""), TIMESTAMP, "DUPLICATE"),
        of(named("", "x-a", "x-a"), SIGNATURE, "DUPLICATE"),
        of(named("", "webhook-id", ""), TIMESTAMP, "DUPLICATE"),
        of(named("webhook-attempt", "", ""), ID, "RESERVED"),
        of(named("webhook-signature", "", "x-s"), ID, "RESERVED"),
        of(named("", "Content-Type", ""), TIMESTAMP, "RESERVED"),
        of(named("", "", "Authorization"), SIGNATURE, "RESERVED"),
        of(named("ce-id", "", ""), ID, "RESERVED"),
        of(named("", "", "proxy-x"), SIGNATURE, "RESERVED"),
        of(named(&"x".repeat(129), "", ""), ID, "TOO_LARGE"),
    ];
    for name in ["a b", "a:", "\u{e9}", " x", "x\r\n"] {
        rows.push(of(named("", "", name), SIGNATURE, "MALFORMED"));
    }
    let (method, header) = (
        named("x-id", "", ""),
        v1::Header {
            name: "X-Id".into(),
            value: "1".into(),
        },
    );
    rows.push(row(
        "a static header of the same name",
        move |webhook| {
            webhook.auth = Some(v1::Auth {
                method: Some(method.clone()),
            });
            webhook.headers = vec![header.clone()];
        },
        "webhook.headers[0].name",
        "CONFLICT",
    ));
    let unknown = SignatureAuth {
        algorithm: 9,
        ..SignatureAuth::default()
    };
    rows.push(of(
        Method::Signature(unknown),
        "webhook.auth.signature.algorithm",
        "UNKNOWN_VALUE",
    ));
    refused(rows).await;
}

#[tokio::test]
async fn bad_tokens_and_keys_are_refused() {
    const TOKEN: &str = "webhook.auth.bearer.token";
    const HEADER: &str = "webhook.auth.api_key.header";
    const VALUE: &str = "webhook.auth.api_key.value";
    let bearer = |token: &str| Method::Bearer(BearerAuth { token: token.into() });
    let key = |header: &str, value: &str| {
        Method::ApiKey(ApiKeyAuth {
            header: header.into(),
            value: value.into(),
        })
    };
    let mut rows = vec![
        of(bearer(""), TOKEN, "REQUIRED"),
        of(bearer(&"x".repeat(4097)), TOKEN, "TOO_LONG"),
        of(key("", "v"), HEADER, "REQUIRED"),
        of(key("Content-Length", "v"), HEADER, "RESERVED"),
        of(key("webhook-id", "v"), HEADER, "RESERVED"),
        of(key("ce-id", "v"), HEADER, "RESERVED"),
        of(key("a b", "v"), HEADER, "MALFORMED"),
        of(key(&"x".repeat(129), "v"), HEADER, "TOO_LARGE"),
        of(key("x-api-key", ""), VALUE, "REQUIRED"),
        of(key("x-api-key", &"x".repeat(2049)), VALUE, "TOO_LONG"),
    ];
    for bad in ["a b", "a\r\nb", "\u{e9}", "\0", " a"] {
        rows.push(of(bearer(bad), TOKEN, "MALFORMED"));
    }
    for bad in ["a\r\nb: c", "\u{e9}", "\t", " a", "a "] {
        rows.push(of(key("x-api-key", bad), VALUE, "MALFORMED"));
    }
    for (method, name) in [(bearer("t"), "Authorization"), (key("X-Api-Key", "v"), "x-api-KEY")] {
        let header = v1::Header {
            name: name.into(),
            value: "1".into(),
        };
        rows.push(row(
            name,
            move |webhook| {
                webhook.auth = Some(v1::Auth {
                    method: Some(method.clone()),
                });
                webhook.headers = vec![header.clone()];
            },
            "webhook.headers[0].name",
            "CONFLICT",
        ));
    }
    refused(rows).await;
}

fn client(change: impl FnOnce(&mut OAuth2Auth)) -> Method {
    let mut client = OAuth2Auth {
        token_url: "https://example.com/token".into(),
        client_id: "ada".into(),
        client_secret: "secret".into(),
        scopes: vec!["a".into()],
        ..OAuth2Auth::default()
    };
    change(&mut client);
    Method::Oauth2(client)
}

#[tokio::test]
async fn bad_oauth_clients_are_refused() {
    const URL: &str = "webhook.auth.oauth2.token_url";
    const ID: &str = "webhook.auth.oauth2.client_id";
    const SECRET: &str = "webhook.auth.oauth2.client_secret";
    const SCOPES: &str = "webhook.auth.oauth2.scopes";
    const SECOND: &str = "webhook.auth.oauth2.scopes[1]";
    const AUDIENCE: &str = "webhook.auth.oauth2.audience";
    let url = |url: &'static str| client(|client| client.token_url = url.into());
    let scope = |scope: &str| client(|client| client.scopes.push(scope.into()));
    let mut rows = vec![
        of(url(""), URL, "REQUIRED"),
        of(url("ftp://example.com/"), URL, "SCHEME"),
        of(url("http://127.0.0.1/token"), URL, "FORBIDDEN_ADDRESS"),
        of(url("http://u:p@example.com/"), URL, "CREDENTIALS_IN_URL"),
        of(client(|client| client.client_id.clear()), ID, "REQUIRED"),
        of(client(|client| client.client_id = "x".repeat(257)), ID, "TOO_LONG"),
        of(client(|client| client.client_id = "a\n".into()), ID, "MALFORMED"),
        of(client(|client| client.client_secret.clear()), SECRET, "REQUIRED"),
        of(
            client(|client| client.client_secret = "x".repeat(1025)),
            SECRET,
            "TOO_LONG",
        ),
        of(
            client(|client| client.client_secret = "\u{e9}".into()),
            SECRET,
            "MALFORMED",
        ),
        of(
            client(|client| client.audience = "x".repeat(1025)),
            AUDIENCE,
            "TOO_LONG",
        ),
        of(client(|client| client.audience = "\0".into()), AUDIENCE, "MALFORMED"),
        of(scope("a"), SECOND, "DUPLICATE"),
        of(
            client(|client| client.scopes = (0..65).map(|number| format!("s{number}")).collect()),
            SCOPES,
            "TOO_MANY",
        ),
        of(
            client(|client| client.client_authentication = 9),
            "webhook.auth.oauth2.client_authentication",
            "UNKNOWN_VALUE",
        ),
    ];
    for bad in ["", "a b", "\"", "\\", "\u{e9}", &"x".repeat(257)] {
        rows.push(of(scope(bad), SECOND, "MALFORMED"));
    }
    let header = v1::Header {
        name: "authorization".into(),
        value: "1".into(),
    };
    rows.push(row(
        "authorization beside oauth2",
        move |webhook| {
            webhook.auth = Some(v1::Auth {
                method: Some(client(|_| ())),
            });
            webhook.headers = vec![header.clone()];
        },
        "webhook.headers[0].name",
        "CONFLICT",
    ));
    refused(rows).await;
}

#[tokio::test]
async fn bad_client_certificates_are_refused() {
    const CERTIFICATE: &str = "webhook.auth.mtls.certificate";
    const KEY: &str = "webhook.auth.mtls.private_key";
    let own = |year| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let (certificate, key) = own(4000);
    let (expired, expired_key) = own(2020);
    let (_, other_key) = own(4000);
    let mtls = |certificate: &str, key: &str| {
        Method::Mtls(MtlsAuth {
            certificate: certificate.into(),
            private_key: key.into(),
        })
    };
    let broken = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    let mut rows = vec![
        of(mtls("", &key), CERTIFICATE, "REQUIRED"),
        of(mtls(&"x".repeat(32 * 1024 + 1), &key), CERTIFICATE, "TOO_LARGE"),
        of(mtls(&certificate.repeat(11), &key), CERTIFICATE, "TOO_MANY"),
        of(mtls(&expired, &expired_key), CERTIFICATE, "EXPIRED"),
        of(mtls(&format!("{certificate}{expired}"), &key), CERTIFICATE, "EXPIRED"),
        of(mtls(&certificate, ""), KEY, "REQUIRED"),
        of(mtls(&certificate, &"x".repeat(16 * 1024 + 1)), KEY, "TOO_LARGE"),
        of(mtls(&certificate, &other_key), KEY, "MISMATCH"),
    ];
    for bad in [
        "hello",
        broken,
        &key,
        &format!("{certificate}{key}"),
        &format!("{certificate}{broken}"),
    ] {
        rows.push(of(mtls(bad, &key), CERTIFICATE, "MALFORMED"));
    }
    for bad in ["hello", &certificate, &key.replace("PRIVATE", "ENCRYPTED PRIVATE")] {
        rows.push(of(mtls(&certificate, bad), KEY, "MALFORMED"));
    }
    let method = mtls(&certificate, &key);
    rows.push(row(
        "without TLS",
        move |webhook| {
            webhook.auth = Some(v1::Auth {
                method: Some(method.clone()),
            });
            webhook.target_url = "http://example.com/hook".into();
        },
        "webhook.target_url",
        "SCHEME",
    ));
    refused(rows).await;
}
