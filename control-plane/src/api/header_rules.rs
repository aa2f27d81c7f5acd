//! Which extra headers a webhook may have. Pure.

use std::collections::BTreeSet;

use postrider_proto::v1;

use super::status::Violations;

/// Most headers of a webhook.
const MAX_HEADERS: usize = 32;

/// Most bytes of a name.
const MAX_NAME: usize = 128;

/// Most bytes of a value.
const MAX_VALUE: usize = 2048;

/// Most bytes of all names and values together: receivers' servers commonly refuse heads beyond 8 KiB.
const MAX_TOTAL: usize = 8 << 10;

/// Set by the protocol or by Postrider itself.
const RESERVED: [&str; 20] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "max-forwards",
    "range",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
];

/// What the names of further reserved headers start with.
const RESERVED_PREFIXES: [&str; 2] = ["proxy-", "webhook-"];

/// Checks the headers and answers them with their names in lower case. `taken` are the names that the webhook's authentication sets.
pub(crate) fn check(
    field: &str,
    headers: &[v1::Header],
    taken: &[&str],
    violations: &mut Violations,
) -> Vec<(String, String)> {
    if headers.len() > MAX_HEADERS {
        violations.add(
            field,
            "TOO_LARGE",
            format!("{} headers, at most {MAX_HEADERS} are allowed", headers.len()),
        );
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut checked = Vec::with_capacity(headers.len());
    for (index, header) in headers.iter().enumerate() {
        let name = header.name.to_ascii_lowercase();
        let at = format!("{field}[{index}].name");
        if !check_name(&at, &name, violations) {
            // Said already.
        } else if taken.contains(&name.as_str()) {
            violations.add(at, "CONFLICT", "the webhook's authentication sets this header");
        } else if !seen.insert(name.clone()) {
            violations.add(at, "DUPLICATE", format!("{name} is given twice"));
        }
        let at = format!("{field}[{index}].value");
        if header.value.len() > MAX_VALUE {
            violations.add(at, "TOO_LARGE", format!("must be at most {MAX_VALUE} characters"));
        } else if !header.value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            violations.add(at, "CONTROL_CHARACTER", "must be visible ASCII characters and spaces");
        }
        checked.push((name, header.value.clone()));
    }
    let total: usize = checked.iter().map(|(name, value)| name.len() + value.len()).sum();
    if total > MAX_TOTAL {
        violations.add(
            field,
            "TOO_LARGE",
            format!("{total} bytes together, at most {MAX_TOTAL} are allowed"),
        );
    }
    checked
}

/// Checks the name, in lower case, of a header that callers choose. Answers whether it may be sent.
pub(crate) fn check_name(field: &str, name: &str, violations: &mut Violations) -> bool {
    let (reason, rule) = if name.len() > MAX_NAME {
        ("TOO_LARGE", format!("must be at most {MAX_NAME} characters"))
    } else if !is_token(name) {
        let rule = "must be a header name: letters, digits and !#$%&'*+-.^_`|~";
        ("MALFORMED", rule.to_owned())
    } else if RESERVED.contains(&name) || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        ("RESERVED", format!("{name} is set by the protocol or by Postrider"))
    } else {
        return true;
    };
    violations.add(field, reason, rule);
    false
}

fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_passes_can_be_sent(name in "[a-zA-Z -~\\PC]{0,6}", value in "[ -~\\PC\\x00-\\x1f]{0,6}") {
            let mut violations = Violations::default();
            let header = v1::Header { name, value };
            let checked = check("headers", &[header], &[], &mut violations);
            if violations.is_empty() {
                let (name, value) = &checked[0];
                prop_assert!(http::HeaderName::from_bytes(name.as_bytes()).is_ok());
                let sent = http::HeaderValue::from_str(value).unwrap();
                prop_assert_eq!(sent.to_str().unwrap(), value);
            }
        }
    }

    #[test]
    fn names_are_stored_in_lower_case() {
        let mut violations = Violations::default();
        let header = v1::Header {
            name: "X-Team".into(),
            value: "a b".into(),
        };
        let checked = check("headers", &[header], &[], &mut violations);
        assert!(violations.is_empty());
        assert_eq!(checked, [("x-team".to_owned(), "a b".to_owned())]);
    }
}
