//! What is said to an OAuth 2 token endpoint (RFC 6749, section 4.4), and what its answer means. Pure.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use postrider_common::model::auth::{ClientAuthentication, OAuth2};
use serde::Deserialize;
use url::form_urlencoded::{Serializer, byte_serialize};
use zeroize::Zeroizing;

use super::header;
use crate::attempt::request::AGENT;

/// How long before its end a token is no longer used: longer than a request takes to arrive, and than two clocks differ.
const MARGIN: Duration = Duration::from_secs(30);

/// How long a token is used whose endpoint does not say how long it is good.
const UNSAID_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// How long a token is used at most, whatever its endpoint says.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The longest token, in bytes; longer ones would not fit into the heads that receivers' servers take.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// A request for a token, with the client's secret in it. Cheap to clone.
#[derive(Clone)]
pub struct Request {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) secret: Zeroizing<String>,
}

/// A token that was granted.
#[derive(PartialEq, Eq)]
pub(super) struct Grant {
    /// The value of `authorization`.
    pub(super) value: Zeroizing<String>,
    /// How long it may be used from when it was asked for.
    pub(super) usable: Duration,
}

/// Why an answer grants no token. Nothing of the answer is repeated: it may hold a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the token endpoint answered {0}")]
    Status(u16),
    #[error("the token endpoint answered no JSON object with an access_token")]
    Malformed,
    #[error("the token is of a type other than Bearer")]
    Type,
    #[error("the token cannot stand in a header")]
    Token,
}

/// The request for a token. `None` if the secret cannot stand in it.
pub(super) fn request(client: &OAuth2, secret: &[u8]) -> Option<Request> {
    let secret = header::text(secret)?;
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-www-form-urlencoded"),
    );
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, AGENT);
    // Of the full size from the start: a buffer that grows leaves copies of the secret behind. No byte takes more than three.
    let texts = client.scopes.iter().map(|scope| scope.len() + 1).sum::<usize>() + client.audience.len();
    let size = 3 * (texts + client.client_id.len() + secret.len()) + 128;
    let mut form = Serializer::new(String::with_capacity(size));
    form.append_pair("grant_type", "client_credentials");
    if !client.scopes.is_empty() {
        form.append_pair("scope", &client.scopes.join(" "));
    }
    if !client.audience.is_empty() {
        form.append_pair("audience", &client.audience);
    }
    match client.client_authentication {
        ClientAuthentication::Basic => {
            let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
            let pair = format!("{}:{}", encoded(&client.client_id), *Zeroizing::new(encoded(&secret)));
            let value = Zeroizing::new(format!("Basic {}", STANDARD.encode(Zeroizing::new(pair).as_bytes())));
            let mut value = HeaderValue::from_str(&value).ok()?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        ClientAuthentication::Body => {
            form.append_pair("client_id", &client.client_id);
            form.append_pair("client_secret", &secret);
        }
    }
    Some(Request {
        headers,
        body: Bytes::from_owner(Zeroizing::new(form.finish().into_bytes())),
        secret,
    })
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    expires_in: Option<Seconds>,
}

/// Some servers write the number as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

