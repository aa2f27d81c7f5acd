//! Etags: a short text that names one state of a resource. Pure.
//!
//! It holds the last, random bytes of the resource's uid, so that a resource that was deleted and made again under the same name has other
//! etags, and the generation.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postrider_common::id::Uid;

/// How many characters of the uid take part: its last group, 48 random bits.
const UID_TAIL: usize = 12;

/// Names one state of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Etag {
    tail: u64,
    generation: u64,
}

impl Etag {
    /// The etag of generation `generation` of the resource with this uid.
    pub(crate) fn new(uid: &Uid, generation: u64) -> Self {
        let text = uid.as_str();
        let tail = text.get(text.len().saturating_sub(UID_TAIL)..).unwrap_or_default();
        Self {
            tail: u64::from_str_radix(tail, 16).unwrap_or(0),
            generation,
        }
    }

    /// Reads the text form; `None` if it is not one that [`Etag`] prints.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 14] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let (tail, generation) = bytes.split_at(6);
        Some(Self {
            tail: number(tail),
            generation: number(generation),
        })
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = self.tail.to_be_bytes().into_iter().skip(2);
        let bytes: Vec<u8> = tail.chain(self.generation.to_be_bytes()).collect();
        formatter.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uid(tail: u64) -> Uid {
        Uid::new(&format!("018f4c1e-7c55-7a3e-8b1a-{tail:012x}")).unwrap()
    }

    proptest! {
        #[test]
        fn an_etag_is_read_as_it_was_printed(tail in 0_u64..1 << 48, generation: u64) {
            let etag = Etag::new(&uid(tail), generation);
            prop_assert_eq!(Etag::parse(&etag.to_string()), Some(etag));
        }

        #[test]
        fn etags_differ_when_generation_or_resource_differ(
            tail in 0_u64..1 << 48, generation: u64, other in 0_u64..1 << 48, later: u64,
        ) {
            let same = tail == other && generation == later;
            prop_assert_eq!(Etag::new(&uid(tail), generation).to_string() == Etag::new(&uid(other), later).to_string(), same);
        }

        #[test]
        fn what_is_read_is_exactly_what_would_be_printed(text in "[A-Za-z0-9_-]{17,21}|\\PC{0,40}") {
            if let Some(etag) = Etag::parse(&text) {
                prop_assert_eq!(etag.to_string(), text);
            }
        }
    }
}
