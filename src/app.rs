//! The wiring: from a configuration to a running daemon, or to a data directory a command can work on. The only place where
//! the parts meet, with the order in which they start and stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::admin::health::Health;
use crate::admin::query::{Facade, Facts, ReloadOrder, Reloaded};
use crate::admin::socket;
use crate::close::{self, Account};
use crate::config::{Config, Fault, Layers, Listen, Partial};
use crate::deliver::{self, Engine, Mode};
use crate::framefile;
use crate::ingress::abuse::Guard;
use crate::ingress::acme::Keeper;
use crate::ingress::front::Front;
use crate::ingress::listener::{self, Limits};
use crate::ingress::memory::Budget;
use crate::ingress::proxy::Proxies;
use crate::ingress::sockets::{Inherited, Listener, Passed};
use crate::ingress::threads::Threads;
use crate::ingress::tls::Certificates;
use crate::ingress::{Ingress, tls};
use crate::log::{self, LocalLog, OpenError};
use crate::rules::RuleSet;
use crate::telemetry;
use crate::verify::{Key, Verifier};

/// A daemon that starts asks a command that has the data directory to give way by making this file.
const GIVE_WAY: &str = "give-way";

/// How long a starting daemon waits for a command to give way.
const PATIENCE: Duration = Duration::from_secs(30);

/// The commit loop turns twice a second; if it has not for so long, systemd may kill and restart the process.
const STUCK: Duration = Duration::from_secs(15);

/// The watchdog is fed at least this often.
const FEED_EVERY: Duration = Duration::from_secs(5);

/// Open files that connections must leave to the log, the sinks and the commands.
const FILES_KEPT: u64 = 512;

/// Runs the daemon until SIGTERM or SIGINT, on the sockets it was handed and, where there is none, on those it makes.
pub async fn run(layers: Layers, config: Config, inherited: Inherited) -> anyhow::Result<()> {
    let metrics = telemetry::install_metrics().map_err(|error| anyhow!(error))?;
    let verifier = Arc::new(ArcSwap::from_pointee(
        verifier(&config, true).map_err(|faults| anyhow!(sentences(&faults).join("; ")))?,
    ));
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let threads = Threads::start().context("the listener's threads can't be started")?;
    // The directory first: two daemons on one are the worse mistake, and its message the more useful one.
    let log = open_patiently(&config, threads.handle()).await?;
    let _ = std::fs::remove_file(config.log.dir.join(GIVE_WAY));
    let tls = certificates(&config).map_err(|error| anyhow!(error))?;
    let server = &config.server;
    let (listen_on, mode) = (server.listen.clone(), server.listen_mode);
    let public = async move { listen(inherited.public, &listen_on, mode, "server.listen").await };
    let public = threads.handle().spawn(public).await??;
    let admin_listen = Listen::Tcp(config.admin.listen);
    let admin = listen(inherited.admin, &admin_listen, 0, "admin.listen").await?;
    let engine = start_engine(&config, &log, Mode::Follow).await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let account = Arc::new(account(&config, &log, &verifier, false)?);
    release_partials(&config, &account, &engine).await;
    let (reload, reload_orders) = mpsc::channel(1);
    let facade = Arc::new(Facade {
        log: log.clone(),
        engine: engine.clone(),
        verifier: verifier.clone(),
        tls: tls.clone(),
        account: account.clone(),
        reload: Some(reload),
        facts: Facts {
            url: Some(public.url(scheme, &config.server.path)?),
            admin: Some(admin.url("http", "")?),
            ..facts(&config, true)
        },
    });
    let unix = socket::bind(&config.log.dir)
        .with_context(|| format!("{} can't be made", socket::path(&config.log.dir).display()))?;

    let stop = CancellationToken::new();
    let stop_admin = CancellationToken::new();
    let proxies = Arc::new(Proxies {
        trusted: config.server.trusted_proxies.clone(),
        proxy_protocol: config.server.proxy_protocol,
    });
    let limits = limits(&config, &proxies);
    let front = Front {
        proxies,
        guard: limits.guard.clone(),
        ingress: Arc::new(ingress(&config, &log, &verifier, &account)),
    };
    let answer = move |request, seat| front.clone().answer(request, seat);
    let serving = threads.handle().spawn(listener::serve(
        public,
        tls.clone(),
        limits.clone(),
        answer,
        stop.clone(),
    ));
    let health = Health {
        facade: facade.clone(),
        metrics,
    };
    let admin_limits = limits_of_admin(&limits);
    let routes = health.router();
    let answer = move |request, _| routes.clone().oneshot(request);
    let admin_serving = tokio::spawn(listener::serve(admin, None, admin_limits, answer, stop_admin.clone()));
    let commands = tokio::spawn(socket::serve(unix, facade.clone(), stop_admin.clone()));
    if let Some(tls) = &tls {
        tokio::spawn(tls.clone().keep());
    }
    tokio::spawn(feed_watchdog(log.clone()));
    let looking_after = tokio::spawn(close::supervise(account.clone(), stop.clone()));

    // Before anybody is told that it runs: a signal that nobody handles ends the process.
    let signals = Signals::handle()?;
    announce(&config, &facade, layers.file.as_deref());
    notify(&[sd_notify::NotifyState::Ready]);
    let daemon = Daemon {
        layers,
        started_with: fixed(&config),
        engine: engine.clone(),
        verifier,
        account,
        tls,
    };
    daemon.wait_for_the_end(signals, reload_orders).await;

    notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping: open requests are answered, running deliveries end");
    stop.cancel();
    let _ = tokio::join!(serving, looking_after);
    engine.shutdown().await;
    stop_admin.cancel();
    let _ = tokio::join!(admin_serving, commands);
    let _ = std::fs::remove_file(socket::path(&facade.facts.dir));
    tokio::task::spawn_blocking(move || log.close()).await?;
    tracing::info!("stopped");
    Ok(())
}

