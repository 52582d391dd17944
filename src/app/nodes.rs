//! What nodes share beside the log, where `log.engine` says that there are several: state, leases, and what is known of Close's side.
//!
//! | bucket | what is in it |
//! |---|---|
//! | `STREAM_state` | marks, replays, rules; below `sealed/`, encrypted, what is known of Close's side |
//! | `STREAM_nodes` | which nodes there are and who does what, orders from one to another |

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio_util::sync::CancellationToken;

use crate::close::{self, Account};
use crate::config::{Config, Engine};
use crate::log::jetstream::{self, JetStreamLog, OpenError, StreamJournal};
use crate::log::{self, Log};
use crate::node::{self, Leases, SharedLeases, Timing};
use crate::state::jetstream::{JetStreamStore, Options};
use crate::state::journal::Journal;
use crate::state::{SealedStore, Store};

/// A record of a node has to be renewed in time, or given up in time.
const NODES_PATIENCE: Duration = Duration::from_millis(1500);

/// Servers that can't be used at a start are tried again after so long, and it is said that often.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const SAID_EVERY: u32 = 30;

/// Servers that have answered at a start are believed to do so again within this.
const START_WITHIN: Duration = Duration::from_secs(60);

/// What looks after Close's side has so long to come to an end when this node has to let go of it.
const CLOSE_ENDS_WITHIN: Duration = Duration::from_secs(10);

/// How often it is looked whether Close's side is this node's.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What several nodes share.
#[derive(Debug, Clone)]
pub struct Nodes {
    /// Marks and jobs.
    pub state: Arc<dyn Store>,
    /// Who does what.
    pub leases: SharedLeases,
    /// Dead letters.
    pub letters: Arc<dyn Journal>,
    /// What is known of Close's side.
    pub close: Arc<close::Shared>,
}

/// Whether the configuration says that there may be several nodes.
pub(super) fn are_several(config: &Config) -> bool {
    config.log.engine == Engine::JetStream
}

fn bucket(config: &Config, of: &str, patience: Option<Duration>) -> anyhow::Result<JetStreamStore> {
    let settings = config.log.jetstream.as_ref();
    let settings = settings.context("log.jetstream is missing: engine = \"jetstream\" needs it")?;
    Ok(JetStreamStore::new(Options {
        way: jetstream::way(settings, &settings.login).map_err(|error| anyhow!(error))?,
        bucket: format!("{}_{of}", settings.stream),
        replicas: settings.replicas,
        patience,
    }))
}

fn buckets(config: &Config) -> anyhow::Result<[JetStreamStore; 2]> {
    Ok([
        bucket(config, "state", None)?,
        bucket(config, "nodes", Some(NODES_PATIENCE))?,
    ])
}

/// Makes the buckets that are missing, with the streams of the log; gives the names of what was made.
pub async fn create(config: &Config) -> anyhow::Result<Vec<String>> {
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    let mut made = jetstream::check::create(&options)
        .await
        .map_err(|error| anyhow!(error))?;
    for of in ["state", "nodes"] {
        let store = bucket(config, of, None)?;
        if store.create().await.map_err(|error| anyhow!(error))? {
            made.push(format!("KV_{}_{of}", options.stream));
        }
        store.close().await;
    }
    Ok(made)
}

/// What of the buckets weakens a promise, a sentence each. An error: they can't be looked at.
pub async fn faults(config: &Config) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    for of in ["state", "nodes"] {
        let store = bucket(config, of, None)?;
        faults.extend(store.faults().await.map_err(|error| anyhow!(error))?);
        store.close().await;
    }
    Ok(faults)
}

