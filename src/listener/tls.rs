//! TLS. From PEM files: loaded, checked, and exchanged without dropping a connection. A bad new pair never replaces a good one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
use crate::sync::lock;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The certificate in force.
#[derive(Debug)]
pub struct Reloader {
    files: Tls,
    loaded: ArcSwap<Loaded>,
    looked: Mutex<Looked>,
}

/// What tells a file from another one, and from itself before it was changed in place or may be read at last.
type Stamp = [Option<[i64; 5]>; 2];

/// What the files were when they were last loaded, and why what they are since can't be.
#[derive(Debug)]
struct Looked {
    loaded: Stamp,
    error: Option<String>,
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
        let looked = Looked {
            loaded: stamp(&files),
            error: None,
        };
        let loaded = ArcSwap::from_pointee(load(&files)?);
        Ok(Arc::new(Reloader {
            files,
            loaded,
            looked: Mutex::new(looked),
        }))
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.loaded.load().config.clone())
    }

    /// The certificate file, and when what was loaded from it expires.
    pub fn certificate(&self) -> (&Path, Option<Timestamp>) {
        (&self.files.cert, self.loaded.load().not_after)
    }

    /// Why what the files are now can't be loaded; `None`: it is.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.looked).error.clone()
    }

    /// Loads the files again; on an error the old certificate stays.
    pub fn reload(&self) -> Result<(), String> {
        // Before they are read: what changes meanwhile is looked at again.
        let stamp = stamp(&self.files);
        let loaded = load(&self.files);
        let mut looked = lock(&self.looked);
        match loaded {
            Ok(loaded) => {
                self.loaded.store(Arc::new(loaded));
                *looked = Looked {
                    loaded: stamp,
                    error: None,
                };
                Ok(())
            }
            Err(error) => {
                looked.error = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Reloads when the files change (also when a symbolic link in their path does), until dropped.
    pub async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look();
        }
    }

    /// Loads files that are not those that were loaded. What can't be is tried again with the next look: what kept it from being read may
    /// leave no trace on the files.
    fn look(&self) {
        let before = {
            let mut looked = lock(&self.looked);
            if stamp(&self.files) == looked.loaded {
                looked.error = None;
                return;
            }
            looked.error.clone()
        };
        match self.reload() {
            Ok(()) => tracing::info!(cert = %self.files.cert.display(), "certificate reloaded"),
            Err(error) if before.as_ref() != Some(&error) => {
                tracing::error!(
                    error,
                    "the new certificate can't be used; the old one stays, and it is tried again"
                );
            }
            Err(_) => {}
        }
    }
}

fn stamp(files: &Tls) -> Stamp {
    let stamp = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some([
            metadata.ino() as i64,
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ])
    };
    [stamp(&files.cert), stamp(&files.key)]
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

    /// A pair as PEM, and when its certificate expires.
    fn pair(year: i32) -> (String, String) {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 2, 3);
        let key = rcgen::KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn what_could_not_be_read_is_tried_again_although_nothing_of_the_files_shows_it() {
        let dir = tempfile::tempdir().unwrap();
        let files = Tls {
            cert: dir.path().join("cert"),
            key: dir.path().join("key"),
        };
        let ((cert, key), (new_cert, new_key)) = (pair(2031), pair(2032));
        std::fs::write(&files.cert, cert).unwrap();
        std::fs::write(&files.key, key).unwrap();
        let reloader = Reloader::new(files.clone()).unwrap();
        let year = || reloader.certificate().1.unwrap().to_string()[..4].to_owned();
        reloader.look();
        assert_eq!((year().as_str(), reloader.last_error()), ("2031", None));

        std::fs::write(&files.key, new_key).unwrap();
        std::fs::write(&files.cert, "not yet").unwrap();
        let written = std::fs::metadata(&files.cert).unwrap().modified().unwrap();
        reloader.look();
        let why = reloader.last_error().unwrap();
        assert!(why.contains("cert") && year() == "2031", "{why}");

        // The same file, of the same time.
        std::fs::write(&files.cert, new_cert).unwrap();
        let same = std::fs::File::options().write(true).open(&files.cert).unwrap();
        same.set_modified(written).unwrap();
        reloader.look();
        assert_eq!((year().as_str(), reloader.last_error()), ("2032", None));
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
