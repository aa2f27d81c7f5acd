//! One watch of etcd: whole revisions, signs of life, and an end that is always an error.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::PbEvent;
use etcd_client::{Error, EventType, WatchOptions, WatchResponse, WatchStream};

use super::classify::{Kind, classify};
use super::horizon::Horizon;
use super::member::{Member, Members, failure};
use super::{entry, revision};
use crate::store::{Change, Changes, Revision, WatchError};

/// A watch in progress.
pub(super) struct Cursor {
    pub(super) stream: WatchStream,
    /// What the stream said first, if that has been read.
    pub(super) first: Option<WatchResponse>,
    pub(super) members: Arc<Members>,
    /// The member that the stream is of.
    pub(super) number: usize,
    /// What all keys of the store begin with.
    pub(super) prefix: Arc<str>,
    /// The last revision that was shown, or is not wanted.
    pub(super) last: Revision,
    /// Events of a revision whose rest is still to come.
    pub(super) partial: Vec<PbEvent>,
    /// How long silence lasts before the server is asked for a sign of life, and how long that may take.
    pub(super) probe: Duration,
    /// What etcd may have gone back behind.
    pub(super) horizon: Arc<Horizon>,
}

/// Opens a watch as a user, and reads what it says first: in that it is refused, not in the status of the call. The refusal is the error of this.
pub(super) async fn open_as_user(
    member: &mut Member,
    key: Vec<u8>,
    options: WatchOptions,
) -> Result<(WatchStream, Option<WatchResponse>), Error> {
    let mut stream = member.watch.watch(key.clone(), Some(options)).await?;
    let Some(first) = stream.message().await? else {
        return Err(Error::WatchError("the server closed it".to_owned()));
    };
    if !first.canceled() || first.compact_revision() > 0 {
        return Ok((stream, Some(first)));
    }
    let refused = Error::WatchError(first.cancel_reason().to_owned());
    let failure = failure(Error::WatchError(first.cancel_reason().to_owned()));
    if classify(&failure) == Kind::NotPermitted {
        // Etcd 3.5.1 says so of whatever is wrong; asked for the key itself, it says what is.
        member.kv.get(key, None).await?;
    }
    Err(refused)
}

impl Cursor {
    /// What the watch shows next. After an error it is over.
    pub(super) async fn next(&mut self) -> Result<Changes, WatchError> {
        let mut is_probing = false;
        loop {
            let next = async {
                match self.first.take() {
                    Some(first) => Ok(Some(first)),
                    None => self.stream.message().await,
                }
            };
            let response = match tokio::time::timeout(self.probe, next).await {
                Ok(Ok(Some(response))) => response,
                Ok(Ok(None)) => return Err(self.end("the server closed it")),
                Ok(Err(error)) => {
                    let failure = failure(error);
                    return Err(match classify(&failure) {
                        Kind::Compacted => WatchError::Compacted,
                        Kind::NotSent
                        | Kind::MaybeApplied
                        | Kind::Full
                        | Kind::LeaseGone
                        | Kind::AnswerTooLarge
                        | Kind::Invalid
                        | Kind::Denied
                        | Kind::TokenOver
                        | Kind::LoginRefused
                        | Kind::NotPermitted => self.end(&failure.message),
                    });
                }
                Err(_) if is_probing => return Err(self.end("the server is silent")),
                Err(_) => {
                    is_probing = true;
                    // A queue that is full is as silent as no answer: the next turn tells.
                    let _ = tokio::time::timeout(self.probe, self.stream.request_progress()).await;
                    continue;
                }
            };
            is_probing = false;
            if response.created()
                && self
                    .horizon
                    .is_behind(&self.members, self.last, revision(response.header()))
                    .await
            {
                // What it is to go on from is yet to come, and will be something else.
                return Err(WatchError::Compacted);
            }
            if let Some(changes) = self.take(response)? {
                return Ok(changes);
            }
        }
    }

    /// Another member may do better.
    fn end(&self, why: &str) -> WatchError {
        self.members.leave(self.number);
        WatchError::Ended(why.to_owned())
    }

    fn take(&mut self, response: WatchResponse) -> Result<Option<Changes>, WatchError> {
        let response = response.0;
        // The server says this once and is silent then; the stream does not end.
        if response.compact_revision > 0 {
            return Err(WatchError::Compacted);
        }
        if response.canceled {
            return Err(self.end(&response.cancel_reason));
        }
        if response.created {
            return Ok(None);
        }
        let mut events = response.events;
        if response.fragment || !self.partial.is_empty() {
            self.partial.append(&mut events);
            if response.fragment {
                return Ok(None);
            }
            events = std::mem::take(&mut self.partial);
        }
        let (mut changes, mut revision) = (Vec::with_capacity(events.len()), self.last);
        for event in events {
            let Some(stored) = event.kv else { continue };
            let at = Revision(stored.mod_revision);
            // Some servers repeat what they have shown; nothing is applied twice.
            if at <= self.last {
                continue;
            }
            revision = revision.max(at);
            let Some(entry) = entry(&self.prefix, stored) else {
                continue;
            };
            changes.push(if event.r#type == EventType::Delete as i32 {
                Change::Delete(entry.key)
            } else {
                Change::Put(entry)
            });
        }
        // A sign of life moves the revision no further: what older servers say in it is not to be relied on.
        self.last = revision;
        self.horizon.saw(revision);
        Ok(Some(Changes { revision, changes }))
    }
}
