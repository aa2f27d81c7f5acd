//! TestWebhook: which webhook, which event, and what a test that was not made is answered.

use bytes::Bytes;
use postrider_common::id::{AccountId, EventId, EventName};
use postrider_common::model::event_type::{Category, EventType};
use postrider_common::model::operational::PREFIX;
use postrider_common::model::segment::Event;
use postrider_common::model::testing::Test;
use postrider_common::model::webhook::{EventPattern, Webhook};
use postrider_common::time::Timestamp;
use postrider_proto::v1;

use super::status::{Error, Violations};
use super::webhook_rules;
use super::webhook_service::Webhooks;
use super::{names, transcript};
use crate::publish;
use crate::testing::{self, MAX_PER_ACCOUNT};

/// When a caller with too many tests under way may try again: most receivers answer in less.
const BUSY_DELAY: std::time::Duration = std::time::Duration::from_secs(1);

impl Webhooks {
    pub(super) async fn test(&self, request: v1::TestWebhookRequest) -> Result<v1::TestWebhookResponse, Error> {
        let mut violations = Violations::default();
        let subject = self.subject(&request.name, &request.parent, request.webhook, &mut violations);
        let account = subject.as_ref().map(Subject::account);
        let event = request.event.map(|event| self.given(event, account, &mut violations));
        let subject = violations.clone().with(subject)?;
        let webhook = match subject {
            Subject::Stored(id) => self.0.edit.get(&id).await?,
            Subject::New(webhook) => *webhook,
        };
        let event = match event {
            Some(event) => violations.with(event)?,
            None => self.made_up(&webhook).await?,
        };
        let url = webhook.target_url.clone();
        let subject = format!("accounts/{}", webhook.account);
        let made = self.0.tests.make(Test { webhook, event }).await;
        let made = made.map_err(|error| refused(error, subject))?;
        Ok(transcript::response(made, url))
    }

    fn subject(
        &self,
        name: &str,
        parent: &str,
        webhook: Option<v1::Webhook>,
        violations: &mut Violations,
    ) -> Option<Subject> {
        let Some(message) = webhook else {
            if !parent.is_empty() {
                violations.add("parent", "NOT_ALLOWED", "must be empty without webhook");
            }
            return names::webhook("name", name, violations).map(Subject::Stored);
        };
        if !name.is_empty() {
            violations.add("name", "NOT_ALLOWED", "must be empty with webhook");
        }
        let account = names::account("parent", parent, violations);
        names::no_etag("webhook.etag", &message.etag, violations);
        let draft = webhook_rules::check(message, None, &self.0.urls, self.0.clock.now(), violations);
        // What is not sealed before it is known to be good is never sealed.
        account
            .filter(|_| violations.is_empty())
            .map(|account| Subject::New(Box::new(self.build(&account, self.new_id(), draft))))
    }

    /// The caller's event.
    fn given(&self, mut event: v1::Event, account: Option<AccountId>, violations: &mut Violations) -> Option<Event> {
        if event.event_id.is_empty() {
            event.event_id = self.new_event_id().as_str().to_owned();
        }
        let (now, entropy) = (self.0.clock.now(), &*self.0.entropy);
        let event = publish::lone(event, account.as_ref(), now, entropy, violations)?;
        Some(Event {
            event_info: event.event_info.or_else(|| Some(event_info(now))),
            not_before_time: None,
            ..event
        })
    }

    /// An event such as the webhook asks for.
    async fn made_up(&self, webhook: &Webhook) -> Result<Event, Error> {
        let exact = webhook.event_types.iter().find_map(|pattern| match pattern {
            EventPattern::Exact(name) => Some(name.clone()),
            EventPattern::Prefix(_) => None,
        });
        let example = match &exact {
            None => None,
            Some(name) => match self.0.edit.get::<EventType>(name).await {
                Ok(event_type) => event_type.example,
                Err(Error::NotFound { .. }) => None,
                Err(error) => return Err(error),
            },
        };
        let now = self.0.clock.now();
        Ok(Event {
            account: webhook.account.clone(),
            id: self.new_event_id(),
            name: exact.unwrap_or_else(test_event),
            timestamp: now,
            ordering_key: None,
            expire_time: None,
            not_before_time: None,
            event_info: Some(event_info(now)),
            data: example.unwrap_or_else(|| Bytes::from_static(b"{\"message\":\"This is a test.\"}")),
            accept_time: now,
            traceparent: None,
            category: Category::default(),
        })
    }

    fn new_event_id(&self) -> EventId {
        let text = format!("test_{}", self.0.entropy.uid(self.0.clock.now()));
        #[allow(clippy::expect_used)] // Letters, an underscore, hyphens and digits.
        EventId::new(&text).expect("a generated id is valid")
    }
}

/// What is tested.
enum Subject {
    Stored((AccountId, postrider_common::id::WebhookId)),
    New(Box<Webhook>),
}

impl Subject {
    fn account(&self) -> AccountId {
        match self {
            Self::Stored((account, _)) => account.clone(),
            Self::New(webhook) => webhook.account.clone(),
        }
    }
}

/// The type of a test event that is of no other.
fn test_event() -> EventName {
    #[allow(clippy::expect_used)] // Letters and a dot.
    EventName::new(&format!("{PREFIX}test")).expect("the name is valid")
}

/// As the system makes it, of an event that stands in no segment.
fn event_info(now: Timestamp) -> std::sync::Arc<str> {
    format!("{}-000000-0-0", now.as_millis()).into()
}

fn refused(error: testing::Error, subject: String) -> Error {
    match error {
        testing::Error::TooMany => Error::Quota {
            subject,
            reason: "TOO_MANY_TESTS",
            description: format!("{MAX_PER_ACCOUNT} tests of this account are under way on this server"),
            retry_after: Some(BUSY_DELAY),
        },
        testing::Error::NoAgent => Error::Unserved {
            reason: "NO_AGENT",
            description: "no agent is alive to make the test; nothing was sent",
        },
        testing::Error::Unanswered => Error::Unserved {
            reason: "TEST_UNANSWERED",
            description: "no agent has answered; a request may have been sent",
        },
        testing::Error::Read(error) => error.into(),
        testing::Error::Write(postrider_common::store::WriteError::Unknown(why)) => Error::StoreAway(why),
        testing::Error::Write(error) => error.into(),
        testing::Error::Unreadable(error) => error.into(),
        testing::Error::Stopping => Error::Stopping,
    }
}
