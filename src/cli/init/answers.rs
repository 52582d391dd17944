//! What the configuration has to say, from flags, from what is there already, and from a person.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use reqwest::Url;

use super::Flags;
use crate::cli::connect::is_missing;
use crate::cli::{Failure, term};
use crate::config::{self, Acme, Config, Listen, Networks, Tls};
use crate::listener::tls;

/// The port of HTTPS.
const HTTPS_PORT: u16 = 443;

/// How HTTPS comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// closehook orders and renews a certificate itself; port 443 must reach it
    Acme,
    /// Something in front of closehook (nginx, caddy, a load balancer) speaks HTTPS
    Proxy,
    /// From certificate files that somebody else renews
    Files,
}

/// The same with all it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Https {
    Acme {
        domains: Vec<String>,
        /// `None`: as it is.
        email: Option<String>,
        /// `None`: as it is.
        directory: Option<String>,
    },
    Proxy {
        /// `None`: as it is.
        trusted: Option<Vec<String>>,
    },
    Files(Tls),
    /// Not at all: on this machine only, for trying out.
    Plain,
}

/// The public URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicUrl(Url);

impl PublicUrl {
    /// Reads a URL, or a host name alone. `path` is where deliveries go if it does not say.
    pub fn parse(text: &str, path: &str) -> Result<PublicUrl, String> {
        let text = text.trim();
        let is_whole = text.contains("://");
        let whole = if is_whole {
            text.to_owned()
        } else {
            format!("https://{text}")
        };
        let wrong = |why: &str| format!("\"{text}\" {why}: write it like https://hooks.example.com/webhooks/close");
        let mut url = Url::parse(&whole).map_err(|error| wrong(&format!("is no URL ({error})")))?;
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| wrong("names no host"))?;
        if url.scheme() != "https" && !(url.scheme() == "http" && is_this_machine(host)) {
            return Err(wrong("is not https, and Close delivers nowhere else"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("is more than scheme, host and path"));
        }
        if url.path() == "/" && !text.ends_with('/') {
            url.set_path(path);
        }
        Ok(PublicUrl(url))
    }

    pub fn url(&self) -> &Url {
        &self.0
    }

    /// The host's name or address.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or(HTTPS_PORT)
    }

    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    fn is_named(&self) -> bool {
        self.host().parse::<IpAddr>().is_err() && self.host().contains('.') || self.host() == "localhost"
    }
}

fn is_this_machine(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Everything the configuration has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answers {
    pub url: PublicUrl,
    pub https: Https,
    pub listen: Listen,
    /// The data directory of a configuration that is made now; `None`: as it is.
    pub data: Option<PathBuf>,
}

impl Answers {
    /// Whether clients reach the daemon itself.
    pub fn is_direct(&self) -> bool {
        matches!(self.https, Https::Acme { .. } | Https::Files(_))
    }

    /// The port that needs a privilege; `None`: it needs none.
    pub fn low_port(&self) -> Option<u16> {
        match &self.listen {
            Listen::Tcp(address) if address.port() != 0 && address.port() < 1024 => Some(address.port()),
            _ => None,
        }
    }
}

/// Who answers what flags and configuration leave open.
#[derive(Debug)]
pub(super) enum Asked {
    /// Nobody: what is missing is collected, to be named at once.
    Nobody(Vec<&'static str>),
    /// A person at a terminal.
    Person,
}

impl Asked {
    /// An answer that is needed.
    async fn need<T>(
        &mut self,
        flag: &'static str,
        question: &str,
        default: Option<&str>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        match self {
            Asked::Person => term::ask(question, default, read).await.map(Some),
            Asked::Nobody(missing) => {
                if default.is_none() {
                    missing.push(flag);
                }
                default.map(read).transpose().map_err(Failure::Usage)
            }
        }
    }
}

/// What there is to go by.
#[derive(Debug)]
pub(super) struct Known<'k> {
    /// What the configuration says now, or would say if it were there.
    pub config: &'k Config,
    /// Where it is, absolute.
    pub file: &'k Path,
    /// There is no file yet.
    pub is_new: bool,
}

impl Known<'_> {
    /// How HTTPS comes about by what is configured; `None`: nothing says so.
    fn way(&self) -> Option<Way> {
        let server = &self.config.server;
        if server.acme.is_some() {
            Some(Way::Acme)
        } else if server.tls.is_some() {
            Some(Way::Files)
        } else if server.public_url.is_some() || !server.trusted_proxies.is_empty() {
            Some(Way::Proxy)
        } else {
            None
        }
    }

    fn data(&self, flags: &Flags) -> Option<PathBuf> {
        if let Some(data) = &flags.data {
            return Some(std::path::absolute(data).unwrap_or_else(|_| data.clone()));
        }
        let usual = Path::new("/etc/closehook");
        let is_default = self.config.log.dir == Path::new("/var/lib/closehook");
        (self.is_new && is_default && self.file.parent() != Some(usual))
            .then(|| self.file.with_file_name("closehook-data"))
    }
}

