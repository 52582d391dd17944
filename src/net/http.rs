//! HTTP clients.

use std::error::Error;
use std::time::Duration;

use super::tls::install_crypto;

/// How long a connection may take, within the time for a whole request.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The beginning of every client: a request takes no longer than `timeout`, goes where it was told to (redirects are answers),
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

/// What is at the bottom of an error. Unlike the error as a whole it does not name the URL, which may hold a token.
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
