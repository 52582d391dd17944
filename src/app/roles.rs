//! How each part is made of the configuration. Nothing here decides when: the order is in [`super::run`] for the daemon, and in
//! [`super::directory`] for a command.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::runtime::Handle;

use super::nodes::{self, Nodes};
use crate::age::{Age, Clock};
use crate::close::{self, Account};
use crate::config::{Config, Fault, Listen};
use crate::control::Facts;
use crate::deliver::{self, Engine, Known, Mode};
use crate::ingress::front::Front;
use crate::ingress::memory::Budget;
use crate::ingress::verify::Verifier;
use crate::ingress::{Ingress, request_id, request_id_prefix};
use crate::listener::abuse::Guard;
use crate::listener::acme::Keeper;
use crate::listener::certificates::Certificates;
use crate::listener::connections::Limits;
use crate::listener::proxy::Proxies;
use crate::listener::sockets::{Listener, Passed};
use crate::listener::tls;
use crate::log::{self, LocalLog, Log, OpenError};
use crate::render::NameBook;
use crate::retention::{self, Retention};
use crate::rules::RuleSet;
use crate::task;
use crate::telemetry::door::Door;
use crate::telemetry::history::{Reading, Source};

/// Open files that connections must leave to the log, the sinks and the commands.
const FILES_KEPT: u64 = 512;

/// How often it is looked what may leave the log.
const RETENTION_ROUND: Duration = Duration::from_secs(2);

/// The first of some faults, where one is enough.
pub(super) fn first_fault(faults: &[Fault]) -> anyhow::Error {
    anyhow!(faults.first().map(ToString::to_string).unwrap_or_default())
}