/// Puts the answers together. An error is bad usage, or says that nobody answered; what is missing stays in `asked`, and then
/// there is no answer.
pub(super) async fn gather(flags: &Flags, known: &Known<'_>, asked: &mut Asked) -> Result<Option<Answers>, Failure> {
    let server = &known.config.server;
    let default = flags.url.as_deref().or(server.public_url.as_deref());
    let read = |text: &str| PublicUrl::parse(text, &server.path);
    let url = if let Some(url) = &flags.url {
        Some(read(url).map_err(Failure::Usage)?)
    } else {
        let question = "Public URL that Close shall deliver to, or this host's public name";
        asked.need("--url", question, default, read).await?
    };
    let is_plain = url.as_ref().is_some_and(|url| !url.is_https());
    let way = match (flags.https, known.way()) {
        (Some(way), _) => Some(way),
        (None, _) if is_plain => Some(Way::Proxy),
        (None, way) => ask_way(way, asked).await?,
    };
    if is_plain && matches!(way, Some(Way::Acme | Way::Files)) {
        return Err(Failure::Usage(
            "--https with certificates needs a public URL that begins with https".into(),
        ));
    }
    let https = match way {
        None => None,
        Some(Way::Acme) => acme(flags, known, url.as_ref(), asked).await?,
        Some(Way::Files) => files(flags, server.tls.as_ref(), asked).await?.map(Https::Files),
        Some(Way::Proxy) if is_plain && flags.https.is_none() && server.trusted_proxies.is_empty() => {
            Some(Https::Plain)
        }
        Some(Way::Proxy) => Some(Https::Proxy { trusted: None }),
    };
    let (Some(url), Some(mut https)) = (url, https) else {
        return Ok(None);
    };
    let listen = where_to_listen(flags, known, way, &url, &https);
    if let Https::Proxy { trusted } = &mut https {
        *trusted = trusted_proxies(flags, server, &listen, asked).await?;
    }
    let data = known.data(flags);
    let data = match (data, &asked) {
        (Some(data), Asked::Person) if flags.data.is_none() => {
            let question = "Directory in which events are kept";
            let read = |text: &str| std::path::absolute(text).map_err(|error| error.to_string());
            Some(term::ask(question, Some(&data.display().to_string()), read).await?)
        }
        (data, _) => data,
    };
    let is_elsewhere = flags.data.is_some() && data.as_ref() != Some(&known.config.log.dir);
    if is_elsewhere && !known.is_new && !is_missing(&known.config.log.dir) {
        return Err(Failure::Usage(format!(
            "--data is for a new configuration: events are kept in {} already (README.md says how to move them)",
            known.config.log.dir.display()
        )));
    }
    Ok(Some(Answers {
        url,
        https,
        listen,
        data,
    }))
}

/// Where the daemon listens: as it does, unless the way asks for another place or nobody has chosen one.
fn where_to_listen(flags: &Flags, known: &Known<'_>, way: Option<Way>, url: &PublicUrl, https: &Https) -> Listen {
    let server = &known.config.server;
    let is_same_way = known.way() == way;
    let is_untouched = server.listen == Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 8480)));
    let is_kept = match https {
        // Nobody reaches the default, on loopback, from outside.
        Https::Acme { .. } | Https::Files(_) => !is_untouched && (is_same_way || known.way().is_none()),
        Https::Proxy { .. } => is_same_way || known.way().is_none() || matches!(server.listen, Listen::Unix(_)),
        Https::Plain => !is_untouched,
    };
    match &flags.listen {
        Some(listen) => listen.clone(),
        None if is_kept => server.listen.clone(),
        None => Listen::Tcp(match https {
            Https::Acme { .. } | Https::Files(_) => SocketAddr::new(every_address(), url.port()),
            Https::Proxy { .. } => SocketAddr::from(([127, 0, 0, 1], 8480)),
            Https::Plain => SocketAddr::new(loopback(url.host()), url.port()),
        }),
    }
}

async fn ask_way(known: Option<Way>, asked: &mut Asked) -> Result<Option<Way>, Failure> {
    let name = |way: Way| match way {
        Way::Acme => "acme",
        Way::Proxy => "proxy",
        Way::Files => "files",
    };
    if matches!(asked, Asked::Person) {
        eprintln!("How does HTTPS come about?");
        eprintln!(
            "  acme   closehook orders and renews a certificate itself; port 443 of that name must reach this machine"
        );
        eprintln!("  proxy  something in front of closehook (nginx, caddy, a load balancer) speaks HTTPS");
        eprintln!("  files  from certificate files that somebody else renews");
    }
    let default = match (known, &asked) {
        (Some(way), _) => Some(name(way)),
        (None, Asked::Person) => Some("acme"),
        (None, Asked::Nobody(_)) => None,
    };
    let read = |text: &str| Way::from_str(text, true).map_err(|_| "acme, proxy or files?".to_owned());
    asked.need("--https", "One of these", default, read).await
}

