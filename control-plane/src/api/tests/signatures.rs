//! What a webhook's signature can be, and what its receiver is told of it.

use serde_json::{Value, json};
use v1::SignatureAuth;
use v1::auth::Method;
use v1::signature_auth::Algorithm;

use super::*;

const NAME: &str = "accounts/1010/webhooks/a";
/// RFC 8032, section 7.1, test 1.
const PRIVATE: &str = "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
const PUBLIC: &str = "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

async fn export(server: &mut Server) -> Value {
    let request = v1::ExportSigningSecretRequest { name: NAME.into() };
    let answer = server
        .webhooks
        .export_signing_secret(request)
        .await
        .unwrap()
        .into_inner();
    serde_json::from_slice(&json::to_text(&answer.document.unwrap()).unwrap()).unwrap()
}

async fn update(server: &mut Server, signature: SignatureAuth, paths: &[&str]) -> SignatureAuth {
    let request = v1::UpdateWebhookRequest {
        webhook: Some(v1::Webhook {
            name: NAME.into(),
            auth: Some(v1::Auth {
                method: Some(Method::Signature(signature)),
            }),
            ..v1::Webhook::default()
        }),
        update_mask: mask(paths),
        validate_only: false,
    };
    shown(server.webhooks.update_webhook(request).await.unwrap().into_inner())
}

fn shown(webhook: v1::Webhook) -> SignatureAuth {
    let Some(Method::Signature(signature)) = webhook.auth.unwrap().method else {
        panic!("not a signature");
    };
    signature
}

#[tokio::test]
async fn the_example_is_what_a_receiver_that_has_the_document_verifies() {
    let mut server = serve().await;
    // The secret of the example that Standard Webhooks publishes.
    let webhook = v1::Webhook {
        auth: signature("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ..valid()
    };
    server.create("a", webhook).await;
    let document = export(&mut server).await;
    let names = json!({"id": "webhook-id", "timestamp": "webhook-timestamp", "signature": "webhook-signature"});
    assert_eq!(
        (&document["algorithm"], &document["headers"]),
        (&json!("HMAC-SHA256"), &names)
    );
    assert_eq!(
        document["example"],
        json!({
            "id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "timestamp": 1_614_265_330,
            "body": "{\"test\": 2432232314}",
            "signedContent": "msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{\"test\": 2432232314}",
            "secretId": document["secrets"][0]["id"],
            "signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        })
    );
}

#[tokio::test]
async fn of_ed25519_only_the_public_key_is_exported_and_a_rotation_keeps_the_algorithm() {
    let mut server = serve().await;
    let own = SignatureAuth {
        secret: PRIVATE.into(),
        algorithm: Algorithm::Ed25519.into(),
        ..SignatureAuth::default()
    };
    assert!(!format!("{own:?}").contains(&PRIVATE[5..]));
    let created = shown(server.create("a", with_auth(Method::Signature(own))).await);
    assert_eq!((created.algorithm(), created.secret.as_str()), (Algorithm::Ed25519, ""));
    let document = export(&mut server).await;
    assert_eq!(
        (&document["algorithm"], &document["secrets"][0]["publicKey"]),
        (&json!("Ed25519"), &json!(PUBLIC))
    );
    assert!(document["example"]["signature"].as_str().unwrap().starts_with("v1a,"));
    assert!(!document.to_string().contains("whsk_") && !document.to_string().contains(&PRIVATE[5..]));

    let rotate = |secret: &str| v1::RotateSigningSecretRequest {
        name: NAME.into(),
        secret: secret.into(),
        ..v1::RotateSigningSecretRequest::default()
    };
    let rotated = server
        .webhooks
        .rotate_signing_secret(rotate(""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(shown(rotated).algorithm(), Algorithm::Ed25519);
    let secrets = export(&mut server).await["secrets"].clone();
    assert_eq!(
        (secrets.as_array().unwrap().len(), &secrets[1]["publicKey"]),
        (2, &json!(PUBLIC))
    );
    assert!(secrets[0]["publicKey"].as_str().unwrap().starts_with("whpk_"));
    // One of the other algorithm is refused.
    let other = rotate("whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnktMDAwMQ==");
    let status = server.webhooks.rotate_signing_secret(other).await.unwrap_err();
    assert_eq!(mistakes(&status), [("secret".to_owned(), "MALFORMED".to_owned())]);
    server.webhooks.rotate_signing_secret(rotate(PRIVATE)).await.unwrap();
}

#[tokio::test]
async fn an_update_changes_what_it_names_and_another_algorithm_gets_a_new_secret() {
    let mut server = serve().await;
    let named = SignatureAuth {
        id_header: "Svix-Id".into(),
        timestamp_header: "svix-timestamp".into(),
        signature_header: "svix-signature".into(),
        ..SignatureAuth::default()
    };
    let created = shown(server.create("a", with_auth(Method::Signature(named))).await);
    assert_eq!(
        (created.id_header.as_str(), created.algorithm()),
        ("svix-id", Algorithm::HmacSha256)
    );
    assert_eq!(
        export(&mut server).await["headers"],
        json!({"id": "svix-id", "timestamp": "svix-timestamp", "signature": "svix-signature"})
    );

    // Naming the method alone changes nothing; sending back what was shown neither.
    assert_eq!(update(&mut server, SignatureAuth::default(), &[]).await, created);
    assert_eq!(update(&mut server, created.clone(), &["auth"]).await, created);
    let ed25519 = SignatureAuth {
        algorithm: Algorithm::Ed25519.into(),
        ..SignatureAuth::default()
    };
    let changed = update(&mut server, ed25519.clone(), &[]).await;
    assert_eq!(
        (changed.algorithm(), changed.id_header.as_str()),
        (Algorithm::Ed25519, "svix-id")
    );
    assert_ne!(changed.secret_ids, created.secret_ids);
    // The whole replaced: the names are the standard's again, algorithm and secret stay.
    let replaced = update(&mut server, SignatureAuth::default(), &["auth.signature"]).await;
    assert_eq!(
        (replaced.algorithm(), replaced.id_header.as_str()),
        (Algorithm::Ed25519, "webhook-id")
    );
    assert_eq!(replaced.secret_ids, changed.secret_ids);
    let renamed = SignatureAuth {
        signature_header: "x-signature".into(),
        ..SignatureAuth::default()
    };
    let renamed = update(&mut server, renamed, &["auth.signature.signature_header"]).await;
    assert_eq!(renamed.signature_header, "x-signature");
    assert_eq!(
        (renamed.id_header, renamed.secret_ids),
        ("webhook-id".to_owned(), replaced.secret_ids)
    );
}
