//! Certificates and keys in PEM files.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::files;

/// Reads a PEM file of at least one certificate. An error is one sentence.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{} holds no PEM certificates: {error}", path.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no PEM certificates", path.display()));
    }
    Ok(chain)
}

/// Reads the first private key in a PEM file. An error is one sentence.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let content = read(path)?;
    PrivateKeyDer::from_pem_slice(&content).map_err(|error| {
        if String::from_utf8_lossy(&content).contains("ENCRYPTED") {
            format!(
                "the private key in {} is encrypted: decrypt it, nobody is asked for its password",
                path.display()
            )
        } else {
            format!("the private key in {} can't be read: {error}", path.display())
        }
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    files::read(path).map_err(|error| format!("{} can't be read: {error}", path.display()))
}
