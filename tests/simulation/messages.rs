//! The messages of etcd's services, and what they stand for.

use std::time::Duration;

use etcd_client::proto::{
    PbCompare, PbCompareTarget, PbEvent, PbKeyValue, PbResponseHeader, PbTargetUnion, PbTxnOpRequest, PbTxnRequestOp,
};
use postrider_common::key::Key;
use postrider_common::store::{Change, Entry, Guard, LeaseId, NotApplied, Op, ReadError, Revision};
use tonic::Status;

/// What nothing of Postrider calls.
pub(crate) fn unused() -> Status {
    Status::unimplemented("this etcd does not have it")
}

/// What every answer begins with.
pub(crate) fn header(at: Revision) -> Option<PbResponseHeader> {
    Some(PbResponseHeader {
        revision: at.0,
        ..PbResponseHeader::default()
    })
}

/// The whole seconds of a duration.
pub(crate) fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// A key as it was sent.
pub(crate) fn key(bytes: &[u8]) -> Result<Key, Status> {
    let text = std::str::from_utf8(bytes).map_err(|_| Status::invalid_argument("a key is text here"))?;
    Ok(Key::from_stored(text))
}

/// The prefix that a range stands for; all ranges here do.
pub(crate) fn prefix_of(start: &[u8], end: &[u8]) -> Result<Key, Status> {
    let Some((last, before)) = end.split_last() else {
        return key(start);
    };
    match last {
        0 => Ok(Key::from_stored("")),
        last => key(&[before, &[last - 1]].concat()),
    }
}

/// What a comparison of a transaction stands for.
pub(crate) fn guard(compare: &PbCompare) -> Result<Guard, Status> {
    let key = key(&compare.key)?;
    match (compare.target(), &compare.target_union) {
        (PbCompareTarget::Create, Some(PbTargetUnion::CreateRevision(0))) => Ok(Guard::Absent(key)),
        (PbCompareTarget::Create, Some(PbTargetUnion::CreateRevision(at))) => Ok(Guard::Created(key, Revision(*at))),
        (PbCompareTarget::Mod, Some(PbTargetUnion::ModRevision(at))) => Ok(Guard::Modified(key, Revision(*at))),
        _ => Err(Status::unimplemented(
            "guards compare create and modification revisions",
        )),
    }
}

/// What an operation of a transaction stands for.
pub(crate) fn op(op: PbTxnRequestOp) -> Result<Op, Status> {
    match op.request {
        Some(PbTxnOpRequest::RequestPut(put)) => Ok(Op::Put {
            key: key(&put.key)?,
            value: put.value.into(),
            lease: (put.lease != 0).then_some(LeaseId(put.lease)),
        }),
        Some(PbTxnOpRequest::RequestDeleteRange(delete)) => Ok(Op::delete(key(&delete.key)?)),
        _ => Err(unused()),
    }
}

/// An entry as etcd shows it.
pub(crate) fn stored(entry: Entry) -> PbKeyValue {
    PbKeyValue {
        key: entry.key.as_str().as_bytes().to_vec(),
        value: entry.value.to_vec(),
        create_revision: entry.create_revision.0,
        mod_revision: entry.mod_revision.0,
        version: 1,
        lease: entry.lease.map_or(0, |lease| lease.0),
    }
}

/// A change as a watch shows it.
pub(crate) fn event(change: Change, at: Revision) -> PbEvent {
    let (kind, kv) = match change {
        Change::Put(entry) => (etcd_client::EventType::Put, stored(entry)),
        Change::Delete(key) => {
            let gone = PbKeyValue {
                key: key.as_str().as_bytes().to_vec(),
                mod_revision: at.0,
                ..PbKeyValue::default()
            };
            (etcd_client::EventType::Delete, gone)
        }
    };
    PbEvent {
        r#type: kind as i32,
        kv: Some(kv),
        prev_kv: None,
    }
}

/// Why something cannot be read, in etcd's words.
pub(crate) fn unread(error: ReadError) -> Status {
    match error {
        ReadError::Compacted => Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
        ReadError::Away(why) if why.contains("future") => {
            Status::out_of_range("etcdserver: mvcc: required revision is a future revision")
        }
        ReadError::Away(why) => Status::unavailable(why),
    }
}

/// Why something is not written, in etcd's words.
pub(crate) fn refused(why: &NotApplied) -> Status {
    match why {
        NotApplied::LeaseGone => Status::not_found("etcdserver: requested lease not found"),
        NotApplied::Full => Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
        NotApplied::Away(_) => Status::unavailable("etcdserver: no leader"),
        NotApplied::Invalid(why) => Status::invalid_argument(why.clone()),
    }
}