fn limits(config: &Config, proxies: &Arc<Proxies>) -> Limits {
    let server = &config.server;
    Limits {
        proxies: proxies.clone(),
        guard: Guard::new(
            server.allow.clone(),
            server.connections_per_address,
            server.failures_per_address.0,
        ),
        connections_max: connections_max(config.server.max_connections),
        head_timeout: config.server.head_timeout.0,
        idle_timeout: config.server.idle_timeout.0,
        drain_timeout: config.server.drain_timeout.0,
    }
}

/// Few connections, and nobody to be kept out: whoever reaches this listener is on this machine or was let in.
fn limits_of_admin(public: &Limits) -> Limits {
    Limits {
        proxies: Arc::default(),
        guard: Guard::off(),
        connections_max: 64,
        drain_timeout: Duration::from_secs(1),
        ..public.clone()
    }
}

/// So many connections as are configured, or as the process may have files open beside its own: senders that open connections
/// and do nothing must not keep the log from opening a file.
fn connections_max(configured: usize) -> usize {
    let files = log::raise_limit();
    let possible = files.map_or(usize::MAX, |files| {
        files.saturating_sub(FILES_KEPT).max(files / 2) as usize
    });
    if possible < configured {
        tracing::warn!(
            "server.max_connections is {configured}, and the limit of open files leaves room for {possible}: raise LimitNOFILE"
        );
    }
    configured.min(possible)
}

fn ingress(config: &Config, log: &LocalLog, verifier: &Arc<ArcSwap<Verifier>>, account: &Account) -> Ingress {
    Ingress {
        log: log.clone(),
        verifier: verifier.clone(),
        heard: account.heard().clone(),
        path: config.server.path.clone(),
        body_max: config.server.max_body.0,
        body_timeout: config.server.body_timeout.0,
        memory: Budget::new(config.server.max_inflight.0 as usize),
    }
}

