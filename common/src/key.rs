//! Every key of the store is built and parsed here. Pure.
//!
//! Keys are ASCII paths below the cell's prefix; the prefix itself is added and taken off by the store, so nothing here knows it.
//! Ids are validated newtypes and cannot hold a `/`, so no id can change which prefix a key falls in.

mod history;

use std::fmt;
use std::sync::Arc;

pub use self::history::{History, all_history, history, history_segment, history_since, parse_history};
use crate::id::{AccountId, AgentId, EventName, RequestId, Uid, WebhookId};
use crate::model::order::{Line, Lined, Position};
use crate::model::usage;
use crate::shard::ShardId;
use crate::store::Revision;
use crate::time::Timestamp;

/// One key of the store, or what several keys begin with (mostly up to a `/`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A key as it came from the store.
    pub fn from_stored(text: &str) -> Self {
        Self(text.into())
    }

    fn new(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Facts of the cell.
pub fn cell() -> Key {
    Key::from_stored("cell")
}

/// All accounts.
pub fn accounts() -> Key {
    Key::from_stored("accounts/")
}

/// One account.
pub fn account(account: &AccountId) -> Key {
    Key::new(format!("accounts/{account}"))
}

/// The account of a key made by [`account`].
pub fn parse_account(key: &Key) -> Option<AccountId> {
    AccountId::new(key.as_str().strip_prefix("accounts/")?).ok()
}

/// How many webhooks an account has.
pub fn webhook_count(account: &AccountId) -> Key {
    Key::new(format!("webhook-counts/{account}"))
}

/// The webhooks of all accounts.
pub fn webhooks() -> Key {
    Key::from_stored("webhooks/")
}

/// The webhooks of one account.
pub fn webhooks_of(account: &AccountId) -> Key {
    Key::new(format!("webhooks/{account}/"))
}

/// One webhook.
pub fn webhook(account: &AccountId, webhook: &WebhookId) -> Key {
    Key::new(format!("webhooks/{account}/{webhook}"))
}

/// Account and webhook of a key made by [`webhook`].
pub fn parse_webhook(key: &Key) -> Option<(AccountId, WebhookId)> {
    let (account, webhook) = key.as_str().strip_prefix("webhooks/")?.split_once('/')?;
    Some((AccountId::new(account).ok()?, WebhookId::new(webhook).ok()?))
}

/// What everything begins with that tells of changes of webhooks: the webhooks, their counts, and [`webhook_pulse`].
pub fn webhook_changes() -> Key {
    Key::from_stored("webhook")
}

/// Written while somebody watches webhooks: a watch of [`webhook_changes`] that shows it has shown everything before.
pub fn webhook_pulse() -> Key {
    Key::from_stored("webhook-pulse")
}

/// The event catalogue.
pub fn event_types() -> Key {
    Key::from_stored("event-types/")
}

/// One event type.
pub fn event_type(name: &EventName) -> Key {
    Key::new(format!("event-types/{name}"))
}

/// The name in a key made by [`event_type`].
pub fn parse_event_type(key: &Key) -> Option<EventName> {
    EventName::new(key.as_str().strip_prefix("event-types/")?).ok()
}

/// All agents that are alive.
pub fn agents() -> Key {
    Key::from_stored("agents/")
}

/// One agent.
pub fn agent(agent: &AgentId) -> Key {
    Key::new(format!("agents/{agent}"))
}

/// All tests that an agent is asked to make.
pub fn tests_of(agent: &AgentId) -> Key {
    Key::new(format!("tests/{agent}/"))
}

/// One test that an agent is asked to make.
pub fn test(agent: &AgentId, test: &Uid) -> Key {
    Key::new(format!("tests/{agent}/{test}"))
}

/// The test of a key made by [`test()`].
pub fn parse_test(key: &Key) -> Option<Uid> {
    let (_, test) = key.as_str().strip_prefix("tests/")?.split_once('/')?;
    Uid::new(test).ok()
}

/// What all agents saw of tests.
pub fn test_answers() -> Key {
    Key::from_stored("test-answers/")
}

/// What an agent saw of one test.
pub fn test_answer(test: &Uid) -> Key {
    Key::new(format!("test-answers/{test}"))
}

/// The test of a key made by [`test_answer`].
pub fn parse_test_answer(key: &Key) -> Option<Uid> {
    Uid::new(key.as_str().strip_prefix("test-answers/")?).ok()
}

/// Who leads.
pub fn leader() -> Key {
    Key::from_stored("leader")
}

/// Who should own which shard.
pub fn assignments() -> Key {
    Key::from_stored("assignments/")
}

/// Who should own one shard.
pub fn assignment(shard: ShardId) -> Key {
    Key::new(format!("assignments/{:04}", shard.0))
}

/// Who owns which shard.
pub fn owners() -> Key {
    Key::from_stored("owners/")
}

/// Who owns one shard. The key's create revision is the owner's epoch.
pub fn owner(shard: ShardId) -> Key {
    Key::new(format!("owners/{:04}", shard.0))
}

/// The queue segments of all shards.
pub fn all_queues() -> Key {
    Key::from_stored("queue/")
}

/// The queue segments of one shard.
pub fn queue(shard: ShardId) -> Key {
    Key::new(format!("queue/{:04}/", shard.0))
}

/// One queue segment: transaction `sequence` of a writer's lane. Unique, because a lane's sequence is guarded by its mark.
pub fn segment(shard: ShardId, writer: &str, sequence: u64) -> Key {
    Key::new(format!("queue/{:04}/{writer}-{sequence:012x}", shard.0))
}

/// How far the owners of all shards got.
pub fn all_progress() -> Key {
    Key::from_stored("progress/")
}

/// How far the shard's owner got in segments that are not over.
pub fn progress(shard: ShardId) -> Key {
    Key::new(format!("progress/{:04}", shard.0))
}

/// All parked segments.
pub fn all_parked() -> Key {
    Key::from_stored("parked/")
}

/// All parked segments of one shard.
pub fn parked(shard: ShardId) -> Key {
    Key::new(format!("parked/{:04}/", shard.0))
}

/// Where a parked segment stands: everything its key says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Parked {
    /// The shard.
    pub shard: ShardId,
    /// The webhook's account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// When the first of its deliveries is due.
    pub due: Timestamp,
    /// Unique within the shard: the epoch of the owner that wrote it, and a number of the owner's.
    pub epoch: u64,
    /// The owner's number.
    pub number: u64,
    /// How many deliveries it holds, so that an index needs no values.
    pub count: u32,
    /// What they wait for.
    pub kind: ParkedKind,
}

