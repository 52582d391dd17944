//! Close's side of a daemon within the test's process: the real account, log and keys beside a fake Close, on a clock that the test
//! sets, and dead at any step at which the test says so. What is on disk is all that outlives it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use closehook::close::{Account, Seams};
use closehook::config::{Config, Layers};
use closehook::event::Source;
use closehook::ingress::heard::Heard;
use closehook::ingress::verify::{Claim, HASH_HEADER, TIMESTAMP_HEADER, Unverified, Verifier};
use closehook::log::{Appended, Incoming, LocalLog, Log, OpenError, Options};
use closehook::rules::RuleSet;
use fake_close::{Fake, Settings, SignedAt};
use futures::FutureExt as _;
use jiff::Timestamp;

use crate::close::PUBLIC_URL;

/// A Close, and the door at which it delivers, whether or not anybody is behind it.
pub struct World {
    pub fake: Arc<Fake>,
    door: Arc<Mutex<Option<Behind>>>,
    /// This machine's clock minus Close's, in microseconds.
    pub skew: Arc<AtomicI64>,
    dir: tempfile::TempDir,
}

/// What takes deliveries.
#[derive(Clone)]
struct Behind {
    log: Arc<dyn Log>,
    verifier: Arc<ArcSwap<Verifier>>,
    heard: Arc<Heard>,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

/// Where a process dies.
#[derive(Debug, Default)]
pub struct Steps {
    /// Steps that are left; beyond, everything stands still.
    left: AtomicI64,
    /// The names of those that were taken.
    taken: Mutex<Vec<String>>,
    dead: tokio::sync::Notify,
}

impl Steps {
    pub fn arm(&self, left: i64) {
        self.left.store(left, Ordering::SeqCst);
        self.taken().clear();
    }

    pub fn taken(&self) -> MutexGuard<'_, Vec<String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pass(&self, what: String) {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.dead.notify_one();
            std::future::pending::<()>().await;
        }
        self.taken().push(what);
    }
}

/// A process: gone when it is dropped.
pub struct Process {
    pub account: Arc<Account>,
    pub log: Arc<dyn Log>,
    pub verifier: Arc<ArcSwap<Verifier>>,
    pub steps: Arc<Steps>,
    door: Arc<Mutex<Option<Behind>>>,
}

impl World {
    pub async fn new(seed: u64, settings: Settings) -> World {
        closehook::install_crypto();
        let door: Arc<Mutex<Option<Behind>>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let behind = door.clone();
        let answer = move |headers: HeaderMap, body: Bytes| async move {
            let behind = behind.lock().unwrap().clone();
            match behind {
                Some(behind) => behind.take(&headers, body).await,
                None => StatusCode::SERVICE_UNAVAILABLE,
            }
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        let fake = Fake::start(fake_close::Options {
            seed,
            settings: Settings {
                deliver_to: BTreeMap::from([("https://hooks.example.com".to_owned(), at)]),
                signed_at: SignedAt::Simulated,
                rate_limit: 1_000_000,
                ..settings
            },
            ..fake_close::Options::default()
        });
        World {
            fake: Arc::new(fake.await.unwrap()),
            door,
            skew: Arc::default(),
            dir: directory(),
        }
    }

    pub fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// A configuration. `close` goes into `[close]`, `more` behind it.
    pub fn config(&self, close: &str, more: &str) -> Config {
        let text = format!(
            "[server]\npublic_url = \"{PUBLIC_URL}\"\n[log]\ndir = \"{}\"\n[close]\nbase_url = \"{}\"\n{close}\n{more}",
            self.data().display(),
            self.fake.base_url()
        );
        let file = self.dir.path().join("closehook.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(&Layers {
            file: Some(file),
            ..Layers::new(closehook::sinks::REGISTRY, closehook::rules::faults)
        })
        .unwrap()
    }