/// Connects to what nodes share. Reads secrets, contacts nobody.
pub(super) async fn build(config: &Config) -> anyhow::Result<Nodes> {
    let [state, nodes] = buckets(config)?;
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    let settings = config.log.jetstream.as_ref().context("log.jetstream is missing")?;
    let secret = settings.secret.as_ref();
    let secret = secret
        .context("log.jetstream.secret is missing")?
        .resolve()
        .map_err(|error| anyhow!(error))?;
    let (below, of): (Arc<dyn Store>, _) = (Arc::new(state.clone()), settings.stream.clone());
    let sealed = tokio::task::spawn_blocking(move || {
        SealedStore::new(below, secrecy::ExposeSecret::expose_secret(&secret), &of)
    });
    let sealed = sealed
        .await?
        .map_err(|error| anyhow!("log.jetstream.secret: {error}"))?;
    let leases = SharedLeases::new(node::Options {
        store: Arc::new(nodes),
        node: config.node.name.clone(),
        roles: config.node.roles.clone(),
        timing: Timing::default(),
    });
    Ok(Nodes {
        state: Arc::new(state),
        letters: Arc::new(StreamJournal::new(&options)),
        leases,
        close: close::Shared::new(Arc::new(sealed), &config.log.dir),
    })
}

/// Opens the log on its servers.
pub(super) async fn open_log(config: &Config) -> anyhow::Result<Arc<dyn Log>> {
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    Ok(Arc::new(JetStreamLog::open(options).await?))
}

/// The same for the daemon: where its servers can't be used now it waits for them. The directory is still its own.
pub(super) async fn open_log_patiently(config: &Config) -> anyhow::Result<(Arc<dyn Log>, std::fs::File)> {
    super::make_data_dir(&config.log.dir)?;
    let held = log::take_dir(&config.log.dir)?;
    if let Err(error) = log::note_serving(&config.log.dir) {
        tracing::debug!(%error, "the lock file could not be written");
    }
    let options = jetstream::Options::from_config(config).map_err(|error| anyhow!(error))?;
    for round in 0.. {
        match JetStreamLog::open(options.clone()).await {
            Ok(log) => return Ok((Arc::new(log), held)),
            Err(OpenError::Unreachable(why)) => {
                if round % SAID_EVERY == 0 {
                    tracing::error!("the log's servers can't be used now: {why}; until they can, nothing is received");
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            Err(refused) => bail!(refused),
        }
    }
    bail!("the log's servers can't be used")
}

/// Does what a start needs of the servers: they were there a moment ago, and may have to agree on a leader.
pub(super) async fn patiently<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    work: impl Fn() -> F,
) -> anyhow::Result<T> {
    let until = tokio::time::Instant::now() + START_WITHIN;
    loop {
        match work().await {
            Ok(done) => return Ok(done),
            Err(error) if tokio::time::Instant::now() >= until => bail!("{what}: {error}"),
            Err(error) => tracing::warn!("{what}, and this is tried again: {error}"),
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Looks after Close's side as long as this node has the lease for it.
pub(super) async fn look_after_close(account: Arc<Account>, leases: SharedLeases, stop: CancellationToken) {
    let mut changes = leases.changes();
    loop {
        let Some(lease) = leases.lease(node::CLOSE) else {
            let _ = tokio::time::timeout(LOOK_EVERY, stop.run_until_cancelled(changes.changed())).await;
            if stop.is_cancelled() {
                return;
            }
            continue;
        };
        tracing::info!("this node looks after Close's side");
        let end = CancellationToken::new();
        let caring = close::supervise(account.clone(), end.clone());
        tokio::pin!(caring);
        let mut has_ended = false;
        while !has_ended && lease.holds() && !stop.is_cancelled() {
            tokio::select! {
                () = &mut caring => has_ended = true,
                () = stop.cancelled() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        end.cancel();
        if !has_ended && tokio::time::timeout(CLOSE_ENDS_WITHIN, caring).await.is_err() {
            tracing::warn!("what looked after Close's side did not come to its end, and is cut off");
        }
        leases.give_up(node::CLOSE).await;
        if stop.is_cancelled() {
            return;
        }
    }
}