/// What the deliveries of a parked segment wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ParkedKind {
    /// Their due time.
    #[default]
    Single,
    /// To be made up into batches at their due time. They take so many bytes.
    Gathering(u32),
    /// The due time of the batch that they make up.
    Batch,
    /// Among dead letters: what is left of a segment of which some were revived or dropped.
    Rest,
    /// Their turn: they are of an ordered webhook.
    Ordered(Lined),
}

/// One parked segment.
pub fn parked_segment(parked: &Parked) -> Key {
    Key::new(format!("parked/{}", placed(parked)))
}

/// What a key made by [`parked_segment`] says.
pub fn parse_parked(key: &Key) -> Option<Parked> {
    parse_placed(key.as_str().strip_prefix("parked/")?)
}

/// All dead letters.
pub fn all_dead() -> Key {
    Key::from_stored("dead/")
}

/// All dead letters of one shard.
pub fn dead(shard: ShardId) -> Key {
    Key::new(format!("dead/{:04}/", shard.0))
}

/// All parked segments of one webhook, by their due time.
pub fn parked_of(shard: ShardId, account: &AccountId, webhook: &WebhookId) -> Key {
    Key::new(format!("parked/{:04}/{account}/{webhook}/", shard.0))
}

/// All dead letters of one webhook.
pub fn dead_of(shard: ShardId, account: &AccountId, webhook: &WebhookId) -> Key {
    Key::new(format!("dead/{:04}/{account}/{webhook}/", shard.0))
}

