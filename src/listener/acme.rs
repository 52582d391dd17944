//! Certificates that come by themselves: ordered from an ACME directory (RFC 8555), proven over TLS-ALPN-01 (RFC 8737) on the
//! public listener's own port, kept in the data directory, and renewed when two thirds of their life are over.
//!
//! What can go wrong never takes a certificate away: the one in force stays until another one is there, and it is kept on
//! disk (0600) for the next start. A failed order is tried again, seldom enough for the directory's limits, and is seen in the
//! log, in `status` and in the metrics. Each order is a fresh attempt of its own that can be given up as a whole.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_acme::{
    AccountCache, AcmeConfig, CertCache, EventError, EventOk, OrderError, ResolvesServerCertAcme, is_tls_alpn_challenge,
};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::tls;
use crate::config::Acme;
use crate::{framefile, net, telemetry};

/// The protocol by which a directory checks that we are there.
pub const CHALLENGE_PROTOCOL: &[u8] = b"acme-tls/1";

/// How long one order may take.
const ORDER_PATIENCE: Duration = Duration::from_secs(600);

/// The first try after a failure; each further one waits four times as long. Let's Encrypt allows five failed validations of a
/// name an hour, which this stays within.
const RETRY_FIRST: Duration = Duration::from_secs(15);

/// The longest wait between tries.
const RETRY_MAX: Duration = Duration::from_secs(4 * 3600);

/// Time is looked at this often at least, for the clock may be set.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Keeps a certificate for the configured names.
#[derive(Debug)]
pub struct Keeper {
    settings: Acme,
    files: Files,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    shown: Arc<Shown>,
    progress: Mutex<Progress>,
    /// The time of the next order has changed.
    retimed: Notify,
}

/// How it stands.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// When the certificate in force expires; `None`: there is none yet.
    pub not_after: Option<Timestamp>,
    /// When the next order is made; the past: one is under way.
    pub next_order_at: Timestamp,
    /// Why the latest order failed; `None`: it did not.
    pub last_error: Option<String>,
    /// Failures since the last success.
    failures: u32,
}

/// Where account and certificate are kept. Their names tell directories and names apart, so that a change of either starts
/// anew and changing back finds what was there.
#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    account: PathBuf,
}

/// What clients are shown: the certificate in force, and to a directory that checks, the answer to its challenge.
#[derive(Debug, Default)]
struct Shown {
    certificate: ArcSwapOption<CertifiedKey>,
    challenge: ArcSwapOption<ResolvesServerCertAcme>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if is_tls_alpn_challenge(&hello) {
            self.challenge.load_full()?.resolve(hello)
        } else {
            self.certificate.load_full()
        }
    }
}

