//! Tests of the store in an etcd with authentication: tokens that end, passwords that change, users that may not.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use etcd_client::{AuthClient, Client, ConnectOptions, Permission};

use super::*;

/// What the user of the tests is called.
const USER: &str = "postrider";

/// How long a token lives: as short as a token can live that all of a call's attempts are made with.
const TTL: Duration = Duration::from_secs(2);

/// A cluster with authentication, a user who may do everything below `/cell/`, and the file with the password.
struct Guarded {
    cluster: Cluster,
    folder: TempDir,
    administrator: AuthClient,
}

impl Guarded {
    /// Its tokens end when they were not used for [`TTL`].
    async fn start(size: usize) -> Self {
        let ttl = TTL.as_secs().to_string();
        Self::with(size, &["--auth-token-ttl", &ttl], tempfile::tempdir().unwrap()).await
    }

    /// Its tokens end [`TTL`] after they were given, and with every change of users and roles.
    async fn with_ends() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("signing-key");
        std::fs::write(&key, "a key for tests only").unwrap();
        let token = format!("jwt,priv-key={},sign-method=HS256,ttl={TTL:?}", key.display());
        Self::with(1, &["--auth-token", &token], folder).await
    }

    async fn with(size: usize, flags: &[&str], folder: TempDir) -> Self {
        let flags = [flags, &["--bcrypt-cost", "4"]].concat();
        let cluster = Cluster::start(size, &flags).await;
        let endpoint = format!("http://{}", cluster.servers[0].client);
        let mut auth = Client::connect([&endpoint], None).await.unwrap().auth_client();
        auth.user_add("root", "root", None).await.unwrap();
        auth.user_grant_role("root", "root").await.unwrap();
        auth.role_add(USER).await.unwrap();
        let permission = Permission::read_write("/cell/").with_prefix();
        auth.role_grant_permission(USER, permission).await.unwrap();
        auth.user_add(USER, "first", None).await.unwrap();
        auth.user_grant_role(USER, USER).await.unwrap();
        auth.auth_enable().await.unwrap();
        let options = ConnectOptions::new()
            .with_user("root", "root")
            .with_auto_token_refresh(true);
        let administrator = Client::connect([&endpoint], Some(options)).await.unwrap();
        let guarded = Self {
            cluster,
            folder,
            administrator: administrator.auth_client(),
        };
        guarded.write_password("first");
        guarded
    }

    fn password_file(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    fn write_password(&self, password: &str) {
        std::fs::write(self.password_file(), format!("{password}\n")).unwrap();
    }

    async fn change_password(&self, password: &str) {
        let mut administrator = self.administrator.clone();
        administrator.user_change_password(USER, password).await.unwrap();
    }

    fn credentials(&self) -> Credentials {
        Credentials {
            user: USER.to_owned(),
            password_file: self.password_file(),
        }
    }

    async fn store(&self) -> (EtcdStore, Arc<Authentications>) {
        let endpoints = self.cluster.servers.iter().map(|server| server.client.clone());
        self.store_of(endpoints.collect()).await
    }

    async fn store_of(&self, endpoints: Vec<String>) -> (EtcdStore, Arc<Authentications>) {
        let access = Access {
            credentials: Some(self.credentials()),
            ..Access::default()
        };
        let authentications = Arc::clone(&access.authentications);
        let config = EtcdConfig {
            access,
            ..EtcdConfig::new(endpoints, "/cell/")
        };
        (EtcdStore::connect(config).await.unwrap(), authentications)
    }
}

fn outcomes(authentications: &Authentications) -> [u64; 3] {
    let Authentications {
        granted,
        refused,
        failed,
    } = authentications;
    [granted, refused, failed].map(|count| count.load(Ordering::Relaxed))
}

/// Every law, of stores with prefixes of their own that share one user's token.
async fn obeys_every_law(guarded: &Guarded) -> [u64; 3] {
    // Later releases let only root compact.
    let mut administrator = guarded.administrator.clone();
    administrator.user_grant_role(USER, "root").await.unwrap();
    let (store, authentications) = guarded.store().await;
    let made = std::cell::Cell::new(0);
    conformance::run(|| async {
        made.set(made.get() + 1);
        Arc::new(EtcdStore {
            prefix: format!("/cell/{}/", made.get()).into(),
            ..store.clone()
        }) as SharedStore
    })
    .await;
    outcomes(&authentications)
}

#[tokio::test]
async fn the_store_in_an_etcd_with_authentication_obeys_every_law() {
    let [granted, refused, failed] = obeys_every_law(&Guarded::start(1).await).await;
    assert!(granted >= 1);
    assert_eq!((refused, failed), (0, 0));
}

#[tokio::test]
async fn the_store_obeys_every_law_while_its_tokens_end() {
    let guarded = Guarded::with_ends().await;
    let begun = Instant::now();
    let [granted, refused, failed] = obeys_every_law(&guarded).await;
    let lives = begun.elapsed().as_secs() / TTL.as_secs();
    println!("{granted} tokens in {:?}", begun.elapsed());
    assert!(granted > 1 && granted <= 2 * lives + 2);
    assert_eq!((refused, failed), (0, 0));
}

