//! The wiring: from a configuration to a running daemon, or to a data directory a command can work on. The only place where
//! the parts meet.
//!
//! [`run`] is the order in which they start; they stop in the opposite one, because each is pushed onto `Started` as it starts.
//! How each is made is in `roles`, what a daemon is told while it runs in `running`, what a signal or `closehook reload` changes in
//! `reload`, and how a data directory is taken, with a daemon and without, in `directory`.

#[cfg(feature = "engine-jetstream")]
pub mod copy;
mod directory;
#[cfg(feature = "engine-jetstream")]
mod forgotten;
mod keys;
mod listen;
#[cfg_attr(not(feature = "engine-jetstream"), path = "alone.rs")]
mod nodes;
mod patience;
mod receiving;
mod reload;
mod roles;
mod running;
mod signals;
mod start;
#[cfg(feature = "engine-jetstream")]
mod waiting;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::admin::auth::Auth;
use crate::age::{Age, Clock};
use crate::close::{self, Account};
use crate::config::{Config, Layers};
use crate::control::configured::InForce;
use crate::control::{Bench, Facade, Facts};
use crate::deliver::{Engine, Mode};
use crate::ingress::verify::Verifier;
use crate::listener::certificates::Certificates;
use crate::listener::connections::Limits;
use crate::listener::sockets::{Inherited, Listener};
use crate::listener::threads::Threads;
use crate::log::Log;
use crate::node::{self, Want};
use crate::render::NameBook;
use crate::retention::Retention;
use crate::task;
use crate::telemetry;
use crate::telemetry::door::Door;
use crate::telemetry::history::{self, History};
use directory::open_patiently;
use nodes::Nodes;
use patience::Why;
use receiving::Live;
use reload::{Reload, certificate_of, fixed, release_partials, rules_of};
use roles::{
    build_account, build_certificates, build_delivery, build_ingress, build_retention, facts, limits, sentences,
    source_of_history,
};
use running::{Daemon, announce};
use signals::{Signals, feed_watchdog, notify, notify_stopping, watchdog_every};
use start::{Admin, FOR_ADMIN, FOR_LEASES, FOR_LOG, FOR_SETTLING, FOR_SINKS, Started, keep_answering, public_listener};

pub use directory::{close, leave_to_owner, make_data_dir, open_read, open_write, shared_close};
pub use keys::{readable_keys, verifier};
pub use listen::Receiver;
pub use nodes::{create as create_buckets, faults as faults_of_buckets};

/// Runs the daemon until SIGTERM or SIGINT, on the sockets it was handed and, where there is none, on those it makes.
pub async fn run(layers: Layers, config: Config, inherited: Inherited) -> anyhow::Result<()> {
    let mut started = Started::default();
    let outcome = match Box::pin(start(&mut started, layers, &config, inherited)).await {
        Ok(daemon) => {
            if let Some(daemon) = daemon {
                daemon.wait_for_the_end().await;
            }
            tracing::info!("stopping: open requests are answered, running deliveries end");
            Ok(())
        }
        Err(error) => Err(error),
    };
    let within = config.stop_within();
    notify_stopping(within);
    let given_up = started.stop(within).await;
    if outcome.is_ok() && given_up.is_empty() {
        tracing::info!("stopped");
    }
    outcome
}

/// Starts every part; `None`: it was told to stop before all were there. What has been started when one fails is stopped as at the end.
async fn start(
    started: &mut Started,
    layers: Layers,
    config: &Config,
    inherited: Inherited,
) -> anyhow::Result<Option<Daemon>> {
    let base = start_base(started, config)?;
    let log = start_log(started, config, &base).await?;

    // Whoever asks is heard from here on, and answered once there is something to say.
    let certificates = build_certificates(config).map_err(|error| anyhow!(error))?;
    let public = Arc::new(public_listener(inherited.public, config, &base.on).await?);
    let admin = Admin::bind(inherited.admin, config).await?;
    started.reserve("the admin listener and the socket", FOR_ADMIN, admin.stop());
    let doors = Doors {
        scheme: if certificates.is_some() { "https" } else { "http" },
        auth: admin.auth(config)?,
        in_force: Arc::new(InForce::new(&layers)),
        limits: limits(config),
        public,
        admin,
        certificates,
    };
    let (parts, signals) = match log {
        Some(log) => (start_parts(started, config, &base, log, None).await?, None),
        None => match Box::pin(wait_for_parts(started, config, &base, &doors)).await? {
            Some((parts, signals)) => (parts, Some(signals)),
            None => return Ok(None),
        },
    };
    serve(started, layers, config, base, doors, parts, signals)
        .await
        .map(Some)
}

