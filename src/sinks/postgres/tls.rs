//! TLS to the server, as far as `sslmode` demands it.

use std::path::Path;

use rustls::RootCertStore;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::url::SslMode;
use crate::net::tls::{Identity, client_config_with};
use crate::net::trust::{self, Name, Trust};

/// Reads the certificates and makes what the driver encrypts with. `ca`: only who has a certificate from there, or that very one, is
/// the server; without it the system's authorities count.
pub(super) fn connector(
    mode: SslMode,
    ca: Option<&Path>,
    identity: Option<&Identity>,
) -> Result<MakeRustlsConnect, String> {
    let config = client_config_with(trust(mode, ca)?, identity)?;
    Ok(MakeRustlsConnect::new(config))
}

fn trust(mode: SslMode, ca: Option<&Path>) -> Result<Trust, String> {
    // With a CA at hand libpq's `require` verifies it too.
    let name = match mode {
        SslMode::VerifyFull => Name::Always,
        SslMode::VerifyCa => Name::Any,
        SslMode::Require if ca.is_some() => Name::Any,
        _ => return Ok(Trust::Anybody),
    };
    let roots = if ca.is_some() {
        RootCertStore::empty()
    } else {
        trust::of_system()
    };
    if ca.is_none() && roots.is_empty() {
        return Err(trust::NO_AUTHORITIES.into());
    }
    Trust::also(roots, ca, name)
}
