//! Page tokens and page sizes. Pure.
//!
//! A token says where a listing stands and at which revision it began, so that its pages show one moment. It is sealed with a MAC over the method,
//! the parent and its content: a token that was changed, or belongs to another list, another account or another cell, is refused.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use postrider_common::id::Uid;
use postrider_common::store::Revision;
use sha2::{Digest as _, Sha256};

use super::status::Violations;

/// Entries of a page when the caller does not say.
const DEFAULT_SIZE: usize = 100;

/// Most entries of a page: larger wishes are lowered to it.
const MAX_SIZE: usize = 1000;

/// The format of tokens. Tokens of another format are refused, as if they had expired.
const VERSION: u8 = 1;

/// Bytes of the MAC that are kept: 128 bits cannot be guessed.
const MAC_BYTES: usize = 16;

/// Bytes before the key: version and revision.
const HEAD_BYTES: usize = 9;

/// Where a listing stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    /// The revision that all its pages show.
    pub(crate) revision: Revision,
    /// The last key of the page before.
    pub(crate) after: String,
}

/// Which listing a token belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    /// The method, such as `ListWebhooks`.
    pub(crate) method: &'a str,
    /// The parent, such as `accounts/1010`; empty if there is none.
    pub(crate) parent: &'a str,
    /// What else chose the entries; empty if nothing did.
    pub(crate) filter: &'a str,
}

/// Seals page tokens.
#[derive(Clone)]
pub(crate) struct PageKey([u8; 32]);

impl PageKey {
    #[cfg(test)]
    pub(crate) const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The key of a cell, the same on all its control planes. It is no secret: a forged token shows nothing that its forger could not list.
    pub(crate) fn of_cell(cell: &Uid) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"postrider page token|");
        hash.update(cell.as_str());
        Self(hash.finalize().into())
    }

    /// The token of a position.
    pub(crate) fn seal(&self, scope: Scope<'_>, position: &Position) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(position.revision.0.to_be_bytes());
        bytes.extend(position.after.as_bytes());
        let mac = self.mac(scope, &bytes).map(|mac| mac.finalize().into_bytes());
        bytes.extend(mac.iter().flatten().take(MAC_BYTES));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The position of a token; `None` if the token is not one that [`PageKey::seal`] made in this scope.
    pub(crate) fn open(&self, scope: Scope<'_>, token: &str) -> Option<Position> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (content, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
        self.mac(scope, content)?.verify_truncated_left(mac).ok()?;
        let (head, after) = content.split_at_checked(HEAD_BYTES)?;
        let (version, revision) = head.split_first()?;
        if *version != VERSION {
            return None;
        }
        Some(Position {
            revision: Revision(i64::from_be_bytes(revision.try_into().ok()?)),
            after: String::from_utf8(after.to_vec()).ok()?,
        })
    }

    fn mac(&self, scope: Scope<'_>, content: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        for part in [
            scope.method.as_bytes(),
            scope.parent.as_bytes(),
            scope.filter.as_bytes(),
            content,
        ] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        Some(mac)
    }
}

/// The size of a page: 0 means the default, too large is lowered.
pub(crate) fn size(asked: i32, violations: &mut Violations) -> usize {
    match usize::try_from(asked) {
        Ok(0) => DEFAULT_SIZE,
        Ok(size) => size.min(MAX_SIZE),
        Err(_) => {
            violations.add("page_size", "OUT_OF_RANGE", "must not be negative");
            DEFAULT_SIZE
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scope<'a>(method: &'a str, parent: &'a str, filter: &'a str) -> Scope<'a> {
        Scope { method, parent, filter }
    }

    proptest! {
        #[test]
        fn a_token_opens_in_its_own_scope(key: [u8; 32], revision: i64, after in "\\PC{0,100}", parent in "[a-z/]{0,20}") {
            let position = Position { revision: Revision(revision), after };
            let key = PageKey::new(key);
            let token = key.seal(scope("ListWebhooks", &parent, ""), &position);
            prop_assert_eq!(key.open(scope("ListWebhooks", &parent, ""), &token), Some(position));
        }

        #[test]
        fn a_token_opens_in_no_other_scope(parts in ["[ab]{0,2}", "[ab]{0,2}", "[ab]{0,2}"], others in ["[ab]{0,2}", "[ab]{0,2}", "[ab]{0,2}"]) {
            let key = PageKey::new([7; 32]);
            let position = Position { revision: Revision(3), after: "webhooks/a/b".into() };
            let token = key.seal(scope(&parts[0], &parts[1], &parts[2]), &position);
            let opened = key.open(scope(&others[0], &others[1], &others[2]), &token);
            prop_assert_eq!(opened.is_some(), parts == others);
        }

        #[test]
        fn a_token_with_one_bit_changed_or_cut_off_does_not_open(at: prop::sample::Index, bit in 0_u8..8, cut: prop::sample::Index) {
            let key = PageKey::new([7; 32]);
            let here = scope("ListWebhooks", "accounts/a", "");
            let token = key.seal(here, &Position { revision: Revision(3), after: "webhooks/a/b".into() });
            let mut bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(key.open(here, &URL_SAFE_NO_PAD.encode(&bytes)), None);
            prop_assert_eq!(key.open(here, &token[..cut.index(token.len())]), None);
        }

        #[test]
        fn no_text_is_a_token_by_chance(text in "\\PC{0,80}|[A-Za-z0-9_-]{0,80}") {
            prop_assert_eq!(PageKey::new([7; 32]).open(scope("ListWebhooks", "accounts/a", ""), &text), None);
        }
    }

    #[test]
    fn a_token_of_one_cell_does_not_open_in_another() {
        let key = |tail| PageKey::of_cell(&Uid::new(&format!("018f4c1e-7c55-7a3e-8b1a-{tail}")).unwrap());
        let here = scope("ListAccounts", "", "");
        let token = key("000000000001").seal(
            here,
            &Position {
                revision: Revision(1),
                after: "accounts/a".into(),
            },
        );
        assert!(key("000000000001").open(here, &token).is_some());
        assert_eq!(key("000000000002").open(here, &token), None);
    }

    #[test]
    fn page_sizes_follow_the_contract() {
        let mut violations = Violations::default();
        assert_eq!(
            [0, 1, 1000, i32::MAX].map(|asked| size(asked, &mut violations)),
            [100, 1, 1000, 1000]
        );
        assert!(violations.is_empty());
        size(-1, &mut violations);
        assert_eq!(violations.iter().next().unwrap().field, "page_size");
    }
}
