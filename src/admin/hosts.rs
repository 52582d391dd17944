//! Whether a request is meant for this listener, and comes from one of its own pages.
//!
//! `closehook.localhost` is a name of every listener: browsers lead it to the machine they run on and nowhere else (RFC 6761), and a
//! cookie that is set under it is not sent to what else listens there, whose pages are at `localhost` or an address.
//!
//! A name in `Host` that is not ours is that of a page elsewhere whose name was pointed at this machine (DNS rebinding): its script would
//! be of the same origin as ours. An address can't be pointed anywhere, and a port may be another one, behind a tunnel or a container's.

use std::net::{IpAddr, SocketAddr};

use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};

use super::refused::Refused;

/// A name of this machine that nothing else there goes by.
const OF_ITS_OWN: &str = "closehook.localhost";

/// The names that this listener has.
#[derive(Debug, Clone)]
pub struct Hosts {
    listen: IpAddr,
    also: Vec<String>,
}

/// The host and port that a request was sent to, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(pub String);

impl Hosts {
    /// Those of a listener on an address, and others in small letters.
    pub fn new(listen: SocketAddr, also: Vec<String>) -> Hosts {
        Hosts {
            listen: listen.ip().to_canonical(),
            also,
        }
    }

    /// What a request was sent to, where that is one of ours.
    pub fn check(&self, parts: &Parts) -> Result<Host, Refused> {
        let mut said = parts.headers.get_all(header::HOST).iter();
        let (in_head, second) = (said.next(), said.next());
        let in_target = parts.uri.authority().map(|authority| authority.as_str().to_owned());
        let in_head = match in_head {
            None => None,
            Some(host) => Some(host.to_str().map_err(|_| bad())?.to_owned()),
        };
        if second.is_some() {
            return Err(bad());
        }
        for host in in_target.iter().chain(&in_head) {
            let (name, _) = split(host).ok_or_else(bad)?;
            if !self.has(&name) {
                return Err(Refused::new(
                    StatusCode::MISDIRECTED_REQUEST,
                    "this listener does not have the name that the request says in Host: use its address or localhost, or list the name in \
                     admin.hosts",
                ));
            }
        }
        in_target
            .or(in_head)
            .map(|host| Host(host.to_ascii_lowercase()))
            .ok_or_else(bad)
    }

    fn has(&self, name: &str) -> bool {
        if let Ok(address) = name.parse::<IpAddr>() {
            let address = address.to_canonical();
            return address.is_loopback()
                || address == self.listen
                || self.listen.is_unspecified()
                || self.also.iter().any(|host| host.parse() == Ok(address));
        }
        name == "localhost" || name == OF_ITS_OWN || self.also.iter().any(|host| host == name)
    }
}

fn bad() -> Refused {
    Refused::new(
        StatusCode::BAD_REQUEST,
        "the request needs one Host, like \"localhost:8481\"",
    )
}

/// The name in small letters, without brackets and a dot at the end; and the port.
fn split(host: &str) -> Option<(String, Option<u16>)> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address, rest.strip_prefix(':').or(rest.is_empty().then_some(""))?)
        }
        None => host.split_once(':').unwrap_or((host, "")),
    };
    let port = match port {
        "" => None,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
        _ => return None,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty()).then(|| (name.to_ascii_lowercase(), port))
}

/// What a browser says of the page a request comes from.
const SITE: &str = "sec-fetch-site";

/// What a browser says of how it is fetched.
const MODE: &str = "sec-fetch-mode";

/// What is said to a request that comes from elsewhere.
fn from_elsewhere() -> Refused {
    Refused::new(
        StatusCode::FORBIDDEN,
        "this comes from another site's page, or from a browser that does not say where from: act from the operator's page itself, or send a \
         token as \"authorization: Bearer\"",
    )
}

