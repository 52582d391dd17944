//! Who a request comes from when proxies stand in between.
//!
//! A peer that is not trusted can write what it likes: its own address counts, and what it says about others is ignored. A
//! trusted one is believed for one hop: of the addresses it hands on, the right-most that is not a trusted proxy's is the
//! client's. Through the PROXY protocol (versions 1 and 2 of `HAProxy`'s `proxy-protocol.txt`) the address stands before the
//! connection's first byte, in headers (RFC 7239's `Forwarded`, and `X-Forwarded-For`) before each request.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyper::header::{FORWARDED, HeaderMap, HeaderName};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::config::Networks;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of who has none: it comes through a Unix socket.
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Stands for the address of who can't be known: what proxies say of it contradicts itself, or hides it. It is limited like any
/// other address, never on the list of who may send, and never proven.
pub const UNKNOWN: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Proxies in a row at the most; more are not looked at.
const HOPS_MAX: usize = 32;

/// Longest line of the PROXY protocol's version 1, its end included.
const V1_LEN_MAX: usize = 107;

/// Longest header of version 2: addresses need 36 bytes (or 216, of Unix sockets), what proxies add stays far below this.
const V2_LEN_MAX: usize = 16 + 2048;

/// How version 2 begins.
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Who is believed, and how it speaks.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// Their networks.
    pub trusted: Networks,
    /// Whether their connections begin with the PROXY protocol.
    pub proxy_protocol: bool,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its address.
    pub address: IpAddr,
    /// Whether it is a proxy that is believed, so that clients may be behind it.
    pub is_proxy: bool,
}

impl Proxies {
    /// Who a connection comes from, as the kernel sees it. Who may connect to a Unix socket is for its mode to say: it is
    /// a proxy of this machine.
    pub fn caller(&self, peer: Option<SocketAddr>) -> Caller {
        match peer {
            Some(peer) => self.at(peer.ip()),
            None => Caller {
                address: LOCAL,
                is_proxy: true,
            },
        }
    }

    fn at(&self, address: IpAddr) -> Caller {
        let address = address.to_canonical();
        Caller {
            address,
            is_proxy: self.trusted.contains(address),
        }
    }

    /// Reads the PROXY protocol's header, if this caller's connections begin with one, and gives the caller it names. A
    /// trusted proxy that does not send it is an error: guessing would let its clients send one of their own.
    pub async fn introduced(
        &self,
        caller: Caller,
        stream: &mut (impl AsyncRead + Unpin),
        patience: Duration,
    ) -> io::Result<Caller> {
        if !self.proxy_protocol || !caller.is_proxy {
            return Ok(caller);
        }
        Ok(match tokio::time::timeout(patience, read_header(stream)).await?? {
            Some(source) => self.at(source),
            // The proxy itself, to see whether we are alive: nobody is behind it.
            None => Caller {
                is_proxy: false,
                ..caller
            },
        })
    }

    /// The address of who sent a request. Costs nothing for a caller that is no proxy.
    ///
    /// Nearly every proxy adds to one of the two headers only, and hands the other one on as the client wrote it. So where they
    /// disagree, one of them is the client's own invention and nobody knows which: then it is [`UNKNOWN`], and not the proxy,
    /// which has no limits.
    pub fn client(&self, caller: Caller, headers: &HeaderMap) -> IpAddr {
        if !caller.is_proxy {
            return caller.address;
        }
        let forwarded = self.last_hop(caller, headers, &FORWARDED, forwarded_hops);
        let x_forwarded_for = self.last_hop(caller, headers, &X_FORWARDED_FOR, |line| {
            Some(line.split(',').map(node).collect())
        });
        match (forwarded, x_forwarded_for) {
            (Some(address), None) | (None, Some(address)) => address,
            (Some(one), Some(other)) if one == other => one,
            (Some(_), Some(_)) => UNKNOWN,
            // It speaks for itself, or for everybody alike.
            (None, None) => caller.address,
        }
    }

