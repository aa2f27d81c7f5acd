//! Stored answers: what makes the repetition of a request harmless.

use postrider_common::id::EventId;
use postrider_common::store::Entry;
use postrider_common::time::Timestamp;
use postrider_common::wire::stored;
use postrider_proto::stored as pb;

use super::admission::Identity;
use super::batch::{Answer, Dedupe};
use crate::api::status::Error;

/// Format of a stored answer.
const VERSION: u32 = 1;

/// The answer to store for a request with an id.
pub(crate) fn dedupe(identity: Identity, answer: &Answer) -> Dedupe {
    let event = |(id, matched): &(EventId, u32)| pb::PublishedEvent {
        event_id: id.as_str().to_owned(),
        matched_webhooks: *matched,
    };
    let value = stored::encode(&pb::Dedupe {
        version: VERSION,
        fingerprint: identity.fingerprint.to_vec().into(),
        answer: Some(pb::dedupe::Answer::Publish(pb::PublishAnswer {
            events: answer.events.iter().map(event).collect(),
            publish_time: answer.publish_time.as_millis(),
        })),
    });
    Dedupe { identity, value }
}

/// What a request whose answer is stored already is answered.
///
/// # Errors
/// [`Error::Exists`] if the id was used with other events, [`Error::Bug`] if the stored answer cannot be read.
pub(crate) fn stored_answer(identity: &Identity, entry: Entry) -> Result<Answer, Error> {
    let unreadable = |why: String| Error::Bug(format!("the stored answer at {}: {why}", entry.key));
    let stored: pb::Dedupe = stored::decode(entry.value).map_err(|error| unreadable(error.to_string()))?;
    if stored.version != VERSION {
        return Err(unreadable(format!("version {}", stored.version)));
    }
    if stored.fingerprint != identity.fingerprint.as_slice() {
        return Err(reused(identity));
    }
    let Some(pb::dedupe::Answer::Publish(answer)) = stored.answer else {
        return Err(unreadable("not a publish request's".into()));
    };
    let event = |event: pb::PublishedEvent| Ok((EventId::new(&event.event_id)?, event.matched_webhooks));
    let events: Result<_, postrider_common::id::InvalidId> = answer.events.into_iter().map(event).collect();
    Ok(Answer {
        events: events.map_err(|error| unreadable(error.to_string()))?,
        publish_time: Timestamp::from_millis(answer.publish_time),
    })
}

/// The request id was used with other events.
pub(crate) fn reused(identity: &Identity) -> Error {
    Error::Exists {
        kind: "postrider.v1.PublishRequest",
        name: format!("accounts/{}", identity.account),
        reason: "REQUEST_ID_REUSED",
    }
}
