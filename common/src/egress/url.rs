//! Listener URLs: judged as text, parsed, judged again, and brought into the one form that is stored, shown and dialled. Pure.
//!
//! URL parsers forgive much (tabs vanish, backslashes become slashes, `http:host` is a URL), and two parsers forgive differently: what one takes for
//! a public host the other may take for a private one. So every text that is not in the strict form `scheme://host[:port][/path][?query]` is refused
//! before it is parsed.

use std::fmt;
use std::net::IpAddr;

use super::{Policy, Schemes, is_localhost};

/// The longest URL, before and after it is brought into canonical form, in bytes: what every HTTP server accepts.
pub const MAX_URL_BYTES: usize = 2048;

/// The longest label and the longest name of DNS, in bytes (RFC 1035, section 2.3.4; without the final dot).
const MAX_LABEL_BYTES: usize = 63;
const MAX_NAME_BYTES: usize = 253;

/// Why a URL is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{description}")]
pub struct UrlError {
    /// Stable, upper-case.
    pub reason: &'static str,
    /// The rule that was broken, for people.
    pub description: String,
}

fn refuse<T>(reason: &'static str, description: impl Into<String>) -> Result<T, UrlError> {
    Err(UrlError {
        reason,
        description: description.into(),
    })
}

/// A scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// In clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// As it stands in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that is meant where none is given.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Whom a URL names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A name, in lower-case ASCII, without a final dot.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// A URL that passed [`check_url`], in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalUrl {
    text: String,
    scheme: Scheme,
    host: Host,
    port: u16,
    authority_end: usize,
}

impl CanonicalUrl {
    /// The whole URL.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its scheme.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Its host.
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Its port, also where it is the scheme's own and not written.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// `host` or, where the port is not the scheme's own, `host:port`: the value of the `host` header.
    pub fn authority(&self) -> &str {
        let start = self.scheme.as_str().len() + "://".len();
        self.text.get(start..self.authority_end).unwrap_or_default()
    }

    /// `/path?query`.
    pub fn path_and_query(&self) -> &str {
        self.text.get(self.authority_end..).unwrap_or("/")
    }
}

impl fmt::Display for CanonicalUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Judges a listener URL and gives its canonical form: the text to store and to dial. Checking a canonical URL again gives the same.
///
/// # Errors
/// [`UrlError`] with the first rule that is broken: `REQUIRED`, `TOO_LONG`, `CONTROL_CHARACTER`, `RELATIVE`, `SCHEME`, `HTTPS_REQUIRED`,
/// `CREDENTIALS_IN_URL`, `FRAGMENT`, `HOST`, `PORT` or `FORBIDDEN_ADDRESS`. A name is not resolved here: it is judged each time it is dialled.
pub fn check_url(text: &str, policy: &Policy) -> Result<CanonicalUrl, UrlError> {
    let scheme = check_text(text, policy)?;
    let mut url = url::Url::parse(text).map_err(|error| UrlError {
        reason: match error {
            url::ParseError::InvalidPort => "PORT",
            url::ParseError::RelativeUrlWithoutBase => "RELATIVE",
            _ => "HOST",
        },
        description: format!("is not a URL: {error}"),
    })?;
    let host = match url.host() {
        Some(url::Host::Ipv4(address)) => Host::Address(address.into()),
        Some(url::Host::Ipv6(address)) => Host::Address(address.into()),
        Some(url::Host::Domain(name)) => Host::Name(check_name(name)?.to_owned()),
        None => return refuse("HOST", "must name a host"),
    };
    if let Host::Name(name) = &host
        && url.host_str() != Some(name.as_str())
        && url.set_host(Some(name)).is_err()
    {
        return refuse("HOST", "must name a valid host");
    }
    let port = url.port().unwrap_or_else(|| scheme.default_port());
    if !policy.allows_port(port) {
        return refuse(
            "PORT",
            "the port must be 80, 443 or from 1024 on, and not one of a database or cluster service",
        );
    }
    let allowed = match &host {
        Host::Address(address) => policy.allows(*address),
        Host::Name(name) => !is_localhost(name) || policy.allows_loopback(),
    };
    if !allowed {
        return refuse(
            "FORBIDDEN_ADDRESS",
            "must not name a loopback, private, link-local or otherwise special address",
        );
    }
    if url.as_str().len() > MAX_URL_BYTES {
        return refuse(
            "TOO_LONG",
            format!("must be at most {MAX_URL_BYTES} bytes long after encoding"),
        );
    }
    let authority_end = url[..url::Position::BeforePath].len();
    Ok(CanonicalUrl {
        text: url.into(),
        scheme,
        host,
        port,
        authority_end,
    })
}

