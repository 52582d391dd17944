//! How servers are reached over HTTP, and the clients of those that are not a stranger's: Close's API, and the daemon itself.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::address::{self, is_private};
use super::tls::{self, Identity, install_crypto};
use super::trust::{self, Name, Trust};

/// How long a connection may take, within the time for a whole request.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a receiver's connection is kept for the next request.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Lines of an answer's head that are read, and its bytes over HTTP/2.
pub(super) const HEAD_LINES_MAX: usize = 1024;
pub(super) const HEAD_LEN_MAX: u32 = 1 << 20;

/// The beginning of every client that is not a sink's ([`super::client`]): a request takes no longer than `timeout`, goes where it was told to (redirects are answers),
/// and not over a proxy that the environment names.
pub fn builder(timeout: Duration) -> reqwest::ClientBuilder {
    install_crypto();
    reqwest::Client::builder()
        .user_agent(concat!("closehook/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeout.min(CONNECT_TIMEOUT))
        .timeout(timeout)
        .tcp_nodelay(true)
        .no_proxy()
}

/// How the configuration says a receiver is reached.
#[derive(Debug, Clone, Default)]
pub struct Way {
    /// Whether its address may be a private one.
    pub allow_private: bool,
    /// The proxy that goes there.
    pub proxy: Option<String>,
    /// PEM file of authorities, or of the receiver's own certificate, that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// Who this side is.
    pub identity: Option<Identity>,
}

impl Way {
    /// Whom to trust, and who this side is. Reads files.
    pub(super) fn tls(&self) -> Result<rustls::ClientConfig, String> {
        let trust = Trust::also(trust::of_system(), self.ca.as_deref(), Name::UnlessExact)?;
        let mut tls = tls::client_config_with(trust, self.identity.as_ref())?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(tls)
    }

    /// What keeps a URL from being reached, as far as it can be read from it; one sentence.
    pub fn fault(&self, url: &Url) -> Option<String> {
        self.refusal(url).filter(|_| self.proxy.is_none())
    }

    /// What keeps a URL that somebody else made from being reached: a proxy may not be sent to a private address for it either, nor to
    /// a name that only its own network knows.
    pub fn stranger(&self, url: &Url) -> Option<String> {
        let is_local = self.proxy.is_some()
            && !self.allow_private
            && address::literal(url).is_none()
            && url.host_str().is_some_and(address::is_local_name);
        if is_local {
            let why = "the host's name is one of a private network: set allow_private = true if that is meant";
            return Some(why.to_owned());
        }
        self.refusal(url)
    }

    fn refusal(&self, url: &Url) -> Option<String> {
        let address = address::literal(url).filter(|address| !self.allow_private && is_private(*address))?;
        Some(address::refusal(address))
    }

    /// What is in the files that it names, as far as it can be seen now: it changes with them.
    pub fn files(&self) -> Vec<Option<Vec<u8>>> {
        let identity = self
            .identity
            .iter()
            .flat_map(|identity| [&identity.cert, &identity.key]);
        self.ca.iter().chain(identity).map(|path| tls::content(path)).collect()
    }
}

/// What is at the bottom of an error. Unlike the error as a whole it does not name the URL, which may hold a token.
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
