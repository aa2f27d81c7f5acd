//! Tests of the egress judgement.

use proptest::prelude::*;

use super::*;

fn reason(text: &str) -> &'static str {
    reason_under(text, &Policy::default())
}

fn reason_under(text: &str, policy: &Policy) -> &'static str {
    check_url(text, policy).map_or_else(|error| error.reason, |_| "OK")
}

fn canonical(text: &str) -> String {
    check_url(text, &Policy::default())
        .unwrap_or_else(|error| panic!("{text}: {error}"))
        .to_string()
}

fn loopback() -> Policy {
    Policy::allowing(["127.0.0.0/8".parse().unwrap()])
}

/// Every way to write an IPv4 address that some parser understands.
fn spellings(address: Ipv4Addr) -> Vec<String> {
    let number = u32::from(address);
    let [a, b, c, d] = address.octets();
    let low = number & 0x00ff_ffff;
    let fold = |text: &str, zero: u32| -> String {
        text.chars()
            .map(|char| match char.to_digit(10) {
                Some(digit) => char::from_u32(zero + digit).unwrap(),
                None => char,
            })
            .collect()
    };
    let percent: String = address.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect();
    vec![
        format!("{a}.{b}.{c}.{d}"),
        format!("{a}.{b}.{c}.{d}."),
        format!("{number}"),
        format!("{number:#x}"),
        format!("{number:#X}"),
        format!("0{number:o}"),
        format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("0x000{a:x}.0000{b:o}.{c}.{d}"),
        format!("{a}.{low}"),
        format!("{a}.{b}.{}", number & 0xffff),
        format!("{a:#x}.{low}"),
        fold(&address.to_string(), 0xff10),
        address.to_string().replace('.', "。"),
        percent,
        format!("[::ffff:{address}]"),
        format!("[::ffff:{:x}:{:x}]", number >> 16, number & 0xffff),
        format!("[0:0:0:0:0:FFFF:{address}]"),
        format!("[64:ff9b::{:x}:{:x}]", number >> 16, number & 0xffff),
        format!("[64:ff9b::{address}]"),
    ]
}

fn private_v4() -> impl Strategy<Value = Ipv4Addr> {
    let blocks = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    ];
    (prop::sample::select(blocks.to_vec()), any::<u32>()).prop_map(|(block, random)| {
        let block: ipnet::Ipv4Net = block.parse().unwrap();
        let host = u32::from(block.hostmask());
        Ipv4Addr::from(u32::from(block.network()) | (random & host))
    })
}

proptest! {
    #[test]
    fn no_spelling_of_a_forbidden_ipv4_address_is_accepted(address in private_v4()) {
        prop_assert!(!Policy::default().allows(address.into()));
        for spelling in spellings(address) {
            let error = check_url(&format!("http://{spelling}/"), &Policy::default()).expect_err(&spelling);
            prop_assert_eq!(error.reason, "FORBIDDEN_ADDRESS", "{}", spelling);
        }
    }

    #[test]
    fn every_spelling_is_judged_as_the_address_it_is(number: u32) {
        let address = Ipv4Addr::from(number);
        let expected = Policy::default().allows(address.into());
        for spelling in spellings(address) {
            let result = check_url(&format!("https://{spelling}/"), &Policy::default());
            prop_assert_eq!(result.is_ok(), expected, "{}", spelling);
        }
    }

    #[test]
    fn an_ipv6_address_that_carries_an_ipv4_one_is_never_more_allowed_than_that(number: u32) {
        let v4 = Ipv4Addr::from(number);
        let [a, b, c, d] = v4.octets();
        let [high, low] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        let everything_v6 = Policy::allowing(["::/0".parse().unwrap()]);
        for policy in [&Policy::default(), &everything_v6] {
            let expected = policy.allows(v4.into());
            prop_assert_eq!(policy.allows(v4.to_ipv6_mapped().into()), expected);
            prop_assert_eq!(policy.allows(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into()), expected);
        }
        for refused in [
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, !high, !low),
            Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
        ] {
            prop_assert!(!Policy::default().allows(refused.into()), "{}", refused);
        }
    }

    #[test]
    fn no_ipv6_address_outside_global_unicast_is_allowed(bits: u128) {
        let address = Ipv6Addr::from(bits);
        let translated = address.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
        if bits >> 125 != 1 && !translated && address.to_ipv4_mapped().is_none() {
            prop_assert!(!Policy::default().allows(address.into()));
        }
    }

    #[test]
    fn whatever_is_accepted_is_canonical_short_and_understood_by_the_http_library(
        text in "(?i:https?)://[a-z0-9.:_\\-%\\[\\]é。]{1,30}(/[!-~é]{0,20})?(\\?[!-~é]{0,20})?",
    ) {
        if let Ok(url) = check_url(&text, &Policy::default()) {
            let again = check_url(url.as_str(), &Policy::default());
            prop_assert_eq!(again.as_ref(), Ok(&url));
            prop_assert!(url.as_str().is_ascii() && url.as_str().len() <= MAX_URL_BYTES);
            let uri: http::Uri = url.as_str().parse().unwrap();
            prop_assert_eq!(uri.authority().unwrap().as_str(), url.authority());
            prop_assert_eq!(uri.path_and_query().unwrap().as_str(), url.path_and_query());
            prop_assert_eq!(uri.port_u16().unwrap_or(url.scheme().default_port()), url.port());
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,60}", bytes: Vec<u8>) {
        let _ = check_url(&text, &Policy::default());
        let _ = check_url(&format!("http://{text}"), &loopback());
        let _ = check_url(&String::from_utf8_lossy(&bytes), &Policy::default());
    }
}