/// The rules for the text itself: the strict form.
fn check_text(text: &str, policy: &Policy) -> Result<Scheme, UrlError> {
    if text.is_empty() {
        return refuse("REQUIRED", "is required");
    }
    if text.len() > MAX_URL_BYTES {
        return refuse("TOO_LONG", format!("must be at most {MAX_URL_BYTES} bytes long"));
    }
    if text
        .chars()
        .any(|char| char.is_control() || char.is_whitespace() || char == '\\')
    {
        return refuse(
            "CONTROL_CHARACTER",
            "must not contain spaces, backslashes or control characters",
        );
    }
    let (scheme, rest) = check_scheme(text, policy)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return refuse(
            "CREDENTIALS_IN_URL",
            "must not contain a user name or password: use `auth`",
        );
    }
    if rest.contains('#') {
        return refuse("FRAGMENT", "must not have a fragment");
    }
    check_authority(authority)?;
    Ok(scheme)
}

fn check_scheme<'a>(text: &'a str, policy: &Policy) -> Result<(Scheme, &'a str), UrlError> {
    let relative = || refuse("RELATIVE", "must be of the form https://host/path");
    let Some((scheme, rest)) = text.split_once(':') else {
        return relative();
    };
    let well_formed = scheme.starts_with(|char: char| char.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char));
    // `host:8080/path` has the form of a URL with the scheme `host`.
    if !well_formed || rest.starts_with(|char: char| char.is_ascii_digit()) {
        return relative();
    }
    let scheme = if scheme.eq_ignore_ascii_case("https") {
        Scheme::Https
    } else if scheme.eq_ignore_ascii_case("http") {
        Scheme::Http
    } else {
        return refuse("SCHEME", "the scheme must be https or http");
    };
    let Some(rest) = rest.strip_prefix("//") else {
        return relative();
    };
    if scheme == Scheme::Http && policy.schemes == Schemes::HttpsOnly {
        return refuse("HTTPS_REQUIRED", "the scheme must be https");
    }
    Ok((scheme, rest))
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`, with the port in digits.
fn check_authority(authority: &str) -> Result<(), UrlError> {
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let Some((address, after)) = bracketed.split_once(']') else {
            return refuse("HOST", "the IPv6 address must end with ]");
        };
        if !address
            .chars()
            .all(|char| char.is_ascii_hexdigit() || ".:".contains(char))
        {
            return refuse("HOST", "must hold an IPv6 address in brackets, without a zone");
        }
        match after.strip_prefix(':') {
            Some(port) => (address, Some(port)),
            None if after.is_empty() => (address, None),
            None => return refuse("HOST", "only a port may follow the IPv6 address"),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return refuse("HOST", "must name a host");
    }
    match port {
        None => Ok(()),
        Some(port) if (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit()) => Ok(()),
        Some(_) => refuse("PORT", "the port must be a number from 1 to 65535"),
    }
}

/// The rules of host names (RFC 1123, and underscores, which private name services use). Gives the name without its final dot.
fn check_name(name: &str) -> Result<&str, UrlError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let valid = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if name.len() <= MAX_NAME_BYTES && name.split('.').all(valid) {
        Ok(name)
    } else {
        refuse(
            "HOST",
            "a host name must be at most 253 bytes, its labels 1 to 63 of letters, digits and inner hyphens",
        )
    }
}
