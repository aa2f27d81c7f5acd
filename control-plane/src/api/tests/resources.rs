//! Bad input of the methods: names, ids, pages, etags, masks, request ids.

use super::*;

mod fields;

#[tokio::test]
async fn ids_and_names_that_are_not_well_formed_are_refused() {
    let mut server = serve().await;
    let before = server.revision().await;
    let long = "a".repeat(64);
    let ids = ["a/b", "..", "a%2fb", "a\0", "a b", "A", "-a", "ä", "a_b", &long];
    for id in ids {
        let request = v1::CreateWebhookRequest {
            webhook_id: id.into(),
            ..create_request()
        };
        let status = server.webhooks.create_webhook(request).await.unwrap_err();
        assert_eq!(mistakes(&status), [("webhook_id".into(), "MALFORMED".into())], "{id:?}");
        let request = v1::CreateAccountRequest {
            account_id: id.into(),
            ..v1::CreateAccountRequest::default()
        };
        let status = server.accounts.create_account(request).await.unwrap_err();
        assert_eq!(mistakes(&status), [("account_id".into(), "MALFORMED".into())], "{id:?}");
        let names = [
            format!("accounts/{id}/webhooks/a"),
            format!("accounts/a/webhooks/{id}"),
            format!("webhooks/{id}"),
        ];
        for name in names {
            let request = v1::GetWebhookRequest { name: name.clone() };
            let status = server.webhooks.get_webhook(request).await.unwrap_err();
            assert_eq!(mistakes(&status), [("name".into(), "MALFORMED".into())], "{name:?}");
            let request = v1::DeleteWebhookRequest {
                name: name.clone(),
                allow_missing: true,
                ..v1::DeleteWebhookRequest::default()
            };
            let status = server.webhooks.delete_webhook(request).await.unwrap_err();
            assert_eq!(mistakes(&status), [("name".into(), "MALFORMED".into())], "{name:?}");
        }
    }
    for id in ["", ".A", "1A", "A/B", "A B", "Ä", "postrider.x"] {
        let request = v1::CreateEventTypeRequest {
            event_type_id: id.into(),
            ..v1::CreateEventTypeRequest::default()
        };
        let status = server.event_types.create_event_type(request).await.unwrap_err();
        let reason = match id {
            "" => "REQUIRED",
            "postrider.x" => "RESERVED",
            _ => "MALFORMED",
        };
        assert_eq!(mistakes(&status), [("event_type_id".into(), reason.into())], "{id:?}");
    }
    let status = server
        .webhooks
        .get_webhook(v1::GetWebhookRequest::default())
        .await
        .unwrap_err();
    assert_eq!(mistakes(&status), [("name".into(), "REQUIRED".into())]);
    let status = server
        .webhooks
        .create_webhook(v1::CreateWebhookRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        mistakes(&status),
        [
            ("parent".into(), "REQUIRED".into()),
            ("webhook".into(), "REQUIRED".into())
        ]
    );
    assert_eq!(server.revision().await, before);
}

#[tokio::test]
async fn what_does_not_exist_is_not_found_and_what_exists_is_not_made_again() {
    let mut server = serve().await;
    let name = "accounts/1010/webhooks/a";
    let delete = |allow_missing| v1::DeleteWebhookRequest {
        name: name.into(),
        allow_missing,
        ..v1::DeleteWebhookRequest::default()
    };
    let missing = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    let get = || v1::GetWebhookRequest { name: name.into() };
    let status = server.webhooks.get_webhook(get()).await.unwrap_err();
    assert_eq!(reason(&status), missing);
    let info = status.get_error_details();
    assert_eq!(info.resource_info().unwrap().resource_name, name);
    assert_eq!(
        reason(&server.webhooks.delete_webhook(delete(false)).await.unwrap_err()),
        missing
    );
    server.webhooks.delete_webhook(delete(true)).await.unwrap();
    server.create("a", valid()).await;
    let again = v1::CreateWebhookRequest {
        webhook_id: "a".into(),
        ..create_request()
    };
    let status = server.webhooks.create_webhook(again).await.unwrap_err();
    assert_eq!(reason(&status), (Code::AlreadyExists, "RESOURCE_EXISTS".into()));
    server.webhooks.delete_webhook(delete(false)).await.unwrap();
    assert_eq!(
        reason(&server.webhooks.delete_webhook(delete(false)).await.unwrap_err()),
        missing
    );
    let request = v1::UpdateWebhookRequest {
        webhook: Some(v1::Webhook {
            name: name.into(),
            ..valid()
        }),
        ..v1::UpdateWebhookRequest::default()
    };
    assert_eq!(
        reason(&server.webhooks.update_webhook(request).await.unwrap_err()),
        missing
    );
    let request = v1::GetAccountRequest {
        name: "accounts/nobody".into(),
    };
    assert_eq!(
        reason(&server.accounts.get_account(request).await.unwrap_err()),
        missing
    );
}