#[test]
fn the_blocks_end_where_they_should() {
    let public = [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "168.63.129.17",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "2001:200::",
        "2001:db7:ffff::",
        "2001:db9::",
        "2003::",
        "2606:4700::1111",
        "3ffe::1",
        "2000::",
        "3fff:1000::",
        "64:ff9b::8.8.8.8",
        "::ffff:8.8.8.8",
    ];
    for address in public {
        assert!(Policy::default().allows(address.parse().unwrap()), "{address}");
    }
    let forbidden = [
        "0.0.0.0",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
        "100.127.255.255",
        "100.100.100.200",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.0",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "198.19.255.255",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.0",
        "255.255.255.255",
        "::",
        "::1",
        "::2",
        "100::1",
        "1fff::",
        "2001::",
        "2001:1ff:ffff::",
        "2001:db8::1",
        "2002::",
        "3fff::1",
        "3fff:fff::",
        "4000::",
        "5f00::1",
        "fc00::",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "2620:4f:8000::1",
    ];
    for address in forbidden {
        assert!(!Policy::default().allows(address.parse().unwrap()), "{address}");
    }
}

#[test]
fn each_rule_of_the_text_has_its_reason() {
    let long_label = format!("http://{}.com/", "a".repeat(64));
    let long_name = format!("http://{}com/", "abcdefg.".repeat(32));
    let long = format!("https://example.com/{}", "a".repeat(MAX_URL_BYTES));
    let long_when_encoded = format!("https://example.com/{}", "é".repeat(900));
    let cases = [
        ("", "REQUIRED"),
        ("example.com", "RELATIVE"),
        ("//example.com/x", "RELATIVE"),
        ("/x", "RELATIVE"),
        ("example.com:8080/x", "RELATIVE"),
        ("http:127.0.0.1", "RELATIVE"),
        ("http:/127.0.0.1", "RELATIVE"),
        ("https:example.com", "RELATIVE"),
        ("://example.com", "RELATIVE"),
        ("1http://example.com", "RELATIVE"),
        ("ftp://example.com", "SCHEME"),
        ("file:///etc/passwd", "SCHEME"),
        ("gopher://example.com", "SCHEME"),
        ("javascript:alert(1)", "SCHEME"),
        ("ws://example.com", "SCHEME"),
        ("data:text/plain,x", "SCHEME"),
        (&long, "TOO_LONG"),
        (&long_when_encoded, "TOO_LONG"),
        ("http://u:p@example.com/", "CREDENTIALS_IN_URL"),
        ("http://u@example.com", "CREDENTIALS_IN_URL"),
        ("http://@example.com", "CREDENTIALS_IN_URL"),
        ("http://example.com/#x", "FRAGMENT"),
        ("http://example.com#", "FRAGMENT"),
        ("http://example.com:0/", "PORT"),
        ("http://example.com:65536/", "PORT"),
        ("http://example.com:99999/", "PORT"),
        ("http://example.com:80:80/", "PORT"),
        ("http://example.com:/", "PORT"),
        ("http://example.com:+80/", "PORT"),
        ("http://example.com:22/", "PORT"),
        ("http://example.com:25/", "PORT"),
        ("http://example.com:6379/", "PORT"),
        ("http://[2606:4700::1111]:x/", "PORT"),
        ("http://", "HOST"),
        ("http:///127.0.0.1", "HOST"),
        ("http://:80/", "HOST"),
        ("http://?x", "HOST"),
        ("http://256.256.256.256", "HOST"),
        ("http://1.2.3.4.5", "HOST"),
        ("http://4294967296", "HOST"),
        ("http://127.0.0.1..", "HOST"),
        ("http://[fe80::1%25eth0]/", "HOST"),
        ("http://[::1%lo]/", "HOST"),
        ("http://[::1", "HOST"),
        ("http://[::1]x/", "HOST"),
        ("http://[]/", "HOST"),
        ("http://::1/", "HOST"),
        ("http://a..b/", "HOST"),
        ("http://.com/", "HOST"),
        ("http://./", "HOST"),
        ("http://-a.com/", "HOST"),
        ("http://a-.com/", "HOST"),
        ("http://a*b.com/", "HOST"),
        ("http://xn--/", "HOST"),
        ("http://exam%00ple.com/", "HOST"),
        (&long_label, "HOST"),
        (&long_name, "HOST"),
        (r"http:\\127.0.0.1\", "CONTROL_CHARACTER"),
        (r"http://example.com\@169.254.169.254/", "CONTROL_CHARACTER"),
        ("http://exa\tmple.com", "CONTROL_CHARACTER"),
        ("http://exa\nmple.com", "CONTROL_CHARACTER"),
        ("http://example.com/\r\nx: y", "CONTROL_CHARACTER"),
        (" http://example.com", "CONTROL_CHARACTER"),
        ("http://example.com/\u{7f}", "CONTROL_CHARACTER"),
        ("http://example.com/\0", "CONTROL_CHARACTER"),
        ("http://example.com/\u{a0}", "CONTROL_CHARACTER"),
    ];
    for (text, expected) in cases {
        assert_eq!(reason(text), expected, "{text}");
    }
    let https_only = Policy {
        schemes: Schemes::HttpsOnly,
        ..Policy::default()
    };
    assert_eq!(reason_under("http://example.com", &https_only), "HTTPS_REQUIRED");
    assert_eq!(reason_under("https://example.com", &https_only), "OK");
}

#[test]
fn forbidden_hosts_are_found_in_every_spelling() {
    let hosts = [
        "127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "foo.localhost",
        "Foo.LocalHost.",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0x7f.0x0.0x0.0x1",
        "0177.0.0.1",
        "127.1",
        "0",
        "127.0.0.1.",
        "①②⑦.⓪.⓪.①",
        "１２７.0.0.1",
        "%31%32%37.0.0.1",
        "ⓛocalhost",
        "l%6fcalhost",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::1]",
        "[fec0::1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[ff02::1]",
        "[100::1]",
        "[2001:db8::1]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.0.1",
        "192.88.99.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "100.100.100.200",
    ];
    for host in hosts {
        for port in ["", ":8080"] {
            assert_eq!(
                reason(&format!("http://{host}{port}/x?y")),
                "FORBIDDEN_ADDRESS",
                "{host}"
            );
        }
    }
}

