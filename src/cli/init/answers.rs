//! What the configuration has to say, from flags, from what is there already, and from a person; and how the text of the
//! configuration changes for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use reqwest::Url;
use toml_edit::Value;

use super::document::Editor;
use super::Flags;
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
    let is_same_way = known.way() == way;
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
    let is_untouched = server.listen == Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 8480)));
    let is_kept = match https {
        // Nobody reaches the default, on loopback, from outside.
        Https::Acme { .. } | Https::Files(_) => !is_untouched && (is_same_way || known.way().is_none()),
        Https::Proxy { .. } => is_same_way || known.way().is_none() || matches!(server.listen, Listen::Unix(_)),
        Https::Plain => !is_untouched,
    };
    let listen = match &flags.listen {
        Some(listen) => listen.clone(),
        None if is_kept => server.listen.clone(),
        None => Listen::Tcp(match &https {
            Https::Acme { .. } | Https::Files(_) => SocketAddr::new(every_address(), url.port()),
            Https::Proxy { .. } => SocketAddr::from(([127, 0, 0, 1], 8480)),
            Https::Plain => SocketAddr::new(loopback(url.host()), url.port()),
        }),
    };
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
    if flags.data.is_some() && !known.is_new && data.as_ref() != Some(&known.config.log.dir) {
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
            directory = Some(term::ask("Let's Encrypt", Some("production"), read).await?)
                .filter(|name| name != "production");
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

/// What else is to be changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// What `close.api_key_file` becomes; `None`: as it is.
    pub api_key_file: Option<String>,
    /// `[[close.subscriptions]]` whose keys do not exist, by their index.
    pub dead_keys: Vec<usize>,
}

/// The text of the configuration with the answers in it; what `config` says already is not written again.
pub(super) fn edit(text: &str, config: &Config, answers: &Answers, changes: &Changes) -> Result<String, String> {
    let mut editor = Editor::new(text)?;
    let server = &config.server;
    if let Some(data) = &answers.data
        && *data != config.log.dir
    {
        editor.set("log", "dir", data.display().to_string())?;
    }
    let url = answers.url.url().as_str();
    if server.public_url.as_deref() != Some(url) {
        editor.set("server", "public_url", url)?;
    }
    let path = answers.url.url().path();
    // A proxy may have other paths than what is behind it, where somebody has made it so.
    let known_path = server.public_url.as_deref().and_then(|url| Url::parse(url).ok());
    let is_chosen = known_path.is_some_and(|url| url.path() != server.path);
    if server.path != path && (answers.is_direct() || !is_chosen) {
        editor.set("server", "path", path)?;
    }
    if server.listen != answers.listen {
        editor.set("server", "listen", answers.listen.to_string())?;
    }
    match &answers.https {
        Https::Acme {
            domains,
            email,
            directory,
        } => {
            editor.retire_table("server.tls")?;
            let known = server.acme.as_ref();
            if known.is_none_or(|acme| acme.domains != *domains) {
                editor.set("server.acme", "domains", list(domains))?;
            }
            if let Some(email) = email
                && known.and_then(|acme| acme.email.as_ref()) != Some(email)
            {
                editor.set("server.acme", "email", email.as_str())?;
            }
            if let Some(directory) = directory
                && !known.is_some_and(|acme| config::acme_directory(directory).is_ok_and(|url| url == acme.directory))
            {
                editor.set("server.acme", "directory", directory.as_str())?;
            }
        }
        Https::Files(files) => {
            editor.retire_table("server.acme")?;
            if server.tls.as_ref() != Some(files) {
                editor.set("server.tls", "cert", files.cert.display().to_string())?;
                editor.set("server.tls", "key", files.key.display().to_string())?;
            }
        }
        Https::Proxy { trusted } => {
            editor.retire_table("server.tls")?;
            editor.retire_table("server.acme")?;
            if let Some(trusted) = trusted {
                editor.set("server", "trusted_proxies", list(trusted))?;
            }
        }
        Https::Plain => {
            editor.retire_table("server.tls")?;
            editor.retire_table("server.acme")?;
        }
    }
    if let Some(file) = &changes.api_key_file {
        editor.retire_table("close.oauth")?;
        editor.remove("close", "api_key")?;
        editor.remove("close", "api_key_env")?;
        editor.set("close", "api_key_file", file.as_str())?;
    }
    // From the last on, so that the others keep their numbers.
    for index in changes.dead_keys.iter().rev() {
        editor.retire_entry("close.subscriptions", *index)?;
    }
    Ok(editor.text().to_owned())
}

