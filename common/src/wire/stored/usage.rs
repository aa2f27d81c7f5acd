//! Counts of deliveries, as the store holds them. Pure.

use bytes::Bytes;
use postrider_proto::stored as pb;

use super::{Unreadable, VERSION, decode, encode, readable_version, unreadable};
use crate::id::{AccountId, Uid, WebhookId};
use crate::model::usage::{Name, Usage};

/// Encodes counts.
pub fn encode_usage(usage: &Usage) -> Bytes {
    encode(&to_pb(usage))
}

/// Decodes counts.
///
/// # Errors
/// [`Unreadable`] if the bytes are not of a version that this release reads.
pub fn decode_usage(bytes: Bytes) -> Result<Usage, Unreadable> {
    from_pb(&decode(bytes)?)
}

/// Counts that stand in a shard's progress.
pub(super) fn usage_entry((account, webhook): &Name, usage: &Usage) -> pb::UsageEntry {
    pb::UsageEntry {
        account: account.as_str().to_owned(),
        webhook: webhook.as_ref().map_or_else(String::new, |id| id.as_str().to_owned()),
        usage: Some(to_pb(usage)),
    }
}

/// Reads counts that stand in a shard's progress.
pub(super) fn read_usage_entry(entry: pb::UsageEntry) -> Result<(Name, Usage), Unreadable> {
    let account = AccountId::new(&entry.account).map_err(unreadable)?;
    let webhook = Some(entry.webhook).filter(|id| !id.is_empty());
    let webhook = webhook.map(|id| WebhookId::new(&id)).transpose().map_err(unreadable)?;
    Ok(((account, webhook), from_pb(&entry.usage.unwrap_or_default())?))
}

fn to_pb(usage: &Usage) -> pb::Usage {
    pb::Usage {
        version: VERSION,
        uid: usage
            .uid
            .as_ref()
            .map_or_else(String::new, |uid| uid.as_str().to_owned()),
        taken: usage.taken,
        delivered: usage.delivered,
        dead: usage.dead,
        dropped: if usage.dropped.iter().any(|count| *count > 0) {
            usage.dropped.to_vec()
        } else {
            Vec::new()
        },
        sequence: usage.sequence,
    }
}

fn from_pb(stored: &pb::Usage) -> Result<Usage, Unreadable> {
    readable_version(stored.version)?;
    let uid = Some(&stored.uid).filter(|uid| !uid.is_empty());
    let mut usage = Usage {
        uid: uid.map(|uid| Uid::new(uid)).transpose().map_err(unreadable)?,
        taken: stored.taken,
        delivered: stored.delivered,
        dead: stored.dead,
        sequence: stored.sequence,
        ..Usage::default()
    };
    if stored.dropped.len() > usage.dropped.len() {
        return Err(Unreadable("counts for reasons that this release does not know".into()));
    }
    for (to, from) in usage.dropped.iter_mut().zip(&stored.dropped) {
        *to = *from;
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_are_read_as_they_were_written(
            counts in any::<[u32; 4]>(), dropped in any::<[u32; 4]>(), webhook in proptest::option::of("[a-z0-9][a-z0-9-]{0,8}"),
        ) {
            let [taken, delivered, dead, sequence] = counts.map(u64::from);
            let usage = Usage {
                uid: webhook.is_some().then(|| Uid::new("018f4c1e-7c55-7a3e-8b1a-2f4d5e6a7b8c").unwrap()),
                taken, delivered, dead, sequence,
                dropped: dropped.map(u64::from),
            };
            prop_assert_eq!(decode_usage(encode_usage(&usage)), Ok(usage.clone()));
            let name = (AccountId::new("a").unwrap(), webhook.map(|id| WebhookId::new(&id).unwrap()));
            prop_assert_eq!(read_usage_entry(usage_entry(&name, &usage)), Ok((name, usage)));
        }
    }
}