/// Faults as people read them.
pub(super) fn sentences(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

/// Opens the log; `on` is where commits are answered from.
pub(super) async fn build_log(options: log::Options, on: &Handle) -> anyhow::Result<Result<Arc<dyn Log>, OpenError>> {
    let opened = task::begin_blocking_on(on, move || LocalLog::open(options)).await?;
    Ok(opened.map(|log| Arc::new(log) as Arc<dyn Log>))
}

/// The sinks, driven as `mode` says.
pub(super) async fn build_delivery(
    config: &Config,
    log: &Arc<dyn Log>,
    names: &Arc<NameBook>,
    mode: Mode,
    clock: Clock,
    nodes: Option<&Nodes>,
) -> anyhow::Result<Engine> {
    let rules = RuleSet::of(config).map_err(|faults| first_fault(&faults))?;
    let options = deliver::Options {
        log: log.clone(),
        store: match nodes {
            Some(nodes) => nodes.state.clone(),
            None => deliver::open_store(&config.log.dir, mode).await?,
        },
        dir: config.log.dir.clone(),
        rules: Arc::new(rules),
        sinks: config.sinks.clone(),
        mode,
        names: names.clone(),
        clock,
    };
    Ok(match nodes {
        Some(nodes) => {
            let leases = Arc::new(nodes.leases.clone());
            Engine::start_among(options, leases, Some(nodes.letters.clone())).await?
        }
        None => Engine::start(options).await?,
    })
}

/// What decides how long the log keeps events. Only for the daemon: a command drops nothing.
pub(super) fn build_retention(config: &Config, log: &Arc<dyn Log>, engine: &Engine, clock: Clock) -> Retention {
    let options = retention::Options {
        dir: config.log.dir.clone(),
        keep: config.log.retention.0,
        max_size: config.log.max_size.map(|size| size.0),
        on_servers: config.log.engine == crate::config::Engine::JetStream,
        round: RETENTION_ROUND,
    };
    Retention::new(options, log.clone(), Arc::new(engine.clone()), clock)
}

/// Reads what the charts are made of: the counters, and how far sinks are behind.
pub(super) fn source_of_history(metrics: PrometheusHandle, engine: Engine) -> Source {
    Box::new(move || {
        let mut reading = Reading::of_metrics(&metrics.render());
        for sink in engine.sinks() {
            let of_sink = reading.sinks.entry(sink.name).or_default();
            of_sink.lag_events = (sink.known != Known::Nothing).then_some(sink.lag_events);
            let is_known = sink.known.is_all() && !sink.lag_seconds.is_nan();
            of_sink.lag_seconds = is_known.then_some(sink.lag_seconds);
        }
        reading
    })
}

/// Our account at Close; nothing is contacted.
pub(super) fn build_account(
    config: &Config,
    log: &Arc<dyn Log>,
    verifier: &Arc<ArcSwap<Verifier>>,
    read_only: bool,
    age: &Arc<Age>,
    shared: Option<Arc<close::Shared>>,
) -> anyhow::Result<Account> {
    let rules = RuleSet::of(config).map_err(|faults| first_fault(&faults))?;
    let (log, verifier) = (log.clone(), verifier.clone());
    Ok(Account::open_shared(
        config,
        &rules,
        log,
        verifier,
        read_only,
        age.clone(),
        shared,
    ))
}

/// What answers requests to the public listener.
pub(super) fn build_ingress(
    config: &Config,
    log: &Arc<dyn Log>,
    verifier: &Arc<ArcSwap<Verifier>>,
    account: &Account,
    limits: &Limits,
    door: &Arc<Door>,
) -> Front {
    let server = &config.server;
    let (inflight_max, body_max) = (server.max_inflight.0 as usize, server.max_body.0 as usize);
    let ingress = Ingress {
        log: log.clone(),
        verifier: verifier.clone(),
        heard: account.heard().clone(),
        path: server.path.clone(),
        body_max: server.max_body.0,
        body_timeout: server.body_timeout.0,
        memory: Budget::new(inflight_max, body_max, limits.guard.proven().clone()),
        door: door.clone(),
    };
    Front {
        proxies: limits.proxies.clone(),
        guard: limits.guard.clone(),
        ingress: Arc::new(ingress),
    }
}

/// Where the certificate comes from; `None`: plain HTTP. Only for the holder of the data directory, where it may be kept.
pub(super) fn build_certificates(config: &Config) -> Result<Option<Certificates>, String> {
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
pub(super) async fn build_listener(
    passed: Option<Passed>,
    listen: &Listen,
    mode: u32,
    key: &str,
) -> anyhow::Result<Listener> {
    match passed {
        Some(passed) => passed
            .listen()
            .with_context(|| format!("the socket that was passed on in place of {key} can't be used")),
        None => Listener::bind(listen, mode).await.with_context(|| {
            format!("can't listen on {listen}: choose another address with {key}, or stop what uses it")
        }),
    }
}

/// What connections to the public listener may do.
pub(super) fn limits(config: &Config) -> Limits {
    let server = &config.server;
    Limits {
        proxies: Arc::new(Proxies {
            trusted: server.trusted_proxies.clone(),
            proxy_protocol: server.proxy_protocol,
        }),
        guard: Guard::new(
            server.allow.clone(),
            server.connections_per_address,
            server.failures_per_address.0,
        ),
        connections_max: connections_max(config.server.max_connections),
        head_timeout: config.server.head_timeout.0,
        idle_timeout: config.server.idle_timeout.0,
        drain_timeout: config.server.drain_timeout.0,
        are_counted: true,
        name: Some(request_id),
    }
}

/// Few connections, and nobody to be kept out: whoever reaches this listener is on this machine or was let in. The proxies are those of the
/// public listener, and say who it is that tries tokens; the PROXY protocol they speak there.
pub(super) fn limits_of_admin(public: &Limits) -> Limits {
    Limits {
        proxies: Arc::new(Proxies {
            trusted: public.proxies.trusted.clone(),
            proxy_protocol: false,
        }),
        guard: Guard::off(),
        connections_max: 64,
        drain_timeout: Duration::from_secs(1),
        are_counted: false,
        // What it answers may be what others have sent.
        name: None,
        ..public.clone()
    }
}

/// So many connections as are configured, or as the process may have files open beside its own: senders that open connections
/// and do nothing must not keep the log from opening a file.
fn connections_max(configured: usize) -> usize {
    let possible = log::raise_limit().map_or(usize::MAX, |files| {
        files.saturating_sub(FILES_KEPT).max(files / 2) as usize
    });
    if possible < configured {
        tracing::warn!(
            "server.max_connections is {configured}, and the limit of open files leaves room for {possible}: raise LimitNOFILE"
        );
    }
    configured.min(possible)
}

/// What is known of this process.
pub(super) fn facts(config: &Config, running: bool) -> Facts {
    Facts {
        running,
        pid: std::process::id(),
        unreachable: None,
        node: (running && nodes::are_several(config)).then(|| config.node.name.clone()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: jiff::Timestamp::now(),
        url: None,
        request_ids: request_id_prefix().to_owned(),
        admin: None,
        dir: config.log.dir.clone(),
    }
}
