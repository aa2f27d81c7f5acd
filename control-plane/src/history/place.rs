//! How far a listing of deliveries has come. Pure.

use std::fmt;

use postrider_common::key::Key;

/// Where deliveries are, in the order in which they are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// `queue/S/…`.
    Pending,
    /// `parked/S/A/W/…`.
    Waiting,
    /// `dead/S/A/W/…`.
    Dead,
    /// `history/S/…`, newest first.
    Ended,
}

/// All of them.
pub(crate) const PHASES: [Phase; 4] = [Phase::Pending, Phase::Waiting, Phase::Dead, Phase::Ended];

/// Where a listing goes on. In text, for a page token: `{phase}{number}/{key}`, where no number means the whole segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// In which phase.
    pub(crate) phase: Phase,
    /// In or after this segment; `None` at the phase's beginning.
    pub(crate) key: Option<Key>,
    /// In it, with the delivery of this number; `None` after all of it.
    pub(crate) number: Option<u32>,
}

impl Place {
    /// The beginning of a phase.
    pub(crate) const fn beginning(phase: Phase) -> Self {
        Self {
            phase,
            key: None,
            number: None,
        }
    }

    /// Reads what [`Place`] prints.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (head, key) = text.split_once('/')?;
        let phase = PHASES.into_iter().find(|phase| head.starts_with(phase.letter()))?;
        let number = head.get(1..)?;
        let number = if number.is_empty() {
            None
        } else {
            Some(number.parse().ok()?)
        };
        Some(Self {
            phase,
            key: (!key.is_empty()).then(|| Key::from_stored(key)),
            number,
        })
    }
}

impl Phase {
    const fn letter(self) -> char {
        match self {
            Self::Pending => 'p',
            Self::Waiting => 'w',
            Self::Dead => 'd',
            Self::Ended => 'e',
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.phase.letter())?;
        if let Some(number) = self.number {
            write!(formatter, "{number}")?;
        }
        write!(formatter, "/{}", self.key.as_ref().map_or("", Key::as_str))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_place_reads_back_as_it_was_printed(phase in 0_usize..4, key in "[a-z0-9/-]{0,40}", number: Option<u32>) {
            let place = Place {
                phase: PHASES[phase],
                key: (!key.is_empty()).then(|| Key::from_stored(&key)),
                number,
            };
            prop_assert_eq!(Place::parse(&place.to_string()), Some(place));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            let _ = Place::parse(&text);
        }
    }
}