fn list(texts: &[String]) -> Value {
    texts.iter().map(String::as_str).collect()
}

/// The text of a configuration that is not there yet: the commented reference, without its sink.
pub(super) fn new_text() -> Result<String, String> {
    let mut editor = Editor::new(include_str!("../../../config/closehook.toml"))?;
    editor.retire_entry("sinks", 0)?;
    Ok(editor.text().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    fn load(text: &str) -> Config {
        let layers = Layers {
            file: Some("/etc/closehook/closehook.toml".into()),
            ..Layers::default()
        };
        Config::of_text(&layers, text).unwrap_or_else(|faults| panic!("{faults:?}: {text}"))
    }

    fn answers(url: &str, https: Https, listen: &str) -> Answers {
        Answers {
            url: PublicUrl::parse(url, "/webhooks/close").unwrap(),
            https,
            listen: listen.parse().unwrap(),
            data: None,
        }
    }

    fn ways() -> Vec<Answers> {
        let acme = |directory: Option<&str>| Https::Acme {
            domains: vec!["hooks.example.com".into()],
            email: Some("ops@example.com".into()),
            directory: directory.map(Into::into),
        };
        let proxy = |trusted: Option<Vec<String>>| Https::Proxy { trusted };
        let files = Tls {
            cert: "/c.pem".into(),
            key: "/k.pem".into(),
        };
        vec![
            answers("hooks.example.com", acme(None), "[::]:443"),
            answers("https://hooks.example.com/x", acme(Some("staging")), "0.0.0.0:443"),
            answers(
                "hooks.example.com",
                proxy(Some(vec!["10.0.0.0/8".into()])),
                "0.0.0.0:8480",
            ),
            answers("hooks.example.com", proxy(None), "unix:/run/closehook/public.sock"),
            answers("hooks.example.com", Https::Files(files), "[::]:443"),
            answers("http://127.0.0.1:8480", Https::Plain, "127.0.0.1:8480"),
        ]
    }

    #[test]
    fn an_edit_says_what_was_answered_and_a_second_one_nothing_more() {
        let changes = Changes {
            api_key_file: Some("/etc/closehook/close_api_key".into()),
            dead_keys: Vec::new(),
        };
        let reference = include_str!("../../../config/closehook.toml");
        for begin in [
            "",
            reference,
            &new_text().unwrap(),
            "[server]\nlisten = \"127.0.0.1:1\"\n[close]\napi_key = \"old\"\n",
        ] {
            let mut text = begin.to_owned();
            // From one way to the next, as people change their minds.
            for wanted in ways() {
                text = edit(&text, &load(&text), &wanted, &changes).unwrap();
                let config = load(&text);
                let server = &config.server;
                assert_eq!(server.public_url.as_deref(), Some(wanted.url.url().as_str()));
                assert_eq!(
                    (&server.listen, server.path.as_str()),
                    (&wanted.listen, wanted.url.url().path())
                );
                let found = match &wanted.https {
                    Https::Acme { domains, email, .. } => server
                        .acme
                        .as_ref()
                        .is_some_and(|acme| acme.domains == *domains && acme.email == *email),
                    Https::Files(files) => server.tls.as_ref() == Some(files),
                    Https::Proxy { .. } | Https::Plain => server.acme.is_none() && server.tls.is_none(),
                };
                assert!(found && !text.contains("\"old\""), "{wanted:?}: {text}");
                assert_eq!(edit(&text, &config, &wanted, &changes).unwrap(), text, "nothing twice");
            }
            if begin == reference {
                // Still the commented reference, line by line.
                let lost = reference.lines().filter(|line| {
                    line.len() > 60 && line.starts_with("# ") && !line.contains(" = ") && !text.contains(line)
                });
                assert_eq!(lost.collect::<Vec<_>>(), Vec::<&str>::new());
            }
        }
    }

    #[tokio::test]
    async fn where_to_listen_follows_from_the_way_unless_somebody_chose_it() {
        const ACME: &str = "[server.acme]\ndomains = [\"hooks.example.com\"]\n";
        let proxied = "[server]\npublic_url = \"https://hooks.example.com/x\"\n";
        for (text, way, given, listen) in [
            ("", Way::Acme, None, ":443"),
            (ACME, Way::Acme, None, ":443"),
            (
                &format!("[server]\nlisten = \"192.0.2.1:443\"\n{ACME}"),
                Way::Acme,
                None,
                "192.0.2.1:443",
            ),
            (
                &format!("[server]\nlisten = \"192.0.2.1:443\"\n{ACME}"),
                Way::Proxy,
                None,
                "127.0.0.1:8480",
            ),
            (proxied, Way::Acme, None, ":443"),
            (
                &format!("{proxied}listen = \"127.0.0.1:9000\"\n"),
                Way::Proxy,
                None,
                "127.0.0.1:9000",
            ),
            (
                &format!("{proxied}listen = \"unix:/run/x.sock\"\n"),
                Way::Proxy,
                None,
                "unix:/run/x.sock",
            ),
            ("", Way::Proxy, Some("unix:/run/y.sock"), "unix:/run/y.sock"),
        ] {
            let flags = Flags {
                url: Some("hooks.example.com".into()),
                https: Some(way),
                listen: given.map(|listen| listen.parse().unwrap()),
                ..Flags::default()
            };
            let config = load(text);
            let known = Known {
                config: &config,
                file: Path::new("/etc/closehook/closehook.toml"),
                is_new: false,
            };
            let mut asked = Asked::Nobody(Vec::new());
            let answers = gather(&flags, &known, &mut asked).await.unwrap().unwrap();
            assert!(answers.listen.to_string().ends_with(listen), "{text}: {answers:?}");
            let trusts = matches!(&answers.https, Https::Proxy { trusted: Some(_) });
            assert_eq!(
                trusts,
                way == Way::Proxy && listen.starts_with("127."),
                "{text}: {answers:?}"
            );
        }
        // A proxy elsewhere has to be named.
        let flags = Flags {
            url: Some("hooks.example.com".into()),
            https: Some(Way::Proxy),
            listen: Some("0.0.0.0:8480".parse().unwrap()),
            ..Flags::default()
        };
        let config = load("");
        let known = Known {
            config: &config,
            file: Path::new("/etc/closehook/closehook.toml"),
            is_new: false,
        };
        let mut asked = Asked::Nobody(Vec::new());
        gather(&flags, &known, &mut asked).await.unwrap();
        assert!(matches!(asked, Asked::Nobody(missing) if missing == ["--trusted-proxies"]));
    }

    #[test]
    fn a_public_url_is_https_and_has_a_path() {
        for (text, url) in [
            ("hooks.example.com", "https://hooks.example.com/webhooks/close"),
            ("https://hooks.example.com", "https://hooks.example.com/webhooks/close"),
            ("https://hooks.example.com/", "https://hooks.example.com/"),
            ("https://HOOKS.example.com:443/a", "https://hooks.example.com/a"),
            ("hooks.example.com:8443/a", "https://hooks.example.com:8443/a"),
            ("http://localhost:1/x", "http://localhost:1/x"),
        ] {
            assert_eq!(
                PublicUrl::parse(text, "/webhooks/close").map(|url| url.url().to_string()),
                Ok(url.to_owned())
            );
        }
        for bad in [
            "",
            "http://example.com/",
            "https://",
            "ftp://example.com",
            "https://a:b@c.example/",
            "https://a.example/?x=1",
            "a b",
        ] {
            assert!(PublicUrl::parse(bad, "/x").is_err(), "{bad}");
        }
    }
}
