//! What an attempt saw, bounded: for whoever has to find out later why a receiver did not take it. Pure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Version};
pub use postrider_common::model::testing::{Phases, Said};
use postrider_common::time::Timestamp;

use super::Outcome;
use super::redaction::Secrets;

/// How much of an answer's body is kept, in bytes, where the receiver did not take everything: error messages stand at the beginning.
pub const BODY_BYTES: usize = 1024;

/// How many bytes of names and values of an answer's headers are kept.
pub const HEADER_BYTES: usize = 4096;

/// An attempt that was made, or could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// What became of it: all that decides what follows.
    pub outcome: Outcome,
    /// What was seen; decides nothing.
    pub evidence: Evidence,
}

/// What an attempt saw, as far as it got. Holds no secrets of the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// When its turn had come.
    pub start_time: Timestamp,
    /// How long it took from then to its outcome.
    pub duration: Duration,
    /// How long its parts took.
    pub phases: Phases,
    /// The address that the request went to, or that was dialled last.
    pub address: Option<SocketAddr>,
    /// The version of HTTP of the answer.
    pub version: Option<Version>,
    /// The HTTP status of the answer.
    pub status: Option<u16>,
    /// What the answer said, unless everything was taken.
    pub said: Option<Box<Said>>,
    /// Ids of the secrets that signed.
    pub signers: Vec<Arc<str>>,
    /// In words, why there was no answer.
    pub detail: Option<String>,
}

impl Evidence {
    /// Of an attempt that saw nothing.
    pub const fn none(start_time: Timestamp) -> Self {
        Self {
            start_time,
            duration: Duration::ZERO,
            phases: Phases {
                resolve: None,
                connect: None,
                tls: None,
                first_byte: None,
            },
            address: None,
            version: None,
            status: None,
            said: None,
            signers: Vec::new(),
            detail: None,
        }
    }
}

/// What these headers and the beginning of a body say, without `secrets`. `body_cut` tells that there was more of the body. Headers are kept whole or not
/// at all: those that do not fit into what is left of `header_bytes` are passed over.
pub fn said(headers: &HeaderMap, header_bytes: usize, body: &[u8], body_cut: bool, secrets: &Secrets) -> Said {
    let mut left = header_bytes;
    let mut kept = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let Some(rest) = left.checked_sub(name.as_str().len() + value.len()) else {
            continue;
        };
        left = rest;
        kept.push((name.as_str().to_owned(), secrets.hide(value.as_bytes(), false)));
    }
    Said {
        headers_cut: kept.len() < headers.len(),
        headers: kept,
        body: secrets.hide(body, body_cut),
        body_cut,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_kept_of_headers_is_whole_in_order_and_bounded(
            headers in proptest::collection::vec(("[a-z]{1,8}", "[ -~]{0,40}"), 0..12),
            most in 0_usize..200,
        ) {
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
            }
            let kept = said(&map, most, b"", false, &Secrets::default());
            prop_assert!(kept.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= most);
            prop_assert_eq!(kept.headers_cut, kept.headers.len() < headers.len());
            let mut all = map.iter().map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned()));
            for one in &kept.headers {
                prop_assert!(all.any(|header| header == *one), "{one:?}");
            }
        }
    }
}
