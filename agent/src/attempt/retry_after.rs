//! The `retry-after` header, in both its forms (RFC 9110, section 10.2.3). Pure.

use std::time::{Duration, UNIX_EPOCH};

use postrider_common::time::Timestamp;

/// The longest wait that is believed: a receiver that is down for longer comes to rest through the retry policy and the breaker, and a number typed
/// wrong must not silence a webhook for years.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the receiver asks to be left alone: whole seconds, or the time from `now` until an HTTP date (zero if it is past). At most
/// [`MAX_RETRY_AFTER`]. `None` for what is neither.
pub fn parse(value: &[u8], now: Timestamp) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that do not fit a number are a very long wait.
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    }
    let since_epoch = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let until = Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).ok()?);
    Some(until.saturating_since(now).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_727_414_643_000); // Fri, 27 Sep 2024 05:24:03 GMT

    proptest! {
        #[test]
        fn nothing_makes_it_panic_or_wait_longer_than_the_limit(value: Vec<u8>, text in "[A-Za-z0-9 ,:+-]{0,40}", now: i64) {
            for value in [value.as_slice(), text.as_bytes()] {
                if let Some(wait) = parse(value, Timestamp::from_millis(now)) {
                    prop_assert!(wait <= MAX_RETRY_AFTER);
                }
            }
        }

        #[test]
        fn seconds_are_taken_as_they_are_up_to_the_limit(seconds: u64, spaces in " {0,2}") {
            let expected = Duration::from_secs(seconds).min(MAX_RETRY_AFTER);
            prop_assert_eq!(parse(format!("{spaces}{seconds}{spaces}").as_bytes(), NOW), Some(expected));
        }

        #[test]
        fn a_date_means_the_time_until_it(seconds in 0_u64..86_400, now in 0_u64..4_000_000_000) {
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now + seconds));
            let now = Timestamp::from_millis(i64::try_from(now * 1000).unwrap());
            prop_assert_eq!(parse(date.as_bytes(), now), Some(Duration::from_secs(seconds)));
        }
    }

    #[test]
    fn both_forms_are_read_and_the_rest_is_ignored() {
        let cases: [(&[u8], Option<u64>); 16] = [
            (b"0", Some(0)),
            (b"120", Some(120)),
            (b"1000000000", Some(86_400)),
            (b"99999999999999999999999999", Some(86_400)),
            (b"Fri, 27 Sep 2024 05:25:03 GMT", Some(60)),
            (b"Friday, 27-Sep-24 05:25:03 GMT", Some(60)),
            (b"Fri Sep 27 05:25:03 2024", Some(60)),
            (b"Thu, 26 Sep 2024 05:24:03 GMT", Some(0)),
            (b"Fri, 31 Dec 9999 23:59:59 GMT", Some(86_400)),
            (b"-5", None),
            (b"+5", None),
            (b"1.5", None),
            (b"", None),
            (b"soon", None),
            (b"Fri, 99 Foo 2024 05:24:03 GMT", None),
            (b"\xff\xfe", None),
        ];
        for (value, seconds) in cases {
            assert_eq!(parse(value, NOW), seconds.map(Duration::from_secs), "{value:?}");
        }
    }
}