#[tokio::test]
async fn while_tokens_end_no_call_fails_no_watch_misses_anything_and_a_lease_lives() {
    let guarded = Guarded::with_ends().await;
    let (store, authentications) = guarded.store().await;
    let lease = store.grant(Duration::from_secs(5)).await.unwrap();
    let mut last = store.write(put("a/begin", "v")).await.unwrap();
    let (begun, mut rounds) = (Instant::now(), 0);
    while begun.elapsed() < TTL * 4 {
        rounds += 1;
        let name = format!("a/{rounds}");
        // A new watch in each round: those that are open go on whatever becomes of the token.
        let mut watch = store.watch(&key("a/"), last.next()).await.unwrap();
        let calls = (0..8).map(|number| store.write(put(&format!("b/{number}"), "v")));
        for outcome in join_all(calls).await {
            outcome.unwrap();
        }
        store.write(put(&name, "v")).await.unwrap();
        last = until_seen(&mut watch, &name).await;
        assert!(store.keep_alive(lease.id).await.unwrap() > Duration::ZERO);
        store.get_all(&[key("a/1"), key("b/1")]).await.unwrap();
    }
    let [granted, refused, failed] = outcomes(&authentications);
    println!("{granted} tokens in {rounds} rounds");
    // The end of a token is a whole second, up to which some releases round.
    assert!((3..=6).contains(&granted), "{granted} tokens");
    assert_eq!((refused, failed), (0, 0));
    store.revoke(lease.id).await.unwrap();
    // Which some releases let only root do.
    let only_for_root = |error: &ReadError| error.to_string().contains("permission denied");
    assert!(store.compact(last).await.as_ref().err().is_none_or(only_for_root));
    assert!(store.usage().await.as_ref().err().is_none_or(only_for_root));
}

#[tokio::test]
async fn of_many_whose_token_is_over_one_asks_for_another_and_all_go_on() {
    let guarded = Guarded::start(3).await;
    let (store, authentications) = guarded.store().await;
    store.write(put("a/0", "v")).await.unwrap();
    // That ends all tokens of the user, though the password is the same.
    guarded.change_password("first").await;
    let started = outcomes(&authentications)[0];
    let writes = join_all((0..50).map(|number| {
        let store = store.clone();
        async move { store.write(put(&format!("a/{number}"), "v")).await }
    }));
    for outcome in writes.await {
        outcome.unwrap();
    }
    assert_eq!(outcomes(&authentications), [started + 1, 0, 0]);
    // A watch too: where it is refused that is said in its first message.
    guarded.change_password("first").await;
    let mut watch = store.watch(&key("a/"), Revision(1)).await.unwrap();
    until_seen(&mut watch, "a/49").await;
    assert_eq!(outcomes(&authentications), [started + 2, 0, 0]);
}

