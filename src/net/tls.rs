//! TLS towards others: the provider of cryptography, whose certificates are trusted, and the certificate of this side.

use std::path::{Path, PathBuf};

use rustls::{ClientConfig, RootCertStore};

use super::pem::{certificates, private_key};
use super::trust::{Name, Trust};

/// Makes ring the one provider of cryptography for TLS in this process. Safe to call again and again.
pub fn install_crypto() {
    // An error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Who this side is: a certificate with its chain, and its key, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, then its chain.
    pub cert: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
}

/// Trusts the authorities that browsers trust and, beside them, what is in a PEM file. An error is one sentence.
pub fn client_config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    client_config_with(Trust::also(roots, ca, Name::UnlessExact)?, None)
}

/// Trusts as it is told, and says who this side is where the server asks. An error is one sentence.
pub fn client_config_with(trust: Trust, identity: Option<&Identity>) -> Result<ClientConfig, String> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(trust.verifier(provider));
    let Some(Identity { cert, key }) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    builder
        .with_client_auth_cert(certificates(cert)?, private_key(key)?)
        .map_err(|error| format!("{} and {} can't be used: {error}", cert.display(), key.display()))
}

/// What is in a file now, to compare; `None` where it can't be read, or where reading would change what is there.
pub fn content(path: &Path) -> Option<Vec<u8>> {
    if path.is_file() { std::fs::read(path).ok() } else { None }
}
