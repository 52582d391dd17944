//! Reading `[server]`: where deliveries come in, and within which limits.

use reqwest::Url;
use rustls_acme::acme::{LETS_ENCRYPT_PRODUCTION_DIRECTORY, LETS_ENCRYPT_STAGING_DIRECTORY};
use serde_json::Value;

use super::table::{FromValue, Table};
use super::{Acme, Listen, Networks, Rate, Server, Size, Span, Tls};

pub(super) fn read_server(table: &mut Table<'_>) -> Server {
    let server = Server {
        listen: table.or("listen", Listen::Tcp(([127, 0, 0, 1], 8480).into())),
        listen_mode: read_mode(table, "listen_mode", 0o660),
        trusted_proxies: read_networks(table, "trusted_proxies"),
        allow: read_networks(table, "allow"),
        connections_per_address: table.within("connections_per_address", 256, 1, 1_000_000),
        failures_per_address: table.or("failures_per_address", Rate(1.0)),
        proxy_protocol: table.or("proxy_protocol", false),
        path: table.or("path", "/webhooks/close".to_owned()),
        public_url: table.optional("public_url").filter(|url: &String| !url.is_empty()),
        max_body: table.within("max_body", Size(4 << 20), Size(1 << 10), Size(64 << 20)),
        signature_tolerance: table.or("signature_tolerance", Span::secs(73 * 3600)),
        clock_skew: table.or("clock_skew", Span::secs(300)),
        tls: if table.has("tls") {
            table.table("tls", read_tls)
        } else {
            None
        },
        acme: if table.has("acme") {
            table.table("acme", read_acme)
        } else {
            None
        },
        head_timeout: table.within("head_timeout", Span::secs(10), Span::secs(1), Span::secs(600)),
        body_timeout: table.within("body_timeout", Span::secs(30), Span::secs(1), Span::secs(600)),
        idle_timeout: table.within("idle_timeout", Span::secs(75), Span::secs(1), Span::secs(3600)),
        max_connections: table.within("max_connections", 10_000, 1, 1_000_000),
        max_inflight: table.or("max_inflight", Size(64 << 20)),
        drain_timeout: table.within("drain_timeout", Span::secs(20), Span::secs(0), Span::secs(600)),
    };
    if !server.path.starts_with('/') {
        table.fault("path", "must begin with a slash, like \"/webhooks/close\"");
    }
    if server.tls.is_some() && server.acme.is_some() {
        table.fault(
            "acme",
            "and server.tls are both given: keep the one the certificate comes from",
        );
    }
    if server.proxy_protocol && server.trusted_proxies.is_empty() && !matches!(server.listen, Listen::Unix(_)) {
        table.fault(
            "proxy_protocol",
            "is believed of trusted peers only: set trusted_proxies to the networks of your proxies",
        );
    }
    if server.max_inflight < server.max_body {
        table.fault(
            "max_inflight",
            format!("must be at least max_body ({})", server.max_body),
        );
    }
    server
}

impl Server {
    /// One sentence where Close can't deliver to what it is told, or is told another path than deliveries are taken at. Receiving goes
    /// on all the same.
    pub(super) fn doubtful_url(&self) -> Option<String> {
        let text = self.public_url.as_deref()?;
        let Some(url) = delivered_to(text) else {
            return Some(
                "server.public_url: is no URL that Close can deliver to, with scheme and host, like \"https://hooks.example.com/webhooks/close\""
                    .to_owned(),
            );
        };
        (url.path() != self.path).then(|| {
            format!(
                "server.public_url: its path is {}, and deliveries are taken at {} (server.path): they are answered 404 unless a proxy in front writes one for the other",
                url.path(),
                self.path
            )
        })
    }
}