#[test]
fn an_accepted_url_is_given_in_its_one_form() {
    assert_eq!(canonical("HTTPS://Example.COM.:443"), "https://example.com/");
    assert_eq!(
        canonical("http://example.com:080/a/../b?q=\u{202e}x"),
        "http://example.com/b?q=%E2%80%AEx"
    );
    assert_eq!(
        canonical("https://bücher.example/ü"),
        "https://xn--bcher-kva.example/%C3%BC"
    );
    assert_eq!(canonical("https://example.com/%0d%0ax"), "https://example.com/%0d%0ax");
    assert_eq!(canonical("https://xn--80ak6aa92e.com"), "https://xn--80ak6aa92e.com/");
    assert_eq!(
        canonical("http://metadata.google.internal"),
        "http://metadata.google.internal/"
    );
    assert_eq!(canonical("http://0x08.010.2056"), "http://8.8.8.8/");
    let url = check_url("https://Example.com.:8443?a=b", &Policy::default()).unwrap();
    assert_eq!(url.as_str(), "https://example.com:8443/?a=b");
    assert_eq!(url.authority(), "example.com:8443");
    assert_eq!(url.path_and_query(), "/?a=b");
    assert_eq!(url.host(), &Host::Name("example.com".to_owned()));
    assert_eq!((url.scheme(), url.port()), (Scheme::Https, 8443));
    let url = check_url("http://[2606:4700:0::1111]:8080/x", &Policy::default()).unwrap();
    assert_eq!(url.authority(), "[2606:4700::1111]:8080");
    assert_eq!(url.host(), &Host::Address("2606:4700::1111".parse().unwrap()));
}

#[test]
fn an_opened_network_is_open_and_nothing_else_is() {
    for text in [
        "http://127.0.0.1:8080",
        "http://localhost:8080",
        "http://a.localhost",
        "http://2130706433",
        "http://[::ffff:127.0.0.1]",
    ] {
        assert_eq!(reason_under(text, &loopback()), "OK", "{text}");
    }
    for text in ["http://10.0.0.1", "http://169.254.169.254", "http://[::1]", "http://0/"] {
        assert_eq!(reason_under(text, &loopback()), "FORBIDDEN_ADDRESS", "{text}");
    }
    for port in [0, 22, 2379, 5432, 6379] {
        assert_eq!(reason_under(&format!("http://127.0.0.1:{port}"), &loopback()), "PORT");
    }
    let v6 = Policy::allowing(["::1/128".parse().unwrap()]);
    assert_eq!(reason_under("http://localhost", &v6), "OK");
    assert_eq!(reason_under("http://[::1]", &v6), "OK");
    assert_eq!(reason_under("http://127.0.0.1", &v6), "FORBIDDEN_ADDRESS");
}
