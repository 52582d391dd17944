//! A server's address, and the login that may stand in it.

use async_nats::ServerAddr;
use secrecy::SecretString;

use super::Login;
use crate::net::percent::decoded;

/// A server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Without the login: it is given apart.
    address: ServerAddr,
    pub(super) login: Login,
}

impl Server {
    /// Reads `nats://HOST:PORT`, `tls://HOST:PORT` or `HOST:PORT`, with `USER:PASSWORD@` or `TOKEN@` before the host. An error says what it must
    /// be, and holds nothing of it.
    pub fn parse(text: &str) -> Result<Server, &'static str> {
        const MUST: &str =
            "must be a server like \"nats://nats.example.com:4222\", or \"tls://\" where TLS is demanded";
        let url = text.trim().parse::<ServerAddr>().map_err(|_| MUST)?.into_inner();
        let is_plain = url.query().is_none() && url.fragment().is_none() && matches!(url.path(), "" | "/");
        if !matches!(url.scheme(), "nats" | "tls") || !is_plain || url.host_str().is_none_or(str::is_empty) {
            return Err(MUST);
        }
        let login = match (decoded(url.username()), url.password()) {
            (user, None) if user.is_empty() => Login::Nobody,
            (token, None) => Login::Token(SecretString::from(token)),
            (name, Some(password)) => Login::User {
                name,
                password: SecretString::from(decoded(password)),
            },
        };
        let host = url.host_str().unwrap_or_default();
        let port = url.port().unwrap_or(4222);
        let bare = format!("{}://{host}:{port}", url.scheme());
        Ok(Server {
            address: bare.parse().map_err(|_| MUST)?,
            login,
        })
    }

    /// Whether a login stands in it.
    pub fn has_login(&self) -> bool {
        !matches!(self.login, Login::Nobody)
    }

    /// Equal exactly if the server, and the login in its address, are. Without showing it.
    pub fn fingerprint(&self) -> String {
        let login = match &self.login {
            Login::User { name, .. } => format!("{name}\n{:?}", self.login.secrets()),
            other => format!("{:?}", other.secrets()),
        };
        let digest = <sha2::Sha256 as sha2::Digest>::digest(login);
        format!("{} {}", self.address.as_url_str(), hex::encode(digest))
    }

    /// Host and port.
    pub fn place(&self) -> String {
        let host = self.address.host();
        let port = self.address.port();
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    pub(super) fn address(&self) -> &ServerAddr {
        &self.address
    }

    pub(super) fn demands_tls(&self) -> bool {
        self.address.tls_required()
    }

    /// Whether it is on this machine.
    pub(super) fn is_here(&self) -> bool {
        let host = self.address.host();
        let is_loopback = |ip: std::net::IpAddr| ip.is_loopback();
        host == "localhost" || host.parse().is_ok_and(is_loopback)
    }
}
