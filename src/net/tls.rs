//! TLS towards others: the provider of cryptography, and whose certificates are trusted.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Makes ring the one provider of cryptography for TLS in this process. Safe to call again and again.
pub fn install_crypto() {
    // An error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Trusts the authorities that browsers trust and, beside them, those in a PEM file. An error is one sentence.
pub fn client_config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    install_crypto();
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(path) = ca {
        let (added, _) = roots.add_parsable_certificates(certificates(path)?);
        if added == 0 {
            return Err(format!("{} holds no usable certificate", path.display()));
        }
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Reads a PEM file of at least one certificate. An error is one sentence.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{} holds no PEM certificates: {error}", path.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no PEM certificates", path.display()));
    }
    Ok(chain)
}