#[tokio::test]
async fn a_member_that_does_not_know_the_token_is_given_another() {
    let mut guarded = Guarded::start(3).await;
    let (store, authentications) = guarded.store().await;
    store.write(put("a/0", "v")).await.unwrap();
    // Meanwhile the token was used on the first member only.
    let begun = Instant::now();
    while begun.elapsed() < TTL * 2 {
        store.get(&key("a/0")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(outcomes(&authentications), [1, 0, 0]);
    drop(guarded.cluster.servers.remove(0));
    until_written(&store, "a/1").await;
    let [granted, refused, _] = outcomes(&authentications);
    assert!(granted >= 2);
    assert_eq!(refused, 0);
}

#[tokio::test]
async fn a_member_that_is_away_or_never_answers_is_passed_over_when_a_token_is_wanted() {
    let guarded = Guarded::start(1).await;
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener();
    let closed = listener().local_addr().unwrap();
    // A member that is away was not even asked.
    for (first, outcomes_then) in [(closed, [1, 0, 0]), (silent.local_addr().unwrap(), [1, 0, 1])] {
        let members = [first.to_string(), guarded.cluster.servers[0].client.clone()];
        let (store, authentications) = guarded.store_of(members.to_vec()).await;
        store.write(put("a/1", "v")).await.unwrap();
        assert_eq!(outcomes(&authentications), outcomes_then);
    }
}

#[tokio::test]
async fn a_password_that_was_changed_is_read_again_and_until_then_etcd_is_hardly_asked() {
    let guarded = Guarded::start(1).await;
    let (store, authentications) = guarded.store().await;
    store.write(put("a/1", "v")).await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    guarded.change_password("second").await;
    let begun = Instant::now();
    let mut calls = 0;
    while begun.elapsed() < Duration::from_secs(6) {
        calls += 1;
        let refused = store.write(put("a/2", "v")).await;
        assert!(
            matches!(&refused, Err(WriteError::NotApplied(NotApplied::Away(why))) if why.contains("invalid user ID or password")),
            "{refused:?}"
        );
        assert!(matches!(store.get(&key("a/1")).await, Err(ReadError::Away(_))));
        assert!(matches!(
            store.watch(&key("a/"), Revision(1)).await.map(|_| ()),
            Err(WatchError::Ended(_))
        ));
    }
    let [granted, refused, failed] = outcomes(&authentications);
    println!("{refused} authentications for {calls} rounds of calls");
    assert!((2..=4).contains(&refused), "{refused} in 6 seconds");
    assert_eq!((granted, failed), (1, 0));
    // It cannot be read for a moment.
    std::fs::remove_file(guarded.password_file()).unwrap();
    assert!(store.get(&key("a/1")).await.is_err());
    guarded.write_password("second");
    let mended = Instant::now();
    until_written(&store, "a/2").await;
    assert!(mended.elapsed() < Duration::from_secs(3), "{:?}", mended.elapsed());
    store.keep_alive(lease.id).await.unwrap();
    assert_eq!(outcomes(&authentications)[0], 2);
}

#[tokio::test]
async fn without_a_user_and_with_one_that_may_not_calls_are_refused_and_nothing_is_in_doubt() {
    let guarded = Guarded::start(1).await;
    let (permitted, authentications) = guarded.store().await;
    permitted.write(put("a/1", "v")).await.unwrap();
    let nobody = guarded.cluster.store("/cell/").await;
    let elsewhere = EtcdStore {
        prefix: "/other/".into(),
        ..permitted.clone()
    };
    for (store, why) in [(&nobody, "user name is empty"), (&elsewhere, "permission denied")] {
        let begun = Instant::now();
        let refused = store.write(put("a/1", "v")).await;
        assert!(
            matches!(&refused, Err(WriteError::NotApplied(NotApplied::Away(said))) if said.contains(why)),
            "{refused:?}"
        );
        let refused = store.get(&key("a/1")).await;
        assert!(
            matches!(&refused, Err(ReadError::Away(said)) if said.contains(why)),
            "{refused:?}"
        );
        assert!(begun.elapsed() < DEADLINE);
    }
    let ended = elsewhere.watch(&key("a/"), Revision(1)).await.map(|_| ());
    assert!(
        matches!(&ended, Err(WatchError::Ended(why)) if why.contains("permission denied")),
        "{ended:?}"
    );
    let mut watch = nobody.watch(&key("a/"), Revision(1)).await.unwrap();
    assert!(matches!(until_ended(&mut watch).await, WatchError::Ended(_)));
    // What may not be done is no reason to ask for another token.
    assert_eq!(outcomes(&authentications), [1, 0, 0]);
}

#[tokio::test]
async fn where_authentication_is_disabled_no_token_is_given_and_nothing_is_done_until_it_is_enabled() {
    let guarded = Guarded::start(1).await;
    let mut administrator = guarded.administrator.clone();
    administrator.auth_disable().await.unwrap();
    let (store, _) = guarded.store().await;
    let refused = store.write(put("a/2", "v")).await;
    assert!(
        matches!(&refused, Err(WriteError::NotApplied(NotApplied::Away(why))) if why.contains("not enabled")),
        "{refused:?}"
    );
    let endpoint = format!("http://{}", guarded.cluster.servers[0].client);
    let anybody = Client::connect([endpoint], None).await.unwrap();
    anybody.auth_client().auth_enable().await.unwrap();
    until_written(&store, "a/2").await;
}

#[tokio::test]
async fn a_user_who_may_not_read_everything_notices_an_etcd_that_has_gone_back() {
    let guarded = Guarded::start(1).await;
    let (store, _) = guarded.store().await;
    let written = store.write(put("a/1", "v")).await.unwrap();
    let (known, said) = (Revision(written.0 + 100), Revision(1));
    store.horizon.saw(known);
    assert!(store.horizon.is_behind(&store.members, known, said).await);
}

#[tokio::test]
async fn only_root_brings_a_cluster_with_authentication_back() {
    let guarded = Guarded::start(1).await;
    let endpoints = [guarded.cluster.servers[0].client.clone()];
    let apply = async |credentials: Option<&Credentials>| recover(&endpoints, credentials, Mode::Apply, |_| ()).await;
    let refused = apply(None).await.unwrap_err().to_string();
    assert!(refused.contains("user name is empty"), "{refused}");
    let mut credentials = guarded.credentials();
    let refused = apply(Some(&credentials)).await.unwrap_err().to_string();
    assert!(refused.contains("permission denied"), "{refused}");
    credentials.user = "root".to_owned();
    let refused = apply(Some(&credentials)).await.unwrap_err().to_string();
    assert!(refused.contains("invalid user ID or password"), "{refused}");
    guarded.write_password("root");
    apply(Some(&credentials)).await.unwrap();
}