    /// The right-most address in a header that is not a trusted proxy's; `None` without such a header, or where nothing is in it.
    /// What can't be read ends the search: whoever is behind it is [`UNKNOWN`].
    fn last_hop(
        &self,
        caller: Caller,
        headers: &HeaderMap,
        name: &HeaderName,
        hops: impl Fn(&str) -> Option<Vec<Option<IpAddr>>>,
    ) -> Option<IpAddr> {
        if headers
            .get_all(name)
            .iter()
            .all(|line| line.as_bytes().trim_ascii().is_empty())
        {
            return None;
        }
        let mut last = caller.address;
        let lines: Vec<_> = headers.get_all(name).iter().collect();
        let hops = lines.into_iter().rev().flat_map(|line| {
            let hops = line.to_str().ok().and_then(&hops);
            hops.unwrap_or_else(|| vec![None]).into_iter().rev()
        });
        for hop in hops.take(HOPS_MAX) {
            let Some(address) = hop else { return Some(UNKNOWN) };
            last = address;
            if !self.trusted.contains(address) {
                break;
            }
        }
        Some(last)
    }
}

/// The `for` of each element of a `Forwarded` header; `None` where it is not well-formed as a whole (then quotes may have been
/// opened by one and closed by another).
fn forwarded_hops(line: &str) -> Option<Vec<Option<IpAddr>>> {
    let mut hops = Vec::new();
    for element in split_outside_quotes(line, ',')? {
        let mut hop = None;
        for pair in split_outside_quotes(element, ';')? {
            let Some((name, value)) = pair.split_once('=') else {
                if pair.trim().is_empty() {
                    continue;
                }
                return None;
            };
            if name.trim().eq_ignore_ascii_case("for") {
                hop = node(value);
            }
        }
        hops.push(hop);
    }
    Some(hops)
}

fn split_outside_quotes(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut parts, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if c == separator && !quoted => {
                parts.push(&text[begin..index]);
                begin = index + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    (!quoted).then_some(parts)
}

/// An address as proxies write it: with or without quotes, brackets and port. Names that hide an address are none.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let text = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = bracketed.unwrap_or(text).parse().ok();
    let address = address.or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// How far a header of the PROXY protocol has been understood.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// At least so many bytes more belong to it.
    More(usize),
    /// It is complete; `None`: the proxy speaks for itself, or does not say for whom.
    Complete(Option<IpAddr>),
}

async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let mut header = Vec::with_capacity(V1_LEN_MAX);
    loop {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no header of the PROXY protocol");
        match step(&header).ok_or_else(wrong)? {
            Step::Complete(source) => return Ok(source),
            Step::More(more) => {
                // Exactly these: what follows the header is not ours.
                let len = header.len();
                header.resize(len + more, 0);
                stream.read_exact(&mut header[len..]).await?;
            }
        }
    }
}

/// Looks at the beginning of a connection; `None`: it is no header of the PROXY protocol.
fn step(header: &[u8]) -> Option<Step> {
    if header.len() < V2_SIGNATURE.len() {
        // Both versions are longer.
        return Some(Step::More(V2_SIGNATURE.len() - header.len()));
    }
    if header.starts_with(&V2_SIGNATURE) {
        version_2(header)
    } else if header.starts_with(b"PROXY ") {
        version_1(header)
    } else {
        None
    }
}

fn version_1(header: &[u8]) -> Option<Step> {
    let Some(line) = header.strip_suffix(b"\r\n") else {
        let more = if header.ends_with(b"\r") { 1 } else { 2 };
        return (header.len() + more <= V1_LEN_MAX).then_some(Step::More(more));
    };
    let line = std::str::from_utf8(line).ok()?;
    let words: Vec<&str> = line.split(' ').collect();
    match *words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Some(Step::Complete(None)),
        ["PROXY", family, source, destination, source_port, destination_port] => {
            let source: IpAddr = source.parse().ok()?;
            let destination: IpAddr = destination.parse().ok()?;
            source_port.parse::<u16>().ok()?;
            destination_port.parse::<u16>().ok()?;
            let fits = match family {
                "TCP4" => source.is_ipv4() && destination.is_ipv4(),
                "TCP6" => source.is_ipv6() && destination.is_ipv6(),
                _ => false,
            };
            fits.then_some(Step::Complete(Some(source)))
        }
        _ => None,
    }
}

