//! A client of a control plane, with what tests do most in one call.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use postrider_proto::v1::account_service_client::AccountServiceClient;
use postrider_proto::v1::cluster_service_client::ClusterServiceClient;
use postrider_proto::v1::delivery_service_client::DeliveryServiceClient;
use postrider_proto::v1::event_type_service_client::EventTypeServiceClient;
use postrider_proto::v1::publish_service_client::PublishServiceClient;
use postrider_proto::v1::webhook_service_client::WebhookServiceClient;
use postrider_proto::v1::{
    Account, Auth, BasicAuth, CreateAccountRequest, CreateWebhookRequest, Event, ExportSigningSecretRequest, NoAuth,
    PublishRequest, PublishResponse, RetryPolicy, SignatureAuth, Webhook, auth, event,
};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::wait;

/// How long one call may take; control planes give up on the store before.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How long connecting may take: everything is on this machine.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// A client of one control plane. Clones share its connection.
#[derive(Debug, Clone)]
pub struct Client(Channel);

impl Client {
    /// A client of the control plane at `address`; connects on first use.
    pub fn new(address: SocketAddr) -> Self {
        Self::hasty(address, CALL_DEADLINE)
    }

    /// The same, for calls that may take so long.
    pub fn hasty(address: SocketAddr, deadline: Duration) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address is a URI");
        let endpoint = endpoint
            .timeout(deadline)
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_nodelay(true);
        Self(endpoint.connect_lazy())
    }

    /// A client over a channel of the caller's making.
    pub const fn over(channel: Channel) -> Self {
        Self(channel)
    }

    /// Webhooks.
    pub fn webhooks(&self) -> WebhookServiceClient<Channel> {
        WebhookServiceClient::new(self.0.clone())
    }

    /// Publishing.
    pub fn publishing(&self) -> PublishServiceClient<Channel> {
        PublishServiceClient::new(self.0.clone())
    }

    /// Accounts.
    pub fn accounts(&self) -> AccountServiceClient<Channel> {
        AccountServiceClient::new(self.0.clone())
    }

    /// The event catalogue.
    pub fn event_types(&self) -> EventTypeServiceClient<Channel> {
        EventTypeServiceClient::new(self.0.clone())
    }

    /// Deliveries.
    pub fn deliveries(&self) -> DeliveryServiceClient<Channel> {
        DeliveryServiceClient::new(self.0.clone())
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.0.clone())
    }

    /// Creates an account that may have `max_webhooks` webhooks.
    pub async fn create_account(&self, account: &str, max_webhooks: i32) -> Account {
        let request = CreateAccountRequest {
            account_id: account.to_owned(),
            account: Some(Account {
                max_webhooks,
                ..Account::default()
            }),
            ..CreateAccountRequest::default()
        };
        self.accounts()
            .create_account(request)
            .await
            .expect("the account is created")
            .into_inner()
    }

    /// Creates a webhook.
    ///
    /// # Errors
    /// What the control plane answered.
    pub async fn try_create_webhook(&self, account: &str, id: &str, webhook: Webhook) -> Result<Webhook, Status> {
        let request = CreateWebhookRequest {
            parent: format!("accounts/{account}"),
            webhook_id: id.to_owned(),
            webhook: Some(webhook),
            ..CreateWebhookRequest::default()
        };
        self.webhooks()
            .create_webhook(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// Creates a webhook.
    pub async fn create_webhook(&self, account: &str, id: &str, webhook: Webhook) -> Webhook {
        self.try_create_webhook(account, id, webhook)
            .await
            .expect("the webhook is created")
    }

    /// The newest signing secret of a webhook, as its owner would download it.
    pub async fn signing_secret(&self, name: &str) -> String {
        let request = ExportSigningSecretRequest { name: name.to_owned() };
        let exported = self
            .webhooks()
            .export_signing_secret(request)
            .await
            .expect("the secret is exported")
            .into_inner();
        let document = exported.document.expect("there is a document");
        let secret = document
            .fields
            .get("secrets")
            .and_then(|secrets| match secrets.kind.as_ref()? {
                prost_types::value::Kind::ListValue(list) => match list.values.first()?.kind.as_ref()? {
                    prost_types::value::Kind::StructValue(secret) => secret.fields.get("secret"),
                    _ => None,
                },
                _ => None,
            });
        match secret.and_then(|secret| secret.kind.as_ref()) {
            Some(prost_types::value::Kind::StringValue(secret)) => secret.clone(),
            other => panic!("the document names no secret: {other:?}"),
        }
    }

    /// Publishes once.
    ///
    /// # Errors
    /// What the control plane answered.
    pub async fn try_publish(
        &self,
        account: &str,
        events: Vec<Event>,
        request_id: &str,
    ) -> Result<PublishResponse, Status> {
        let request = PublishRequest {
            parent: format!("accounts/{account}"),
            events,
            request_id: request_id.to_owned(),
            validate_only: false,
        };
        self.publishing()
            .publish(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// How many webhooks an event of this name would match at this control plane now. Publishes nothing.
    ///
    /// # Errors
    /// What the control plane answered.
    pub async fn matches(&self, account: &str, event_name: &str) -> Result<i32, Status> {
        let request = PublishRequest {
            parent: format!("accounts/{account}"),
            events: vec![event("", event_name, "{}")],
            validate_only: true,
            ..PublishRequest::default()
        };
        let answer = self.publishing().publish(request).await?.into_inner();
        Ok(answer.events.iter().map(|event| event.matched_webhooks).sum())
    }

    /// Publishes once.
    pub async fn publish(&self, account: &str, events: Vec<Event>) -> PublishResponse {
        self.try_publish(account, events, "")
            .await
            .expect("the events are accepted")
    }
}

/// A webhook with a short retry policy, so that tests of failures take seconds.
pub fn webhook(url: &str, event_types: &[&str], method: Option<auth::Method>) -> Webhook {
    Webhook {
        target_url: url.to_owned(),
        event_types: event_types.iter().map(|&name| name.to_owned()).collect(),
        auth: method.map(|method| Auth { method: Some(method) }),
        retry: Some(RetryPolicy {
            initial_delay: Some(millis(100)),
            max_delay: Some(millis(500)),
            ..RetryPolicy::default()
        }),
        ..Webhook::default()
    }
}

/// No authentication.
pub fn no_auth() -> Option<auth::Method> {
    Some(auth::Method::None(NoAuth {}))
}

/// Basic authentication.
pub fn basic(username: &str, password: &str) -> Option<auth::Method> {
    Some(auth::Method::Basic(BasicAuth {
        username: username.to_owned(),
        password: password.to_owned(),
    }))
}

/// A signature under a generated secret.
pub fn signature() -> Option<auth::Method> {
    Some(auth::Method::Signature(SignatureAuth::default()))
}

/// An event with exact JSON text.
pub fn event(id: &str, name: &str, json: impl Into<Bytes>) -> Event {
    Event {
        event_id: id.to_owned(),
        event_name: name.to_owned(),
        body: Some(event::Body::DataJson(json.into())),
        ..Event::default()
    }
}

/// A duration of `millis` milliseconds, below one minute.
pub fn millis(millis: i32) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::from(millis / 1000),
        nanos: millis % 1000 * 1_000_000,
    }
}

/// Request id number `number`: the same in every run, different in every request of a test.
pub fn request_id(number: u64) -> String {
    Uuid::from_u64_pair(0x7057_7264_0000_4000, 0x8000_0000_0000_0000 | number).to_string()
}

/// A publisher that does not give up: each request goes with its request id to one control plane after the other until it is accepted.
#[derive(Debug, Clone)]
pub struct Publisher {
    /// The control planes.
    pub replicas: Vec<Client>,
    /// Whose events these are.
    pub account: String,
    /// How many events go in one request.
    pub batch: usize,
    /// How many requests are under way at once.
    pub concurrency: usize,
    /// How long one request may take to be accepted, whatever happens to the control planes.
    pub patience: Duration,
}

/// What publishing took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Requests accepted.
    pub requests: usize,
    /// How often a request had to be sent again.
    pub repeats: usize,
    /// Requests answered from what an earlier, unanswered try had stored.
    pub duplicates: usize,
    /// Deliveries that the accepted events cause.
    pub deliveries: usize,
}

