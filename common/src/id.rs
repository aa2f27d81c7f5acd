//! Names of things: validated, so that no id can change which key a value is stored under. Pure.

use std::fmt;
use std::sync::Arc;

/// A text that is not a valid id of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct InvalidId {
    /// The rule that was broken, for people.
    pub rule: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $valid:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("Checks a text, by this rule: `", $rule, "`.")]
            ///
            /// # Errors
            /// [`InvalidId`] with the rule that was broken.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                if $valid(text.as_bytes()) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { rule: $rule })
                }
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The id as text that is shared, not copied.
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }
    };
}

id!(
    /// `{account}` of `accounts/{account}`.
    AccountId,
    is_resource_id,
    "must match [a-z0-9][a-z0-9-]{0,62}"
);
id!(
    /// `{webhook}` of `accounts/{account}/webhooks/{webhook}`.
    WebhookId,
    is_resource_id,
    "must match [a-z0-9][a-z0-9-]{0,62}"
);
id!(
    /// The name of an event type, as events carry it.
    EventName,
    is_event_name,
    "must match [A-Za-z][A-Za-z0-9_.:-]{0,127}"
);
id!(
    /// The id of one event. No dot: a signature is over `id.timestamp.body`.
    EventId,
    is_event_id,
    "must be 1 to 64 characters of [A-Za-z0-9_:-]"
);
id!(
    /// The name of an agent.
    AgentId,
    is_resource_id,
    "must match [a-z0-9][a-z0-9-]{0,62}"
);
id!(
    /// The name of a control plane replica.
    ControlPlaneId,
    is_resource_id,
    "must match [a-z0-9][a-z0-9-]{0,62}"
);
id!(
    /// Unique for ever, also among resources that had the same name: a UUID in lower case.
    Uid,
    is_uuid,
    "must be a lower-case UUID such as 018f4c1e-7c55-7a3e-8b1a-2f4d5e6a7b8c"
);
id!(
    /// A caller's id for one request (AIP-155): a UUID in lower case.
    RequestId,
    is_uuid,
    "must be a lower-case UUID such as 7c1f0a52-3f64-4b52-9d6a-0d5f3f6f7a11"
);

fn is_resource_id(text: &[u8]) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    matches!(text, [first, rest @ ..] if inner(first) && *first != b'-' && rest.len() <= 62 && rest.iter().all(inner))
}

fn is_event_name(text: &[u8]) -> bool {
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(byte);
    matches!(text, [first, rest @ ..] if first.is_ascii_alphabetic() && rest.len() <= 127 && rest.iter().all(inner))
}

fn is_event_id(text: &[u8]) -> bool {
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"_:-".contains(byte);
    !text.is_empty() && text.len() <= 64 && text.iter().all(inner)
}

fn is_uuid(text: &[u8]) -> bool {
    text.len() == 36
        && text.iter().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_resource_id_can_leave_its_place_in_a_key(text in "\\PC{0,70}") {
            if let Ok(id) = AccountId::new(&text) {
                prop_assert!(!id.as_str().contains('/'));
                prop_assert!(!id.as_str().is_empty() && id.as_str().len() <= 63);
            }
        }

        #[test]
        fn every_text_of_the_documented_form_is_accepted(
            resource in "[a-z0-9][a-z0-9-]{0,62}", name in "[A-Za-z][A-Za-z0-9_.:-]{0,127}", event in "[A-Za-z0-9_:-]{1,64}",
        ) {
            prop_assert!(WebhookId::new(&resource).is_ok());
            prop_assert!(EventName::new(&name).is_ok());
            prop_assert!(EventId::new(&event).is_ok());
        }
    }

    #[test]
    fn bad_ids_are_refused() {
        for text in ["", "-a", "A", "a/b", "..", "a%2f", "a\0", "a b", "é", &"a".repeat(64)] {
            assert!(AccountId::new(text).is_err(), "{text:?}");
        }
        for text in ["", ".a", "1a", "a b", "a/b", &"a".repeat(129)] {
            assert!(EventName::new(text).is_err(), "{text:?}");
        }
        assert!(EventId::new("a.b").is_err());
        assert!(RequestId::new("7C1F0A52-3f64-4b52-9d6a-0d5f3f6f7a11").is_err());
    }
}
