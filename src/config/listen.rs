//! Where to listen, and which networks are meant.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address and port.
    Tcp(SocketAddr),
    /// `unix:/path`: a socket in the file system.
    Unix(PathBuf),
}

impl Listen {
    /// Whether both can't be listened on at once: one port, and an address of one that the other has as well. Port 0 is another one each
    /// time.
    pub(super) fn overlaps(&self, other: SocketAddr) -> bool {
        let Listen::Tcp(own) = self else { return false };
        let (one, two) = (own.ip().to_canonical(), other.ip().to_canonical());
        // `[::]` takes IPv4 as well.
        let covers = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
        own.port() != 0 && own.port() == other.port() && (one == two || covers(one, two) || covers(two, one))
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(format!(
                    "\"{text}\" must name an absolute path, like \"unix:/run/closehook/public.sock\""
                ));
            }
            return Ok(Listen::Unix(path.into()));
        }
        text.parse().map(Listen::Tcp).map_err(|_| {
            format!(
                "\"{text}\" is no address and port, like \"127.0.0.1:8480\" or \"[::]:443\", and no \"unix:/path\" either"
            )
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A list of networks. Holds no address twice over: IPv4 addresses are never written as IPv6 ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is in one of them. It must be canonical ([`IpAddr::to_canonical`]).
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// These as well.
    pub(super) fn extend(&mut self, more: Networks) {
        self.0.extend(more.0);
    }

    /// Reads one network, or a single address.
    fn parse_one(text: &str) -> Result<IpNet, String> {
        let text = text.trim();
        let single = || text.parse::<IpAddr>().map(IpNet::from);
        let network = text.parse::<IpNet>().or_else(|_| single()).map_err(|_| {
            format!("\"{text}\" is no network, like \"10.0.0.0/8\" or \"2001:db8::/32\", and no address either")
        })?;
        if let IpNet::V6(network) = network
            && network.addr().to_ipv4_mapped().is_some()
        {
            return Err(format!(
                "\"{text}\" is an IPv4 network in IPv6 notation: write it as IPv4"
            ));
        }
        Ok(network)
    }
}

/// Networks with commas between them.
impl FromStr for Networks {
    type Err = String;

    fn from_str(text: &str) -> Result<Networks, String> {
        let parts = text.split(',').filter(|part| !part.trim().is_empty());
        parts.map(Networks::parse_one).collect::<Result<_, _>>().map(Networks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_to_listen_is_an_address_or_a_socket() {
        for text in ["127.0.0.1:8480", "[::]:443", "unix:/run/closehook.sock"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for bad in ["", "8480", "localhost:8480", "unix:", "unix:relative.sock"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
    }

    #[test]
    fn two_places_overlap_where_one_port_would_be_taken_twice() {
        for (one, two, both) in [
            ("127.0.0.1:8481", "127.0.0.1:8481", true),
            ("0.0.0.0:8481", "127.0.0.1:8481", true),
            ("127.0.0.1:8481", "0.0.0.0:8481", true),
            ("[::]:8481", "127.0.0.1:8481", true),
            ("[::]:8481", "[::1]:8481", true),
            ("[::ffff:127.0.0.1]:8481", "127.0.0.1:8481", true),
            ("0.0.0.0:8481", "[::]:8481", true),
            ("0.0.0.0:8481", "[::1]:8481", false),
            ("127.0.0.1:8481", "127.0.0.2:8481", false),
            ("127.0.0.1:8480", "127.0.0.1:8481", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("unix:/run/closehook.sock", "127.0.0.1:8481", false),
        ] {
            let one: Listen = one.parse().unwrap();
            assert_eq!(one.overlaps(two.parse().unwrap()), both, "{one} {two}");
        }
    }

    #[test]
    fn networks_contain_what_is_in_them() {
        let networks: Networks = "10.0.0.0/8, 192.0.2.7, 2001:db8::/32".parse().unwrap();
        for (address, inside) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(networks.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!("".parse::<Networks>().unwrap().is_empty());
        for bad in ["10.0.0.0/33", "example.com", "10.0.0", "::ffff:10.0.0.0/104"] {
            assert!(bad.parse::<Networks>().is_err(), "{bad}");
        }
    }
}
