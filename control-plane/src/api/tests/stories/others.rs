//! Accounts, the cluster, and urls of earlier days.

use super::*;

#[tokio::test]
async fn accounts_are_created_and_listed() {
    let mut server = serve().await;
    for id in ["b", "a", ""] {
        let request = v1::CreateAccountRequest {
            account_id: id.into(),
            ..v1::CreateAccountRequest::default()
        };
        let account = server.accounts.create_account(request).await.unwrap().into_inner();
        assert_eq!(account.max_webhooks, 5);
        let get = v1::GetAccountRequest {
            name: account.name.clone(),
        };
        assert_eq!(server.accounts.get_account(get).await.unwrap().into_inner(), account);
    }
    let list = |page_token: String| v1::ListAccountsRequest {
        page_size: 2,
        page_token,
    };
    let first = server
        .accounts
        .list_accounts(list(String::new()))
        .await
        .unwrap()
        .into_inner();
    let names: Vec<&str> = first.accounts.iter().map(|account| account.name.as_str()).collect();
    assert_eq!(names[0], "accounts/a");
    let second = server
        .accounts
        .list_accounts(list(first.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((second.accounts.len(), second.next_page_token.as_str()), (1, ""));
}

#[tokio::test]
async fn the_cluster_is_shown_as_its_keys_say() {
    let mut server = serve().await;
    let put = |key, value| Write {
        guards: Vec::new(),
        ops: vec![Op::put(key, value)],
    };
    for id in ["agent-1", "agent-2"] {
        let agent = stored::Agent {
            version: "0.1.0".into(),
            start_time: 1_727_414_643_000,
            draining: id == "agent-2",
            weight: 100,
        };
        let key = key::agent(&AgentId::new(id).unwrap());
        server.store.write(put(key, encode(&agent))).await.unwrap();
    }
    let assigned = encode(&stored::Assignment {
        agent: "agent-2".into(),
    });
    server
        .store
        .write(put(key::assignment(ShardId(3)), assigned))
        .await
        .unwrap();
    let owner = encode(&stored::Owner {
        agent: "agent-1".into(),
    });
    let epoch = server.store.write(put(key::owner(ShardId(3)), owner)).await.unwrap();
    let leader = encode(&stored::Leader {
        control_plane: "cp-7".into(),
    });
    server.store.write(put(key::leader(), leader)).await.unwrap();

    let cluster = server
        .cluster
        .get_cluster(v1::GetClusterRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (cluster.leader.as_str(), cluster.control_plane.as_str()),
        ("cp-7", "cp-1")
    );
    assert_eq!(
        (cluster.shard_count, cluster.agent_count, cluster.owned_shard_count),
        (64, 2, 1)
    );
    let agents = server
        .cluster
        .list_agents(v1::ListAgentsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .agents;
    let seen: Vec<_> = agents
        .iter()
        .map(|agent| {
            (
                agent.name.as_str(),
                agent.draining,
                agent.assigned_shard_count,
                agent.owned_shard_count,
            )
        })
        .collect();
    assert_eq!(seen, [("agents/agent-1", false, 0, 1), ("agents/agent-2", true, 1, 0)]);

    let mut shards = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListShardsRequest {
            page_size: 30,
            page_token,
        };
        let page = server.cluster.list_shards(request).await.unwrap().into_inner();
        shards.extend(page.shards);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let names: Vec<String> = (0..64).map(|shard| format!("shards/{shard}")).collect();
    assert_eq!(shards.iter().map(|shard| shard.name.clone()).collect::<Vec<_>>(), names);
    assert_eq!(
        shards[3],
        v1::Shard {
            name: "shards/3".into(),
            assigned_agent: "agent-2".into(),
            owner_agent: "agent-1".into(),
            epoch: epoch.0,
        }
    );
    assert!(shards[4].owner_agent.is_empty() && shards[4].epoch == 0);
}

#[tokio::test]
async fn an_update_is_not_refused_for_a_url_that_was_allowed_when_it_was_set() {
    let mut server = serve().await;
    server.create("a", valid()).await;
    let (account, id) = (
        AccountId::new("1010").unwrap(),
        postrider_common::id::WebhookId::new("a").unwrap(),
    );
    let key = key::webhook(&account, &id);
    let entry = server.store.get(&key).await.unwrap().0.unwrap();
    let mut webhook = decode_webhook(account, id, entry.value).unwrap();
    webhook.target_url = "http://127.0.0.1:8080/".into();
    let bytes = postrider_common::wire::stored::encode_webhook(&webhook);
    let write = Write {
        guards: Vec::new(),
        ops: vec![Op::put(key, bytes)],
    };
    server.store.write(write).await.unwrap();
    let retired = v1::Webhook {
        active: Some(false),
        ..v1::Webhook::default()
    };
    assert_eq!(
        update(&mut server, retired, &["active"]).await.target_url,
        "http://127.0.0.1:8080/"
    );
}
