//! Certificates that come by themselves: ordered from an ACME directory (RFC 8555), proven over TLS-ALPN-01 (RFC 8737) on the
//! public listener's own port, kept in the data directory, and renewed when two thirds of their life are over.
//!
//! What can go wrong never takes a certificate away: the one in force stays until another one is there, and it is kept on
//! disk (0600) for the next start. A failed order is tried again, seldom enough for the directory's limits, and is seen in the
//! log, in `status` and in the metrics. Each order is a fresh attempt of its own that can be given up as a whole.
//!
//! Nodes behind one name share all of it (`shared`): one of them orders, and any of them proves that the name is here.
//!
//! A certificate's life is told by the wall clock, and that may be wrong by any amount: to a clock that is seventy days ahead
//! every new certificate is due for renewal. So what says how soon the next order may be made is the time since the last one,
//! by a clock that nobody sets, and across restarts by the time that is written down with the certificate. An order is also written
//! down before it is made: a daemon that ends again and again orders no more often than one that stays.

mod order;
mod pace;
mod shared;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_acme::is_tls_alpn_challenge;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use self::pace::{ORDERED_AT, attempt, ordered_at, pace_left, random_share, renewal_at, retry_after};
use self::shared::{Proofs, Shared};
use super::tls;
use crate::config::Acme;
use crate::node::Leases;
use crate::state::Store;
use crate::sync::lock;
use crate::task;
use crate::{framefile, net, telemetry};

/// The protocol by which a directory checks that we are there.
pub const CHALLENGE_PROTOCOL: &[u8] = b"acme-tls/1";

/// How long one order may take.
const ORDER_PATIENCE: Duration = Duration::from_secs(600);

/// After a start there is no longer wait than this since the last order that came to nothing: a person may have put right what it was
/// and started the daemon. Four an hour are within what directories allow.
const START_PACE: Duration = Duration::from_secs(900);

/// How often it is looked what another node has got, and whose turn it is to order.
const SHARED_LOOK_EVERY: Duration = Duration::from_secs(2);

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
    /// What it shares with other nodes; unset: there are none, or they can't be reached yet.
    shared: OnceLock<Shared>,
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
    /// No order is made before; `None`: that depends on nothing but `next_order_at`.
    not_before: Option<Instant>,
}

impl Progress {
    /// How long until the next order, by both clocks.
    fn wait(&self, now: Timestamp, monotonic: Instant) -> Duration {
        let by_wall_clock = now.duration_until(self.next_order_at);
        let paced = self.not_before.map_or(Duration::ZERO, |not_before| {
            not_before.saturating_duration_since(monotonic)
        });
        paced.max(if by_wall_clock.is_positive() {
            by_wall_clock.unsigned_abs()
        } else {
            Duration::ZERO
        })
    }

    /// No order for so long, whatever the clock does, and shown as that.
    fn pace(&mut self, wait: Duration, now: Timestamp, monotonic: Instant) {
        self.not_before = monotonic.checked_add(wait);
        let earliest = now.saturating_add(SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX));
        self.next_order_at = self.next_order_at.max(earliest.unwrap_or(Timestamp::MAX));
    }
}

/// Where account and certificate are kept. Their names tell directories and names apart, so that a change of either starts
/// anew and changing back finds what was there.
#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    account: PathBuf,
    /// The latest order, while it is under way or where it came to nothing.
    attempt: PathBuf,
}

/// What clients are shown: the certificate in force, and to a directory that checks, the answer to its challenge.
#[derive(Debug, Default)]
struct Shown {
    certificate: ArcSwapOption<CertifiedKey>,
    proofs: ArcSwap<BTreeMap<String, Arc<CertifiedKey>>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if is_tls_alpn_challenge(&hello) {
            let name = hello.server_name()?.to_ascii_lowercase();
            self.proofs.load().get(&name).cloned()
        } else {
            self.certificate.load_full()
        }
    }
}