    /// As the first key of the fake, an administrator's.
    pub fn usual(&self) -> Config {
        self.config(&format!("api_key = \"{}\"", self.fake.api_key()), "")
    }

    /// Starts a process on what is on disk.
    pub fn start(&self, config: &Config) -> Process {
        let (fake, skew) = (self.fake.clone(), self.skew.clone());
        let now = Arc::new(move || {
            let at = fake.world().now().0 + skew.load(Ordering::Relaxed);
            Timestamp::from_microsecond(at).unwrap()
        });
        std::fs::create_dir_all(self.data()).unwrap();
        let log: Arc<dyn Log> = Arc::new(open(config));
        let verifier = Arc::new(ArcSwap::from_pointee(closehook::app::verifier(config, true).unwrap()));
        let steps = Arc::new(Steps::default());
        steps.arm(i64::MAX);
        let hook = steps.clone();
        let seams = Seams {
            clock: now.clone(),
            age: Arc::default(),
            step: Some(Arc::new(move |what| {
                let hook = hook.clone();
                async move { hook.pass(what).await }.boxed()
            })),
        };
        let rules = rules(config);
        let account = Account::open_with(config, &rules, log.clone(), verifier.clone(), false, seams);
        *self.door.lock().unwrap() = Some(Behind {
            log: log.clone(),
            verifier: verifier.clone(),
            heard: account.heard().clone(),
            now,
        });
        Process {
            account: Arc::new(account),
            log,
            verifier,
            steps,
            door: self.door.clone(),
        }
    }
}

/// Opens the log when nothing of the process before holds it any more: a delivery that was being answered may.
fn open(config: &Config) -> LocalLog {
    let began = std::time::Instant::now();
    loop {
        match LocalLog::open(Options::from_config(config)) {
            Err(OpenError::Locked { .. }) if began.elapsed() < PATIENCE => {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// Longest wait for anything that must happen.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// The rules of a configuration.
pub fn rules(config: &Config) -> RuleSet {
    let names: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
    RuleSet::compile(&config.rules, &names).unwrap()
}

/// In memory where there is such a thing: what is tried is what is on disk in which order, not the disk.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = memory.is_dir().then(|| tempfile::tempdir_in(memory).ok()).flatten();
    made.unwrap_or_else(|| tempfile::tempdir().unwrap())
}

impl Behind {
    async fn take(&self, headers: &HeaderMap, body: Bytes) -> StatusCode {
        let values = |name: &str| {
            headers
                .get_all(name)
                .iter()
                .map(axum::http::HeaderValue::as_bytes)
                .collect::<Vec<_>>()
        };
        let Ok(claim) = Claim::read(values(TIMESTAMP_HEADER), values(HASH_HEADER)) else {
            return StatusCode::UNAUTHORIZED;
        };
        let now = (self.now)();
        let Ok(verified) = self.verifier.load().verify(Unverified { claim, body }, now) else {
            return StatusCode::UNAUTHORIZED;
        };
        let (headers, body, view) = verified.into_parts();
        let subscription = view.and_then(|view| view.subscription_id);
        match self
            .log
            .append(Incoming::new(body, now, Source::Webhook, Some(headers)))
            .await
        {
            Ok(appended) => {
                if let (Appended::Duplicate(_), Some(id)) = (appended, subscription) {
                    self.heard.note(&id);
                }
                StatusCode::OK
            }
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Process {
    /// Does something, and is dead after so many steps of it: `None` then, and nothing more comes of this process.
    pub async fn dies_after<T>(&self, steps: i64, work: impl Future<Output = T>) -> Option<T> {
        self.steps.arm(steps);
        tokio::select! {
            () = self.steps.dead.notified() => None,
            done = work => {
                self.steps.left.store(i64::MAX, Ordering::SeqCst);
                Some(done)
            }
        }
    }

    /// Lets go of the log, so that another process can have it.
    pub async fn end(self) {
        *self.door.lock().unwrap() = None;
        drop(self.account);
        self.log.close().await;
    }
}
