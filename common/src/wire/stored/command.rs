//! Commands to the owners of shards, as the store holds them. Pure.

use bytes::Bytes;
use pb::command::Action as PbAction;
use postrider_proto::stored as pb;

use super::{Unreadable, VERSION, decode, encode, readable_version, unreadable};
use crate::id::{AccountId, EventId, Uid, WebhookId};
use crate::model::command::{Action, Begun, Command, Filter, Rate};
use crate::model::webhook::EventPattern;
use crate::time::Timestamp;

/// Encodes a command.
pub fn encode_command(command: &Command) -> Bytes {
    let event = |id: &EventId| id.as_str().to_owned();
    encode(&pb::Command {
        version: VERSION,
        account: command.account.as_str().to_owned(),
        webhook: command.webhook.as_str().to_owned(),
        webhook_uid: command.uid.as_str().to_owned(),
        create_time: command.create_time.as_millis(),
        action: Some(match &command.action {
            Action::Retry(id) => PbAction::RetryEvent(event(id)),
            Action::Cancel(id) => PbAction::CancelEvent(event(id)),
            Action::Redrive(filter, rate) => PbAction::Redrive(pb::Redrive {
                filter: Some(filter_to_pb(filter)),
                per_second: rate.map_or(0.0, Rate::per_second),
            }),
            Action::Purge(filter) => PbAction::Purge(filter_to_pb(filter)),
        }),
        begun: command.begun.map(|begun| pb::Begun {
            time: begun.time.as_millis(),
            revived: begun.revived,
        }),
    })
}

/// Decodes a command.
///
/// # Errors
/// [`Unreadable`] if the bytes are not of a version that this release reads.
pub fn decode_command(bytes: Bytes) -> Result<Command, Unreadable> {
    let stored: pb::Command = decode(bytes)?;
    readable_version(stored.version)?;
    let event = |id: &str| EventId::new(id).map_err(unreadable);
    let action = match stored.action {
        None => return Err(Unreadable("a command of a kind that this release does not know".into())),
        Some(PbAction::RetryEvent(id)) => Action::Retry(event(&id)?),
        Some(PbAction::CancelEvent(id)) => Action::Cancel(event(&id)?),
        Some(PbAction::Redrive(redrive)) => {
            let rate = Some(redrive.per_second).filter(|rate| *rate != 0.0);
            let known = rate.map(|rate| Rate::new(rate).ok_or_else(|| Unreadable(format!("{rate} a second"))));
            Action::Redrive(filter_from_pb(redrive.filter.unwrap_or_default())?, known.transpose()?)
        }
        Some(PbAction::Purge(filter)) => Action::Purge(filter_from_pb(filter)?),
    };
    Ok(Command {
        account: AccountId::new(&stored.account).map_err(unreadable)?,
        webhook: WebhookId::new(&stored.webhook).map_err(unreadable)?,
        uid: Uid::new(&stored.webhook_uid).map_err(unreadable)?,
        create_time: Timestamp::from_millis(stored.create_time),
        action,
        begun: stored.begun.map(|begun| Begun {
            time: Timestamp::from_millis(begun.time),
            revived: begun.revived,
        }),
    })
}

fn filter_to_pb(filter: &Filter) -> pb::DeadLetterFilter {
    let millis = |time: Option<Timestamp>| time.map_or(0, Timestamp::as_millis);
    pb::DeadLetterFilter {
        event_ids: filter.event_ids.iter().map(ToString::to_string).collect(),
        event_types: filter.event_types.iter().map(ToString::to_string).collect(),
        reasons: filter.reasons.iter().cloned().collect(),
        accepted_from: millis(filter.accepted_from),
        accepted_until: millis(filter.accepted_until),
    }
}

fn filter_from_pb(filter: pb::DeadLetterFilter) -> Result<Filter, Unreadable> {
    let time = |millis: i64| (millis != 0).then(|| Timestamp::from_millis(millis));
    let ids = filter.event_ids.iter().map(|id| EventId::new(id));
    let types = filter.event_types.iter().map(|text| EventPattern::parse(text));
    Ok(Filter {
        event_ids: ids.collect::<Result<_, _>>().map_err(unreadable)?,
        event_types: types.collect::<Result<_, _>>().map_err(unreadable)?,
        reasons: filter.reasons.into_iter().collect(),
        accepted_from: time(filter.accepted_from),
        accepted_until: time(filter.accepted_until),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter() -> impl Strategy<Value = Filter> {
        let texts = |pattern: &'static str| proptest::collection::btree_set(pattern, 0..4);
        (
            texts("[a-z0-9]{1,8}"),
            texts("[A-Z]{1,5}\\*?"),
            texts("[A-Z_]{1,8}"),
            0_i64..9,
            0_i64..9,
        )
            .prop_map(|(ids, types, reasons, from, until)| Filter {
                event_ids: ids.iter().map(|id| EventId::new(id).unwrap()).collect(),
                event_types: types.iter().map(|text| EventPattern::parse(text).unwrap()).collect(),
                reasons,
                accepted_from: (from > 0).then(|| Timestamp::from_millis(from)),
                accepted_until: (until > 0).then(|| Timestamp::from_millis(until)),
            })
    }

    fn action() -> impl Strategy<Value = Action> {
        let id = || "[a-z]{1,5}".prop_map(|id| EventId::new(&id).unwrap());
        let rate = proptest::option::of(0.01..10_000.0).prop_map(|rate| rate.map(|rate| Rate::new(rate).unwrap()));
        prop_oneof![
            id().prop_map(Action::Retry),
            id().prop_map(Action::Cancel),
            filter().prop_map(Action::Purge),
            (filter(), rate).prop_map(|(filter, rate)| Action::Redrive(filter, rate)),
        ]
    }

    proptest! {
        #[test]
        fn a_command_is_read_as_it_was_given(
            action in action(), create_time in 0_i64..1 << 50, begun in proptest::option::of((0_i64..1 << 50, any::<u64>())),
        ) {
            let command = Command {
                account: AccountId::new("a").unwrap(),
                webhook: WebhookId::new("w").unwrap(),
                uid: Uid::new("018f4c1e-7c55-7a3e-8b1a-2f4d5e6a7b8c").unwrap(),
                create_time: Timestamp::from_millis(create_time),
                action,
                begun: begun.map(|(time, revived)| Begun {
                    time: Timestamp::from_millis(time),
                    revived,
                }),
            };
            prop_assert_eq!(decode_command(encode_command(&command)), Ok(command));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode_command(bytes.into());
        }
    }
}
