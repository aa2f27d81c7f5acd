//! Hides a webhook's own secrets in what its receiver says. Pure.

use std::fmt::Write as _;

use zeroize::Zeroizing;

/// What stands where a secret was.
pub const REDACTED: &str = "[redacted]";

/// Secrets shorter than this, in bytes, are not looked for: to cross out every `a` would tell more than it hides.
const MIN_BYTES: usize = 4;

/// The texts to be hidden. Wiped when dropped.
#[derive(Default)]
pub struct Secrets(Vec<Zeroizing<String>>);

impl Secrets {
    /// These texts, each also as programs write it into a JSON string.
    pub fn new(secrets: impl IntoIterator<Item = Zeroizing<String>>) -> Self {
        let mut all: Vec<_> = secrets.into_iter().flat_map(forms).collect();
        all.retain(|secret| secret.len() >= MIN_BYTES);
        // Of two that begin alike the longer one is meant.
        all.sort_by(|first, second| second.len().cmp(&first.len()).then_with(|| first.cmp(second)));
        all.dedup();
        Self(all)
    }

    /// The text without the secrets. If it was `cut`, what may be the beginning of one at its end is left out too.
    pub fn hide(&self, text: &[u8], cut: bool) -> String {
        if self.0.is_empty() {
            return String::from_utf8_lossy(text).into_owned();
        }
        let mut kept = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some((first, after)) = rest.split_first() {
            let mut secrets = self.0.iter().map(|secret| secret.as_bytes());
            if let Some(secret) = secrets.clone().find(|secret| rest.starts_with(secret)) {
                kept.extend_from_slice(REDACTED.as_bytes());
                rest = rest.get(secret.len()..).unwrap_or_default();
                continue;
            }
            if cut && secrets.any(|secret| secret.starts_with(rest)) {
                break;
            }
            kept.push(*first);
            rest = after;
        }
        String::from_utf8_lossy(&kept).into_owned()
    }
}

/// A text as it is, and within a JSON string: as little escaped as may be, all but ASCII escaped (as Python does), and both with slashes escaped (as PHP does).
fn forms(text: Zeroizing<String>) -> Vec<Zeroizing<String>> {
    let Ok(quoted) = serde_json::to_string(&*text).map(Zeroizing::new) else {
        return vec![text];
    };
    let escaped = quoted.get(1..quoted.len() - 1).unwrap_or_default();
    let mut ascii = Zeroizing::new(String::with_capacity(6 * escaped.len()));
    for character in escaped.chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing into memory cannot fail.
                let _ = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    let mut forms: Vec<_> = [escaped, &ascii]
        .into_iter()
        .flat_map(|form| [form.to_owned(), form.replace('/', "\\/")])
        .map(Zeroizing::new)
        .collect();
    forms.push(text);
    forms
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secrets(texts: &[&str]) -> Secrets {
        Secrets::new(texts.iter().map(|text| Zeroizing::new((*text).to_owned())))
    }

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        let hidden = secrets(&["hunter2", "hunter2000", "pass\"word", "YTov/Kw==", "été/😀", "abc", ""]);
        for (text, expected) in [
            ("", ""),
            ("nothing here", "nothing here"),
            ("hunter2", "[redacted]"),
            ("a hunter2000, hunter2hunter2!", "a [redacted], [redacted][redacted]!"),
            (r#"{"seen":"pass\"word"}"#, r#"{"seen":"[redacted]"}"#),
            ("pass\"word", "[redacted]"),
            (
                r#"{"php":"YTov\/Kw==","plain":"YTov/Kw=="}"#,
                r#"{"php":"[redacted]","plain":"[redacted]"}"#,
            ),
            (
                r#"{"python":"\u00e9t\u00e9/\ud83d\ude00"}"#,
                r#"{"python":"[redacted]"}"#,
            ),
            (
                r#"{"php":"\u00e9t\u00e9\/\ud83d\ude00","plain":"été/😀"}"#,
                r#"{"php":"[redacted]","plain":"[redacted]"}"#,
            ),
            ("abc", "abc"),
        ] {
            assert_eq!(hidden.hide(text.as_bytes(), false), expected);
        }
        assert_eq!(hidden.hide(b"\xffhunter2\xff", false), "\u{fffd}[redacted]\u{fffd}");
    }

    proptest! {
        #[test]
        fn no_part_of_a_secret_is_left_where_the_text_was_cut(before in "[a-z ]{0,20}", secret in "[A-Z]{4,20}", after in "[a-z ]{0,20}", at: prop::sample::Index) {
            let text = format!("{before}{secret}{after}");
            let end = at.index(text.len() + 1);
            let shown = secrets(&[&secret]).hide(&text.as_bytes()[..end], end < text.len());
            prop_assert!(!shown.chars().any(|letter| letter.is_ascii_uppercase()), "{shown}");
            prop_assert!(shown.starts_with(&before[..end.min(before.len())]));
        }

        #[test]
        fn other_text_stays_as_it_is(text in "[a-z ]{0,60}", secret in "[A-Z]{4,9}") {
            prop_assert_eq!(secrets(&[&secret]).hide(text.as_bytes(), true), text);
        }
    }
}
