//! Tests of signatures, against other implementations and published examples.

use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use standardwebhooks::Webhook as Verifier;

use super::*;
use crate::entropy::SystemEntropy;
use crate::time::{Clock as _, SystemClock};

fn headers(id: &str, timestamp: i64, signature: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", HeaderValue::from_str(id).unwrap());
    headers.insert("webhook-timestamp", timestamp.into());
    headers.insert("webhook-signature", HeaderValue::from_str(signature).unwrap());
    headers
}

fn hmac(secret: &[u8]) -> Key {
    Key::new(Algorithm::HmacSha256, SecretBytes::from(secret.to_vec())).unwrap()
}

/// Checks a signature as a receiver does that has the public key's text only.
fn verify_ed25519(public: &str, id: &str, timestamp: i64, body: &[u8], signature: &str) -> bool {
    let public = STANDARD.decode(public.strip_prefix("whpk_").unwrap()).unwrap();
    let public = VerifyingKey::from_bytes(&public.try_into().unwrap()).unwrap();
    let signature = STANDARD.decode(signature.strip_prefix("v1a,").unwrap()).unwrap();
    let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    public
        .verify(&signed, &Signature::from_slice(&signature).unwrap())
        .is_ok()
}

proptest! {
    #[test]
    fn the_reference_library_verifies_with_each_secret_and_with_no_other(
        secrets in prop::collection::vec(prop::collection::vec(any::<u8>(), 24..=64), 1..4), id in "[A-Za-z0-9_:-]{1,64}", body in "\\PC*",
    ) {
        let now = SystemClock.now().as_seconds();
        let keys: Vec<Key> = secrets.iter().map(|secret| hmac(secret)).collect();
        let value = header(keys.iter(), &id, now, body.as_bytes()).unwrap();
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

proptest! {
    // An elliptic curve in a debug build takes its time.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_public_key_verifies_what_its_private_key_signed_and_nothing_else(seed: [u8; 32], id in "[A-Za-z0-9_:-]{1,64}", body: Vec<u8>) {
        let key = Key::new(Algorithm::Ed25519, SecretBytes::from(seed.to_vec())).unwrap();
        let value = header([&key].into_iter(), &id, 7, &body).unwrap();
        let public = key.verifier();
        prop_assert!(verify_ed25519(&public, &id, 7, &body, &value));
        prop_assert!(!verify_ed25519(&public, &id, 8, &body, &value));
        prop_assert!(!verify_ed25519(&public, &(id.clone() + "x"), 7, &body, &value));
        prop_assert!(!verify_ed25519(&public, &id, 7, &[&body, b" ".as_slice()].concat(), &value));
        let other = Key::new(Algorithm::Ed25519, SecretBytes::from(vec![0xa5; 32])).unwrap();
        prop_assert!(!verify_ed25519(&other.verifier(), &id, 7, &body, &value));
    }
}

#[test]
fn the_published_example_gives_the_published_signature() {
    let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let body = br#"{"test": 2432232314}"#;
    let value = header(
        [&hmac(&secret)].into_iter(),
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
fn the_first_test_key_of_the_rfc_has_the_public_key_printed_there() {
    // RFC 8032, section 7.1, test 1.
    let seed = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
    let public = "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    let key = Key::new(
        Algorithm::Ed25519,
        Algorithm::Ed25519.parse(&format!("whsk_{seed}")).unwrap(),
    );
    assert_eq!(*key.unwrap().verifier(), public);
}

#[test]
fn without_a_key_there_is_no_signature() {
    assert_eq!(header(std::iter::empty(), "a", 1, b""), None);
}

#[test]
fn secrets_are_read_strictly_and_errors_do_not_repeat_them() {
    let secret = |bytes: usize| STANDARD.encode(vec![0xff_u8; bytes]);
    let entropy = SystemEntropy::seeded(5);
    let generated = hmac(Algorithm::HmacSha256.generate(&entropy).expose_secret()).verifier();
    let parsed = Algorithm::HmacSha256.parse(&generated).unwrap();
    assert_eq!(hmac(parsed.expose_secret()).verifier(), generated);
    assert!(!format!("{parsed:?} {:?}", hmac(b"canary")).contains("canary"));
    let spaced = format!("{} ", *generated);
    let both = [
        String::new(),
        "whsec_".into(),
        "whsk_".into(),
        "whsec_!!!".into(),
        "whsec_-_-_".into(),
        spaced,
    ];
    let hmac_only = [
        format!("whsec_{}", secret(23)),
        format!("whsec_{}", secret(65)),
        format!("whsk_{}", secret(32)),
    ];
    // The last one: a public key that is not the private key's.
    let ed25519_only = [31, 33, 63, 64].map(|bytes| format!("whsk_{}", secret(bytes)));
    for bad in both.iter().chain(&hmac_only) {
        let error = Algorithm::HmacSha256.parse(bad).unwrap_err();
        assert!(bad.len() < 7 || !error.contains(bad.as_str()));
    }
    for bad in both.iter().chain(&ed25519_only).chain([&*generated]) {
        let error = Algorithm::Ed25519.parse(bad).unwrap_err();
        assert!(bad.len() < 7 || !error.contains(bad.as_str()));
    }
}

#[test]
fn a_private_key_may_be_followed_by_its_public_key() {
    let seed = Algorithm::Ed25519.generate(&SystemEntropy::seeded(6));
    let pair = SigningKey::from_bytes(seed.expose_secret().try_into().unwrap()).to_keypair_bytes();
    for text in [STANDARD.encode(pair), STANDARD.encode(seed.expose_secret())] {
        let parsed = Algorithm::Ed25519.parse(&format!("whsk_{text}")).unwrap();
        assert_eq!(parsed.expose_secret(), seed.expose_secret());
    }
}
