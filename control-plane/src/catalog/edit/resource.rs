//! What the three kinds of resources have in common: a key, a name, a uid and a generation. Pure.

use bytes::Bytes;
use postrider_common::id::{AccountId, EventName, InvalidId, Uid, WebhookId};
use postrider_common::key::{self, Key};
use postrider_common::model::account::Account;
use postrider_common::model::event_type::EventType;
use postrider_common::model::webhook::Webhook;
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;

use crate::catalog::etag::Etag;

/// A resource of the catalog.
pub(crate) trait Resource: Clone + PartialEq + Send + Sync {
    /// What names it.
    type Id: Clone + Send + Sync;
    /// Its message on the API.
    const KIND: &'static str;

    /// Where it is stored.
    fn key(id: &Self::Id) -> Key;
    /// Its name on the API.
    fn name(id: &Self::Id) -> String;
    /// The last part of its name.
    fn local(id: &Self::Id) -> &str;
    /// The id beside `id` whose last part is `local`.
    fn sibling(id: &Self::Id, local: &str) -> Result<Self::Id, InvalidId>;
    /// The stored bytes.
    fn encode(&self) -> Bytes;
    /// Reads the stored bytes.
    fn decode(id: &Self::Id, bytes: Bytes) -> Result<Self, stored::Unreadable>;
    /// Unique for ever.
    fn uid(&self) -> &Uid;
    /// Names its present state.
    fn etag(&self) -> Etag;
    /// Notes a change at `now`.
    fn touch(&mut self, now: Timestamp);
}

/// What every kind does in the same words.
macro_rules! common {
    ($encode:path) => {
        fn encode(&self) -> Bytes {
            $encode(self)
        }
        fn uid(&self) -> &Uid {
            &self.uid
        }
        fn etag(&self) -> Etag {
            Etag::new(&self.uid, self.generation)
        }
        fn touch(&mut self, now: Timestamp) {
            self.generation += 1;
            self.update_time = now;
        }
    };
}

impl Resource for Webhook {
    type Id = (AccountId, WebhookId);
    const KIND: &'static str = "postrider.v1.Webhook";

    fn key((account, webhook): &Self::Id) -> Key {
        key::webhook(account, webhook)
    }
    fn name((account, webhook): &Self::Id) -> String {
        format!("accounts/{account}/webhooks/{webhook}")
    }
    fn local((_, webhook): &Self::Id) -> &str {
        webhook.as_str()
    }
    fn sibling((account, _): &Self::Id, local: &str) -> Result<Self::Id, InvalidId> {
        Ok((account.clone(), WebhookId::new(local)?))
    }
    fn decode((account, webhook): &Self::Id, bytes: Bytes) -> Result<Self, stored::Unreadable> {
        stored::decode_webhook(account.clone(), webhook.clone(), bytes)
    }
    common!(stored::encode_webhook);
}

impl Resource for Account {
    type Id = AccountId;
    const KIND: &'static str = "postrider.v1.Account";

    fn key(id: &Self::Id) -> Key {
        key::account(id)
    }
    fn name(id: &Self::Id) -> String {
        format!("accounts/{id}")
    }
    fn local(id: &Self::Id) -> &str {
        id.as_str()
    }
    fn sibling(_: &Self::Id, local: &str) -> Result<Self::Id, InvalidId> {
        AccountId::new(local)
    }
    fn decode(id: &Self::Id, bytes: Bytes) -> Result<Self, stored::Unreadable> {
        stored::decode_account(id.clone(), bytes)
    }
    common!(stored::encode_account);
}

impl Resource for EventType {
    type Id = EventName;
    const KIND: &'static str = "postrider.v1.EventType";

    fn key(id: &Self::Id) -> Key {
        key::event_type(id)
    }
    fn name(id: &Self::Id) -> String {
        format!("eventTypes/{id}")
    }
    fn local(id: &Self::Id) -> &str {
        id.as_str()
    }
    fn sibling(_: &Self::Id, local: &str) -> Result<Self::Id, InvalidId> {
        EventName::new(local)
    }
    fn decode(id: &Self::Id, bytes: Bytes) -> Result<Self, stored::Unreadable> {
        stored::decode_event_type(id.clone(), bytes)
    }
    common!(stored::encode_event_type);
}