/// Where the certificate comes from; `None`: plain HTTP. Only for the holder of the data directory, where it may be kept.
fn certificates(config: &Config) -> Result<Option<Certificates>, String> {
    if let Some(files) = &config.server.tls {
        return tls::Reloader::new(files.clone()).map(Certificates::Files).map(Some);
    }
    let Some(acme) = &config.server.acme else {
        return Ok(None);
    };
    let keeper = Keeper::new(acme.clone(), &config.log.dir.join("acme"))?;
    Ok(Some(Certificates::Acme(keeper)))
}

/// The socket that was handed over, or a new one.
async fn listen(passed: Option<Passed>, listen: &Listen, mode: u32, key: &str) -> anyhow::Result<Listener> {
    match passed {
        Some(passed) => passed
            .listen()
            .with_context(|| format!("the socket that was passed on in place of {key} can't be used")),
        None => Listener::bind(listen, mode).await.with_context(|| {
            format!("can't listen on {listen}: choose another address with {key}, or stop what uses it")
        }),
    }
}

/// The first lines: where it listens, what becomes of events, what to type next.
fn announce(config: &Config, facade: &Facade, file: Option<&Path>) {
    let url = facade.facts.url.as_deref().unwrap_or_default();
    let keys = facade.verifier.load().live().count();
    tracing::info!(
        "closehook {} listens on {url} for deliveries signed with {keys} known key(s)",
        facade.facts.version
    );
    let names = |names: Vec<String>| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    tracing::info!(
        "events are kept in {} for {}; sinks: {}; rules: {}",
        config.log.dir.display(),
        config.log.retention,
        names(
            config
                .sinks
                .iter()
                .map(|sink| format!("{} ({})", sink.name, sink.kind))
                .collect()
        ),
        names(config.rules.iter().map(|rule| rule.name.clone()).collect()),
    );
    tracing::info!(
        "metrics and health: {}/metrics",
        facade.facts.admin.as_deref().unwrap_or_default()
    );
    let option = file.map_or_else(String::new, |file| format!(" -c {}", file.display()));
    tracing::info!("try it: closehook trigger unsubscribed_email.created{option}");
}

/// What the daemon is told by signals.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn handle() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

