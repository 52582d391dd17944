//! Where the server is, as libpq's URLs say it, and what of it libpq means for TLS.

use std::path::PathBuf;
use std::str::FromStr;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode as Encryption};

use crate::net::percent::decoded;

/// Where Debian's libpq looks for the server when no host is named.
const LOCAL_SOCKETS: &str = "/var/run/postgresql";

/// `sslmode`, as libpq has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted only where the server takes nothing else.
    Allow,
    /// Encrypted where the server can (libpq's default).
    Prefer,
    /// Encrypted, whoever the server is; with a CA: as `VerifyCa`.
    Require,
    /// The server's certificate comes from the CA.
    VerifyCa,
    /// And it is that of the host.
    VerifyFull,
}

impl SslMode {
    /// Which kinds of connection are tried, one after the other.
    pub(super) fn ways(self) -> &'static [Encryption] {
        match self {
            SslMode::Disable => &[Encryption::Disable],
            SslMode::Allow => &[Encryption::Disable, Encryption::Require],
            SslMode::Prefer => &[Encryption::Prefer, Encryption::Disable],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Encryption::Require],
        }
    }
}

impl FromStr for SslMode {
    type Err = String;

    fn from_str(text: &str) -> Result<SslMode, String> {
        Ok(match text {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            other => {
                return Err(format!(
                    "there is no sslmode \"{other}\"; known are disable, allow, prefer, require, verify-ca, verify-full"
                ));
            }
        })
    }
}

/// What a URL says.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// For the driver, without anything about certificates.
    pub(super) config: Config,
    pub(super) sslmode: SslMode,
    /// `sslrootcert`; `system` is the system's, which is the default.
    pub(super) ca: Option<PathBuf>,
    /// `sslcert`
    pub(super) cert: Option<PathBuf>,
    /// `sslkey`
    pub(super) key: Option<PathBuf>,
}

impl Place {
    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE?...`. An error never holds a part of the URL that could be the password.
    pub(super) fn parse(url: &str) -> Result<Place, String> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err("must be a URL like \"postgres://closehook@db.example.com/crm?sslmode=verify-full\"".into());
        }
        // The driver, too, takes all before the first @ for user and password.
        let hosts = url.find('@').unwrap_or(0);
        if url[hosts..].matches('@').count() > 1 {
            return Err("has more than one @: write those of user, password and parameters as %40".into());
        }
        let (base, query) = match url[hosts..].find('?') {
            Some(at) => (&url[..hosts + at], &url[hosts + at + 1..]),
            None => (url, ""),
        };
        let mut place = Place {
            config: Config::new(),
            sslmode: SslMode::Prefer,
            ca: None,
            cert: None,
            key: None,
        };
        let mut kept = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let path = || Some(PathBuf::from(decoded(value)));
            match name {
                "sslmode" => place.sslmode = decoded(value).parse()?,
                "sslrootcert" if value == "system" => {}
                "sslrootcert" => place.ca = path(),
                "sslcert" => place.cert = path(),
                "sslkey" => place.key = path(),
                // What it would turn off or prefer is not there.
                "gssencmode" if matches!(value, "disable" | "prefer") => {}
                _ => kept.push(parameter),
            }
        }
        let plain = if kept.is_empty() {
            base.to_owned()
        } else {
            format!("{base}?{}", kept.join("&"))
        };
        place.config = plain.parse().map_err(|error: tokio_postgres::Error| {
            // The driver names what it does not know or can't read, never a value.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!(
                "can't be read: {}",
                cause.unwrap_or_else(|| "it is no PostgreSQL URL".into())
            )
        })?;
        place.complete()?;
        Ok(place)
    }

    /// Adds what libpq has without being told.
    fn complete(&mut self) -> Result<(), String> {
        if self.config.get_hosts().is_empty() && self.config.get_hostaddrs().is_empty() {
            self.config.host_path(LOCAL_SOCKETS);
        }
        let (hosts, ports) = (self.config.get_hosts().len(), self.config.get_ports().len());
        if ports > 1 && hosts != ports {
            return Err("names more ports than hosts".into());
        }
        // libpq, too, encrypts no socket of this machine.
        if self.config.get_hosts().iter().all(is_socket) && !self.config.get_hosts().is_empty() {
            self.sslmode = SslMode::Disable;
        }
        if self.config.get_dbname().is_none()
            && let Some(user) = self.config.get_user().map(str::to_owned)
        {
            self.config.dbname(user);
        }
        Ok(())
    }

    /// `HOST:PORT/DATABASE`, for people, and to tell databases apart.
    pub(super) fn name(&self) -> String {
        let ports = self.config.get_ports();
        let addresses = self.config.get_hostaddrs();
        let hosts = self.config.get_hosts();
        let host = |index: usize| {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            let name = match hosts.get(index) {
                Some(Host::Tcp(host)) => host.to_ascii_lowercase(),
                Some(Host::Unix(path)) => path.display().to_string(),
                None => addresses.get(index).map(ToString::to_string).unwrap_or_default(),
            };
            format!("{name}:{port}")
        };
        let all: Vec<String> = (0..hosts.len().max(addresses.len())).map(host).collect();
        format!("{}/{}", all.join(","), self.config.get_dbname().unwrap_or_default())
    }
}

fn is_socket(host: &Host) -> bool {
    matches!(host, Host::Unix(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_means_what_libpq_means_by_it() {
        let place = Place::parse(
            "postgresql://u%40x:p%3fw@DB.example.com:5433/crm?sslmode=verify-full&sslrootcert=/etc/ca%20x.pem&application_name=a",
        )
        .unwrap();
        assert_eq!(place.config.get_user(), Some("u@x"));
        assert_eq!(place.config.get_password(), Some(b"p?w".as_slice()));
        assert_eq!(place.config.get_application_name(), Some("a"));
        assert_eq!(place.sslmode, SslMode::VerifyFull);
        assert_eq!(place.ca, Some("/etc/ca x.pem".into()));
        assert_eq!(place.name(), "db.example.com:5433/crm");

        let local = Place::parse("postgres:///crm?sslmode=require").unwrap();
        assert_eq!(local.name(), "/var/run/postgresql:5432/crm");
        assert_eq!(local.sslmode, SslMode::Disable, "a socket is not encrypted");

        let two = Place::parse("postgres://u@a,b:5433?target_session_attrs=read-write").unwrap();
        assert_eq!(two.name(), "a:5432,b:5433/u");
        assert_eq!(two.sslmode, SslMode::Prefer);
    }

    #[test]
    fn what_can_not_be_read_is_said_without_the_password() {
        for (url, part) in [
            ("host=db password=hunter2", "must be a URL"),
            ("http://u:hunter2@db/x", "must be a URL"),
            ("postgres://u:hunter2@db/x?sslmode=full", "no sslmode \"full\""),
            ("postgres://u:hunter2@db/x?colour=red", "colour"),
            ("postgres://u:hunter2@db:port/x", "port"),
            ("postgres://u:hunter2@db/x?gssencmode=require", "gssencmode"),
            ("postgres://u:hunter2@a,b/x?port=1,2,3", "ports"),
            ("postgres://u:x@x?hunter2=y@db/x", "%40"),
        ] {
            let error = Place::parse(url).unwrap_err();
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let place = Place::parse("postgres://u:hunter2@db/x").unwrap();
        assert!(!format!("{place:?}").contains("hunter2"));
    }
}
