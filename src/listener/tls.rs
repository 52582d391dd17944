//! TLS. From PEM files: loaded, checked, and exchanged without dropping a connection. A bad new pair never replaces a good one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::config::Tls;
use crate::net::pem::certificates;
use crate::net::tls::install_crypto;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The certificate in force.
#[derive(Debug)]
pub struct Reloader {
    files: Tls,
    loaded: ArcSwap<Loaded>,
}

/// A pair that fits.
#[derive(Debug)]
pub struct Loaded {
    config: Arc<ServerConfig>,
    /// When the certificate expires; `None` where it does not say so readably.
    pub not_after: Option<Timestamp>,
}

impl Reloader {
    /// Loads the files. An error is one sentence.
    pub fn new(files: Tls) -> Result<Arc<Reloader>, String> {
        let loaded = ArcSwap::from_pointee(load(&files)?);
        Ok(Arc::new(Reloader { files, loaded }))
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.loaded.load().config.clone())
    }

    /// The certificate file, and when what was loaded from it expires.
    pub fn certificate(&self) -> (&Path, Option<Timestamp>) {
        (&self.files.cert, self.loaded.load().not_after)
    }

    /// Loads the files again; on an error the old certificate stays.
    pub fn reload(&self) -> Result<(), String> {
        self.loaded.store(Arc::new(load(&self.files)?));
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
pub fn load(files: &Tls) -> Result<Loaded, String> {
    install_crypto();
    let chain = certificates(&files.cert)?;
    let not_after = chain
        .first()
        .and_then(|first| validity(first))
        .map(|(_, not_after)| not_after);
    let key =
        crate::files::read(&files.key).map_err(|error| format!("{} can't be read: {error}", files.key.display()))?;
    let key = PrivateKeyDer::from_pem_slice(&key)
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
    Ok(Loaded {
        config: Arc::new(config),
        not_after,
    })
}

/// A private key with its chain, and when the certificate begins and ends to be valid, from one PEM text. An error is one
/// sentence.
pub fn certified_key(pem: &[u8]) -> Result<(CertifiedKey, Option<(Timestamp, Timestamp)>), String> {
    install_crypto();
    let provider = rustls::crypto::CryptoProvider::get_default().ok_or("there is no provider of cryptography")?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("it holds no PEM certificates: {error}"))?;
    let validity = chain.first().and_then(|first| validity(first));
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("it holds no PEM private key: {error}"))?;
    let key = CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| format!("its key and its certificate do not fit: {error}"))?;
    Ok((key, validity))
}

/// The begin and the end of a certificate's validity: the fifth or, without a version, the fourth field of `TBSCertificate`
/// (RFC 5280, 4.1).
pub(crate) fn validity(certificate: &[u8]) -> Option<(Timestamp, Timestamp)> {
    const EXPLICIT_VERSION: u8 = 0xa0;
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    if rest.first() == Some(&EXPLICIT_VERSION) {
        rest = element(rest)?.2;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, validity, _) = element(rest)?;
    let (tag, text, after_begin) = element(validity)?;
    let not_before = time(tag, text)?;
    let (tag, text, _) = element(after_begin)?;
    Some((not_before, time(tag, text)?))
}

fn time(tag: u8, text: &[u8]) -> Option<Timestamp> {
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;
    let text = std::str::from_utf8(text).ok()?;
    let full = match tag {
        // Two digits of the year; 50 and more are of the last century (4.1.2.5.1).
        UTC_TIME if text.get(..2)? >= "50" => format!("19{text}"),
        UTC_TIME => format!("20{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let civil = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", full).ok()?;
    jiff::tz::TimeZone::UTC.to_timestamp(civil).ok()
}

/// The first DER element: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn certificate(not_after: (i32, u8, u8)) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(not_after.0, not_after.1, not_after.2);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_of_validity_is_read_in_both_notations() {
        let read = |date| validity(&certificate(date)).map(|(_, not_after)| not_after.to_string());
        assert_eq!(read((2031, 2, 3)).as_deref(), Some("2031-02-03T00:00:00Z"));
        assert_eq!(read((2063, 4, 5)).as_deref(), Some("2063-04-05T00:00:00Z"));
    }

    proptest! {
        #[test]
        fn a_broken_certificate_has_no_end(at in any::<prop::sample::Index>(), byte in any::<u8>(), len in any::<prop::sample::Index>()) {
            let mut der = certificate((2031, 2, 3));
            let at = at.index(der.len());
            der[at] = byte;
            // Whatever it says, it does not panic.
            let _ = validity(&der);
            let _ = validity(&der[..len.index(der.len())]);
        }
    }
}