/// It has a scheme and a host, and nothing that is for the sender alone.
fn delivered_to(text: &str) -> Option<Url> {
    let (scheme, rest) = text.split_once("://")?;
    let is_http = ["https", "http"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let is_whole = is_http && !rest.starts_with(['/', '\\']) && !text.contains(char::is_whitespace);
    let url = Url::parse(text).ok().filter(|_| is_whole)?;
    (url.has_host() && url.fragment().is_none()).then_some(url)
}

/// A list of networks or, as the environment has it, one string with commas. Each that is none is named with its place.
fn read_networks(table: &mut Table<'_>, key: &str) -> Networks {
    let list: Vec<String> = match table.raw(key) {
        None => return Networks::default(),
        Some(Value::String(text)) => {
            let parts = text.split(',').filter(|part| !part.trim().is_empty());
            parts.map(str::to_owned).collect()
        }
        Some(list) => match Vec::<String>::from_value(list) {
            Ok(list) => list,
            Err(message) => {
                table.fault(key, message);
                return Networks::default();
            }
        },
    };
    let mut networks = Networks::default();
    for (index, text) in list.iter().enumerate() {
        match text.parse::<Networks>() {
            Ok(more) => networks.extend(more),
            Err(message) => table.fault(&format!("{key}[{index}]"), message),
        }
    }
    networks
}

/// Permission bits, in octal digits.
fn read_mode(table: &mut Table<'_>, key: &str, default: u32) -> u32 {
    let Some(text) = table.optional::<String>(key) else {
        return default;
    };
    u32::from_str_radix(&text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .unwrap_or_else(|| {
            table.fault(
                key,
                format!("\"{text}\" is no file mode in octal digits, like \"0660\""),
            );
            default
        })
}

fn read_tls(table: &mut Table<'_>) -> Option<Tls> {
    let cert = table.required("cert", "\"/etc/closehook/fullchain.pem\"");
    let key = table.required("key", "\"/etc/closehook/privkey.pem\"");
    Some(Tls { cert: cert?, key: key? })
}

fn read_acme(table: &mut Table<'_>) -> Option<Acme> {
    let domains: Option<Vec<String>> = table.required("domains", "[\"hooks.example.com\"]");
    if let Some(domains) = &domains {
        if domains.is_empty() {
            table.fault("domains", "is empty: name this host, like [\"hooks.example.com\"]");
        }
        for (index, domain) in domains.iter().enumerate().filter(|(_, domain)| !is_host_name(domain)) {
            table.fault(
                &format!("domains[{index}]"),
                format!("\"{domain}\" is no host name (addresses, ports and wildcards are none)"),
            );
        }
    }
    let directory = table.or("directory", "production".to_owned());
    let directory = acme_directory(&directory).unwrap_or_else(|fault| {
        table.fault("directory", fault);
        directory
    });
    Some(Acme {
        domains: domains?,
        email: table.optional("email"),
        directory,
        cache: table.optional("cache"),
        ca: table.optional("ca"),
    })
}

/// The URL of an ACME directory that is given by name or by URL. An error is one sentence.
pub fn acme_directory(text: &str) -> Result<String, String> {
    match text {
        "production" => Ok(LETS_ENCRYPT_PRODUCTION_DIRECTORY.to_owned()),
        "staging" => Ok(LETS_ENCRYPT_STAGING_DIRECTORY.to_owned()),
        url if url.starts_with("https://") => Ok(url.to_owned()),
        other => Err(format!(
            "\"{other}\" is not \"production\", \"staging\" (both Let's Encrypt's) or an https URL"
        )),
    }
}

fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label) && name.parse::<std::net::IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_given_by_name_or_by_url() {
        assert_eq!(acme_directory("production").unwrap(), LETS_ENCRYPT_PRODUCTION_DIRECTORY);
        assert_eq!(acme_directory("staging").unwrap(), LETS_ENCRYPT_STAGING_DIRECTORY);
        let own = "https://ca.example.com/directory";
        assert_eq!(acme_directory(own).unwrap(), own);
        for wrong in ["", "prod", "http://ca.example.com/directory"] {
            assert!(acme_directory(wrong).unwrap_err().contains("an https URL"), "{wrong}");
        }
    }
}