struct Daemon {
    layers: Layers,
    /// What only a start takes over, as it was at this one.
    started_with: [(&'static str, String); 3],
    engine: Engine,
    verifier: Arc<ArcSwap<Verifier>>,
    account: Arc<Account>,
    tls: Option<Certificates>,
}

/// Tables of which some keys take effect at a start only, each with what it says there.
fn fixed(config: &Config) -> [(&'static str, String); 3] {
    // Close's side takes it over at once.
    let server = crate::config::Server {
        public_url: None,
        ..config.server.clone()
    };
    [
        ("server", format!("{server:?}")),
        ("admin", format!("{:?}", config.admin)),
        ("log", format!("{:?}", config.log)),
    ]
}

impl Daemon {
    async fn wait_for_the_end(self, mut signals: Signals, mut orders: mpsc::Receiver<ReloadOrder>) {
        loop {
            let order = tokio::select! {
                _ = signals.terminate.recv() => return,
                _ = signals.interrupt.recv() => return,
                _ = signals.hangup.recv() => None,
                order = orders.recv() => order,
            };
            notify(&[sd_notify::NotifyState::Reloading]);
            let reloaded = self.reload().await;
            notify(&[sd_notify::NotifyState::Ready]);
            if let Some(order) = order {
                // Whoever does not wait any more does not want to know.
                let _ = order.send(reloaded);
            }
        }
    }

    /// Takes over what the configuration says now; if anything in it is wrong, nothing changes.
    async fn reload(&self) -> Result<Reloaded, Vec<String>> {
        let reloaded = self.try_reload().await;
        match &reloaded {
            Ok(reloaded) => {
                if !reloaded.restart.is_empty() {
                    tracing::warn!("changes in [server], [admin] and [log] take effect at the next start");
                }
                tracing::info!("configuration reloaded");
            }
            Err(faults) => {
                for fault in faults {
                    tracing::error!("{fault}");
                }
                tracing::error!("the configuration was not reloaded; the old one stays in force");
            }
        }
        reloaded
    }

    async fn try_reload(&self) -> Result<Reloaded, Vec<String>> {
        let strings = |faults: Vec<Fault>| sentences(&faults);
        let layers = self.layers.clone();
        let config = tokio::task::spawn_blocking(move || Config::load(&layers)).await;
        let config = config.map_err(|error| vec![error.to_string()])?.map_err(strings)?;
        let new_keys = verifier(&config, true).map_err(strings)?;
        if let Some(tls) = &config.server.tls {
            tls::load(tls).map_err(|error| vec![error])?;
        }
        let rules = compile(&config).map_err(strings)?;
        let rules = Arc::new(rules);
        self.engine
            .reload(rules.clone(), &config.sinks)
            .await
            .map_err(|error| vec![error.to_string()])?;
        self.verifier.store(Arc::new(new_keys));
        self.account.reconfigure(&config, &rules);
        release_partials(&config, &self.account, &self.engine).await;
        match &self.tls {
            Some(Certificates::Files(tls)) => {
                if let Err(error) = tls.reload() {
                    tracing::error!(error, "the new certificate can't be used; the old one stays");
                }
            }
            // Somebody may have put right what kept the directory from issuing one.
            Some(Certificates::Acme(keeper)) => keeper.try_now(),
            None => {}
        }
        let changed = fixed(&config)
            .into_iter()
            .zip(&self.started_with)
            .filter(|(now, then)| now != *then)
            .map(|((table, _), _)| table.to_owned());
        Ok(Reloaded {
            file: self.layers.file.clone(),
            restart: changed.collect(),
        })
    }
}

async fn feed_watchdog(log: LocalLog) {
    let Some(limit) = watchdog_limit() else { return };
    let every = (limit / 3).min(FEED_EVERY);
    loop {
        // Only the commit loop's life counts: a full disk or a dead sink is no reason to restart.
        if log.since_turned() < STUCK {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
        tokio::time::sleep(every).await;
    }
}

/// How often systemd wants to hear from this process, as `sd_watchdog_enabled(3)` reads it: without a process id it is meant
/// for whoever reads it.
fn watchdog_limit() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if std::env::var_os("WATCHDOG_PID").is_some() && number("WATCHDOG_PID") != Some(std::process::id().into()) {
        return None;
    }
    number("WATCHDOG_USEC")
        .filter(|limit| *limit > 0)
        .map(Duration::from_micros)
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

fn compile(config: &Config) -> Result<RuleSet, Vec<Fault>> {
    let sinks: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
    let rules = RuleSet::compile(&config.rules, &sinks)?;
    Ok(rules.dispatching_partials(config.close.partial == Partial::Dispatch))
}

fn first_fault(faults: &[Fault]) -> anyhow::Error {
    anyhow!(faults.first().map(ToString::to_string).unwrap_or_default())
}

/// Our account at Close; nothing is contacted.
pub fn account(
    config: &Config,
    log: &LocalLog,
    verifier: &Arc<ArcSwap<Verifier>>,
    read_only: bool,
) -> anyhow::Result<Account> {
    let rules = compile(config).map_err(|faults| first_fault(&faults))?;
    Ok(Account::open(config, &rules, log.clone(), verifier.clone(), read_only))
}

/// Events that were held because Close withheld their data go out once they are to be dispatched as they are.
async fn release_partials(config: &Config, account: &Account, engine: &Engine) {
    if config.close.partial != Partial::Dispatch {
        return;
    }
    let released = async {
        let Some((from, to)) = account.held_parts() else {
            return Ok(());
        };
        let spec = deliver::ReplaySpec::of_partials(from, to);
        let planning = engine.clone();
        let planned = tokio::task::spawn_blocking(move || planning.replay_plan(spec, &mut |_| ())).await?;
        let (spec, planned) = planned?;
        let id = engine.replay_start(spec, planned).await?;
        account.forget_held_parts().await?;
        tracing::info!("events {from} to {to} whose data Close withholds are dispatched as they are (replay {id})");
        anyhow::Ok(())
    };
    if let Err(error) = released.await {
        tracing::error!("events without their data can't be released: {error:#}");
    }
}

fn sentences(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

/// Resolves the signature keys; `make`: also makes the local key where it is wanted and missing. Every key that can't be used
/// is a fault.
pub fn verifier(config: &Config, make: bool) -> Result<Verifier, Vec<Fault>> {
    let (mut keys, mut faults) = (Vec::new(), Vec::new());
    let mut add = |place: String, key: Result<Key, String>| match key {
        Ok(key) => keys.push(key),
        Err(message) => faults.push(Fault { place, message }),
    };
    for (index, subscription) in config.close.subscriptions.iter().enumerate() {
        let text = subscription.signature_key.resolve();
        let key = text.and_then(|text| Key::from_hex(subscription.id.clone(), text.expose_secret()));
        add(format!("close.subscriptions[{index}].signature_key"), key);
    }
    if config.close.local_key
        && let Some(key) = local_key(config, make).transpose()
    {
        add("close.local_key".into(), key);
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let signed = |span: crate::config::Span| SignedDuration::try_from(span.0).unwrap_or(SignedDuration::MAX);
    // Damage in the data directory must not keep the daemon from starting: Close sends again what is refused meanwhile.
    let (kept, retired) = close::signature_keys(&config.log.dir).unwrap_or_else(|error| {
        tracing::error!("the keys of subscriptions made here are not known, their deliveries are refused: {error}");
        (Vec::new(), Vec::new())
    });
    Ok(Verifier {
        keys,
        kept,
        retired,
        tolerance: signed(config.server.signature_tolerance),
        skew: signed(config.server.clock_skew),
    })
}

/// The key for trying out; `None` where it is not made yet.
fn local_key(config: &Config, make: bool) -> Result<Option<Key>, String> {
    let path = config.log.dir.join("signature_key");
    if make && !path.exists() {
        let fail = |error: &dyn std::fmt::Display| format!("{} can't be made: {error}", path.display());
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| fail(&error))?;
        log::make_dir(&config.log.dir).map_err(|error| fail(&error))?;
        framefile::replace_file(&path, hex::encode(random).as_bytes()).map_err(|error| fail(&error))?;
        tracing::info!("made a signature key for trying out: {}", path.display());
    }
    if !path.exists() {
        return Ok(None);
    }
    let text = crate::config::Secret::File(path.clone()).resolve()?;
    let key = Key::from_hex(None, text.expose_secret()).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Some(key))
}

async fn start_engine(config: &Config, log: &LocalLog, mode: Mode) -> anyhow::Result<Engine> {
    let rules = compile(config).map_err(|faults| first_fault(&faults))?;
    let options = deliver::Options {
        log: log.clone(),
        dir: config.log.dir.clone(),
        rules: Arc::new(rules),
        sinks: config.sinks.clone(),
        mode,
    };
    Ok(Engine::start(options).await?)
}

fn facts(config: &Config, running: bool) -> Facts {
    Facts {
        running,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: Timestamp::now(),
        url: None,
        request_ids: crate::ingress::request_id_prefix().to_owned(),
        admin: None,
        dir: config.log.dir.clone(),
    }
}

/// Opens the log; `on` is where commits are answered from.
async fn open_log(options: log::Options, on: &Handle) -> anyhow::Result<Result<LocalLog, OpenError>> {
    Ok(on.spawn_blocking(move || LocalLog::open(options)).await?)
}

/// Opens the log for the daemon; a command that has it is asked to give way.
async fn open_patiently(config: &Config, on: &Handle) -> anyhow::Result<LocalLog> {
    let request = config.log.dir.join(GIVE_WAY);
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        match open_log(log::Options::from_config(config), on).await? {
            Ok(log) => return Ok(log),
            // Another daemon has a socket and does not give way.
            Err(error @ OpenError::Locked { .. }) => {
                let daemon = socket::connect(&config.log.dir).await.is_ok();
                if daemon || tokio::time::Instant::now() > until {
                    bail!(error);
                }
                std::fs::write(&request, b"").with_context(|| format!("{} can't be made", request.display()))?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => bail!(error),
        }
    }
}

/// Opens the data directory to look at it: takes no lock, writes nothing.
pub async fn open_read(config: &Config) -> anyhow::Result<Facade> {
    let options = log::Options {
        read_only: true,
        ..log::Options::from_config(config)
    };
    let log = open_log(options, &Handle::current()).await??;
    facade(config, log, Mode::Look).await
}

/// Opens the data directory to work on it without a daemon. `give_way` is cancelled when a daemon wants it.
pub async fn open_write(config: &Config, give_way: CancellationToken) -> anyhow::Result<Facade> {
    let before = owner(&config.log.dir);
    if before.is_none() {
        bail!(OpenError::Missing(config.log.dir.clone()));
    }
    let log = open_log(log::Options::from_config(config), &Handle::current()).await??;
    let request = config.log.dir.join(GIVE_WAY);
    tokio::spawn(async move {
        while !request.exists() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        give_way.cancel();
    });
    facade(config, log, Mode::Jobs).await
}

/// Makes a data directory that is missing (mode 0700). A command run by root leaves it to the owner of what it is in, as whom the
/// daemon may run; systemd gives it to the unit's user at every start.
pub fn make_data_dir(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        return Ok(());
    }
    let made = log::make_dir(dir).and_then(|()| crate::framefile::sync_parent(dir));
    made.with_context(|| format!("the data directory {} can't be made", dir.display()))?;
    if rustix::process::geteuid().is_root()
        && let Some((user, group)) = dir.parent().and_then(owner)
    {
        give(dir, user, group);
    }
    Ok(())
}

/// Closes what [`open_write`] opened, leaving every file to the directory's owner.
pub async fn close(facade: Facade) -> anyhow::Result<()> {
    facade.engine.shutdown().await;
    let (log, dir) = (facade.log.clone(), facade.facts.dir.clone());
    tokio::task::spawn_blocking(move || {
        log.close();
        leave_to_owner(&dir);
    })
    .await?;
    Ok(())
}

async fn facade(config: &Config, log: LocalLog, mode: Mode) -> anyhow::Result<Facade> {
    let engine = start_engine(config, &log, mode).await?;
    // Keys are needed to check signatures only; without them everything else works.
    let verifier = verifier(config, false).unwrap_or_else(|faults| {
        tracing::warn!("{}", sentences(&faults).join("; "));
        Verifier::default()
    });
    let verifier = Arc::new(ArcSwap::from_pointee(verifier));
    let account = account(config, &log, &verifier, mode == Mode::Look)?;
    Ok(Facade {
        log,
        engine,
        verifier,
        account: Arc::new(account),
        reload: None,
        tls: None,
        facts: facts(config, false),
    })
}

/// Gives everything in a data directory to the directory's owner: a command run by root must not lock the daemon out of its
/// own files.
pub fn leave_to_owner(dir: &Path) {
    if rustix::process::geteuid().is_root()
        && let Some((user, group)) = owner(dir)
    {
        give(dir, user, group);
    }
}

fn owner(dir: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(dir).ok()?;
    Some((metadata.uid(), metadata.gid()))
}

fn give(dir: &Path, user: u32, group: u32) {
    let mut pending: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let _ = std::os::unix::fs::lchown(&path, Some(user), Some(group));
        let is_dir = std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        if is_dir && let Ok(listing) = std::fs::read_dir(&path) {
            pending.extend(listing.flatten().map(|entry| entry.path()));
        }
    }
}
