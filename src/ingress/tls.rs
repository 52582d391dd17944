//! TLS from PEM files: loaded, checked, and exchanged without dropping a connection. A bad new pair never replaces a good one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::Tls;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The certificate in force.
#[derive(Debug)]
pub struct Reloader {
    files: Tls,
    config: ArcSwap<ServerConfig>,
}

impl Reloader {
    /// Loads the files. An error is one sentence.
    pub fn new(files: Tls) -> Result<Arc<Reloader>, String> {
        let config = ArcSwap::new(load(&files)?);
        Ok(Arc::new(Reloader { files, config }))
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Loads the files again; on an error the old certificate stays.
    pub fn reload(&self) -> Result<(), String> {
        self.config.store(load(&self.files)?);
        Ok(())
    }

    /// Reloads when the files change (also when a symbolic link in their path does), until dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut seen = self.stamp();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.stamp();
            if now == seen {
                continue;
            }
            match self.reload() {
                Ok(()) => tracing::info!(cert = %self.files.cert.display(), "certificate reloaded"),
                Err(error) => tracing::error!(error, "the new certificate can't be used; the old one stays"),
            }
            seen = now;
        }
    }

    fn stamp(&self) -> [Option<(SystemTime, u64)>; 2] {
        let stamp = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((
                metadata.modified().ok()?,
                std::os::unix::fs::MetadataExt::ino(&metadata),
            ))
        };
        [stamp(&self.files.cert), stamp(&self.files.key)]
    }
}

/// Reads and checks a pair: `check` calls this too.
pub fn load(files: &Tls) -> Result<Arc<ServerConfig>, String> {
    crate::install_crypto();
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{} holds no PEM certificates: {error}", files.cert.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no PEM certificates", files.cert.display()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| format!("{} holds no PEM private key: {error}", files.key.display()))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| {
            format!(
                "{} and {} do not fit: {error}",
                files.cert.display(),
                files.key.display()
            )
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
