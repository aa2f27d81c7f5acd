//! Secrets as values of headers: basic authentication (RFC 7617, in UTF-8), bearer tokens (RFC 6750), others. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// `Basic` and the base64 of `username:password`.
pub(super) fn basic(username: &str, password: &[u8]) -> Zeroizing<String> {
    // Of the full size from the start: a buffer that grows leaves copies of the secret behind.
    let mut pair = Zeroizing::new(Vec::with_capacity(username.len() + 1 + password.len()));
    pair.extend_from_slice(username.as_bytes());
    pair.push(b':');
    pair.extend_from_slice(password);
    let mut value = Zeroizing::new(String::with_capacity("Basic ".len() + pair.len().div_ceil(3) * 4));
    value.push_str("Basic ");
    STANDARD.encode_string(pair.as_slice(), &mut value);
    value
}

/// `Bearer` and the token. `None` if it cannot stand in a header.
pub(super) fn bearer(token: &[u8]) -> Option<Zeroizing<String>> {
    let token = text(token)?;
    let mut value = Zeroizing::new(String::with_capacity("Bearer ".len() + token.len()));
    value.push_str("Bearer ");
    value.push_str(&token);
    Some(value)
}

/// A secret as it is. `None` if it cannot stand in a header.
pub(super) fn text(secret: &[u8]) -> Option<Zeroizing<String>> {
    let fits = secret.iter().all(|byte| (b' '..=b'~').contains(byte));
    let text = std::str::from_utf8(secret).ok().filter(|_| fits)?;
    Some(Zeroizing::new(text.to_owned()))
}

/// The secrets in the value of a header: what follows the name of a scheme, and the password in it; or else all of it.
pub(super) fn secrets(value: &str) -> Vec<Zeroizing<String>> {
    let owned = |text: &str| Zeroizing::new(text.to_owned());
    if let Some(token) = value.strip_prefix("Bearer ") {
        return vec![owned(token)];
    }
    let Some(pair) = value.strip_prefix("Basic ") else {
        return vec![owned(value)];
    };
    let mut secrets = vec![owned(pair)];
    let decoded = STANDARD.decode(pair).map(Zeroizing::new);
    if let Ok(decoded) = &decoded
        && let Some((_, password)) = std::str::from_utf8(decoded).ok().and_then(|pair| pair.split_once(':'))
    {
        secrets.push(owned(password));
    }
    secrets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads credentials as a receiver does (RFC 7617, section 2): the first colon ends the user name.
    fn read(value: &str) -> (String, String) {
        let (scheme, encoded) = value.split_once(' ').unwrap();
        assert!(scheme.eq_ignore_ascii_case("basic"));
        let pair = String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap();
        let (user, password) = pair.split_once(':').unwrap();
        (user.to_owned(), password.to_owned())
    }

    proptest! {
        #[test]
        fn a_receiver_reads_the_same_user_name_and_password(user in "[^:\\x00-\\x1f]{0,40}", password in "\\PC{0,60}") {
            let value = basic(&user, password.as_bytes());
            prop_assert!(secrets(&value).iter().any(|secret| **secret == password));
            prop_assert_eq!(read(&value), (user, password));
        }
    }

    #[test]
    fn what_cannot_stand_in_a_header_gives_none() {
        assert_eq!(*bearer(b"mF_9.B5f-4.1JqM").unwrap(), "Bearer mF_9.B5f-4.1JqM");
        assert_eq!(*text(b"a key").unwrap(), "a key");
        assert_eq!(*secrets("a key")[0], "a key");
        assert_eq!(*secrets("Bearer mF_9.B5f-4.1JqM")[0], "mF_9.B5f-4.1JqM");
        for bad in [b"a\r\nb: c".as_slice(), b"\xff", "é".as_bytes(), b"\0"] {
            assert!(bearer(bad).is_none() && text(bad).is_none());
        }
    }

    #[test]
    fn the_examples_of_the_rfc_come_out_as_printed_there() {
        assert_eq!(*basic("Aladdin", b"open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(*basic("test", "123£".as_bytes()), "Basic dGVzdDoxMjPCow==");
    }
}
