//! What a listener URL may be. Pure.
//!
//! A text is accepted only in the strict form `scheme://host…`, so that no two parsers can read it differently; what comes out is its canonical form,
//! which is what is stored, shown and dialled. Names are judged again at every dial; addresses written in the URL are judged here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use url::{Host, ParseError, Url};

/// Most bytes of a URL.
const MAX_BYTES: usize = 2048;

/// Ports below 1024 that web servers listen on; no other is allowed.
const LOW_PORTS: [u16; 2] = [80, 443];

/// Ports above that belong to databases, caches and cluster daemons that a stray POST could disturb.
const REFUSED_PORTS: [u16; 10] = [2049, 2375, 2379, 2380, 3306, 5432, 6379, 9200, 10250, 11211];

/// Networks that are not the public internet (IANA special-purpose registry): address and prefix length.
const SPECIAL_V4: [([u8; 4], u32); 15] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// Why a text is not a listener URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UrlError {
    /// Stable, upper-case.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) description: String,
}

/// Judges listener URLs: answers the canonical form.
pub(crate) type UrlCheck = Arc<dyn Fn(&str) -> Result<String, UrlError> + Send + Sync>;

/// The canonical form of `text`. `opened` says which special addresses this deployment allows.
///
/// # Errors
/// [`UrlError`] with the first mistake.
pub(crate) fn canonical_url(text: &str, opened: impl Fn(IpAddr) -> bool) -> Result<String, UrlError> {
    let authority = strict_authority(text)?;
    if authority.contains('@') {
        return fail(
            "CREDENTIALS_IN_URL",
            "must not contain a user name or password; use auth",
        );
    }
    if text.contains('#') {
        return fail("FRAGMENT", "must not contain a fragment");
    }
    let mut url = Url::parse(text).map_err(|error| UrlError {
        reason: if error == ParseError::InvalidPort {
            "PORT"
        } else {
            "HOST"
        },
        description: error.to_string(),
    })?;
    let port = url.port_or_known_default().unwrap_or_default();
    if (port < 1024 && !LOW_PORTS.contains(&port)) || REFUSED_PORTS.contains(&port) {
        return fail(
            "PORT",
            "must be 80, 443, or above 1023 and not one of a well-known internal service",
        );
    }
    let forbidden = match url.host() {
        Some(Host::Ipv4(address)) => is_special_v4(address) && !opened(address.into()),
        Some(Host::Ipv6(address)) => is_special_v6(address) && !opened(address.into()),
        Some(Host::Domain(name)) => {
            let name = name.strip_suffix('.').unwrap_or(name).to_owned();
            check_name(&name)?;
            let local = name == "localhost" || name.ends_with(".localhost");
            if url.set_host(Some(&name)).is_err() {
                return fail("HOST", "the host is not valid");
            }
            local && !opened(Ipv4Addr::LOCALHOST.into())
        }
        None => return fail("HOST", "a host is required"),
    };
    if forbidden {
        return fail("FORBIDDEN_ADDRESS", "the address is not on the public internet");
    }
    let canonical = String::from(url);
    if canonical.len() > MAX_BYTES {
        return fail("TOO_LONG", "must be at most 2,048 bytes in its canonical form");
    }
    Ok(canonical)
}

/// Checks the strict form and answers the text between the slashes.
fn strict_authority(text: &str) -> Result<&str, UrlError> {
    if text.is_empty() {
        return fail("REQUIRED", "must be an absolute http or https URL");
    }
    if text.len() > MAX_BYTES {
        return fail("TOO_LONG", "must be at most 2,048 bytes");
    }
    if text
        .chars()
        .any(|char| char.is_control() || char.is_whitespace() || char == '\\')
    {
        return fail(
            "CONTROL_CHARACTER",
            "must not contain spaces, backslashes or control characters",
        );
    }
    let in_scheme = |char: char| char.is_ascii_alphanumeric() || "+-.".contains(char);
    let (scheme, rest) = match text.split_once(':') {
        Some((scheme, rest)) if !scheme.is_empty() && scheme.chars().all(in_scheme) => (scheme, rest),
        _ => return fail("RELATIVE", "must be absolute: start with https:// or http://"),
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return fail("SCHEME", "must start with https:// or http://");
    }
    let Some(rest) = rest.strip_prefix("//") else {
        return fail("RELATIVE", "must be absolute: start with https:// or http://");
    };
    match rest.split(['/', '?', '#']).next() {
        None | Some("") => fail("HOST", "a host is required"),
        Some(authority) => Ok(authority),
    }
}

