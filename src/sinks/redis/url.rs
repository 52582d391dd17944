//! Where a server is, as a URL says it.

use std::path::PathBuf;

use reqwest::Url;
use secrecy::SecretString;

use crate::net::percent::decoded;

const PORT: u16 = 6379;

const EXAMPLE: &str = "must be a URL like \"rediss://redis.example.com:6379\" or \"unix:///run/redis/redis.sock\"";

/// What a connection is made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    Host { host: String, port: u16, tls: bool },
    Socket(PathBuf),
}

/// What a URL says.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) at: At,
    /// The number of the database.
    pub(super) db: u32,
    /// `None`: the default user.
    pub(super) username: Option<String>,
    pub(super) password: Option<SecretString>,
}

impl Place {
    /// Reads `redis://USER:PASSWORD@HOST:PORT/DATABASE`. An error never holds a part of the URL, which may have a password in it.
    pub(super) fn parse(text: &str) -> Result<Place, String> {
        let url = Url::parse(text).map_err(|_| EXAMPLE)?;
        let (tls, is_socket) = match url.scheme() {
            "redis" | "valkey" => (false, false),
            "rediss" | "valkeys" => (true, false),
            "unix" | "redis+unix" | "valkey+unix" => (false, true),
            _ => return Err(EXAMPLE.into()),
        };
        if url.fragment().is_some_and(|fragment| !fragment.is_empty()) {
            return Err("ends with #, which says nothing here: a # in the password is %23".into());
        }
        let mut db = None;
        for (name, value) in url.query_pairs() {
            match &*name {
                "db" if is_socket => db = Some(value.into_owned()),
                "user" | "pass" | "username" | "password" => {
                    return Err("has a user or a password behind ?: set username and password_file instead".into());
                }
                _ => return Err("has something behind ? that is not known here".into()),
            }
        }
        let host = url.host_str().unwrap_or_default();
        let at = if is_socket {
            if !host.is_empty() || url.path().len() < 2 {
                return Err("must name a socket by its whole path: \"unix:///run/redis/redis.sock\"".into());
            }
            At::Socket(decoded(url.path()).into())
        } else {
            if host.is_empty() {
                return Err("names no host".into());
            }
            db = Some(decoded(url.path().trim_matches('/')));
            At::Host {
                host: decoded(host.trim_matches(['[', ']'])),
                port: url.port().unwrap_or(PORT),
                tls,
            }
        };
        let db = db.filter(|db| !db.is_empty());
        let db = db.map_or(Ok(0), |db| db.parse().map_err(|_| "names a database that is no number"))?;
        let username = Some(decoded(url.username())).filter(|user| !user.is_empty());
        let password = url.password().map(decoded).filter(|password| !password.is_empty());
        Ok(Place {
            at,
            db,
            username,
            password: password.map(SecretString::from),
        })
    }

    /// Where another server of the same cluster is: all but that stays. An empty host is the one that said it.
    pub(super) fn moved(&self, address: &str) -> Option<Place> {
        let At::Host { host: here, tls, .. } = &self.at else {
            return None;
        };
        let (host, port) = address.rsplit_once(':')?;
        let host = host.trim_matches(['[', ']']);
        let at = At::Host {
            host: if host.is_empty() { here } else { host }.to_owned(),
            port: port.parse().ok()?,
            tls: *tls,
        };
        Some(Place { at, ..self.clone() })
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        match &self.at {
            At::Host { host, port, .. } => format!("{host}:{port}"),
            At::Socket(path) => path.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_url_says_where_the_server_is_and_who_asks() {
        let place = Place::parse("rediss://u%40x:p%2Fw@Redis.example.com:6380/3").unwrap();
        let at = At::Host {
            host: "Redis.example.com".into(),
            port: 6380,
            tls: true,
        };
        assert_eq!((place.at.clone(), place.db), (at, 3));
        assert_eq!(place.username.as_deref(), Some("u@x"));
        assert_eq!(place.password.as_ref().unwrap().expose_secret(), "p/w");
        assert_eq!(place.name(), "Redis.example.com:6380");
        assert!(!format!("{place:?}").contains("p/w"));

        let place = Place::parse("redis://:pw@[::1]").unwrap();
        assert_eq!((place.name().as_str(), place.username, place.db), ("::1:6379", None, 0));
        let place = Place::parse("unix:///run/redis/a%20b.sock?db=2").unwrap();
        assert_eq!((place.at, place.db), (At::Socket("/run/redis/a b.sock".into()), 2));
        assert!(Place::parse("valkey://v/").is_ok());
    }

    #[test]
    fn another_node_of_a_cluster_is_reached_in_the_same_way() {
        let place = Place::parse("rediss://u:p@one:7000").unwrap();
        let other = |address: &str| place.moved(address).map(|place| place.at);
        let tls = |host: &str, port| At::Host {
            host: host.into(),
            port,
            tls: true,
        };
        assert_eq!(other("10.0.0.2:7001"), Some(tls("10.0.0.2", 7001)));
        assert_eq!(other("::1:7001"), Some(tls("::1", 7001)));
        assert_eq!(other(":7001"), Some(tls("one", 7001)));
        assert_eq!(other("nonsense"), None);
    }

    #[test]
    fn what_can_not_be_read_is_said_without_the_password() {
        for (url, part) in [
            ("redis.example.com", "must be a URL"),
            ("http://u:hunter2@r/0", "must be a URL"),
            ("redis://u:hunter2@r/zero", "no number"),
            ("redis://u:hunter2@r/0?protocol=3", "not known"),
            ("redis:///0", "no host"),
            ("rediss://u:hunter2@r#insecure", "%23"),
            ("unix:///run/r.sock?pass=hunter2", "password_file"),
            ("unix://run/r.sock", "whole path"),
        ] {
            let error = Place::parse(url).unwrap_err();
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
