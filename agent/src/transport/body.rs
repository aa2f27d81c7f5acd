//! Reads what follows an answer's head: mostly only so far as to use the connection again.

use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use crate::attempt::Reason;

/// The most that is read of a body, in bytes. Receivers answer with a few words; a connection whose answer is longer is not worth keeping.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// How long is waited for a body's end. It mostly comes with the head; a new connection costs less than to make the outcome wait longer.
pub const BODY_PATIENCE: Duration = Duration::from_millis(250);

/// How far a body was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drained {
    /// To its end: the connection can be used again.
    Whole,
    /// It was too long or too slow, or broke off.
    Cut,
}

/// What was kept of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its beginning.
    pub bytes: Bytes,
    /// That is all of it.
    pub whole: bool,
}

/// Reads a body, until `deadline` at most and for no longer than `patience`, and keeps its first `keep` bytes.
pub(super) async fn drain(body: Incoming, keep: usize, deadline: Instant, patience: Duration) -> (Drained, Kept) {
    let mut kept = BytesMut::new();
    let (drained, length) = if body.is_end_stream() {
        (Drained::Whole, 0)
    } else {
        let deadline = deadline.min(Instant::now() + patience);
        let read = timeout_at(deadline, read(body, keep, &mut kept)).await;
        read.ok()
            .flatten()
            .map_or((Drained::Cut, 0), |length| (Drained::Whole, length))
    };
    let whole = drained == Drained::Whole && length == kept.len();
    let bytes = kept.freeze();
    (drained, Kept { bytes, whole })
}

/// Reads a whole body of at most `most` bytes.
pub(super) async fn collect(body: Incoming, most: usize) -> Result<Bytes, Failure> {
    let mut body = pin!(body);
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::of_exchange(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        if data.len() > most.saturating_sub(collected.len()) {
            return Err(Failure::Receiver(Reason::Protocol));
        }
        collected.extend_from_slice(data);
    }
    Ok(collected.freeze())
}

/// The length of a body that was read to its end; its first `keep` bytes are put into `kept`.
async fn read(body: Incoming, keep: usize, kept: &mut BytesMut) -> Option<usize> {
    let mut body = pin!(body);
    let most = MAX_BODY_BYTES.max(keep);
    let mut length = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.ok()?;
        let Some(data) = frame.data_ref() else { continue };
        length += data.len();
        let room = data.len().min(keep - kept.len());
        kept.extend_from_slice(data.get(..room).unwrap_or_default());
        if length > most {
            return None;
        }
    }
    Some(length)
}