/// The ways to this process, not answered yet.
struct Doors {
    public: Arc<Listener>,
    scheme: &'static str,
    admin: Admin,
    auth: Arc<Auth>,
    in_force: Arc<InForce>,
    limits: Limits,
    certificates: Option<Certificates>,
}

/// What keeps and delivers.
struct Parts {
    log: Arc<dyn Log>,
    nodes: Option<Nodes>,
    account: Arc<Account>,
    engine: Engine,
    retention: Arc<Retention>,
}

/// Opens what several nodes share; where its servers can't be used now, whoever asks is told so. `None`: it was told to stop meanwhile.
#[cfg(feature = "engine-jetstream")]
async fn wait_for_parts(
    started: &mut Started,
    config: &Config,
    base: &Base,
    doors: &Doors,
) -> anyhow::Result<Option<(Parts, Signals)>> {
    let mut signals = Signals::handle()?;
    let why = Why::default();
    let url = doors.public.url(doors.scheme, &config.server.path)?;
    let front = waiting::Front {
        config,
        metrics: &base.metrics,
        age: &base.age,
        keys: &base.keys,
        on: &base.on,
        public: &doors.public,
        url: &url,
        admin: &doors.admin,
        auth: &doors.auth,
        in_force: &doors.in_force,
        limits: &doors.limits,
        certificates: doors.certificates.as_ref(),
    };
    let told = why.subscribe();
    let opening = open_parts(started, config, base, doors, &why);
    let waited = Box::pin(front.until(opening, told, &mut signals)).await?;
    match waited {
        waiting::Waited::Opened(parts) => Ok(Some((parts, signals))),
        waiting::Waited::Told(answering) => {
            // They have the same deadline as everything else.
            started.extend(answering);
            Ok(None)
        }
    }
}

#[cfg(not(feature = "engine-jetstream"))]
async fn wait_for_parts(
    started: &mut Started,
    config: &Config,
    base: &Base,
    doors: &Doors,
) -> anyhow::Result<Option<(Parts, Signals)>> {
    let why = Why::default();
    let parts = open_parts(started, config, base, doors, &why).await?;
    Ok(Some((parts, Signals::handle()?)))
}

async fn open_parts(
    started: &mut Started,
    config: &Config,
    base: &Base,
    doors: &Doors,
    why: &Why,
) -> anyhow::Result<Parts> {
    let log = nodes::open_log_patiently(config, why).await?;
    close_at_the_end(started, &log);
    #[cfg(feature = "engine-jetstream")]
    forgotten::refuse(config, &*log, why).await?;
    let nodes = start_nodes(started, config, &base.keys, doors.certificates.as_ref(), why).await?;
    start_parts(started, config, base, log, Some((nodes, why))).await
}

/// Everything behind the listeners.
async fn start_parts(
    started: &mut Started,
    config: &Config,
    base: &Base,
    log: Arc<dyn Log>,
    shared: Option<(Nodes, &Why)>,
) -> anyhow::Result<Parts> {
    // It knows what custom fields are called, and the first delivery may want to.
    let close = shared.as_ref().map(|(nodes, _)| nodes.close.clone());
    let account = Arc::new(build_account(config, &log, &base.keys, false, &base.age, close)?);
    keys::note(config, &account).await;
    let clock = Clock::of(base.age.clone());
    let (engine, retention) = start_delivery(started, config, &log, account.names(), &clock, shared.as_ref()).await?;
    Box::pin(release_partials(config, &account, &engine)).await;
    Ok(Parts {
        log,
        nodes: shared.map(|(nodes, _)| nodes),
        account,
        engine,
        retention,
    })
}