/// What is said in one line at the most: where it is said twice, what stands behind whoever reads the first one would be hidden.
fn said_once<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h [u8]>, Refused> {
    let mut lines = headers.get_all(name).iter();
    let (first, second) = (lines.next(), lines.next());
    if second.is_some() {
        return Err(Refused::bad(format!("the request says {name} more than once")).at(name));
    }
    Ok(first.map(axum::http::HeaderValue::as_bytes))
}

/// Lets through what a browser fetches for one of our own pages, or where it was led to: a page elsewhere may lead to one of ours, and
/// may not have the daemon search or stream for it with the cookie of whoever looks at that page.
pub fn not_fetched_elsewhere(headers: &HeaderMap) -> Result<(), Refused> {
    let (site, mode) = (said_once(headers, SITE)?, said_once(headers, MODE)?);
    let is_own = site.is_none_or(|site| site == b"same-origin" || site == b"none");
    if is_own || mode == Some(b"navigate") {
        Ok(())
    } else {
        Err(from_elsewhere())
    }
}

/// Lets through what no page elsewhere has sent: where a browser says who sent it, that has to be one of our own.
pub fn not_from_elsewhere(headers: &HeaderMap, host: &Host) -> Result<(), Refused> {
    let site = said_once(headers, SITE)?;
    if site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return Err(from_elsewhere());
    }
    match origin(headers, host) {
        Origin::Own | Origin::Unsaid => Ok(()),
        // A page that sends no referrer sends no origin either; then the site speaks for it.
        Origin::Opaque if site == Some(b"same-origin") => Ok(()),
        Origin::Opaque | Origin::Other => Err(from_elsewhere()),
    }
}

/// Lets through what one of our own pages has sent, and nothing else.
pub fn from_own_page(headers: &HeaderMap, host: &Host) -> Result<(), Refused> {
    not_from_elsewhere(headers, host)?;
    let site = said_once(headers, SITE)?;
    let says_so = matches!(origin(headers, host), Origin::Own | Origin::Opaque);
    if says_so && site.is_none_or(|site| site == b"same-origin") {
        Ok(())
    } else {
        Err(from_elsewhere())
    }
}

/// Lets through what no page elsewhere reads, of what everybody may read who reaches the listener by whatever name. A browser that says so
/// is led here or asked by one of our own pages; a page whose name was pointed here is asked by its own.
pub fn not_read_elsewhere(parts: &Parts, host: Result<Host, Refused>) -> Result<(), Refused> {
    let refused = || {
        let message = "a page of another site may not read this: open it by itself";
        Refused::new(StatusCode::FORBIDDEN, message)
    };
    let headers = &parts.headers;
    not_fetched_elsewhere(headers).map_err(|_| refused())?;
    if said_once(headers, SITE)?.is_none() && !headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    match origin(headers, &host?) {
        Origin::Own | Origin::Unsaid => Ok(()),
        Origin::Opaque | Origin::Other => Err(refused()),
    }
}

/// Whether a browser says that a page elsewhere led here.
pub fn was_led_here(headers: &HeaderMap) -> bool {
    let is_elsewhere = |site: &axum::http::HeaderValue| site != "same-origin" && site != "none";
    headers.get_all(SITE).iter().any(is_elsewhere)
}

#[derive(Debug, PartialEq, Eq)]
enum Origin {
    Own,
    Other,
    Opaque,
    Unsaid,
}