/// Where the dead letters of one webhook end: after all of them, and before those of the next.
pub fn after_dead_of(shard: ShardId, account: &AccountId, webhook: &WebhookId) -> Key {
    // `0` comes after `/`, and no id can stand between.
    Key::new(format!("dead/{:04}/{account}/{webhook}0", shard.0))
}

/// One segment of dead letters; `due` is when the first of them died.
pub fn dead_segment(dead: &Parked) -> Key {
    Key::new(format!("dead/{}", placed(dead)))
}

/// What a key made by [`dead_segment`] says.
pub fn parse_dead(key: &Key) -> Option<Parked> {
    parse_placed(key.as_str().strip_prefix("dead/")?)
}

/// The webhooks of one shard that only fail.
pub fn failing(shard: ShardId) -> Key {
    Key::new(format!("failing/{:04}/", shard.0))
}

/// Since when a webhook only fails.
pub fn failing_of(shard: ShardId, account: &AccountId, webhook: &WebhookId) -> Key {
    Key::new(format!("failing/{:04}/{account}/{webhook}", shard.0))
}

/// Account and webhook of a key made by [`failing_of`].
pub fn parse_failing(key: &Key) -> Option<(AccountId, WebhookId)> {
    let (_, name) = key.as_str().strip_prefix("failing/")?.split_once('/')?;
    let (account, webhook) = name.split_once('/')?;
    Some((AccountId::new(account).ok()?, WebhookId::new(webhook).ok()?))
}

/// What became of the deliveries of one shard, by webhook.
pub fn usage(shard: ShardId) -> Key {
    Key::new(format!("usage/{:04}/", shard.0))
}

/// What became of the deliveries of one account in one shard, by webhook.
pub fn usage_in(shard: ShardId, account: &AccountId) -> Key {
    Key::new(format!("usage/{:04}/{account}/", shard.0))
}

/// What became of the deliveries of one webhook.
pub fn usage_of(shard: ShardId, (account, webhook): &usage::Name) -> Key {
    let webhook = webhook.as_ref().map_or("-", WebhookId::as_str);
    Key::new(format!("usage/{:04}/{account}/{webhook}", shard.0))
}

/// Whose counts a key made by [`usage_of`] holds.
pub fn parse_usage(key: &Key) -> Option<usage::Name> {
    let (_, name) = key.as_str().strip_prefix("usage/")?.split_once('/')?;
    let (account, webhook) = name.split_once('/')?;
    let webhook = (webhook != "-").then(|| WebhookId::new(webhook)).transpose().ok()?;
    Some((AccountId::new(account).ok()?, webhook))
}

/// The commands to the owners of all shards.
pub fn commands() -> Key {
    Key::from_stored("commands/")
}

/// The commands to the owner of a shard.
pub fn commands_to(shard: ShardId) -> Key {
    Key::new(format!("commands/{:04}/", shard.0))
}

/// One command to the owner of a shard. Commands of one shard are carried out in the order of their keys.
pub fn command(shard: ShardId, id: &Uid) -> Key {
    Key::new(format!("commands/{:04}/{id}", shard.0))
}

/// The shard of a key made by [`command`].
pub fn parse_command(key: &Key) -> Option<ShardId> {
    let (shard, id) = key.as_str().strip_prefix("commands/")?.split_once('/')?;
    Uid::new(id).ok()?;
    Some(ShardId(shard.parse().ok()?))
}

/// Whether a segment stands in a queue, rather than being parked.
pub fn is_queued(key: &Key) -> bool {
    key.as_str().starts_with("queue/")
}

