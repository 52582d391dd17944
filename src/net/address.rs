//! Which addresses are on the public internet: what a configuration makes closehook send must not reach into the network it
//! runs in, unless that is meant.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// A resolver that refuses names with a private address. It judges the address that is then connected to, so a name that changes
/// its mind between check and connection gains nothing.
#[derive(Debug, Clone, Copy)]
pub struct PublicOnly;

impl reqwest::dns::Resolve for PublicOnly {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(async move {
            let addresses = public(name.as_str()).await?;
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

/// The addresses of a name; an error if one of them is private.
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

/// What to say of a private address that is not meant to be reached.
pub(super) fn refusal(address: IpAddr) -> String {
    format!("{address} is a private address: set allow_private = true if that is meant")
}

/// The address that a URL names, if it names one: in any of the ways in which browsers write them.
pub fn literal(url: &reqwest::Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
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
                // IPv4-mapped, NAT64 and 6to4 addresses carry an IPv4 address.
                [0, 0, 0, 0, 0, 0xffff, high, low]
                | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
                | [0x2002, high, low, ..] => embedded(high, low),
                // Unspecified, loopback, IPv4-compatible; local NAT64; Teredo, documentation.
                [0, 0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] | [0x2001, 0 | 0xdb8, ..] => true,
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
        ] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }
}
