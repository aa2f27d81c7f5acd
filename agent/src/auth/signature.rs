//! Signatures by Standard Webhooks 1.0, scheme `v1` (HMAC-SHA256). Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The length of one signature in the header, in bytes: `v1,`, 44 of base64, and a space before the next.
const SIGNATURE_BYTES: usize = 48;

/// The value of `webhook-signature`: `v1,` and base64(HMAC-SHA256(secret, `{id}.{timestamp}.{body}`)) for each secret, in their order, separated
/// by spaces. `timestamp` is in unix seconds. `None` if there is no secret.
pub(super) fn header<'a>(
    secrets: impl Iterator<Item = &'a [u8]>,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> Option<String> {
    let timestamp = timestamp.to_string();
    let mut value = String::with_capacity(SIGNATURE_BYTES);
    for secret in secrets {
        // HMAC takes keys of every length, so this never fails; if it did, nothing must go out unsigned.
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        value.push_str(if value.is_empty() { "v1," } else { " v1," });
        STANDARD.encode_string(mac.finalize().into_bytes(), &mut value);
    }
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use postrider_common::time::{Clock as _, SystemClock};
    use proptest::prelude::*;
    use standardwebhooks::Webhook as Verifier;

    use super::*;

    fn headers(id: &str, timestamp: i64, signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", HeaderValue::from_str(id).unwrap());
        headers.insert("webhook-timestamp", timestamp.into());
        headers.insert("webhook-signature", HeaderValue::from_str(signature).unwrap());
        headers
    }

    proptest! {
        #[test]
        fn the_reference_library_verifies_with_each_secret_and_with_no_other(
            secrets in prop::collection::vec(prop::collection::vec(any::<u8>(), 24..=64), 1..4), id in "[A-Za-z0-9_:-]{1,64}", body in "\\PC*",
        ) {
            let now = SystemClock.now().as_seconds();
            let value = header(secrets.iter().map(Vec::as_slice), &id, now, body.as_bytes()).unwrap();
            prop_assert_eq!(value.split(' ').count(), secrets.len());
            for secret in &secrets {
                let verifier = Verifier::from_bytes(secret.clone()).unwrap();
                prop_assert!(verifier.verify(body.as_bytes(), &headers(&id, now, &value)).is_ok());
                let mut other = body.clone();
                other.push(' ');
                prop_assert!(verifier.verify(other.as_bytes(), &headers(&id, now, &value)).is_err());
                prop_assert!(verifier.verify(body.as_bytes(), &headers(&id, now + 1, &value)).is_err());
                prop_assert!(verifier.verify(body.as_bytes(), &headers(&(id.clone() + "x"), now, &value)).is_err());
            }
            let stranger = Verifier::from_bytes(vec![0xa5; 23]).unwrap();
            prop_assert!(stranger.verify(body.as_bytes(), &headers(&id, now, &value)).is_err());
        }
    }

    #[test]
    fn the_published_example_gives_the_published_signature() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let value = header(
            [secret.as_slice()].into_iter(),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            body,
        );
        assert_eq!(
            value.as_deref(),
            Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
        );
    }

    #[test]
    fn without_a_secret_there_is_no_signature() {
        assert_eq!(header(std::iter::empty(), "a", 1, b""), None);
    }
}