impl Publisher {
    /// Publishes all `events`, and returns when each was accepted.
    ///
    /// # Panics
    /// If a request is refused, or not accepted within the patience.
    pub async fn publish_all(&self, events: Vec<Event>) -> Effort {
        let requests: Vec<Vec<Event>> = events.chunks(self.batch).map(<[Event]>::to_vec).collect();
        let requests = Arc::new(requests);
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..self.concurrency {
            let (publisher, requests, next) = (self.clone(), requests.clone(), next.clone());
            tasks.spawn(async move {
                let mut effort = Effort::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(events) = requests.get(number) else {
                        return effort;
                    };
                    publisher.publish_one(number, events, &mut effort).await;
                }
            });
        }
        let mut total = Effort::default();
        while let Some(effort) = tasks.join_next().await {
            let effort = effort.expect("publishing does not fail");
            total.requests += effort.requests;
            total.repeats += effort.repeats;
            total.duplicates += effort.duplicates;
            total.deliveries += effort.deliveries;
        }
        total
    }

    async fn publish_one(&self, number: usize, events: &[Event], effort: &mut Effort) {
        let id = request_id(number as u64);
        let mut tries = number;
        let accepting = async {
            loop {
                let replica = &self.replicas[tries % self.replicas.len()];
                match replica.try_publish(&self.account, events.to_vec(), &id).await {
                    Ok(answer) => {
                        assert_eq!(answer.events.len(), events.len(), "every event is answered");
                        return answer;
                    }
                    Err(status) if may_be_sent_again(&status) => {
                        tries += 1;
                        // A control plane that is gone refuses at once; do not spin while its successor starts.
                        wait::between_looks().await;
                    }
                    Err(status) => panic!("request {number} was refused: {status:?}"),
                }
            }
        };
        let Ok(answer) = timeout(self.patience, accepting).await else {
            panic!("request {number} was not accepted within {:?}", self.patience)
        };
        effort.requests += 1;
        effort.repeats += tries - number;
        effort.duplicates += usize::from(answer.duplicate);
        let matched = answer
            .events
            .iter()
            .map(|event| usize::try_from(event.matched_webhooks).unwrap_or(0));
        effort.deliveries += matched.sum::<usize>();
    }
}

/// Whether an error says that the control plane or the store was away. A connection that broke, or was ended, under a request is reported by the client
/// itself under several codes (INTERNAL for a GOAWAY that crossed the request): no server sent that status.
pub fn may_be_sent_again(status: &Status) -> bool {
    let made_here = std::error::Error::source(status).is_some_and(|source| source.is::<tonic::transport::Error>());
    made_here
        || matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled
        )
}
