//! The address blocks that are not public unicast, after IANA's special-purpose registries. Pure.
//!
//! Whole blocks are refused even where the registry marks a few addresses in them as globally reachable (anycast services, AS112): no listener
//! lives there.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(a: u16, b: u16, c: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), length)
}

/// IPv4: everything is public but these.
const FORBIDDEN_V4: [Ipv4Net; 19] = [
    v4(0, 0, 0, 0, 8),        // this network, RFC 791
    v4(10, 0, 0, 0, 8),       // private, RFC 1918
    v4(100, 64, 0, 0, 10),    // shared (carrier NAT; Alibaba metadata), RFC 6598
    v4(127, 0, 0, 0, 8),      // loopback, RFC 1122
    v4(168, 63, 129, 16, 32), // Azure's host agent: a public number that only exists inside
    v4(169, 254, 0, 0, 16),   // link-local (cloud metadata), RFC 3927
    v4(172, 16, 0, 0, 12),    // private, RFC 1918
    v4(192, 0, 0, 0, 24),     // protocol assignments (Oracle metadata), RFC 6890
    v4(192, 0, 2, 0, 24),     // documentation, RFC 5737
    v4(192, 31, 196, 0, 24),  // AS112, RFC 7535
    v4(192, 52, 193, 0, 24),  // AMT relays, RFC 7450
    v4(192, 88, 99, 0, 24),   // 6to4 relays, RFC 7526
    v4(192, 168, 0, 0, 16),   // private, RFC 1918
    v4(192, 175, 48, 0, 24),  // AS112, RFC 7534
    v4(198, 18, 0, 0, 15),    // benchmarks, RFC 2544
    v4(198, 51, 100, 0, 24),  // documentation, RFC 5737
    v4(203, 0, 113, 0, 24),   // documentation, RFC 5737
    v4(224, 0, 0, 0, 4),      // multicast, RFC 5771
    v4(240, 0, 0, 0, 4),      // reserved, and the broadcast address, RFC 1112 and RFC 919
];

/// IPv6: nothing is public but this (RFC 4291, section 2.4). Outside are loopback, unspecified, IPv4-compatible, discard-only `100::/64` (RFC 6666),
/// SRv6 `5f00::/16` (RFC 9602), local translation `64:ff9b:1::/48` (RFC 8215), unique local `fc00::/7` (RFC 4193), link-local, site-local, multicast.
const GLOBAL_UNICAST: Ipv6Net = v6(0x2000, 0, 0, 3);

/// What is not public within [`GLOBAL_UNICAST`].
const FORBIDDEN_V6: [Ipv6Net; 5] = [
    v6(0x2001, 0, 0, 23), // protocol assignments with Teredo, benchmarks, ORCHID: RFC 2928, 4380, 5180, 7343
    v6(0x2001, 0x0db8, 0, 32), // documentation, RFC 3849
    v6(0x2002, 0, 0, 16), // 6to4: reaches the IPv4 address within, RFC 3056
    v6(0x2620, 0x004f, 0x8000, 48), // AS112, RFC 7534
    v6(0x3fff, 0, 0, 20), // documentation, RFC 9637
];

/// IPv6 addresses that a translator turns into the IPv4 address in their last 32 bits (RFC 6052).
const TRANSLATED: Ipv6Net = v6(0x0064, 0xff9b, 0, 96);

pub(super) fn is_public_v4(address: Ipv4Addr) -> bool {
    !FORBIDDEN_V4.iter().any(|block| block.contains(&address))
}

pub(super) fn is_public_v6(address: Ipv6Addr) -> bool {
    GLOBAL_UNICAST.contains(&address) && !FORBIDDEN_V6.iter().any(|block| block.contains(&address))
}

pub(super) fn is_translated(address: Ipv6Addr) -> bool {
    TRANSLATED.contains(&address)
}