/// Answers from now on.
async fn serve(
    started: &mut Started,
    layers: Layers,
    config: &Config,
    base: Base,
    doors: Doors,
    parts: Parts,
    signals: Option<Signals>,
) -> anyhow::Result<Daemon> {
    let (reload, orders) = mpsc::channel(1);
    let door = Door::new(base.age.clone());
    let history = start_history(started, config, &base.metrics, &parts.engine).await;
    let facade = Arc::new(Facade {
        reload: Some(reload),
        history: Some(history),
        ..facade_of(config, &base, &doors, &parts, &door)?
    });
    let Parts {
        log,
        nodes,
        account,
        engine,
        ..
    } = parts;
    engine.refer(facade.referral());
    doors.admin.serve(&facade, &doors.auth, base.metrics, &doors.limits);
    let front = build_ingress(config, &log, &base.keys, &account, &doors.limits, &door);
    if nodes::receives(config) {
        let certificates = doors.certificates.clone();
        keep_answering(started, &base.on, doors.public, certificates, doors.limits, front);
    }
    if let Some(certificates) = doors.certificates.clone() {
        started.keep("certificates", move |_| certificates.clone().keep());
    }
    keep_close(started, &account, nodes);

    // Before anybody is told that it runs: a signal that nobody handles ends the process.
    let signals = signals.map_or_else(Signals::handle, Ok)?;
    announce(config, &facade, layers.file.as_deref());
    notify(&[sd_notify::NotifyState::Ready]);
    let reload = Arc::new(Reload {
        layers,
        started_with: fixed(config),
        dir: config.log.dir.clone(),
        rules: Mutex::new(rules_of(config)),
        certificate: Mutex::new(certificate_of(doors.certificates.as_ref())),
        engine,
        verifier: base.keys,
        account,
        tls: doors.certificates,
        auth: doors.auth,
        in_force: doors.in_force,
    });
    Ok(Daemon {
        signals,
        orders,
        reload,
    })
}

/// Whoever asks this daemon asks here.
fn facade_of(config: &Config, base: &Base, doors: &Doors, parts: &Parts, door: &Arc<Door>) -> anyhow::Result<Facade> {
    Ok(Facade {
        log: parts.log.clone(),
        engine: parts.engine.clone(),
        receiving: Arc::new(Live {
            verifier: base.keys.clone(),
            tls: doors.certificates.clone(),
            door: Some(door.clone()),
        }),
        account: parts.account.clone(),
        retention: Some(parts.retention.clone()),
        reload: None,
        links: Some(doors.auth.clone()),
        bench: Bench::new(parts.account.names().clone()),
        history: None,
        configured: Some(doors.in_force.clone()),
        others: parts.nodes.as_ref().map(Nodes::others),
        facts: Facts {
            url: nodes::receives(config)
                .then(|| doors.public.url(doors.scheme, &config.server.path))
                .transpose()?,
            admin: Some(doors.admin.url()?),
            ..facts(config, true)
        },
    })
}

/// What everything else stands on.
struct Base {
    /// Is told what time it is, and by it things grow old.
    age: Arc<Age>,
    metrics: PrometheusHandle,
    keys: Arc<ArcSwap<Verifier>>,
    /// The listener's threads.
    on: Handle,
}

fn start_base(started: &mut Started, config: &Config) -> anyhow::Result<Base> {
    let metrics = telemetry::install_metrics().map_err(|error| anyhow!(error))?;
    let keys = verifier(config, true).map_err(|faults| anyhow!(sentences(&faults).join("; ")))?;
    for warning in config.warnings(close::has_live_key(&config.log.dir)) {
        tracing::warn!("{warning}");
    }
    let threads = Threads::start().context("the listener's threads can't be started")?;
    let on = threads.handle().clone();
    started.push("the listener's threads", async move { drop(threads) });
    Ok(Base {
        age: Arc::default(),
        metrics,
        keys: Arc::new(ArcSwap::from_pointee(keys)),
        on,
    })
}

/// Takes the data directory, and opens the log in it; `None`: it is kept elsewhere. The directory comes before the sockets: two daemons on one
/// are the worse mistake, and its message the more useful one.
async fn start_log(started: &mut Started, config: &Config, base: &Base) -> anyhow::Result<Option<Arc<dyn Log>>> {
    if nodes::are_several(config) {
        let held = directory::hold(config)?;
        started.push("the data directory", async move { drop(held) });
        return Ok(None);
    }
    let log = open_patiently(config, &Clock::of(base.age.clone()), &base.on).await?;
    close_at_the_end(started, &log);
    Ok(Some(log))
}

fn close_at_the_end(started: &mut Started, log: &Arc<dyn Log>) {
    let closing = log.clone();
    started.reserve("the log", FOR_LOG, async move { closing.close().await });
    if let Some(every) = watchdog_every() {
        let log = log.clone();
        started.keep("watchdog", move |_| feed_watchdog(log.clone(), every));
    }
}

