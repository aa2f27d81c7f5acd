//! Secrets of every kind of authentication go in, are sealed, and are kept or replaced by updates.

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key;
use postrider_common::model::webhook::Auth;
use postrider_common::secret::Sealed;
use postrider_common::store::{Op, Write};
use postrider_common::wire::stored::{decode_webhook, encode_webhook};
use v1::auth::Method;
use v1::{ApiKeyAuth, BearerAuth, MtlsAuth, OAuth2Auth};

use super::*;

/// In every secret of these tests that can be a text of our own.
const CANARY: &str = "canary-5f1c";

/// The secret of the webhook as it is stored, in which nothing stands in clear.
async fn stored(server: &Server, id: &str) -> Sealed {
    let (account, id) = (AccountId::new("1010").unwrap(), WebhookId::new(id).unwrap());
    let (entry, _) = server.store.get(&key::webhook(&account, &id)).await.unwrap();
    let value = entry.unwrap().value;
    assert!(!String::from_utf8_lossy(&value).contains(CANARY));
    match decode_webhook(account, id, value).unwrap().auth {
        Auth::Bearer { token } => token,
        Auth::ApiKey { value, .. } => value,
        Auth::OAuth2(client) => client.client_secret,
        Auth::Mtls { private_key, .. } => private_key,
        Auth::None | Auth::Basic { .. } | Auth::Signature { .. } => panic!("of another kind"),
    }
}

/// Creates a webhook with `full`, and updates it with `without`, which has no secret. `shown` is what is read back.
async fn kept_and_replaced(full: Method, without: Method, shown: Method) {
    let mut server = serve().await;
    assert!(!format!("{full:?}").contains(CANARY), "secrets are not printed");
    let created = server.create("a", with_auth(full.clone())).await;
    assert_eq!(created.auth.clone().unwrap().method, Some(shown.clone()));
    let before = stored(&server, "a").await;
    let update = |method: &Method, paths: &[&str]| v1::UpdateWebhookRequest {
        webhook: Some(v1::Webhook {
            name: "accounts/1010/webhooks/a".into(),
            ..with_auth(method.clone())
        }),
        update_mask: mask(paths),
        validate_only: false,
    };
    // Sent back as it was shown, with and without a mask: the secret stays.
    for (method, paths) in [(&shown, &["auth"][..]), (&without, &["*"]), (&without, &[])] {
        let updated = server.webhooks.update_webhook(update(method, paths)).await.unwrap();
        assert_eq!(updated.into_inner().auth.unwrap().method, Some(shown.clone()));
        assert_eq!(stored(&server, "a").await, before);
    }
    server.webhooks.update_webhook(update(&full, &["auth"])).await.unwrap();
    assert_ne!(stored(&server, "a").await, before);
    // Without a secret it cannot be the method of a webhook that had another.
    server.create("b", valid()).await;
    let mut other = update(&without, &["auth"]);
    if let Some(webhook) = &mut other.webhook {
        webhook.name = "accounts/1010/webhooks/b".into();
    }
    let status = server.webhooks.update_webhook(other).await.unwrap_err();
    assert_eq!(mistakes(&status)[0].1, "REQUIRED");
    assert!(!format!("{status:?}").contains(CANARY));
}

#[tokio::test]
async fn a_bearer_token_is_sealed_and_kept_until_another_is_given() {
    let bearer = |token: &str| Method::Bearer(BearerAuth { token: token.into() });
    kept_and_replaced(bearer(CANARY), bearer(""), bearer("")).await;
}

#[tokio::test]
async fn an_api_key_is_sealed_and_kept_until_another_is_given() {
    let key = |header: &str, value: &str| {
        Method::ApiKey(ApiKeyAuth {
            header: header.into(),
            value: value.into(),
        })
    };
    kept_and_replaced(key("X-Api-Key", CANARY), key("x-api-key", ""), key("x-api-key", "")).await;
}

fn client(token_url: &str, client_secret: &str) -> OAuth2Auth {
    OAuth2Auth {
        token_url: token_url.into(),
        client_id: "ada".into(),
        client_secret: client_secret.into(),
        scopes: vec!["a".into(), "b".into()],
        audience: "c".into(),
        client_authentication: v1::o_auth2_auth::ClientAuthentication::Body.into(),
    }
}

#[tokio::test]
async fn a_client_secret_is_sealed_and_kept_until_another_is_given() {
    let method = |secret: &str| Method::Oauth2(client("https://example.com/token", secret));
    kept_and_replaced(method(CANARY), method(""), method("")).await;
}

#[tokio::test]
async fn a_client_secret_that_is_kept_does_not_go_to_another_token_url() {
    let mut server = serve().await;
    let first = client("https://example.com/token", CANARY);
    server.create("a", with_auth(Method::Oauth2(first))).await;
    let before = server.revision().await;
    for (client, paths) in [
        (client("https://thief.example.net/token", ""), &["auth"][..]),
        (
            client("https://thief.example.net/token", ""),
            &["auth.oauth2.token_url"],
        ),
        (client("https://thief.example.net/token", ""), &[]),
    ] {
        let request = v1::UpdateWebhookRequest {
            webhook: Some(v1::Webhook {
                name: "accounts/1010/webhooks/a".into(),
                ..with_auth(Method::Oauth2(client))
            }),
            update_mask: mask(paths),
            validate_only: false,
        };
        let status = server.webhooks.update_webhook(request).await.unwrap_err();
        let expected = ("webhook.auth.oauth2.client_secret".to_owned(), "REQUIRED".to_owned());
        assert_eq!(mistakes(&status), [expected]);
    }
    assert_eq!(server.revision().await, before);
}

#[tokio::test]
async fn a_private_key_is_sealed_and_kept_until_another_is_given() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap().pem();
    let method = |private_key: &str| {
        Method::Mtls(MtlsAuth {
            certificate: certificate.clone(),
            private_key: private_key.into(),
        })
    };
    // A comment before the key is no mistake.
    let with_canary = format!("{CANARY}\n{}", key.serialize_pem());
    kept_and_replaced(method(&with_canary), method(""), method("")).await;
}

#[tokio::test]
async fn a_certificate_that_has_expired_meanwhile_hinders_no_other_change() {
    let mut server = serve().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let params = |year| {
        let mut params = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.self_signed(&key).unwrap().pem()
    };
    let method = |certificate: &str| {
        Method::Mtls(MtlsAuth {
            certificate: certificate.into(),
            private_key: key.serialize_pem(),
        })
    };
    let (good, expired) = (params(4000), params(2020));
    server.create("a", with_auth(method(&good))).await;
    // As time would: by the store, under the API.
    let (account, id) = (AccountId::new("1010").unwrap(), WebhookId::new("a").unwrap());
    let at = key::webhook(&account, &id);
    let entry = server.store.get(&at).await.unwrap().0.unwrap();
    let mut webhook = decode_webhook(account, id, entry.value).unwrap();
    let Auth::Mtls { certificate, .. } = &mut webhook.auth else {
        panic!("of another kind");
    };
    *certificate = expired;
    let put = Op::put(at, encode_webhook(&webhook));
    let write = Write {
        ops: vec![put],
        ..Write::default()
    };
    server.store.write(write).await.unwrap();
    let renamed = v1::Webhook {
        name: "accounts/1010/webhooks/a".into(),
        display_name: "A".into(),
        ..v1::Webhook::default()
    };
    let request = v1::UpdateWebhookRequest {
        webhook: Some(renamed),
        update_mask: mask(&["display_name"]),
        validate_only: false,
    };
    server.webhooks.update_webhook(request).await.unwrap();
}
