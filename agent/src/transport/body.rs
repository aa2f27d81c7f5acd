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
const BODY_PATIENCE: Duration = Duration::from_millis(250);

/// How far a body was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drained {
    /// To its end: the connection can be used again.
    Whole,
    /// It was too long or too slow, or broke off.
    Cut,
}

/// Reads a body, until `deadline` at most, and keeps it if it came whole and has at most `keep` bytes.
pub(super) async fn drain(body: Incoming, keep: usize, deadline: Instant) -> (Drained, Bytes) {
    if body.is_end_stream() {
        return (Drained::Whole, Bytes::new());
    }
    let deadline = deadline.min(Instant::now() + BODY_PATIENCE);
    let cut = (Drained::Cut, Bytes::new());
    timeout_at(deadline, read(body, keep)).await.unwrap_or(cut)
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

async fn read(body: Incoming, keep: usize) -> (Drained, Bytes) {
    let mut body = pin!(body);
    let mut kept = BytesMut::new();
    let mut left = MAX_BODY_BYTES.max(keep);
    let mut whole = true;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return (Drained::Cut, Bytes::new());
        };
        let Some(data) = frame.data_ref() else { continue };
        match left.checked_sub(data.len()) {
            Some(rest) => left = rest,
            None => return (Drained::Cut, Bytes::new()),
        }
        if kept.len() + data.len() <= keep {
            kept.extend_from_slice(data);
        } else {
            whole = false;
        }
    }
    let kept = if whole { kept.freeze() } else { Bytes::new() };
    (Drained::Whole, kept)
}