/// What this node shares with others. What they know of Close's side is here when this returns, keys included.
async fn start_nodes(
    started: &mut Started,
    config: &Config,
    keys: &ArcSwap<Verifier>,
    certificates: Option<&Certificates>,
    why: &Why,
) -> anyhow::Result<Nodes> {
    let nodes = nodes::build(config).await?;
    if let Some(Certificates::Acme(keeper)) = certificates {
        nodes.leases.also_want(Want {
            what: node::CERTIFICATE.to_owned(),
            node: None,
        });
        keeper.share(nodes.sealed.clone(), nodes.others());
    }
    let look = || async {
        match nodes.close.look_first().await.map_err(|error| error.to_string()) {
            // It stays wrong.
            Err(wrong) if nodes::stays_wrong(&wrong) => Ok(Err(anyhow!(wrong))),
            looked => looked.map(Ok),
        }
    };
    why.patiently("what the nodes share can't be read now", look).await??;
    let known = verifier(config, true).map_err(|faults| anyhow!(sentences(&faults).join("; ")))?;
    keys.store(Arc::new(known));
    let alive = nodes.leases.clone();
    started.keep("nodes", move |stop| {
        let alive = alive.clone();
        async move { alive.run(&stop).await }
    });
    // Right after the sinks have stopped, others may go on with them.
    let leaving = nodes.leases.clone();
    started.reserve("its leases", FOR_LEASES, async move { leaving.leave().await });
    Ok(nodes)
}

/// Whoever looks after Close's side: this process, or the node that has the lease for it. What custom fields are called each node asks for
/// itself: its own sinks want to know.
fn keep_close(started: &mut Started, account: &Arc<Account>, nodes: Option<Nodes>) {
    let account = account.clone();
    let settling = account.clone();
    started.reserve("what Close was asked for", FOR_SETTLING, async move {
        settling.settle().await;
    });
    let named = account.clone();
    started.keep("close-fields", move |stop| {
        close::follow_fields(named.clone(), stop, true)
    });
    let Some(nodes) = nodes else {
        started.keep("close", move |stop| close::supervise(account.clone(), stop));
        return;
    };
    let (following, shared) = (account.clone(), nodes.close);
    started.keep("close-shared", move |stop| {
        close::follow_shared(following.clone(), shared.clone(), stop)
    });
    let leases = nodes.leases;
    started.keep("close", move |stop| {
        nodes::look_after_close(account.clone(), leases.clone(), stop)
    });
}

/// Sinks, and what decides how long the log keeps events for them.
async fn start_delivery(
    started: &mut Started,
    config: &Config,
    log: &Arc<dyn Log>,
    names: &Arc<NameBook>,
    clock: &Clock,
    shared: Option<&(Nodes, &Why)>,
) -> anyhow::Result<(Engine, Arc<Retention>)> {
    let nodes = shared.map(|(nodes, _)| nodes);
    let begin = || build_delivery(config, log, names, Mode::Follow, clock.clone(), nodes);
    let engine = match shared {
        Some((_, why)) => why.patiently("the sinks can't begin", begin).await?,
        None => begin().await?,
    };
    let (stopping, leases) = (engine.clone(), nodes.map(|nodes| nodes.leases.clone()));
    if let Some(leases) = &leases {
        leases.set_at_work(true);
    }
    started.reserve("the sinks", FOR_SINKS, async move {
        if stopping.shutdown().await
            && let Some(leases) = leases
        {
            leases.set_at_work(false);
        }
    });
    // It ends before the sinks, which carry out what it asks for, and before the log.
    let retention = Arc::new(build_retention(config, log, &engine, clock.clone()));
    let kept = retention.clone();
    started.keep("retention", move |stop| {
        let retention = kept.clone();
        async move { retention.run(stop).await }
    });
    Ok((engine, retention))
}

/// The history's last minute has so long to be written: behind it sinks save how far they are.
const LAST_MINUTE_WITHIN: Duration = Duration::from_secs(5);

/// What keeps the last day for charts. It ends before the sinks that it asks how far they are behind.
async fn start_history(
    started: &mut Started,
    config: &Config,
    metrics: &PrometheusHandle,
    engine: &Engine,
) -> Arc<History> {
    let dir = config.log.dir.clone();
    let source = source_of_history(metrics.clone(), engine.clone());
    let open = task::begin_blocking(move || History::open(&dir, source, history::Clock::default()));
    let history = match open.await {
        Ok(history) => Arc::new(history),
        Err(_) => Arc::new(History::look(&config.log.dir)),
    };
    let last = history.clone();
    started.push("the history's last minute", async move {
        let written = task::begin_blocking(move || last.turn());
        if timeout(LAST_MINUTE_WITHIN, written).await.is_err() {
            tracing::warn!("the disk does not take the history's last minute: the charts will have a hole");
        }
    });
    let kept = history.clone();
    started.keep("history", move |stop| kept.clone().run(stop));
    history
}