async fn acme(
    flags: &Flags,
    known: &Known<'_>,
    url: Option<&PublicUrl>,
    asked: &Asked,
) -> Result<Option<Https>, Failure> {
    let Some(url) = url else { return Ok(None) };
    if !url.is_named() {
        return Err(Failure::Usage(format!(
            "a certificate is ordered for a name, and {} is none: use a host name in --url, or --https proxy or files",
            url.host()
        )));
    }
    let configured = known.config.server.acme.as_ref();
    let is_usual = configured.is_none_or(|acme| acme.directory.contains("letsencrypt.org"));
    if is_usual && flags.acme_directory.as_deref().is_none_or(|name| !name.contains("://")) && url.port() != HTTPS_PORT
    {
        return Err(Failure::Usage(format!(
            "Let's Encrypt looks for this host at port 443, and the public URL names port {}: use port 443, or --https proxy or files",
            url.port()
        )));
    }
    let has = |acme: &&Acme| {
        acme.domains
            .iter()
            .any(|domain| domain.eq_ignore_ascii_case(url.host()))
    };
    let domains = configured
        .filter(has)
        .map_or_else(|| vec![url.host().to_owned()], |acme| acme.domains.clone());
    let (mut email, mut directory) = (flags.email.clone(), flags.acme_directory.clone());
    if matches!(asked, Asked::Person) && configured.is_none() {
        if email.is_none() {
            let read = |text: &str| match text {
                "none" => Ok(None),
                text if text.contains('@') => Ok(Some(text.to_owned())),
                _ => Err("an address like ops@example.com, or none".to_owned()),
            };
            email = term::ask(
                "E-mail address for warnings of the certificate's issuer",
                Some("none"),
                read,
            )
            .await?;
        }
        if directory.is_none() {
            let read = |text: &str| match text {
                "production" | "staging" => Ok(text.to_owned()),
                _ => Err("production, or staging to try out (nobody trusts its certificates)".to_owned()),
            };
            directory =
                Some(term::ask("Let's Encrypt", Some("production"), read).await?).filter(|name| name != "production");
        }
    }
    Ok(Some(Https::Acme {
        domains,
        email,
        directory,
    }))
}

async fn files(flags: &Flags, known: Option<&Tls>, asked: &mut Asked) -> Result<Option<Tls>, Failure> {
    let read = |text: &str| {
        let path = std::path::absolute(text).map_err(|error| error.to_string())?;
        if path.is_file() {
            Ok(path)
        } else {
            Err(format!("there is no file {}", path.display()))
        }
    };
    let mut one = async |flag: &'static str, question: &str, given: Option<&PathBuf>, known: Option<&PathBuf>| {
        if let Some(given) = given {
            return read(&given.display().to_string()).map(Some).map_err(Failure::Usage);
        }
        let known = known.map(|path| path.display().to_string());
        asked.need(flag, question, known.as_deref(), read).await
    };
    let question = "PEM file with the certificate and its chain";
    let cert = one("--cert", question, flags.cert.as_ref(), known.map(|tls| &tls.cert)).await?;
    let question = "PEM file with its private key";
    let key = one(
        "--cert-key",
        question,
        flags.cert_key.as_ref(),
        known.map(|tls| &tls.key),
    )
    .await?;
    let (Some(cert), Some(key)) = (cert, key) else {
        return Ok(None);
    };
    let files = Tls { cert, key };
    tls::load(&files).map_err(Failure::Work)?;
    Ok(Some(files))
}

/// Which proxies are believed; `None`: as it is.
async fn trusted_proxies(
    flags: &Flags,
    server: &config::Server,
    listen: &Listen,
    asked: &mut Asked,
) -> Result<Option<Vec<String>>, Failure> {
    let split = |text: &str| -> Result<Vec<String>, String> {
        text.parse::<Networks>()?;
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(parts.map(ToOwned::to_owned).collect())
    };
    if let Some(networks) = &flags.trusted_proxies {
        let same = networks.parse::<Networks>().map_err(Failure::Usage)? == server.trusted_proxies;
        return if same {
            Ok(None)
        } else {
            split(networks).map(Some).map_err(Failure::Usage)
        };
    }
    match listen {
        _ if !server.trusted_proxies.is_empty() => Ok(None),
        // Whoever reaches the socket file is believed anyway.
        Listen::Unix(_) => Ok(None),
        Listen::Tcp(address) if address.ip().is_loopback() => Ok(Some(vec!["127.0.0.1".into(), "::1".into()])),
        Listen::Tcp(_) => {
            let question = "Networks of the proxies, with commas between them";
            asked.need("--trusted-proxies", question, None, split).await
        }
    }
}

/// Every address of this machine: IPv6 with IPv4 in it, where there is IPv6.
fn every_address() -> IpAddr {
    match std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }
}

fn loopback(host: &str) -> IpAddr {
    host.parse().unwrap_or(Ipv4Addr::LOCALHOST.into())
}

#[cfg(test)]
mod tests;