fn origin(headers: &HeaderMap, host: &Host) -> Origin {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (Some(origin), second) = (origins.next(), origins.next()) else {
        return Origin::Unsaid;
    };
    if second.is_some() {
        return Origin::Other;
    }
    let Ok(origin) = origin.to_str() else {
        return Origin::Other;
    };
    if origin == "null" {
        return Origin::Opaque;
    }
    // Whether somebody in front of this listener speaks TLS is not known here; a page of the other scheme has none of our cookies.
    let own = ["http://", "https://"].iter().find_map(|scheme| {
        let default = if *scheme == "http://" { 80 } else { 443 };
        Some((split(origin.strip_prefix(scheme)?)?, default))
    });
    let (Some(((name, port), default)), Some((host, host_port))) = (own, split(&host.0)) else {
        return Origin::Other;
    };
    if name == host && port.unwrap_or(default) == host_port.unwrap_or(default) {
        Origin::Own
    } else {
        Origin::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn parts(target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn is_ours(hosts: &Hosts, host: &str) -> bool {
        hosts.check(&parts("/", &[("host", host)])).is_ok()
    }

    #[test]
    fn names_that_are_not_ours_are_refused_and_addresses_and_localhost_are_not() {
        let hosts = Hosts::new(
            "127.0.0.1:8481".parse().unwrap(),
            vec!["hooks.example.com".to_owned(), "10.0.0.7".to_owned()],
        );
        for ours in [
            "127.0.0.1:8481",
            "127.0.0.1",
            "127.0.0.1:9999",
            "[::1]:8481",
            "[::1]",
            "localhost",
            "localhost:8481",
            "LOCALHOST.:1",
            "closehook.localhost:8481",
            "hooks.example.com",
            "Hooks.Example.com:443",
            "hooks.example.com.",
            "10.0.0.7:80",
        ] {
            assert!(is_ours(&hosts, ours), "{ours}");
        }
        for other in [
            "evil.example",
            "evil.example:8481",
            "localhost.evil.example",
            "evil.localhost",
            "x.closehook.localhost",
            "127.0.0.1.evil.example",
            "10.0.0.8:8481",
            "xhooks.example.com",
            "hooks.example.com.evil.example",
            "",
            ":8481",
            "[::1",
            "[::1]x",
            "localhost:x",
            "localhost:99999",
            "user@localhost",
            "local host",
            "[evil.example]:80",
            "hooks.example.com:80:80",
            "0x7f.1",
        ] {
            assert!(!is_ours(&hosts, other), "{other}");
        }
        assert!(hosts.check(&parts("/", &[])).is_err(), "none at all");
        assert!(
            hosts
                .check(&parts("/", &[("host", "localhost"), ("host", "localhost")]))
                .is_err(),
            "two"
        );
        assert!(
            hosts
                .check(&parts("http://evil.example/", &[("host", "localhost")]))
                .is_err(),
            "in the target"
        );
        assert!(
            hosts
                .check(&parts("http://localhost/", &[("host", "evil.example")]))
                .is_err()
        );
        assert!(
            hosts.check(&parts("http://localhost/", &[])).is_ok(),
            "as HTTP/2 says it"
        );
        let everywhere = Hosts::new("0.0.0.0:8481".parse().unwrap(), Vec::new());
        assert!(is_ours(&everywhere, "192.0.2.1:8481") && !is_ours(&everywhere, "evil.example"));
    }

    #[test]
    fn what_acts_has_to_come_from_one_of_our_own_pages() {
        let host = Host("localhost:8481".to_owned());
        let headers = |origin: Option<&str>, site: Option<&str>| {
            let mut headers = HeaderMap::new();
            origin.map(|origin| headers.insert("origin", origin.parse().unwrap()));
            site.map(|site| headers.insert("sec-fetch-site", site.parse().unwrap()));
            headers
        };
        let own = "http://localhost:8481";
        for (origin, site, acts, looks) in [
            (Some(own), Some("same-origin"), true, true),
            (Some(own), None, true, true),
            (Some("HTTP://localhost:8481"), None, false, false),
            (Some("https://localhost:8481"), None, true, true),
            (Some("null"), Some("same-origin"), true, true),
            (Some("null"), None, false, false),
            (Some("null"), Some("cross-site"), false, false),
            (None, None, false, true),
            (None, Some("none"), false, true),
            (None, Some("same-origin"), false, true),
            (Some(own), Some("cross-site"), false, false),
            (Some(own), Some("same-site"), false, false),
            (Some(own), Some("none"), false, true),
            (Some("http://localhost:9999"), None, false, false),
            (Some("http://localhost"), None, false, false),
            (Some("http://evil.example"), None, false, false),
            (Some("http://localhost:8481.evil.example"), None, false, false),
            (Some("http://localhost:8481/"), None, false, false),
        ] {
            let headers = headers(origin, site);
            assert_eq!(from_own_page(&headers, &host).is_ok(), acts, "{origin:?} {site:?}");
            assert_eq!(
                not_from_elsewhere(&headers, &host).is_ok(),
                looks,
                "{origin:?} {site:?}"
            );
        }
        let twice = |name: &'static str, one: &str, other: &str| {
            let mut headers = headers(Some(own), None);
            headers.append(name, one.parse().unwrap());
            headers.append(name, other.parse().unwrap());
            headers
        };
        for headers in [
            twice("sec-fetch-site", "same-origin", "cross-site"),
            twice("sec-fetch-site", "same-origin", "same-origin"),
            twice("origin", own, "http://evil.example"),
        ] {
            assert!(from_own_page(&headers, &host).is_err(), "{headers:?}");
            assert!(not_from_elsewhere(&headers, &host).is_err(), "{headers:?}");
        }
        let default = Host("hooks.example.com".to_owned());
        for (origin, fits) in [
            ("https://hooks.example.com", true),
            ("https://hooks.example.com:443", true),
            ("http://hooks.example.com", true),
            ("https://hooks.example.com:8481", false),
        ] {
            assert_eq!(
                from_own_page(&headers(Some(origin), None), &default).is_ok(),
                fits,
                "{origin}"
            );
        }
    }

    #[test]
    fn what_is_open_to_everybody_is_read_by_any_name_and_by_no_page_elsewhere() {
        let hosts = Hosts::new("127.0.0.1:8481".parse().unwrap(), Vec::new());
        let reads = |headers: &[(&str, &str)]| {
            let parts = parts("/metrics", headers);
            not_read_elsewhere(&parts, hosts.check(&parts)).is_ok()
        };
        let (site, mode, own) = ("sec-fetch-site", "sec-fetch-mode", ("host", "localhost:8481"));
        for fine in [
            &[("host", "closehook.internal:8481")][..],
            &[],
            &[own, (site, "same-origin"), (mode, "cors")],
            &[own, (site, "cross-site"), (mode, "navigate")],
            &[own, ("origin", "http://localhost:8481")],
        ] {
            assert!(reads(fine), "{fine:?}");
        }
        for bad in [
            &[own, (site, "cross-site"), (mode, "no-cors")][..],
            &[own, ("origin", "http://evil.example")],
            &[own, ("origin", "null")],
            // A name that was pointed here.
            &[("host", "evil.example:8481"), (site, "same-origin"), (mode, "cors")],
            &[("host", "evil.example:8481"), ("origin", "http://evil.example:8481")],
        ] {
            assert!(!reads(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_page_elsewhere_may_lead_here_and_fetch_nothing() {
        let fetched = |lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, value.parse().unwrap());
            }
            not_fetched_elsewhere(&headers).is_ok()
        };
        let (site, mode) = ("sec-fetch-site", "sec-fetch-mode");
        for fine in [
            &[][..],
            &[(site, "same-origin"), (mode, "cors")],
            &[(site, "none"), (mode, "navigate")],
            &[(site, "same-site"), (mode, "navigate")],
            &[(site, "cross-site"), (mode, "navigate")],
        ] {
            assert!(fetched(fine), "{fine:?}");
        }
        for bad in [
            &[(site, "same-site"), (mode, "no-cors")][..],
            &[(site, "same-site"), (mode, "cors")],
            &[(site, "cross-site")],
            &[(site, "same-origin"), (site, "cross-site"), (mode, "cors")],
            &[(site, "cross-site"), (mode, "cors"), (mode, "navigate")],
        ] {
            assert!(!fetched(bad), "{bad:?}");
        }
    }
}
