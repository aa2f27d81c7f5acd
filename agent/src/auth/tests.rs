//! Tests of credentials.

use std::collections::BTreeMap;

use postrider_common::entropy::SystemEntropy;
use postrider_common::id::{AccountId, Uid, WebhookId};
use postrider_common::model::webhook::{SigningSecret, WhenInactive};
use postrider_common::retry;
use postrider_common::signature::Algorithm;

use super::*;

const WEBHOOK_SIGNATURE: &str = SignatureHeaders::SIGNATURE;

const NOW: Timestamp = Timestamp::from_millis(1_000_000);

fn ring() -> (Keyring, SystemEntropy) {
    let entropy = SystemEntropy::seeded(1);
    (Keyring::parse(&Keyring::generate(&entropy)).unwrap(), entropy)
}

fn webhook(auth: Auth) -> Webhook {
    Webhook {
        account: AccountId::new("1010").unwrap(),
        id: WebhookId::new("w").unwrap(),
        uid: Uid::new("018f4c1e-7c55-7a3e-8b1a-2f4d5e6a7b8c").unwrap(),
        generation: 1,
        create_time: NOW,
        update_time: NOW,
        display_name: String::new(),
        description: String::new(),
        target_url: String::new(),
        auth,
        event_types: Vec::new(),
        active: true,
        when_inactive: WhenInactive::Drop,
        max_in_flight: None,
        http_version: postrider_common::model::webhook::HttpVersion::Negotiated,
        payload_format: postrider_common::model::webhook::PayloadFormat::Envelope,
        batching: postrider_common::model::batching::Batching::default(),
        order: postrider_common::model::order::Order::default(),
        rate_limit: None,
        suspension: None,
        timeout: None,
        retry: retry::Policy::default(),
        headers: Vec::new(),
        labels: BTreeMap::new(),
    }
}

fn signing(expire_times: &[Option<i64>]) -> (Webhook, Keyring) {
    signing_with(Algorithm::HmacSha256, SignatureHeaders::default(), expire_times)
}

fn signing_with(algorithm: Algorithm, headers: SignatureHeaders, expire_times: &[Option<i64>]) -> (Webhook, Keyring) {
    let (ring, entropy) = ring();
    let plain = webhook(Auth::None);
    let secrets = expire_times.iter().enumerate().map(|(index, end)| {
        let id = index.to_string();
        let context = Webhook::seal_context(&plain.account, &plain.uid, &format!("signing/{id}"));
        SigningSecret {
            secret: ring.seal(&[u8::try_from(index).unwrap(); 32], &context, &entropy),
            id,
            create_time: NOW,
            expire_time: end.map(Timestamp::from_millis),
        }
    });
    let auth = Auth::Signature {
        algorithm,
        headers,
        secrets: secrets.collect(),
    };
    (webhook(auth), ring)
}

fn signature(credentials: &Credentials, now: Timestamp) -> Result<String, NoLiveSecret> {
    let mut headers = HeaderMap::new();
    credentials.apply(&mut headers, "evt_1", now, b"{}", None)?;
    assert!(headers[WEBHOOK_SIGNATURE].is_sensitive());
    Ok(headers[WEBHOOK_SIGNATURE].to_str().unwrap().to_owned())
}

#[test]
fn every_live_secret_signs_newest_first_and_stops_when_it_expires() {
    let (hook, ring) = signing(&[None, Some(2_000_000), Some(1_000_000)]);
    let credentials = Credentials::open(&hook, &ring, NOW).unwrap();
    let both = signature(&credentials, Timestamp::from_millis(1_999_999)).unwrap();
    let one = signature(&credentials, Timestamp::from_millis(2_000_000)).unwrap();
    assert_eq!((both.split(' ').count(), one.split(' ').count()), (2, 1));
    let newest = Key::new(Algorithm::HmacSha256, vec![0_u8; 32].into()).unwrap();
    let newest = signature::header([&newest].into_iter(), "evt_1", 1999, b"{}").unwrap();
    assert!(both.starts_with(&newest), "{both}");
}

#[test]
fn a_webhook_whose_secrets_have_all_expired_cannot_prove_itself() {
    let (hook, ring) = signing(&[Some(2_000_000)]);
    let credentials = Credentials::open(&hook, &ring, NOW).unwrap();
    assert_eq!(
        signature(&credentials, Timestamp::from_millis(2_000_000)),
        Err(NoLiveSecret)
    );
}

