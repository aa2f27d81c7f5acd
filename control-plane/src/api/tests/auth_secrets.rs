//! Secrets of every kind of authentication go in, are sealed, and are kept or replaced by updates.

use postrider_common::id::{AccountId, WebhookId};
use postrider_common::key;
use postrider_common::model::webhook::Auth;
use postrider_common::secret::Sealed;
use postrider_common::wire::stored::decode_webhook;
use v1::auth::Method;
use v1::{ApiKeyAuth, BearerAuth};

use super::*;

/// In every secret of these tests.
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