fn placed(at: &Parked) -> String {
    let kind = match at.kind {
        ParkedKind::Single => String::new(),
        ParkedKind::Gathering(bytes) => format!("-g{bytes:x}"),
        ParkedKind::Batch => "-b".to_owned(),
        ParkedKind::Rest => "-r".to_owned(),
        ParkedKind::Ordered(lined) => {
            let revision = lined.first.revision.0.max(0);
            let (line, index, blocked) = (lined.line.0, lined.first.index, lined.blocked);
            format!("-o{line:x}-{revision:x}-{index:x}-{blocked:x}")
        }
    };
    format!(
        "{:04}/{}/{}/due-{:015}-{:x}-{:x}-{}{kind}",
        at.shard.0,
        at.account,
        at.webhook,
        at.due.as_millis().max(0),
        at.epoch,
        at.number,
        at.count
    )
}

fn parse_placed(text: &str) -> Option<Parked> {
    let mut parts = text.split('/');
    let (shard, account, webhook, last) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let mut fields = last.strip_prefix("due-")?.split('-');
    let (due, epoch, number, count) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let kind = match fields.next() {
        None => ParkedKind::Single,
        Some("b") => ParkedKind::Batch,
        Some("r") => ParkedKind::Rest,
        Some(other) => match other.strip_prefix('o') {
            None => ParkedKind::Gathering(u32::from_str_radix(other.strip_prefix('g')?, 16).ok()?),
            Some(line) => ParkedKind::Ordered(Lined {
                line: Line(u64::from_str_radix(line, 16).ok()?),
                first: Position {
                    revision: Revision(i64::from_str_radix(fields.next()?, 16).ok()?),
                    index: u32::from_str_radix(fields.next()?, 16).ok()?,
                },
                blocked: u64::from_str_radix(fields.next()?, 16).ok()?,
            }),
        },
    };
    if parts.next().is_some() || fields.next().is_some() {
        return None;
    }
    Some(Parked {
        kind,
        shard: ShardId(shard.parse().ok()?),
        account: AccountId::new(account).ok()?,
        webhook: WebhookId::new(webhook).ok()?,
        due: Timestamp::from_millis(due.parse().ok()?),
        epoch: u64::from_str_radix(epoch, 16).ok()?,
        number: u64::from_str_radix(number, 16).ok()?,
        count: count.parse().ok()?,
    })
}

/// The answer of a request that carried a request id. `kind` keeps requests of different methods apart.
pub fn dedupe(account: &AccountId, kind: DedupeKind, request: &RequestId) -> Key {
    Key::new(format!("dedupe/{account}/{}/{request}", kind.as_str()))
}

/// The answer of a request for an event type or an account, which stand in no account.
pub fn dedupe_global(kind: DedupeKind, request: &RequestId) -> Key {
    Key::new(format!("dedupe/-/{}/{request}", kind.as_str()))
}

/// Which method a request id was used with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DedupeKind {
    /// Publish, and each request of PublishStream.
    Publish,
    /// CreateWebhook.
    CreateWebhook,
    /// CreateAccount.
    CreateAccount,
    /// CreateEventType.
    CreateEventType,
}

impl DedupeKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::CreateWebhook => "create-webhook",
            Self::CreateAccount => "create-account",
            Self::CreateEventType => "create-event-type",
        }
    }
}

/// The mark of one lane of a control plane's writer.
pub fn writer(writer: &str) -> Key {
    Key::new(format!("writers/{writer}"))
}

/// The shard that ends a key such as those of [`owner`] and [`assignment`].
pub fn parse_shard(key: &Key) -> Option<ShardId> {
    Some(ShardId(key.as_str().rsplit_once('/')?.1.parse().ok()?))
}