impl Keeper {
    /// Begins with the certificate that is kept, if there is one. An error is one sentence.
    pub fn new(settings: Acme, default_cache: &Path) -> Result<Arc<Keeper>, String> {
        let client = client_config(&settings)?;
        let dir = settings.cache.as_deref().unwrap_or(default_cache);
        framefile::make_dir(dir).map_err(|error| format!("{} can't be made: {error}", dir.display()))?;
        let shown = Arc::new(Shown::default());
        let mut server = ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), CHALLENGE_PROTOCOL.to_vec()];
        let keeper = Arc::new(Keeper {
            files: Files::of(&settings, dir),
            client: Arc::new(client),
            server: Arc::new(server),
            shown,
            progress: Mutex::default(),
            retimed: Notify::new(),
            settings,
        });
        match std::fs::read(&keeper.files.certificate) {
            Ok(pem) => {
                if let Err(error) = keeper.take(&pem) {
                    let file = keeper.files.certificate.display();
                    tracing::warn!("the certificate kept in {file} can't be used, another one is ordered: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{} can't be read: {error}", keeper.files.certificate.display())),
        }
        Ok(keeper)
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.server.clone())
    }

    /// How it stands now.
    pub fn progress(&self) -> Progress {
        self.lock().clone()
    }

    /// The names the certificate is for.
    pub fn domains(&self) -> &[String] {
        &self.settings.domains
    }

    /// Where the certificate is kept.
    pub fn file(&self) -> &Path {
        &self.files.certificate
    }

    /// Orders when it is time to, until dropped.
    pub async fn run(self: Arc<Self>) {
        loop {
            let left = Timestamp::now().duration_until(self.lock().next_order_at);
            if left.is_positive() {
                tokio::select! {
                    () = tokio::time::sleep(left.unsigned_abs().min(LOOK_EVERY)) => {}
                    () = self.retimed.notified() => {}
                }
                continue;
            }
            let ordered = self.order().await.and_then(|pem| self.take(&pem));
            telemetry::certificate_ordered(ordered.is_ok());
            match ordered {
                Ok(()) => {
                    let progress = self.progress();
                    let (valid_until, next) = (progress.not_after.unwrap_or_default(), progress.next_order_at);
                    tracing::info!(%valid_until, next_renewal = %next, "has a new certificate for {}", self.settings.domains.join(", "));
                }
                Err(error) => {
                    let next = self.failed(&error);
                    tracing::error!(error, again_at = %next, "no certificate could be had; the old one, if any, stays");
                }
            }
        }
    }

    /// Where the latest order failed, the next one is made now: a person has looked at it.
    pub fn try_now(&self) {
        let mut progress = self.lock();
        if progress.last_error.take().is_some() {
            progress.next_order_at = Timestamp::now();
            self.retimed.notify_one();
        }
    }

    /// One attempt: gives key and chain as PEM text. An error is one sentence.
    async fn order(&self) -> Result<Vec<u8>, String> {
        let got = Arc::new(Mutex::new(None));
        let cache = Cache {
            files: self.files.clone(),
            got: got.clone(),
        };
        let contact = self.settings.email.iter().map(|email| format!("mailto:{email}"));
        let mut state = AcmeConfig::new_with_client_config(&self.settings.domains, self.client.clone())
            .directory(&self.settings.directory)
            .contact(contact)
            .cache(cache)
            .state();
        self.shown.challenge.store(Some(state.resolver()));
        let outcome = tokio::time::timeout(ORDER_PATIENCE, async {
            loop {
                match state.next().await {
                    Some(Ok(EventOk::CertCacheStore)) | None => return Ok(()),
                    Some(Ok(_)) => {}
                    // It is there, and lives as long as this process.
                    Some(Err(error @ EventError::CertCacheStore(_))) => {
                        tracing::error!("the new certificate can't be kept on disk: {}", describe(&error));
                        return Ok(());
                    }
                    Some(Err(error)) => return Err(describe(&error)),
                }
            }
        })
        .await;
        self.shown.challenge.store(None);
        let pem = got.lock().unwrap_or_else(PoisonError::into_inner).take();
        match outcome {
            Ok(Ok(())) => pem.ok_or_else(|| "the directory's answers ended before there was a certificate".into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(format!(
                "{} did not finish the order within {} minutes",
                self.settings.directory,
                ORDER_PATIENCE.as_secs() / 60
            )),
        }
    }

    /// Takes a certificate into use, if key and chain fit.
    fn take(&self, pem: &[u8]) -> Result<(), String> {
        let (key, validity) = tls::certified_key(pem)?;
        let (not_before, not_after) = validity.ok_or("it does not say readably until when it is valid")?;
        self.shown.certificate.store(Some(Arc::new(key)));
        *self.lock() = Progress {
            not_after: Some(not_after),
            next_order_at: renewal_at(not_before, not_after, random_share()),
            last_error: None,
            failures: 0,
        };
        Ok(())
    }

    /// Remembers a failure, and says when the next try is.
    fn failed(&self, error: &str) -> Timestamp {
        let mut progress = self.lock();
        progress.failures = progress.failures.saturating_add(1);
        progress.last_error = Some(error.to_owned());
        let wait =
            SignedDuration::try_from(retry_after(progress.failures, random_share())).unwrap_or(SignedDuration::MAX);
        progress.next_order_at = Timestamp::now().saturating_add(wait).unwrap_or(Timestamp::MAX);
        progress.next_order_at
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn of(settings: &Acme, dir: &Path) -> Files {
        let name = |kind: &str, parts: &[&str]| {
            let mut hash = Sha256::new();
            for part in parts {
                hash.update(part.as_bytes());
                hash.update([0]);
            }
            dir.join(format!("{kind}-{}.pem", hex::encode(&hash.finalize()[..8])))
        };
        let mut for_certificate: Vec<&str> = settings.domains.iter().map(String::as_str).collect();
        for_certificate.push(&settings.directory);
        let email = settings.email.as_deref().unwrap_or_default();
        Files {
            certificate: name("certificate", &for_certificate),
            account: name("account", &[email, &settings.directory]),
        }
    }
}

/// What the order in progress reads and writes. There is never a certificate for it: who orders wants a new one.
struct Cache {
    files: Files,
    got: Arc<Mutex<Option<Vec<u8>>>>,
}

#[async_trait]
impl CertCache for Cache {
    type EC = io::Error;

    async fn load_cert(&self, _: &[String], _: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    async fn store_cert(&self, _: &[String], _: &str, pem: &[u8]) -> io::Result<()> {
        *self.got.lock().unwrap_or_else(PoisonError::into_inner) = Some(pem.to_vec());
        replace(&self.files.certificate, pem).await
    }
}

#[async_trait]
impl AccountCache for Cache {
    type EA = io::Error;

    async fn load_account(&self, _: &[String], _: &str) -> io::Result<Option<Vec<u8>>> {
        match tokio::fs::read(&self.files.account).await {
            Ok(key) => Ok(Some(key)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn store_account(&self, _: &[String], _: &str, key: &[u8]) -> io::Result<()> {
        replace(&self.files.account, key).await
    }
}

async fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let (path, content) = (path.to_owned(), content.to_owned());
    tokio::task::spawn_blocking(move || framefile::replace_file(&path, &content)).await?
}

/// How the directory is spoken to: `check` calls this too. An error is one sentence.
pub fn client_config(settings: &Acme) -> Result<ClientConfig, String> {
    net::tls::client_config(settings.ca.as_deref())
}

/// When to renew: when two thirds of a certificate's life are over, or up to a twentieth of it earlier, so that not all that
/// were made together come together. `share` is from 0 to 1.
fn renewal_at(not_before: Timestamp, not_after: Timestamp, share: f64) -> Timestamp {
    let life = not_before.duration_until(not_after).as_secs_f64().max(0.0);
    let age = SignedDuration::try_from_secs_f64(life * (2.0 / 3.0 - share / 20.0)).unwrap_or_default();
    not_before.saturating_add(age).unwrap_or(not_after)
}

/// How long to wait after so many failures in a row: up to a quarter less than the full time, by `share` from 0 to 1.
fn retry_after(failures: u32, share: f64) -> Duration {
    let factor = 4_u32.saturating_pow(failures.saturating_sub(1));
    RETRY_FIRST
        .saturating_mul(factor)
        .min(RETRY_MAX)
        .mul_f64(1.0 - share / 4.0)
}

fn random_share() -> f64 {
    // Without randomness there is only less jitter.
    f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX)
}

/// What went wrong, as the directory says it where it says something.
fn describe(error: &EventError<io::Error, io::Error>) -> String {
    match error {
        EventError::Order(OrderError::BadAuth(auth)) => {
            let rustls_acme::acme::Identifier::Dns(domain) = &auth.identifier;
            let details = auth
                .challenges
                .iter()
                .filter_map(|challenge| challenge.error.as_ref()?.detail.as_deref());
            let why = details.collect::<Vec<_>>().join("; ");
            format!("the directory could not see that {domain} is here ({why}): its port 443 must reach server.listen")
        }
        EventError::Order(OrderError::BadOrder(order)) => {
            let why = order.error.as_ref().and_then(|problem| problem.detail.as_deref());
            format!(
                "the directory refused the order: {}",
                why.unwrap_or("it does not say why")
            )
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_names_and_directories_have_other_files() {
        let settings = Acme {
            domains: vec!["a.example".into(), "b.example".into()],
            email: None,
            directory: "https://one.example/dir".into(),
            cache: None,
            ca: None,
        };
        let files = |settings: &Acme| Files::of(settings, Path::new("/dir"));
        let one = files(&settings);
        let other = files(&Acme {
            domains: vec!["a.exampleb.example".into()],
            ..settings.clone()
        });
        assert_ne!(one.certificate, other.certificate);
        assert_eq!(one.account, other.account);
        let staging = files(&Acme {
            directory: "https://two.example/dir".into(),
            ..settings
        });
        assert_ne!((one.certificate, one.account), (staging.certificate, staging.account));
    }

    #[test]
    fn an_hour_sees_no_more_failures_than_a_directory_allows() {
        let waited = |share| -> u64 { (1..=5).map(|failures| retry_after(failures, share).as_secs()).sum() };
        assert!(
            waited(0.0) >= 3600 && waited(1.0) >= 3600,
            "the sixth try is in another hour"
        );
        assert_eq!(retry_after(u32::MAX, 0.0), RETRY_MAX);
    }

    proptest! {
        #[test]
        fn a_renewal_lies_well_before_the_end(begin in 0_i64..4_000_000_000, life in 60_i64..40_000_000, share in 0.0..=1.0) {
            let at = |second| Timestamp::from_second(second).unwrap();
            let renewal = renewal_at(at(begin), at(begin + life), share);
            prop_assert!(renewal > at(begin + life / 2) && renewal <= at(begin + life * 2 / 3 + 1));
        }
    }
}