fn version_2(header: &[u8]) -> Option<Step> {
    const LOCAL_COMMAND: u8 = 0x20;
    const PROXY_COMMAND: u8 = 0x21;
    const INET_FAMILY: u8 = 0x1;
    const INET6_FAMILY: u8 = 0x2;
    let rest = &header[V2_SIGNATURE.len()..];
    let Some((&[command, family, len_high, len_low], addresses)) = rest.split_first_chunk::<4>() else {
        return Some(Step::More(4 - rest.len()));
    };
    let len = usize::from(u16::from_be_bytes([len_high, len_low]));
    if V2_SIGNATURE.len() + 4 + len > V2_LEN_MAX {
        return None;
    }
    if addresses.len() < len {
        return Some(Step::More(len - addresses.len()));
    }
    let source = match (command, family >> 4) {
        (PROXY_COMMAND, INET_FAMILY) => Some(Ipv4Addr::from(*addresses.first_chunk::<4>()?).into()),
        (PROXY_COMMAND, INET6_FAMILY) => Some(Ipv6Addr::from(*addresses.first_chunk::<16>()?).into()),
        // The proxy itself, a Unix socket, or not said.
        (LOCAL_COMMAND | PROXY_COMMAND, _) => None,
        _ => return None,
    };
    Some(Step::Complete(source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxies() -> Proxies {
        Proxies {
            trusted: "10.0.0.0/8,2001:db8::/32".parse().unwrap(),
            proxy_protocol: true,
        }
    }

    fn client(peer: &str, lines: &[(HeaderName, &str)]) -> String {
        let proxies = proxies();
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value.parse().unwrap());
        }
        let caller = proxies.at(peer.parse().unwrap());
        proxies.client(caller, &headers).to_string()
    }

    #[test]
    fn only_a_trusted_peer_is_believed_and_only_for_one_hop() {
        let x = |peer, value| client(peer, &[(X_FORWARDED_FOR, value)]);
        assert_eq!(x("192.0.2.1", "198.51.100.7"), "192.0.2.1");
        assert_eq!(x("10.0.0.1", "198.51.100.7"), "198.51.100.7");
        assert_eq!(x("::ffff:10.0.0.1", "198.51.100.7"), "198.51.100.7");
        assert_eq!(x("10.0.0.1", "1.1.1.1, 198.51.100.7, 10.0.0.2"), "198.51.100.7");
        assert_eq!(x("10.0.0.1", "10.0.0.3 , 10.0.0.2:1234"), "10.0.0.3");
        assert_eq!(x("10.0.0.1", "1.1.1.1, unknown, 10.0.0.2"), "::");
        assert_eq!(x("10.0.0.1", "[2001:db9::1]:80"), "2001:db9::1");
        assert_eq!(x("10.0.0.1", "2001:db9::1, 2001:db8::1"), "2001:db9::1");
        assert_eq!(x("10.0.0.1", ""), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        let lines = [(X_FORWARDED_FOR, "1.1.1.1"), (X_FORWARDED_FOR, "198.51.100.7")];
        assert_eq!(client("10.0.0.1", &lines), "198.51.100.7");
    }

    #[test]
    fn no_more_proxies_in_a_row_are_looked_at_than_there_may_be() {
        let row = |count: usize| {
            let proxies = (0..count).map(|n| format!("10.0.1.{n}"));
            let all: Vec<String> = std::iter::once("198.51.100.7".to_owned()).chain(proxies).collect();
            client("10.0.0.1", &[(X_FORWARDED_FOR, &all.join(", "))])
        };
        assert_eq!(row(31), "198.51.100.7");
        assert_eq!(row(32), "10.0.1.0", "whoever is behind the last of them that counts");
    }

    #[test]
    fn the_standard_header_is_read_with_its_quotes() {
        let f = |value| client("10.0.0.1", &[(FORWARDED, value)]);
        assert_eq!(
            f("for=192.0.2.43, for=198.51.100.17;by=10.0.0.9;proto=https"),
            "198.51.100.17"
        );
        assert_eq!(f("For=\"[2001:db9::17]:4711\""), "2001:db9::17");
        assert_eq!(f("for=192.0.2.43;proto=\"a,b\", for=10.0.0.2"), "192.0.2.43");
        assert_eq!(f("for=192.0.2.43, for=_hidden, for=10.0.0.2"), "::");
        assert_eq!(f("for=unknown"), "::");
        // A quote that a client opened must not swallow what the proxy adds.
        assert_eq!(f("for=\"1.1.1.1, for=198.51.100.17"), "::");
        assert_eq!(f("for=\"1.1.1.1, for=\"[2001:db9::17]\""), "::");
    }

    #[test]
    fn two_headers_that_disagree_are_nobody_s() {
        let both = |forwarded, other| client("10.0.0.1", &[(FORWARDED, forwarded), (X_FORWARDED_FOR, other)]);
        assert_eq!(both("for=192.0.2.43", "192.0.2.43"), "192.0.2.43");
        assert_eq!(both("for=1.1.1.1", "192.0.2.43"), "::");
        assert_eq!(both("for=unknown", "192.0.2.43"), "::");
        assert_eq!(both("for=1.1.1.1", "unknown"), "::");
        assert_eq!(both(" ", "192.0.2.43"), "192.0.2.43");
        assert_eq!(both("for=192.0.2.43", ""), "192.0.2.43");
    }

    async fn introduced(peer: &str, bytes: &[u8]) -> Result<(String, bool, Vec<u8>), io::ErrorKind> {
        let proxies = proxies();
        let mut stream = bytes;
        let caller = proxies.at(peer.parse().unwrap());
        let caller = proxies.introduced(caller, &mut stream, Duration::from_secs(60)).await;
        let caller = caller.map_err(|error| error.kind())?;
        Ok((caller.address.to_string(), caller.is_proxy, stream.to_vec()))
    }

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend((addresses.len() as u16).to_be_bytes());
        bytes.extend(addresses);
        bytes.extend(b"GET");
        bytes
    }

    #[tokio::test]
    async fn the_proxy_protocol_is_read_to_its_end_and_no_further() {
        let get = b"GET".to_vec();
        let line = b"PROXY TCP4 198.51.100.7 10.0.0.1 56324 443\r\nGET";
        assert_eq!(
            introduced("10.0.0.1", line).await,
            Ok(("198.51.100.7".into(), false, get.clone()))
        );
        let line = b"PROXY TCP6 2001:db8::5 2001:db8::1 56324 443\r\nGET";
        assert_eq!(
            introduced("10.0.0.1", line).await,
            Ok(("2001:db8::5".into(), true, get.clone()))
        );
        let line = b"PROXY UNKNOWN\r\nGET";
        assert_eq!(
            introduced("10.0.0.1", line).await,
            Ok(("10.0.0.1".into(), false, get.clone()))
        );
        let addresses = [
            198, 51, 100, 7, 10, 0, 0, 1, 1, 2, 3, 4, /* what proxies add */ 3, 0, 1, 9,
        ];
        let header = v2(0x21, 0x11, &addresses);
        assert_eq!(
            introduced("10.0.0.1", &header).await,
            Ok(("198.51.100.7".into(), false, get.clone()))
        );
        let header = v2(0x20, 0, &[]);
        assert_eq!(
            introduced("10.0.0.1", &header).await,
            Ok(("10.0.0.1".into(), false, get))
        );
    }

    #[tokio::test]
    async fn from_a_stranger_the_proxy_protocol_is_not_read_and_from_a_proxy_it_must_be_there() {
        let line = b"PROXY TCP4 198.51.100.7 10.0.0.1 56324 443\r\n";
        let untouched = Ok(("192.0.2.1".into(), false, line.to_vec()));
        assert_eq!(introduced("192.0.2.1", line).await, untouched);
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        for bad in [
            b"GET / HTTP/1.1\r\nhost: x\r\n".as_slice(),
            b"PROXY TCP4 2001:db8::5 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 198.51.100.7 10.0.0.1 1 99999\r\n",
            b"PROXY TCP5 198.51.100.7 10.0.0.1 1 2\r\n",
            &long,
            &v2(0x31, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 3]),
            &v2(0x21, 0x11, &vec![0; V2_LEN_MAX]),
        ] {
            assert_eq!(
                introduced("10.0.0.1", bad).await,
                Err(io::ErrorKind::InvalidData),
                "{bad:?}"
            );
        }
        assert_eq!(
            introduced("10.0.0.1", b"PROXY TCP4 1").await,
            Err(io::ErrorKind::UnexpectedEof)
        );
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_bounded_and_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), kind in 0..3) {
            let mut header = match kind {
                0 => V2_SIGNATURE.to_vec(),
                1 => b"PROXY TCP4 ".to_vec(),
                _ => Vec::new(),
            };
            header.extend(bytes);
            if let Some(Step::More(more)) = step(&header) {
                prop_assert!(more > 0 && header.len() + more <= V2_LEN_MAX);
            }
        }

        #[test]
        fn whatever_headers_say_a_stranger_stays_who_it_is(value in "[ -~]{0,80}") {
            prop_assert_eq!(client("192.0.2.1", &[(X_FORWARDED_FOR, &value), (FORWARDED, &value)]), "192.0.2.1");
            // And with a proxy it is some address, whatever was sent.
            client("10.0.0.1", &[(FORWARDED, &value)]);
        }
    }
}