#[tokio::test]
async fn pages_show_one_moment_and_tokens_open_only_their_own_list() {
    let mut server = serve().await;
    for id in ["a", "b", "c", "d", "e"] {
        server.create(id, valid()).await;
    }
    let other = v1::CreateWebhookRequest {
        parent: "accounts/1011".into(),
        webhook_id: "z".into(),
        ..create_request()
    };
    server.webhooks.create_webhook(other).await.unwrap();
    let list = |page_size, page_token: &str| v1::ListWebhooksRequest {
        parent: "accounts/1010".into(),
        page_size,
        page_token: page_token.into(),
    };
    let ids = |response: &v1::ListWebhooksResponse| -> Vec<String> {
        response
            .webhooks
            .iter()
            .map(|webhook| webhook.name.rsplit('/').next().unwrap().to_owned())
            .collect()
    };
    let first = server.webhooks.list_webhooks(list(2, "")).await.unwrap().into_inner();
    assert_eq!(ids(&first), ["a", "b"]);
    let delete = v1::DeleteWebhookRequest {
        name: "accounts/1010/webhooks/c".into(),
        ..v1::DeleteWebhookRequest::default()
    };
    server.webhooks.delete_webhook(delete).await.unwrap();
    let second = server
        .webhooks
        .list_webhooks(list(2, &first.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&second), ["c", "d"]);
    let third = server
        .webhooks
        .list_webhooks(list(2, &second.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (ids(&third), third.next_page_token.as_str()),
        (vec!["e".to_owned()], "")
    );
    for (size, count) in [(0, 4), (i32::MAX, 4)] {
        let page = server
            .webhooks
            .list_webhooks(list(size, ""))
            .await
            .unwrap()
            .into_inner();
        assert_eq!((page.webhooks.len(), page.next_page_token.as_str()), (count, ""));
    }
    let status = server.webhooks.list_webhooks(list(-1, "")).await.unwrap_err();
    assert_eq!(mistakes(&status), [("page_size".into(), "OUT_OF_RANGE".into())]);

    let token = first.next_page_token;
    let mut flipped = token.clone();
    flipped.replace_range(3..4, if token.as_bytes()[3] == b'A' { "B" } else { "A" });
    let bad = [("page_token".to_owned(), "MALFORMED".to_owned())];
    for wrong in [
        "garbage",
        "é",
        &token[..token.len() - 1],
        &flipped,
        &format!("{token}="),
    ] {
        let status = server.webhooks.list_webhooks(list(2, wrong)).await.unwrap_err();
        assert_eq!(mistakes(&status), bad, "{wrong}");
    }
    let other_account = v1::ListWebhooksRequest {
        parent: "accounts/1011".into(),
        page_token: token.clone(),
        page_size: 2,
    };
    assert_eq!(
        mistakes(&server.webhooks.list_webhooks(other_account).await.unwrap_err()),
        bad
    );
    let other_list = v1::ListEventTypesRequest {
        page_token: token.clone(),
        page_size: 2,
    };
    assert_eq!(
        mistakes(&server.event_types.list_event_types(other_list).await.unwrap_err()),
        bad
    );
    let now = server.revision().await;
    server.store.compact(now).await.unwrap();
    let late = server
        .webhooks
        .list_webhooks(list(2, &token))
        .await
        .unwrap()
        .into_inner();
    assert!(
        !late.webhooks.is_empty(),
        "a page that is asked for late shows what is there now"
    );
}

#[tokio::test]
async fn etags_guard_updates_and_deletes() {
    let mut server = serve().await;
    let first = server.create("a", valid()).await;
    let update = |etag: &str, display_name: &str| v1::UpdateWebhookRequest {
        webhook: Some(v1::Webhook {
            name: first.name.clone(),
            etag: etag.into(),
            display_name: display_name.into(),
            ..v1::Webhook::default()
        }),
        ..v1::UpdateWebhookRequest::default()
    };
    let second = server
        .webhooks
        .update_webhook(update(&first.etag, "one"))
        .await
        .unwrap()
        .into_inner();
    assert_ne!(second.etag, first.etag);
    let status = server
        .webhooks
        .update_webhook(update(&first.etag, "two"))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), (Code::Aborted, "ETAG_MISMATCH".into()));
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["current_etag"], second.etag);
    let delete = |etag: &str| v1::DeleteWebhookRequest {
        name: first.name.clone(),
        etag: etag.into(),
        ..v1::DeleteWebhookRequest::default()
    };
    let status = server.webhooks.delete_webhook(delete(&first.etag)).await.unwrap_err();
    assert_eq!(reason(&status), (Code::Aborted, "ETAG_MISMATCH".into()));
    for malformed in ["x", "*", "\"\"", "W/\"1\"", &first.etag[1..]] {
        let status = server
            .webhooks
            .update_webhook(update(malformed, "two"))
            .await
            .unwrap_err();
        assert_eq!(mistakes(&status), [("webhook.etag".into(), "MALFORMED".into())]);
        let status = server.webhooks.delete_webhook(delete(malformed)).await.unwrap_err();
        assert_eq!(mistakes(&status), [("etag".into(), "MALFORMED".into())]);
    }
    server.webhooks.delete_webhook(delete(&second.etag)).await.unwrap();
    // Made again under the same name it has other etags, though its generation is the same.
    let again = server.create("a", valid()).await;
    assert_eq!(again.generation, first.generation);
    assert_ne!(again.etag, first.etag);
    let with_etag = v1::Webhook {
        etag: first.etag.clone(),
        ..valid()
    };
    let request = v1::CreateWebhookRequest {
        webhook: Some(with_etag),
        ..create_request()
    };
    let status = server.webhooks.create_webhook(request).await.unwrap_err();
    assert_eq!(mistakes(&status), [("webhook.etag".into(), "NOT_ALLOWED".into())]);
}