impl Keeper {
    /// Begins with the certificate that is kept, if there is one, and writes nothing before the first order. An error is one
    /// sentence.
    pub fn new(settings: Acme, default_cache: &Path) -> Result<Arc<Keeper>, String> {
        let client = client_config(&settings)?;
        let dir = settings.cache.as_deref().unwrap_or(default_cache);
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
            shared: OnceLock::new(),
            retimed: Notify::new(),
            settings,
        });
        match std::fs::read(&keeper.files.certificate) {
            Ok(pem) => {
                if let Err(error) = keeper.take(&pem, ordered_at(&pem)) {
                    let file = keeper.files.certificate.display();
                    tracing::warn!("the certificate kept in {file} can't be used, another one is ordered: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{} can't be read: {error}", keeper.files.certificate.display())),
        }
        keeper.remember_attempt();
        Ok(keeper)
    }

    /// Shares everything with other nodes from now on: in a store that keeps secrets, and whose lease it is orders.
    pub fn share(&self, store: Arc<dyn Store>, leases: Arc<dyn Leases>) {
        let _ = self.shared.set(Shared::new(store, leases));
        self.retimed.notify_one();
    }

    /// Whether other nodes may know more than this one.
    pub fn is_shared(&self) -> bool {
        self.shared.get().is_some()
    }

    /// A directory looks whether a name is here: what it is to be shown may be known to another node, which has ordered.
    pub async fn is_looked_at(&self, name: &str) {
        let came = tokio::time::Instant::now();
        let name = name.to_ascii_lowercase();
        if let Some(shared) = self.shared.get()
            && self
                .settings
                .domains
                .iter()
                .any(|domain| domain.eq_ignore_ascii_case(&name))
        {
            shared.proofs(came, |proofs| self.show(&proofs)).await;
        }
    }

    /// For the next connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.server.clone()
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
        let mut trouble = None;
        loop {
            let shared = self.shared.get();
            if let Some(shared) = shared {
                let followed = self.follow(shared).await.err();
                if followed.is_some() && followed != trouble {
                    let error = followed.as_deref().unwrap_or_default();
                    tracing::warn!(
                        error,
                        "whether another node has a certificate can't be seen now; none is ordered until it can"
                    );
                }
                trouble = followed;
            }
            let look_every = if shared.is_some() {
                SHARED_LOOK_EVERY
            } else {
                LOOK_EVERY
            };
            let is_not_ours = trouble.is_some() || shared.is_some_and(|shared| !shared.may_order());
            let left = self.lock().wait(Timestamp::now(), Instant::now());
            if is_not_ours || !left.is_zero() {
                let left = if is_not_ours { look_every } else { left.min(look_every) };
                tokio::select! {
                    () = tokio::time::sleep(left) => {}
                    () = self.retimed.notified() => {}
                }
                continue;
            }
            let ordered = self.order().await;
            let ordered = ordered.and_then(|pem| self.take(&pem, Some(Timestamp::now())));
            telemetry::certificate_ordered(ordered.is_ok());
            match ordered {
                Ok(()) => {
                    let progress = self.progress();
                    let (valid_until, next) = (progress.not_after.unwrap_or_default(), progress.next_order_at);
                    tracing::info!(%valid_until, next_renewal = %next, "has a new certificate for {}", self.settings.domains.join(", "));
                }
                Err(error) => {
                    let next = self.failed(&error);
                    self.note_attempt(self.progress().failures, &error).await;
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
            progress.not_before = None;
            self.retimed.notify_one();
        }
    }

    /// Takes up what another node has got, and gives the others what this one has.
    async fn follow(&self, shared: &Shared) -> Result<(), String> {
        let file = self.files.certificate.clone();
        let own = || {
            std::fs::read(&file)
                .ok()
                .filter(|_| self.progress().not_after > Some(Timestamp::now()))
        };
        let Some((pem, revision)) = shared.news(&self.files.certificate, own).await? else {
            return Ok(());
        };
        shared.took(revision);
        if let Err(error) = self.take(&pem, ordered_at(&pem)) {
            // Whoever orders gets another one, which takes its place.
            tracing::error!(error, "the certificate that another node has got can't be used");
            return Ok(());
        }
        let valid_until = self.progress().not_after.unwrap_or_default();
        tracing::info!(%valid_until, "takes up the certificate that another node has got");
        // Only for a start without the others.
        if let Err(error) = self.keep(&self.files.certificate, &pem).await {
            tracing::warn!(%error, "the certificate can't be kept on disk");
        }
        Ok(())
    }

    async fn keep(&self, file: &Path, content: &[u8]) -> io::Result<()> {
        if let Some(dir) = file.parent() {
            framefile::make_dir(dir)?;
        }
        replace(file, content).await
    }

    /// Whoever asks for these names by the challenge's protocol is shown this.
    fn show(&self, proofs: &Proofs) {
        let mut shown = BTreeMap::new();
        for (domain, authorization) in proofs {
            match order::proof(domain, authorization) {
                Ok(key) => drop(shown.insert(domain.to_ascii_lowercase(), Arc::new(key))),
                Err(error) => tracing::warn!(domain, error, "what proves a name can't be made"),
            }
        }
        self.shown.proofs.store(Arc::new(shown));
    }

    /// One attempt: gives key and chain as PEM text. An error is one sentence.
    async fn order(&self) -> Result<Vec<u8>, String> {
        let dir = self.files.certificate.parent().unwrap_or(Path::new("."));
        framefile::make_dir(dir).map_err(|error| format!("{} can't be made: {error}", dir.display()))?;
        let failures = self.progress().failures.saturating_add(1);
        self.note_attempt(failures, "closehook ended before the last order did")
            .await;
        let proving = Proving {
            keeper: self,
            proofs: Mutex::default(),
        };
        let ordering = async {
            let account = self.account_key().await?;
            order::certificate(&self.settings, &self.client, &account, &proving).await
        };
        let ordering = async {
            tokio::select! {
                ordered = ordering => ordered,
                () = self.is_another_ones() => Err("another node orders now".to_owned()),
            }
        };
        let outcome = tokio::time::timeout(ORDER_PATIENCE, ordering).await;
        self.show(&Proofs::new());
        if let Some(shared) = self.shared.get()
            && shared.may_order()
            && let Err(error) = shared.show(&Proofs::new()).await
        {
            tracing::debug!(
                error,
                "what was to be shown to a directory stays where the nodes share it"
            );
        }
        let pem = outcome.unwrap_or_else(|_| {
            Err(format!(
                "{} did not finish the order within {} minutes",
                self.settings.directory,
                ORDER_PATIENCE.as_secs() / 60
            ))
        })?;
        let dated = [format!("{ORDERED_AT}{}\n", Timestamp::now()).as_bytes(), &pem].concat();
        if let Some(shared) = self.shared.get() {
            shared.has_got(dated.clone());
        }
        // It is there, and lives as long as this process.
        if let Err(error) = self.keep(&self.files.certificate, &dated).await {
            tracing::error!(%error, "the new certificate can't be kept on disk");
        }
        // One that stays is only a wait after the next start, where another order is due by then.
        let _ = tokio::fs::remove_file(&self.files.attempt).await;
        Ok(pem)
    }

    /// Writes down that an order is the so-manieth since the last that was carried out, and what is known to have become of it.
    async fn note_attempt(&self, failures: u32, why: &str) {
        let note = format!("{failures} {}\n{why}", Timestamp::now());
        if let Err(error) = self.keep(&self.files.attempt, note.as_bytes()).await {
            tracing::warn!(%error, "that a certificate is ordered can't be written down: after a restart another order may be made at once");
        }
    }

    /// The last order of an earlier start may have come to nothing: then the next one waits, as it would have done without a restart.
    fn remember_attempt(&self) {
        let now = Timestamp::now();
        let noted = match std::fs::read_to_string(&self.files.attempt) {
            Ok(note) => attempt(&note),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            // It may say that orders fail, and each start would make another one.
            Err(error) => {
                let why = format!("{}: {error}", self.files.attempt.display());
                tracing::warn!(
                    "when a certificate was ordered last can't be read ({why}): the next order waits as after one that failed"
                );
                Some((1, now, why))
            }
        };
        let Some((failures, at, why)) = noted else {
            return;
        };
        // Where the clock was set back nobody knows how long ago it was.
        let since = Duration::try_from(at.duration_until(now)).unwrap_or_default();
        let wait = retry_after(failures, random_share()).min(START_PACE);
        let mut progress = self.lock();
        progress.failures = failures;
        progress.last_error = Some(why);
        progress.pace(wait.saturating_sub(since), now, Instant::now());
    }

    /// Waits until another node orders.
    async fn is_another_ones(&self) {
        while self.shared.get().is_none_or(Shared::may_order) {
            tokio::time::sleep(SHARED_LOOK_EVERY).await;
        }
    }

    /// The account's key: the one that is kept, or a new one, which is kept before it is used.
    async fn account_key(&self) -> Result<Vec<u8>, String> {
        let file = &self.files.account;
        let shared = self.shared.get();
        if let Some(shared) = shared
            && let Some(key) = shared.account(file).await?
        {
            return Ok(key);
        }
        let on_disk = match tokio::fs::read(file).await {
            Ok(key) => Some(key),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("{} can't be read: {error}", file.display())),
        };
        let key = on_disk
            .clone()
            .unwrap_or_else(rustls_acme::acme::Account::generate_key_pair);
        let key = match shared {
            Some(shared) => shared.share_account(file, key).await?,
            None => key,
        };
        // A renewal needs no disk that can be written to.
        if on_disk.as_ref() != Some(&key) {
            let kept = self.keep(file, &key).await;
            kept.map_err(|error| format!("{} can't be written: {error}", file.display()))?;
        }
        Ok(key)
    }

    /// Takes a certificate into use, if key and chain fit. It was ordered then, as far as is known.
    fn take(&self, pem: &[u8], ordered_at: Option<Timestamp>) -> Result<(), String> {
        let (key, validity) = tls::certified_key(pem)?;
        let (not_before, not_after) = validity.ok_or("it does not say readably until when it is valid")?;
        self.shown.certificate.store(Some(Arc::new(key)));
        let (now, monotonic) = (Timestamp::now(), Instant::now());
        let mut progress = Progress {
            not_after: Some(not_after),
            next_order_at: renewal_at(not_before, not_after, random_share()),
            ..Progress::default()
        };
        if progress.next_order_at <= now
            && ordered_at.is_some_and(|ordered_at| ordered_at.duration_until(now) < SignedDuration::from_mins(1))
        {
            tracing::warn!(
                %now, valid_from = %not_before, valid_until = %not_after,
                "to this machine's clock a certificate is old when it is new: look whether the clock is right"
            );
        }
        progress.pace(pace_left(not_before, not_after, ordered_at, now), now, monotonic);
        *self.lock() = progress;
        Ok(())
    }

    /// Remembers a failure, and says when the next try is.
    fn failed(&self, error: &str) -> Timestamp {
        let mut progress = self.lock();
        progress.failures = progress.failures.saturating_add(1);
        progress.last_error = Some(error.to_owned());
        let wait = retry_after(progress.failures, random_share());
        progress.next_order_at = Timestamp::MIN;
        progress.pace(wait, Timestamp::now(), Instant::now());
        progress.next_order_at
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The proofs of an order in progress, shown here and wherever the directory may look.
struct Proving<'k> {
    keeper: &'k Keeper,
    proofs: Mutex<Proofs>,
}

#[async_trait]
impl order::Prove for Proving<'_> {
    async fn prove(&self, domain: &str, authorization: &str) -> Result<(), String> {
        let proofs = {
            let mut proofs = lock(&self.proofs);
            proofs.insert(domain.to_owned(), authorization.to_owned());
            proofs.clone()
        };
        self.keeper.show(&proofs);
        match self.keeper.shared.get() {
            Some(shared) => shared.show(&proofs).await,
            None => Ok(()),
        }
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
        let certificate = name("certificate", &for_certificate);
        Files {
            attempt: certificate.with_extension("attempt"),
            certificate,
            account: name("account", &[email, &settings.directory]),
        }
    }
}

async fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let (path, content) = (path.to_owned(), content.to_owned());
    task::begin_blocking(move || framefile::replace_file(&path, &content)).await?
}

/// How the directory is spoken to: `check` calls this too. An error is one sentence.
pub fn client_config(settings: &Acme) -> Result<ClientConfig, String> {
    net::tls::client_config(settings.ca.as_deref())
}

#[cfg(test)]
mod tests;