fn check_name(name: &str) -> Result<(), UrlError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label != "xn--"
    };
    if name.len() <= 253 && name.split('.').all(label) {
        Ok(())
    } else {
        fail("HOST", "the host name is not valid")
    }
}

fn is_special_v4(address: Ipv4Addr) -> bool {
    SPECIAL_V4
        .iter()
        .any(|(network, length)| (u32::from(address) ^ u32::from_be_bytes(*network)) >> (32 - length) == 0)
}

/// Everything but global unicast is special; so are its parts for documentation, tunnels and protocol assignments. The addresses of translators
/// are judged by the address within.
fn is_special_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_special_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        [0x2001, second, ..] => second < 0x200 || second == 0xdb8,
        [0x2002, ..] => true,
        [0x3fff, second, ..] => second < 0x1000,
        [first, ..] => first & 0xe000 != 0x2000,
    }
}

fn fail<T>(reason: &'static str, description: &str) -> Result<T, UrlError> {
    Err(UrlError {
        reason,
        description: description.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn closed(text: &str) -> Result<String, UrlError> {
        canonical_url(text, |_| false)
    }

    proptest! {
        #[test]
        fn a_canonical_url_is_its_own_canonical_form(text in "https?://[a-zA-Z0-9.:\\[\\]-]{1,20}(/\\PC{0,20})?(\\?\\PC{0,10})?") {
            if let Ok(canonical) = closed(&text) {
                prop_assert_eq!(closed(&canonical), Ok(canonical.clone()));
                prop_assert!(canonical.is_ascii());
            }
        }

        #[test]
        fn no_text_makes_the_check_panic(text in "\\PC{0,60}") {
            let _ = closed(&text);
        }

        #[test]
        fn a_special_address_is_refused_in_every_spelling(number: u32) {
            let address = Ipv4Addr::from(number);
            let spellings = [
                format!("http://{address}/"),
                format!("http://{number}/"),
                format!("http://{number:#x}/"),
                format!("http://{address}./"),
                format!("http://[64:ff9b::{:x}:{:x}]/", number >> 16, number & 0xffff),
            ];
            for text in spellings {
                prop_assert_eq!(closed(&text).is_err(), is_special_v4(address), "{}", text);
            }
            let mapped = format!("http://[::ffff:{address}]/");
            prop_assert!(closed(&mapped).is_err());
        }
    }

    #[test]
    fn names_are_stored_in_lower_case_without_the_last_dot() {
        let canonical = |text| closed(text).unwrap();
        assert_eq!(canonical("HTTPS://Example.COM.:443"), "https://example.com/");
        assert_eq!(
            canonical("http://bücher.example/ä?x=%0d%0a"),
            "http://xn--bcher-kva.example/%C3%A4?x=%0d%0a"
        );
        assert_eq!(canonical("http://example.com:8080/a/../b"), "http://example.com:8080/b");
    }

    #[test]
    fn what_the_deployment_opens_is_allowed() {
        let opened = |address: IpAddr| address.is_loopback();
        assert!(canonical_url("http://127.0.0.1:8080/", opened).is_ok());
        assert!(canonical_url("http://localhost:8080/", opened).is_ok());
        assert!(canonical_url("http://10.0.0.1/", opened).is_err());
    }
}
