//! Certificates and keys in PEM files.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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

/// Reads the first private key in a PEM file. An error is one sentence.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        let is_encrypted = std::fs::read_to_string(path).is_ok_and(|text| text.contains("ENCRYPTED"));
        if is_encrypted {
            format!(
                "the private key in {} is encrypted: decrypt it, nobody is asked for its password",
                path.display()
            )
        } else {
            format!("the private key in {} can't be read: {error}", path.display())
        }
    })
}
