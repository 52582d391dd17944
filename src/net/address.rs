//! Which addresses are on the public internet: what a configuration makes closehook send must not reach into the network it
//! runs in, unless that is meant.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The addresses of a name; an error if one of them is private. They are what is then connected to, so a name that changes its mind
/// between check and connection gains nothing.
pub(super) async fn public(name: &str) -> std::io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name, 0)).await?.collect();
    match addresses.iter().find(|address| is_private(address.ip())) {
        None => Ok(addresses),
        Some(private) => Err(std::io::Error::other(format!(
            "{name} has the private address {}: set allow_private = true if that is meant",
            private.ip()
        ))),
    }
}

/// A private address that a name has here.
pub(super) async fn private_one(name: &str) -> Option<IpAddr> {
    let mut addresses = tokio::net::lookup_host((name, 0)).await.ok()?;
    addresses
        .find(|address| is_private(address.ip()))
        .map(|address| address.ip())
}

/// What to say of a private address that is not meant to be reached.
pub(super) fn refusal(address: IpAddr) -> String {
    format!("{address} is a private address: set allow_private = true if that is meant")
}

/// The address that a URL names, if it names one: in any of the ways in which browsers write them.
pub fn literal(url: &reqwest::Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

/// Whether a name means something only within a network, or on a machine: one without dots, or in a domain that is nobody's outside
/// (RFC 6761, 6762, 8375, and what ICANN keeps for it).
pub(super) fn is_local_name(name: &str) -> bool {
    const DOMAINS: [&str; 8] = [
        "localhost",
        "internal",
        "local",
        "home.arpa",
        "localdomain",
        "lan",
        "intranet",
        "corp",
    ];
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let is_in = |domain: &&str| {
        name.strip_suffix(*domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    !name.contains(['.', ':']) || DOMAINS.iter().any(is_in)
}

/// Whether an address is not on the public internet (IANA's special-purpose registries).
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => {
            let embedded = |high: u16, low: u16| {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                is_private_v4(Ipv4Addr::new(a, b, c, d))
            };
            match v6.segments() {
                // IPv4-mapped, IPv4-translated, NAT64 and 6to4 addresses carry an IPv4 address.
                [0, 0, 0, 0, 0, 0xffff, high, low]
                | [0, 0, 0, 0, 0xffff, 0, high, low]
                | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
                | [0x2002, high, low, ..] => embedded(high, low),
                // Unspecified, loopback, IPv4-compatible; local NAT64; discard, dummy.
                [0, 0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] | [0x100, 0, 0, 0 | 1, ..]
                // Protocols' own (Teredo, benchmarks, ORCHID); documentation; segments' own.
                | [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x5f00, ..] => true,
                [first, ..] => {
                    // Unique local, link-local, site-local, multicast.
                    first & 0xfe00 == 0xfc00
                        || first & 0xffc0 == 0xfe80
                        || first & 0xffc0 == 0xfec0
                        || first & 0xff00 == 0xff00
                }
            }
        }
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && b & 0xfe == 18)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_on_the_public_internet_is_private_also_inside_another_address() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "198.19.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2001:db8::1",
            "2002:a00:1::",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "::ffff:0:10.0.0.1",
            "100::1",
            "100:0:0:1::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "3fff::1",
            "3fff:fff::1",
            "5f00::1",
            "192.88.99.1",
        ] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::",
            "::ffff:0:1.1.1.1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "3ffe::1",
            "4000::1",
            "5f01::1",
        ] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }
}