#[tokio::test]
async fn masks_that_name_what_cannot_be_changed_are_refused() {
    let mut server = serve().await;
    let webhook = server.create("a", valid()).await;
    let before = server.revision().await;
    let many: Vec<&str> = vec!["display_name"; 101];
    let rows: [(&[&str], &str); 11] = [
        (&["nonsense"], "UNKNOWN_FIELD"),
        (&["target_url.host"], "UNKNOWN_FIELD"),
        (&["Display_Name"], "UNKNOWN_FIELD"),
        (&[""], "UNKNOWN_FIELD"),
        (&["auth.kerberos"], "UNKNOWN_FIELD"),
        (&["create_time"], "OUTPUT_ONLY"),
        (&["auth.signature.secret_ids"], "OUTPUT_ONLY"),
        (&["name"], "IMMUTABLE"),
        (&["*", "display_name"], "CONFLICT"),
        (&["display_name", "display_name"], "DUPLICATE"),
        (&many, "TOO_MANY"),
    ];
    for (paths, expected) in rows {
        for name in [&webhook.name, &"accounts/1010/webhooks/missing".to_owned()] {
            let request = v1::UpdateWebhookRequest {
                webhook: Some(v1::Webhook {
                    name: name.clone(),
                    ..valid()
                }),
                update_mask: mask(paths),
                validate_only: false,
            };
            let status = server.webhooks.update_webhook(request).await.unwrap_err();
            assert_eq!(
                mistakes(&status),
                [("update_mask".into(), expected.into())],
                "{paths:.3?}"
            );
        }
    }
    assert_eq!(server.revision().await, before);
}

#[tokio::test]
async fn a_request_id_creates_once() {
    let mut server = serve().await;
    const ID: &str = "7c1f0a52-3f64-4b52-9d6a-0d5f3f6f7a11";
    let request = |display_name: &str, request_id: &str| v1::CreateWebhookRequest {
        webhook: Some(v1::Webhook {
            display_name: display_name.into(),
            ..valid()
        }),
        request_id: request_id.into(),
        ..create_request()
    };
    let first = server
        .webhooks
        .create_webhook(request("a", ID))
        .await
        .unwrap()
        .into_inner();
    let again = server
        .webhooks
        .create_webhook(request("a", ID))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    let status = server.webhooks.create_webhook(request("b", ID)).await.unwrap_err();
    assert_eq!(reason(&status), (Code::AlreadyExists, "REQUEST_ID_REUSED".into()));
    // Another account's request ids are its own.
    let elsewhere = v1::CreateWebhookRequest {
        parent: "accounts/1011".into(),
        ..request("b", ID)
    };
    server.webhooks.create_webhook(elsewhere).await.unwrap();
    for bad in [
        "x",
        "7C1F0A52-3F64-4B52-9D6A-0D5F3F6F7A11",
        "../../x",
        &format!("{ID}a"),
    ] {
        let status = server.webhooks.create_webhook(request("a", bad)).await.unwrap_err();
        assert_eq!(mistakes(&status), [("request_id".into(), "MALFORMED".into())]);
    }
    let event_type = |display_name: &str| v1::CreateEventTypeRequest {
        event_type_id: "COURSE_ENROLLMENT".into(),
        event_type: Some(v1::EventType {
            display_name: display_name.into(),
            ..v1::EventType::default()
        }),
        request_id: ID.into(),
        validate_only: false,
    };
    let first = server
        .event_types
        .create_event_type(event_type("a"))
        .await
        .unwrap()
        .into_inner();
    let again = server
        .event_types
        .create_event_type(event_type("a"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    let status = server.event_types.create_event_type(event_type("b")).await.unwrap_err();
    assert_eq!(reason(&status), (Code::AlreadyExists, "REQUEST_ID_REUSED".into()));
}