/// The agent of a key made by [`agent`].
pub fn parse_agent(key: &Key) -> Option<AgentId> {
    AgentId::new(key.as_str().strip_prefix("agents/")?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_parked_key_says_what_it_was_built_from(
            shard in 0_u16..1024, account in "[a-z0-9][a-z0-9-]{0,62}", webhook in "[a-z0-9][a-z0-9-]{0,62}",
            due in 0_i64..253_402_300_799_999, epoch: u64, number: u64, count: u32, kind in 0_u8..5, bytes: u32, revision in 0..i64::MAX,
        ) {
            let parked = Parked {
                shard: ShardId(shard), account: AccountId::new(&account).unwrap(), webhook: WebhookId::new(&webhook).unwrap(),
                due: Timestamp::from_millis(due), epoch, number, count,
                kind: match kind {
                    0 => ParkedKind::Single,
                    1 => ParkedKind::Gathering(bytes),
                    2 => ParkedKind::Batch,
                    3 => ParkedKind::Rest,
                    _ => ParkedKind::Ordered(Lined {
                        line: Line(number), first: Position { revision: Revision(revision), index: bytes }, blocked: epoch,
                    }),
                },
            };
            prop_assert_eq!(parse_parked(&parked_segment(&parked)), Some(parked.clone()));
            prop_assert!(parked_segment(&parked).as_str().starts_with(super::parked(parked.shard).as_str()));
            prop_assert_eq!(parse_dead(&dead_segment(&parked)), Some(parked.clone()));
            let failing = failing_of(parked.shard, &parked.account, &parked.webhook);
            prop_assert!(failing.as_str().starts_with(super::failing(parked.shard).as_str()));
            prop_assert_eq!(parse_failing(&failing), Some((parked.account.clone(), parked.webhook.clone())));
            for name in [(parked.account.clone(), None), (parked.account.clone(), Some(parked.webhook.clone()))] {
                let usage = usage_of(parked.shard, &name);
                prop_assert!(usage.as_str().starts_with(usage_in(parked.shard, &parked.account).as_str()));
                prop_assert!(usage.as_str().starts_with(super::usage(parked.shard).as_str()));
                prop_assert_eq!(parse_usage(&usage), Some(name));
            }
        }

        #[test]
        fn parked_keys_of_a_webhook_sort_by_due_time(first in 0_i64..253_402_300_799_999, second in 0_i64..253_402_300_799_999) {
            let at = |due| parked_segment(&Parked {
                shard: ShardId(7), account: AccountId::new("a").unwrap(), webhook: WebhookId::new("w").unwrap(),
                due: Timestamp::from_millis(due), epoch: 1, number: 1, count: 1, kind: ParkedKind::Single,
            });
            prop_assert_eq!(at(first).as_str() < at(second).as_str(), first < second);
        }

        #[test]
        fn the_keys_of_a_test_say_which_one_it_is(agent in "[a-z0-9][a-z0-9-]{0,62}", id in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}") {
            let (agent, id) = (AgentId::new(&agent).unwrap(), Uid::new(&id).unwrap());
            prop_assert!(test(&agent, &id).as_str().starts_with(tests_of(&agent).as_str()));
            prop_assert!(test_answer(&id).as_str().starts_with(test_answers().as_str()));
            prop_assert_eq!(parse_test(&test(&agent, &id)), Some(id.clone()));
            prop_assert_eq!(parse_test_answer(&test_answer(&id)), Some(id));
        }

        #[test]
        fn a_history_key_says_what_it_was_built_from_and_sorts_by_time(
            shard in 0_u16..1024, time in 0_i64..253_402_300_799_999, since in 0_i64..253_402_300_799_999, epoch: u64, number: u64, bytes: u32,
        ) {
            let at = History { shard: ShardId(shard), time: Timestamp::from_millis(time), epoch, number, bytes };
            let key = history_segment(&at);
            prop_assert_eq!(parse_history(&key), Some(at));
            prop_assert!(key.as_str().starts_with(history(at.shard).as_str()));
            prop_assert!(key.as_str().starts_with(all_history().as_str()));
            prop_assert_eq!(history_since(at.shard, Timestamp::from_millis(since)) < key, since <= time);
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,80}") {
            let key = Key::from_stored(&text);
            let _ = (parse_parked(&key), parse_dead(&key), parse_webhook(&key), parse_failing(&key), parse_usage(&key), parse_command(&key), parse_shard(&key), parse_agent(&key));
            let _ = (parse_test(&key), parse_test_answer(&key), parse_history(&key));
        }
    }
}