/// Reads an answer.
pub(super) fn read(status: u16, body: &[u8]) -> Result<Grant, Refused> {
    if !(200..300).contains(&status) {
        return Err(Refused::Status(status));
    }
    let answer: Answer = serde_json::from_slice(body).map_err(|_| Refused::Malformed)?;
    let token = Zeroizing::new(answer.access_token);
    // RFC 6749 requires the type; servers that leave it out mean this one.
    if answer
        .token_type
        .is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer"))
    {
        return Err(Refused::Type);
    }
    let fits = (1..=MAX_TOKEN_BYTES).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    let value = header::bearer(token.as_bytes())
        .filter(|_| fits)
        .ok_or(Refused::Token)?;
    let seconds = match answer.expires_in {
        None => UNSAID_LIFETIME.as_secs_f64(),
        Some(Seconds::Number(seconds)) => seconds,
        Some(Seconds::Text(text)) => text.trim().parse().map_err(|_| Refused::Malformed)?,
    };
    // What is no number of seconds, or below none, is none.
    let lifetime = Duration::try_from_secs_f64(seconds.min(MAX_LIFETIME.as_secs_f64())).unwrap_or_default();
    Ok(Grant {
        value,
        usable: lifetime.saturating_sub(MARGIN.min(lifetime / 4)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(client_authentication: ClientAuthentication) -> OAuth2 {
        OAuth2 {
            token_url: String::new(),
            client_id: "ada & co".to_owned(),
            client_secret: postrider_common::secret::Sealed {
                key_id: String::new(),
                nonce: Vec::new(),
                ciphertext: Vec::new(),
            },
            scopes: vec!["a:read".to_owned(), "b".to_owned()],
            audience: "https://example.com/".to_owned(),
            client_authentication,
        }
    }

    #[test]
    fn the_client_proves_itself_in_the_header_or_in_the_body() {
        let plain = "grant_type=client_credentials&scope=a%3Aread+b&audience=https%3A%2F%2Fexample.com%2F";
        let basic = request(&client(ClientAuthentication::Basic), b"s:e%c").unwrap();
        assert_eq!(basic.body, plain);
        let pair = STANDARD.encode("ada+%26+co:s%3Ae%25c");
        assert_eq!(basic.headers[AUTHORIZATION], format!("Basic {pair}"));
        assert!(!format!("{:?}", basic.headers).contains(&pair));
        let body = request(&client(ClientAuthentication::Body), b"s:e%c").unwrap();
        assert_eq!(
            body.body,
            format!("{plain}&client_id=ada+%26+co&client_secret=s%3Ae%25c")
        );
        assert!(!body.headers.contains_key(AUTHORIZATION));
        assert!(request(&client(ClientAuthentication::Body), b"\xff").is_none());
    }

    fn usable(body: &str) -> Result<f64, Refused> {
        read(200, body.as_bytes()).map(|grant| {
            assert_eq!(*grant.value, "Bearer t");
            grant.usable.as_secs_f64()
        })
    }

    #[test]
    fn a_token_is_used_until_a_margin_before_its_end() {
        for (seconds, expected) in [
            ("3600", 3570.0),
            ("\"3600\"", 3570.0),
            ("120", 90.0),
            ("60", 45.0),
            ("0", 0.0),
            ("-1", 0.0),
            ("1e300", 86370.0),
            ("null", 270.0),
        ] {
            let body = format!("{{\"access_token\":\"t\",\"token_type\":\"bearer\",\"expires_in\":{seconds}}}");
            assert_eq!(usable(&body), Ok(expected), "{seconds}");
        }
        assert_eq!(usable("{\"access_token\":\"t\"}"), Ok(270.0));
    }

    #[test]
    fn other_answers_grant_nothing() {
        for status in [199, 302, 400, 401, 429, 500] {
            assert_eq!(
                read(status, b"{\"access_token\":\"t\"}").err(),
                Some(Refused::Status(status))
            );
        }
        for body in [
            "",
            "x",
            "[]",
            "{}",
            "{\"access_token\":1}",
            "{\"access_token\":\"t\",\"expires_in\":\"x\"}",
        ] {
            assert_eq!(usable(body), Err(Refused::Malformed), "{body}");
        }
        assert_eq!(
            usable("{\"access_token\":\"t\",\"token_type\":\"mac\"}"),
            Err(Refused::Type)
        );
        let long = "x".repeat(MAX_TOKEN_BYTES + 1);
        for token in ["", "a b", "a\\r\\nb", "é", &long] {
            assert_eq!(
                usable(&format!("{{\"access_token\":\"{token}\"}}")),
                Err(Refused::Token)
            );
        }
    }

    proptest! {
        #[test]
        fn no_answer_is_read_into_a_header_that_cannot_be_sent(token in "\\PC{0,8}|[ -~]{1,8}") {
            let body = serde_json::json!({"access_token": token}).to_string();
            if let Ok(grant) = read(200, body.as_bytes()) {
                prop_assert!(HeaderValue::from_str(&grant.value).is_ok());
            }
        }
    }
}
