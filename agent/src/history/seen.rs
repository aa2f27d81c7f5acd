//! What an attempt saw, as the history tells of it. Pure.

use postrider_common::model::history::{Answer, Entry};

use crate::attempt::evidence::{Evidence, Said};

/// Completes an entry with what its attempt saw.
pub fn complete(entry: &mut Entry, evidence: Evidence) {
    let Some(attempt) = &mut entry.attempt else { return };
    entry.time = evidence.start_time;
    attempt.duration = evidence.duration;
    attempt.address = evidence.address;
    attempt.secrets = evidence.signers;
    attempt.detail = evidence.detail;
    let answer = |said: Said| {
        Box::new(Answer {
            headers: said.headers,
            body: said.body,
            truncated: said.headers_cut || said.body_cut,
        })
    };
    attempt.answer = evidence.said.map(|said| answer(*said));
}