#[test]
fn a_secret_that_was_moved_or_belongs_to_another_webhook_does_not_open() {
    let (mut hook, ring) = signing(&[None, None]);
    let Auth::Signature { secrets, .. } = &mut hook.auth else {
        unreachable!()
    };
    secrets.swap(0, 1);
    let (first, second) = (secrets[0].id.clone(), secrets[1].id.clone());
    assert!(Credentials::open(&hook, &ring, NOW).is_ok());
    let Auth::Signature { secrets, .. } = &mut hook.auth else {
        unreachable!()
    };
    (secrets[0].id, secrets[1].id) = (second, first);
    assert_eq!(Credentials::open(&hook, &ring, NOW).err(), Some(OpenError::Corrupt));
    let (mut hook, ring) = signing(&[None]);
    hook.account = AccountId::new("2020").unwrap();
    assert_eq!(Credentials::open(&hook, &ring, NOW).err(), Some(OpenError::Corrupt));
}

#[test]
fn basic_credentials_are_sensitive_and_no_auth_adds_nothing() {
    let (ring, entropy) = ring();
    let plain = webhook(Auth::None);
    let context = Webhook::seal_context(&plain.account, &plain.uid, "password");
    let hook = webhook(Auth::Basic {
        username: "test".to_owned(),
        password: ring.seal("123£".as_bytes(), &context, &entropy),
    });
    let mut headers = HeaderMap::new();
    Credentials::open(&hook, &ring, NOW)
        .unwrap()
        .apply(&mut headers, "a", NOW, b"", None)
        .unwrap();
    assert_eq!(headers[AUTHORIZATION], "Basic dGVzdDoxMjPCow==");
    assert!(!format!("{headers:?}").contains("dGVzd"));
    let mut headers = HeaderMap::new();
    Credentials::open(&plain, &ring, NOW)
        .unwrap()
        .apply(&mut headers, "a", NOW, b"", None)
        .unwrap();
    assert!(headers.is_empty());
}

#[test]
fn custom_names_are_sent_instead_of_the_standard_ones() {
    let names = SignatureHeaders {
        id: "svix-id".to_owned(),
        timestamp: "svix-timestamp".to_owned(),
        signature: "svix-signature".to_owned(),
    };
    let (hook, ring) = signing_with(Algorithm::Ed25519, names, &[None]);
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", HeaderValue::from_static("evt_1"));
    headers.insert("webhook-timestamp", HeaderValue::from_static("1000"));
    headers.insert("webhook-attempt", HeaderValue::from_static("1"));
    Credentials::open(&hook, &ring, NOW)
        .unwrap()
        .apply(&mut headers, "evt_1", NOW, b"{}", None)
        .unwrap();
    let key = Key::new(Algorithm::Ed25519, vec![0_u8; 32].into()).unwrap();
    let expected = signature::header([&key].into_iter(), "evt_1", 1000, b"{}").unwrap();
    assert_eq!(headers["svix-signature"], expected);
    let mut sent: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    sent.sort_unstable();
    assert_eq!(sent, ["svix-id", "svix-signature", "svix-timestamp", "webhook-attempt"]);
    assert_eq!(
        (&headers["svix-id"], &headers["svix-timestamp"]),
        (&"evt_1".parse().unwrap(), &"1000".parse().unwrap())
    );
}

#[test]
fn a_secret_that_is_no_key_of_the_algorithm_signs_nothing() {
    let (mut hook, ring) = signing(&[None]);
    let place = Webhook::seal_context(&hook.account, &hook.uid, "signing/0");
    let Auth::Signature { algorithm, secrets, .. } = &mut hook.auth else {
        unreachable!()
    };
    *algorithm = Algorithm::Ed25519;
    secrets[0].secret = ring.seal(&[1; 24], &place, &SystemEntropy::seeded(2));
    assert_eq!(Credentials::open(&hook, &ring, NOW).err(), Some(OpenError::Corrupt));
}

#[test]
fn a_bearer_token_and_an_api_key_are_sent_as_sensitive_headers() {
    let (ring, entropy) = ring();
    let plain = webhook(Auth::None);
    let sealed = |field: &str| {
        let context = Webhook::seal_context(&plain.account, &plain.uid, field);
        ring.seal(b"canary", &context, &entropy)
    };
    let bearer = Auth::Bearer {
        token: sealed(place::TOKEN),
    };
    let key = Auth::ApiKey {
        header: "x-api-key".to_owned(),
        value: sealed(place::API_KEY),
    };
    for (auth, name, value) in [(bearer, "authorization", "Bearer canary"), (key, "x-api-key", "canary")] {
        let mut headers = HeaderMap::new();
        Credentials::open(&webhook(auth), &ring, NOW)
            .unwrap()
            .apply(&mut headers, "a", NOW, b"", None)
            .unwrap();
        assert_eq!((headers.len(), &headers[name]), (1, &HeaderValue::from_static(value)));
        assert!(!format!("{headers:?}").contains("canary"));
    }
}
